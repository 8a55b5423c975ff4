"""A catalog's folder that was moved or copied, and one that is served while others look at it."""

import contextlib
import shutil
import sqlite3
import stat
from pathlib import Path

import pytest

from bluesky_cdi.catalog import ResultPublisher, load_result
from bluesky_cdi.catalog.relocation import _moved, relocate
from bluesky_cdi.catalog.server import ADDRESS, LOCK, served_at
from bluesky_cdi.cli import main
from bluesky_cdi.errors import CatalogError


@pytest.fixture(scope="module")
def write(session, journals, info):
    """Write a result with images in a file and events in a table."""

    def written(directory, estimate, uid):
        with session(directory) as catalog, journals(catalog, directory) as journal:
            ResultPublisher(info, directory / "results", journal.processed, derived_uid=uid).close(estimate)
            journal.feed()

    return written


@pytest.fixture(scope="module")
def original(empty_catalog, tmp_path_factory, write, make_estimate):
    directory = shutil.copytree(empty_catalog, tmp_path_factory.mktemp("moved") / "cata logue")
    write(directory, make_estimate(0), "one-1111")
    return directory


@pytest.fixture
def copy(original, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    return shutil.copytree(original, tmp_path / "elsewhere" / "ü 100%41")


def test_everything_is_found_where_the_folder_is_now(
    original, copy, session, write, make_estimate, assert_equal, caplog
):
    # Nothing may be read from where the folder was.
    away = original.with_name("away")
    before = (original / "catalog.db").read_bytes()
    original.rename(away)
    try:
        write(copy, make_estimate(1), "two-2222")
        assert f"the catalog was in {original}: its entries lead to {copy} now" in caplog.text
        caplog.clear()
        with session(copy) as catalog:
            for uid, seed in (("one-1111", 0), ("two-2222", 1)):
                assert_equal(load_result(catalog, uid), make_estimate(seed))
        assert "the catalog was in" not in caplog.text
    finally:
        away.rename(original)
    assert (original / "catalog.db").read_bytes() == before


def test_what_was_written_after_an_earlier_move_keeps_its_address(copy):
    """Tables have one address in a catalog; both places' entries come to it."""
    with contextlib.closing(sqlite3.connect(copy / "catalog.db")) as database, database:
        database.execute(
            "INSERT INTO assets (data_uri, is_directory) VALUES (?, 0)", (f"sqlite://localhost/{copy}/tables.db",)
        )
    assert relocate(copy) > 0 and relocate(copy) == 0
    query = (
        "SELECT data_uri, count(*) FROM assets JOIN data_source_asset_association ON asset_id = assets.id "
        "WHERE data_uri LIKE 'sqlite%' GROUP BY assets.id"
    )
    with contextlib.closing(sqlite3.connect(copy / "catalog.db")) as database:
        ((uri, associated),) = database.execute(query)
    assert uri == f"sqlite://localhost/{copy}/tables.db" and associated == 1


def test_runs_that_wait_are_brought_in_before_a_move(copy):
    (copy / "journal" / "raw" / "waiting.journal").write_bytes(b"")
    before = (copy / "catalog.db").read_bytes()
    with pytest.raises(CatalogError, match=r"1 run\(s\) that it has not taken yet.*bluesky-cdi restore '.*cata logue'"):
        relocate(copy)
    assert (copy / "catalog.db").read_bytes() == before


@pytest.mark.parametrize(
    ("uri", "moved"),
    [
        ("file://localhost/a b/results/x.h5", "file://localhost/c d/results/x.h5"),
        ("file://localhost/a%20b/frames/x.h5", "file://localhost/c%20d/frames/x.h5"),
        ("file:///a%20b/frames/x.h5", "file:///c%20d/frames/x.h5"),
        ("sqlite://localhost//a b/tables.db", "sqlite://localhost//c d/tables.db"),
        ("file://localhost/a bc/results/x.h5", None),
        ("file://localhost/detector/a b/x.h5", None),
    ],
)
def test_addresses(uri, moved):
    assert _moved(uri, Path("/a b"), Path("/c d")) == moved


def test_a_served_folder_is_browsed_through_its_server(original, session, capsys):
    assert served_at(original) is None
    with session(original) as catalog:
        assert stat.S_IMODE((original / ADDRESS).stat().st_mode) == 0o600
        assert served_at(original).startswith(catalog.uri.rstrip("/"))
        assert main(["browse", str(original)]) == 0
        assert capsys.readouterr().out.splitlines()[1].split()[-1] == "one-1111"
    assert served_at(original) is None and not (original / ADDRESS).exists()
    # What a killed session leaves is no server.
    (original / ADDRESS).write_text("http://127.0.0.1:1/api/v1?api_key=gone\n")
    assert served_at(original) is None


@pytest.mark.parametrize("left", [b"http://127.0.0.1:1/api/v1?api_key=k\n", b"\xff", None])
def test_a_lock_that_can_not_be_opened_is_no_error(tmp_path, monkeypatch, left):
    """It is of another user, say; who may read the address, though, may use it."""

    def refuse(*_, **__):
        raise sqlite3.OperationalError("unable to open database file")

    (tmp_path / LOCK).write_bytes(b"")
    if left is not None:
        (tmp_path / ADDRESS).write_bytes(left)
    monkeypatch.setattr("bluesky_cdi.catalog.server.sqlite3.connect", refuse)
    assert served_at(tmp_path) == ("http://127.0.0.1:1/api/v1?api_key=k" if left and left.isascii() else None)
