"""Numbers of runs of several sessions on one catalog."""

import asyncio
import logging
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from bluesky_cdi.catalog import open_catalog, serve
from bluesky_cdi.catalog.scan_numbers import CLAIMS_KEPT, ScanNumbers

SOON_S = 240.0


@pytest.fixture(scope="module")
def uri(empty_catalog, tmp_path_factory):
    with serve(shutil.copytree(empty_catalog, tmp_path_factory.mktemp("numbers") / "catalog")) as uri:
        yield uri


@pytest.fixture
def catalogs(uri):
    with closing(open_catalog(uri)) as first, closing(open_catalog(uri)) as second:
        yield first, second


class Client:
    """A RunEngine as far as its numbers are concerned."""

    def __init__(self, catalog, folder, **options):
        self.numbers, self.metadata = ScanNumbers(catalog, folder, **{"timeout_s": SOON_S, **options}), {}

    def run(self):
        self.metadata["scan_id"] = asyncio.run(self.numbers(self.metadata))
        return self.metadata["scan_id"]


@pytest.fixture
def unreachable(uri):
    """A catalog whose server is gone for this client: each request fails at once."""
    import httpx

    with closing(open_catalog(uri)) as catalog:

        def refuse(*_, **__):
            raise httpx.ConnectError("refused")

        catalog.raw.context.http_client.send = refuse
        yield catalog


@pytest.mark.parametrize("folders", [("a", "a"), ("a", "b")], ids=["one folder", "two machines"])
def test_two_sessions_that_take_turns(catalogs, tmp_path, folders):
    first, second = (Client(catalog, tmp_path / folder) for catalog, folder in zip(catalogs, folders, strict=True))
    numbers = [client.run() for client in (first, second, first, second, second, first)]
    assert numbers == list(range(numbers[0], numbers[0] + 6))


def test_many_sessions_at_once(uri, tmp_path):
    catalogs = [open_catalog(uri) for _ in range(4)]
    start = threading.Barrier(4)

    def runs(k):
        client = Client(catalogs[k], tmp_path / str(k % 2))
        start.wait(SOON_S)
        return [client.run() for _ in range(3)]

    with ThreadPoolExecutor(4) as pool:
        numbers = [number for each in pool.map(runs, range(4)) for number in each]
    for catalog in catalogs:
        catalog.close()
    assert len(set(numbers)) == 12


def test_only_the_newest_claims_stay(catalogs, tmp_path):
    client = Client(catalogs[0], tmp_path)
    first = client.run()
    client.metadata["scan_id"] = first + 3 * CLAIMS_KEPT
    last = client.run()
    assert last == first + 3 * CLAIMS_KEPT + 1
    assert client.run() == last + 1
    from tiled.client import from_context

    kept = list(from_context(catalogs[0].raw.context)["scan_numbers"])
    assert str(last) in kept and str(first) not in kept


def test_runs_of_other_programs_count(catalogs, tmp_path):
    from bluesky_tiled_plugins import TiledWriter
    from event_model import compose_run

    number = Client(catalogs[0], tmp_path).run() + 1000
    run = compose_run(metadata={"scan_id": number})
    writer = TiledWriter(catalogs[0].raw)
    writer("start", run.start_doc)
    writer("stop", run.compose_stop())
    assert Client(catalogs[1], tmp_path / "b").run() == number + 1


def test_without_the_server_sessions_of_one_folder_differ_and_it_is_told(catalogs, unreachable, tmp_path, caplog):
    with_server, without, too = (Client(c, tmp_path) for c in (catalogs[0], unreachable, unreachable))
    with caplog.at_level(logging.WARNING):
        numbers = [client.run() for client in (with_server, without, too, with_server, without)]
    assert numbers == list(range(numbers[0], numbers[0] + 5))
    assert caplog.text.count("was numbered without the catalog's server (CatalogError(") == 3


def test_a_server_that_hangs_costs_one_time_out(catalogs, tmp_path, caplog, monkeypatch):
    go = threading.Event()
    real = catalogs[0].raw.context.http_client.send

    def hang(*args, **options):
        assert go.wait(SOON_S)
        return real(*args, **options)

    before = Client(catalogs[1], tmp_path).run()
    monkeypatch.setattr(catalogs[0].raw.context.http_client, "send", hang)
    client = Client(catalogs[0], tmp_path, timeout_s=0.2)
    with caplog.at_level(logging.WARNING):
        assert [client.run(), client.run()] == [before + 1, before + 2]
    assert "TimeoutError()" in caplog.text and "has not answered the question before" in caplog.text
    go.set()
    assert Client(catalogs[1], tmp_path).run() > before + 2


def test_a_folder_that_can_not_be_written_is_told(catalogs, unreachable, tmp_path, caplog):
    (tmp_path / "file").touch()
    client = Client(unreachable, tmp_path / "file" / "folder")
    client.metadata["scan_id"] = 41
    with caplog.at_level(logging.WARNING):
        assert client.run() == 42
    assert "the last scan number can't be noted in" in caplog.text
    (tmp_path / "last_scan_number").write_text("damaged")
    client = Client(unreachable, tmp_path)
    client.metadata["scan_id"] = 41
    assert client.run() == 42
