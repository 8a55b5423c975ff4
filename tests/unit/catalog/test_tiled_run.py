"""A run that is written with fewer requests is in Tiled as Tiled's own writer leaves it."""

import collections
import shutil

import httpx
import numpy as np
import pytest
from bluesky_tiled_plugins import TiledWriter
from tiled.server import streaming

from bluesky_cdi.catalog import ResultPublisher, open_catalog, serve
from bluesky_cdi.catalog.closing import CLOSE_ALL
from bluesky_cdi.catalog.run_writer import RunWriter


@pytest.fixture
def documents(info, make_estimate, tmp_path):
    """The documents of a result of two updates, whose arrays are in files."""

    def made(uid):
        came = []
        publisher = ResultPublisher(info, tmp_path / uid, lambda *document: came.append(document), derived_uid=uid)
        publisher.publish(make_estimate(0))
        publisher.publish(make_estimate(1))
        publisher.close(None, "abort")
        return came

    return made


@pytest.fixture
def requests(monkeypatch):
    """What is asked of the server, counted by method and the first part of the address."""
    counts, send = collections.Counter(), httpx.Client.send

    def counted(client, request, **options):
        counts[request.method, request.url.path.removeprefix("/api/v1/").split("/raw")[0].split("/processed")[0]] += 1
        return send(client, request, **options)

    monkeypatch.setattr(httpx.Client, "send", counted)
    return counts


def test_it_is_as_of_tileds_own_writer(empty_catalog, documents, requests, tmp_path, monkeypatch):
    ended, store = [], streaming._DATASTORES["memory"]

    class Store(store):
        """Counts who is told that nothing more comes."""

        async def close(self, node_id):
            await super().close(node_id)
            ended.append(node_id)

    monkeypatch.setitem(streaming._DATASTORES, "memory", Store)
    directory = shutil.copytree(empty_catalog, tmp_path / "catalog")

    def write(uid, writer):
        ended.clear()
        requests.clear()
        for name, doc in documents(uid):
            writer(name, doc)
        assert len(set(ended)) == len(ended)
        return len(ended), dict(requests)

    with serve(directory, readable=[tmp_path]) as uri:
        catalog = open_catalog(uri)
        ours = RunWriter(catalog.processed)
        theirs = TiledWriter(catalog.processed, batch_size=1, max_array_size=0)
        n_ended, asked = write("written-by-tiled", theirs)
        n_ours, asked_ours = write("written-here", lambda name, doc: ours.write(name, [doc]))
        arrays = asked["POST", "register"]
        # An array each, the table of the events, the stream, and the run.
        assert n_ours == n_ended == arrays + 3
        assert asked["DELETE", "stream/close"] == n_ended
        assert [count for (method, _), count in asked_ours.items() if method == "DELETE"] == [1]
        assert asked_ours["DELETE", CLOSE_ALL] == 1
        # The second update is one for both.
        assert (asked_ours["PUT", "data_source"], asked["PUT", "data_source"]) == (arrays, 2 * arrays)

        found, wanted = catalog.processed["written-here"], catalog.processed["written-by-tiled"]
        assert list(found) == list(wanted)
        for stream in wanted:
            assert sorted(found[stream].base) == sorted(wanted[stream].base)
            for key in wanted[stream].base:
                if key != "internal":
                    node = found[stream].base[key]
                    assert (node.shape, node.dtype) == (wanted[stream].base[key].shape, wanted[stream].base[key].dtype)
                    np.testing.assert_array_equal(node.read(), wanted[stream].base[key].read(), err_msg=key)

        # A server that knows nothing of it is asked once for each.
        delete = httpx.Client.delete

        def elsewhere(client, url, **options):
            return httpx.Response(404) if CLOSE_ALL in str(url) else delete(client, url, **options)

        monkeypatch.setattr(httpx.Client, "delete", elsewhere)
        plain = RunWriter(catalog.processed)
        n_plain, asked_plain = write("elsewhere", lambda name, doc: plain.write(name, [doc]))
        assert n_plain == asked_plain["DELETE", "stream/close"] == n_ended
        catalog.close()


def test_streams_are_closed_by_who_may_write_only(empty_catalog, tmp_path):
    with serve(shutil.copytree(empty_catalog, tmp_path / "catalog"), public=True) as uri:
        address = uri.split("?")[0]
        answer = httpx.delete(f"{address}/{CLOSE_ALL}/raw", trust_env=False)
        assert answer.status_code in (401, 403)
