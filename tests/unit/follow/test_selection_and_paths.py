"""Which runs are taken, and where their files are."""

from pathlib import Path

import pytest

from bluesky_cdi.errors import ConfigError, ScanFileError
from bluesky_cdi.follow import FilePaths, Selection


def test_what_the_start_document_must_say():
    chosen = Selection.parse(["instrument=ptycho", "instrument=26", "sample.name=gold"])
    assert chosen.why_not({"uid": "a", "instrument": 26, "sample": {"name": "gold"}}) == ""
    assert chosen.why_not({"uid": "a", "instrument": "ptycho", "sample.name": "gold"}) == ""
    assert "instrument is xrf, and ptycho or 26 is wanted" in chosen.why_not({"uid": "a", "instrument": "xrf"})
    assert "sample.name is not stated" in chosen.why_not({"uid": "a", "instrument": "ptycho", "sample": "gold"})


@pytest.mark.parametrize("n", [1, 2, 5])
def test_every_run_is_taken_by_one_of_the_followers_that_share_them(n):
    shares = [Selection.parse(share=f"{k + 1}/{n}") for k in range(n)]
    taken = [[not share.why_not({"uid": f"run-{k}"}) for share in shares] for k in range(200)]
    assert all(sum(each) == 1 for each in taken)
    assert all(sum(by) > 200 / n / 2 for by in zip(*taken, strict=True))


@pytest.mark.parametrize("share", ["0/2", "3/2", "1", "a/b", "1/2/3", ""])
def test_shares_that_are_none(share):
    with pytest.raises(ConfigError, match="a share is K/N"):
        Selection.parse(share=share)


def test_pairs_that_are_none():
    with pytest.raises(ConfigError, match="KEY=VALUE"):
        Selection.parse(["instrument"])


PATHS = FilePaths.parse(["/beamline=/mnt/beamline", "/beamline/fast=/mnt/fast/", "/data"])


@pytest.mark.parametrize(
    ("uri", "here"),
    [
        ("file://localhost/beamline/2026/scan.h5", "/mnt/beamline/2026/scan.h5"),
        ("file:///beamline/fast/scan.h5", "/mnt/fast/scan.h5"),
        ("file://ws1/data/a%20b.h5", "/data/a b.h5"),
        ("file://localhost/data/x/../scan.h5", "/data/scan.h5"),
    ],
)
def test_files_are_found_here(uri, here):
    doc = {"uid": "r", "uri": uri, "parameters": {}}
    assert PATHS.translate("stream_resource", doc) == {**doc, "uri": Path(here).as_uri()}


def test_files_of_older_schemas():
    doc = {"uid": "r", "root": "/beamline", "resource_path": "fast/a.h5", "spec": "AD_HDF5"}
    assert PATHS.translate("resource", doc) == {**doc, "root": "/", "resource_path": "mnt/fast/a.h5"}
    assert PATHS.translate("event", {"uid": "e"}) == {"uid": "e"}


@pytest.mark.parametrize(
    "uri", ["file:///etc/passwd", "file:///data/../etc/passwd", "file:///data2/a.h5", "file:///data/%2e%2e/etc/x"]
)
def test_files_elsewhere_are_not_opened(uri):
    with pytest.raises(ScanFileError, match="--paths"):
        PATHS.translate("stream_resource", {"uid": "r", "uri": uri})
    with pytest.raises(ScanFileError, match="--paths"):
        FilePaths().translate("stream_resource", {"uid": "r", "uri": "file:///data/a.h5"})


def test_what_is_in_no_file():
    with pytest.raises(ScanFileError, match="must lie in a file"):
        PATHS.translate("stream_resource", {"uid": "r", "uri": "http://host/data/a.h5"})


@pytest.mark.parametrize("text", ["data", "/data=mnt", "=/mnt"])
def test_paths_that_are_not_absolute(text):
    with pytest.raises(ConfigError, match="absolute"):
        FilePaths.parse([text])
