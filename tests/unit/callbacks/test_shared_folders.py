"""Folders of another machine: where their files are here, and which are not opened."""

import pytest

from bluesky_cdi.callbacks import SharedFolders
from bluesky_cdi.errors import ConfigError, ScanFileError


@pytest.fixture
def here(tmp_path):
    for name in ("mnt/beamline", "mnt/fast", "data"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "mounted").symlink_to(tmp_path / "mnt")
    return tmp_path


@pytest.fixture
def folders(here):
    return SharedFolders.parse(
        [f"/beamline={here}/mounted/beamline", f"/beamline/x/../fast={here}/mnt/fast/", f"{here}/data"]
    )


@pytest.mark.parametrize(
    ("uri", "found"),
    [
        ("file://localhost/beamline/2026/scan.h5", "mnt/beamline/2026/scan.h5"),
        ("file:///beamline/fast/scan.h5", "mnt/fast/scan.h5"),
        ("file://ws1/HERE/data/a%20b.h5", "data/a b.h5"),
        ("file://localhost/HERE/data/x/../scan.h5", "data/scan.h5"),
    ],
)
def test_files_are_found_here(folders, here, uri, found):
    doc = {"uid": "r", "uri": uri.replace("/HERE", str(here)), "parameters": {}}
    assert folders.translate("stream_resource", doc) == {**doc, "uri": (here / found).as_uri()}


def test_files_of_older_schemas(folders, here):
    doc = {"uid": "r", "root": "/beamline", "resource_path": "fast/a.h5", "spec": "AD_HDF5"}
    assert folders.translate("resource", doc) == {**doc, "root": "/", "resource_path": f"{here}/mnt/fast/a.h5"[1:]}
    assert folders.translate("event", {"uid": "e"}) == {"uid": "e"}


@pytest.mark.parametrize("path", ["/etc/passwd", "/beamline/../etc/a", "/beamline2/a.h5", "/beamline/%2e%2e/etc/x"])
def test_files_elsewhere_are_not_opened(folders, path):
    for table in (folders, SharedFolders()):
        with pytest.raises(ScanFileError, match="--paths"):
            table.translate("stream_resource", {"uid": "r", "uri": f"file://{path}"})


def test_links_lead_into_the_folders_alone(folders, here):
    (here / "data" / "out").symlink_to("/etc")
    (here / "data" / "a.h5").symlink_to("/etc/a.h5")
    (here / "data" / "in").symlink_to(here / "mnt" / "fast")
    for name in ("out/a.h5", "a.h5"):
        with pytest.raises(ScanFileError, match=r"a link leads to /etc/a.h5"):
            folders.translate("stream_resource", {"uid": "r", "uri": f"file://{here}/data/{name}"})
    assert folders.find(f"{here}/data/in/a.h5") == here / "mnt" / "fast" / "a.h5"


def test_paths_that_can_be_none(folders, here):
    with pytest.raises(ScanFileError, match="can't be the path of a file"):
        folders.find("/beamline/a\0.h5")
    # A link in a circle is a file that is not there.
    (here / "data" / "circle").symlink_to(here / "data" / "circle")
    assert folders.find(f"{here}/data/circle/a.h5") == here / "data" / "circle" / "a.h5"


def test_what_is_in_no_file(folders):
    with pytest.raises(ScanFileError, match="must lie in a file"):
        folders.translate("stream_resource", {"uid": "r", "uri": "http://host/beamline/a.h5"})


@pytest.mark.parametrize("text", ["data", "/data=mnt", "=/", "/data=", "/beamline=/not/there", "/not/there", ""])
def test_folders_that_are_none(text):
    with pytest.raises(ConfigError, match="--paths takes an absolute folder"):
        SharedFolders.parse([text])
