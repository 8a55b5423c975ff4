"""A folder's catalog opened in Python."""

import contextlib
import shutil
import sqlite3

import pytest
from tiled.client.utils import ClientError

from bluesky_cdi import open_catalog
from bluesky_cdi.catalog import ResultPublisher, publishing
from bluesky_cdi.catalog.server import LOCK, served_at
from bluesky_cdi.errors import CatalogError


@pytest.fixture(scope="module")
def made(session, journals, empty_catalog, tmp_path_factory, info, make_estimate):
    """A folder with one result, to copy."""
    directory = shutil.copytree(empty_catalog, tmp_path_factory.mktemp("made") / "catalog")
    with session(directory) as catalog, journals(catalog, directory) as open_journals:
        ResultPublisher(info, directory / "results", open_journals.processed, derived_uid="aaaa1111").close(
            make_estimate(0)
        )
    return directory


@pytest.fixture
def written(made, tmp_path):
    """A folder with one result, which nobody has now."""
    return shutil.copytree(made, tmp_path / "catalog")


def test_reading_a_folder_keeps_no_session_from_it(written):
    with open_catalog(written) as catalog:
        assert catalog.latest().uid == "aaaa1111"
        with contextlib.closing(sqlite3.connect(written / LOCK, timeout=0)) as of_a_session:
            of_a_session.execute("BEGIN EXCLUSIVE")
        assert served_at(written) is None
        with pytest.raises(ClientError, match="read-only"):
            catalog.processed["aaaa1111"].delete(recursive=True, external_only=False)


def test_a_folder_that_is_opened_twice_is_open_until_both_are_closed(written):
    first, second = open_catalog(written), open_catalog(str(written))
    first.close()
    assert second.latest().uid == "aaaa1111"
    second.close()
    with open_catalog(written) as catalog:
        assert catalog.latest().uid == "aaaa1111"


def test_one_that_is_read_takes_no_result_and_says_how(written, info, make_estimate):
    how = r"open_catalog\(folder, writable=True\)"
    with open_catalog(written) as catalog, pytest.raises(CatalogError, match=how), publishing(catalog, info, written):
        pass
    with open_catalog(written, writable=True) as catalog:
        assert catalog.directory == written
        with publishing(catalog, info, written) as publisher:
            publisher.close(make_estimate(1))
        with open_catalog(written) as beside:
            assert beside.latest().uid == publisher.uid
            assert [result.summary.complete for result in beside.search()] == [True, True]


def test_a_folder_without_a_catalog(tmp_path):
    with pytest.raises(CatalogError, match=r"holds no catalog\. Give the folder of a session, or the address"):
        open_catalog(tmp_path)
    assert not list(tmp_path.iterdir())
