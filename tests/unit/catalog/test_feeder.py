"""From the journal to the catalog; what a killed process leaves is tested in tests/faults."""

import contextlib
import logging
import shutil

import httpx
import numpy as np
import pytest
import stamina
from event_model import compose_run
from tiled.client.dataframe import DataFrameClient

from bluesky_cdi.catalog import open_catalog, serve
from bluesky_cdi.catalog.feeder import Feeder, waiting_files
from bluesky_cdi.errors import CatalogError
from bluesky_cdi.journal import Journal, JournalReader

SOON_S = 240.0


@pytest.fixture(scope="module")
def catalog(empty_catalog, tmp_path_factory, patient):
    directory = shutil.copytree(empty_catalog, tmp_path_factory.mktemp("feeder") / "catalog")
    with serve(directory) as uri:
        opened = open_catalog(uri)
        yield opened
        opened.close()


def documents(n=20, shapes=None, stop=True, data_keys=None):
    """The documents of a run with n events; event k has a frame of shapes(k)."""
    run = compose_run(metadata={"scan_id": 1})
    keys = data_keys or {
        "y": {"source": "s", "dtype": "number", "dtype_numpy": "<f8", "shape": []},
        "frame": {"source": "s", "dtype": "array", "dtype_numpy": "<u2", "shape": [4, 4]},
    }
    stream = run.compose_descriptor(name="primary", data_keys=keys)
    docs = [("start", run.start_doc), ("descriptor", stream.descriptor_doc)]
    for k in range(n):
        frame = np.full(shapes(k) if shapes else (4, 4), k, np.uint16)
        data = {"y": 0.5 * k, "frame": frame}
        docs.append(("event", stream.compose_event(data=data, timestamps=dict.fromkeys(data, k), validate=False)))
    return [*docs, ("stop", run.compose_stop())] if stop else docs


@pytest.fixture
def journal(tmp_path):
    opened = Journal(tmp_path / "journal" / "raw")
    yield opened
    opened.close()


@pytest.fixture
def feeder(catalog, tmp_path):
    with contextlib.closing(Feeder(tmp_path / "journal", catalog)) as opened:
        yield opened


def write(journal, docs):
    for name, doc in docs:
        journal(name, doc)


def read(path):
    with contextlib.closing(JournalReader(path)) as reader:
        return list(reader.documents())


def feed(feeder):
    """Feed until it is done with every run that has ended."""
    return feeder.finish(SOON_S)


def check(catalog, docs, left_out=()):
    """The catalog has each event of the documents once, with its values, and the run's end."""
    (_, start), (_, stop) = docs[0], docs[-1]
    run = catalog.raw[start["uid"]]
    events = [doc for name, doc in docs if name == "event" and doc["seq_num"] not in left_out]
    table = run["primary"].base["internal"].read()
    assert list(table["seq_num"]) == [doc["seq_num"] for doc in events]
    assert list(table["y"]) == [doc["data"]["y"] for doc in events]
    np.testing.assert_array_equal(run["primary"]["frame"].read(), [doc["data"]["frame"] for doc in events])
    assert run.stop["uid"] == stop["uid"] and run.start["scan_id"] == 1


def test_a_run_comes_with_every_event_once_and_its_file_goes(catalog, journal, feeder):
    docs = documents()
    write(journal, docs)
    (fed,) = feed(feeder)
    assert (fed.uid, fed.container, fed.events, fed.refused, fed.note) == (docs[0][1]["uid"], "raw", 20, 0, "")
    check(catalog, docs)
    assert not list(journal.folder.iterdir())


def test_a_growing_run_is_seen_while_it_grows(catalog, journal, feeder):
    docs = documents(40)
    uid = docs[0][1]["uid"]
    write(journal, docs[:36])
    assert not feeder.feed()
    assert len(catalog.raw[uid]["primary"].base["internal"].read()) == 32
    write(journal, docs[36:])
    assert len(feed(feeder)) == 1
    check(catalog, docs)


def test_another_feeder_goes_on_where_one_stopped_anywhere(catalog, tmp_path):
    for n in (1, 2, 18, 19, 22):
        folder = tmp_path / str(n)
        docs = documents()
        journal = Journal(folder / "raw")
        write(journal, docs[:n])
        with contextlib.closing(Feeder(folder, catalog)) as first:
            first.feed()
        write(journal, docs[n:])
        journal.close()
        assert [fed.events for fed in feed(Feeder(folder, catalog))] == [20]
        check(catalog, docs)


def test_a_server_that_goes_away_costs_nothing(catalog, journal, feeder, monkeypatch, tmp_path):
    docs = documents()
    write(journal, docs)
    send, calls = httpx.Client.send, []

    def away(client, request, **options):
        calls.append(request.method)
        if len(calls) > 8:
            raise httpx.HTTPStatusError("away", request=request, response=httpx.Response(503, request=request))
        return send(client, request, **options)

    # Without the client's own pauses between its attempts.
    with monkeypatch.context() as patch, stamina.set_testing(True, attempts=2):
        patch.setattr(httpx.Client, "send", away)
        for _ in range(6):
            with pytest.raises(CatalogError, match=r"can't use the catalog at .*away"):
                feeder.feed()
    assert len(waiting_files(tmp_path / "journal")) == 1
    assert [fed.events for fed in feed(feeder)] == [20]
    check(catalog, docs)


def test_what_the_catalog_refuses_is_kept_apart_and_the_rest_comes(catalog, journal, feeder, caplog):
    docs = documents(24, shapes=lambda k: (5, 3) if k in (6, 20) else (4, 4))
    other = documents()
    write(journal, docs)
    write(journal, other)
    with caplog.at_level(logging.ERROR, "bluesky_cdi"):
        fed = {each.uid: each for each in feed(feeder)}
    uid = docs[0][1]["uid"]
    assert (fed[uid].events, fed[uid].refused) == (22, 2) and fed[other[0][1]["uid"]].refused == 0
    check(catalog, docs, left_out=(7, 21))
    check(catalog, other)
    kept = journal.folder.parent / "refused" / f"{uid}.journal"
    assert f"does not take document 8 of run {uid}" in caplog.text and str(kept) in caplog.text
    assert [doc.get("seq_num") for _, doc in read(kept)] == [None, None, 7, 21, None]


def test_a_run_that_can_not_be_written_at_all_does_not_block_others(catalog, journal, feeder, caplog):
    docs, other = documents(), documents()
    docs[0][1]["tiled_specs"] = [7]
    write(journal, docs)
    write(journal, other)
    with caplog.at_level(logging.ERROR, "bluesky_cdi"):
        feed(feeder)
    check(catalog, other)
    uid = docs[0][1]["uid"]
    assert f"run {uid} can't be written to the catalog" in caplog.text
    assert len(read(journal.folder.parent / "refused" / f"{uid}.journal")) == len(docs)


def test_a_run_whose_process_died_is_ended(catalog, tmp_path, feeder):
    docs = documents(stop=False)
    journal = Journal(tmp_path / "journal" / "raw")
    write(journal, docs)
    assert not feeder.feed() and waiting_files(tmp_path / "journal")
    journal.close()
    (fed,) = feed(feeder)
    assert (fed.events, fed.note) == (20, "the process that wrote this run ended before the run did")
    run = catalog.raw[docs[0][1]["uid"]]
    assert run.stop["exit_status"] == "fail" and run.stop["reason"] == fed.note
    assert run.stop["num_events"] == {"primary": 20}


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_a_damaged_file_gives_what_is_whole(catalog, tmp_path, feeder, damage, caplog):
    docs = documents(stop=False)
    journal = Journal(tmp_path / "journal" / "raw")
    write(journal, docs)
    journal.close()
    path = tmp_path / "journal" / "raw" / f"{docs[0][1]['uid']}.journal"
    data = bytearray(path.read_bytes())
    if damage == "cut":
        data = data[:-5]
    else:
        data[-5] ^= 1
    path.write_bytes(data)
    with caplog.at_level(logging.ERROR, "bluesky_cdi"):
        (fed,) = feed(feeder)
    assert fed.events == 19 and ("damaged" in fed.note) == (damage == "flipped")
    assert catalog.raw[docs[0][1]["uid"]].stop["exit_status"] == "fail"
    kept = tmp_path / "journal" / "refused" / path.name
    assert kept.is_file() == (damage == "flipped") and not path.exists()


def test_rows_that_came_twice_are_noticed(catalog, journal, feeder, caplog, monkeypatch):
    docs = documents()
    write(journal, docs)
    append, calls = DataFrameClient.append_partition, []

    def twice(client, partition, table):
        # As when the server's answer is lost and the request is sent again.
        calls.append(len(table))
        if len(calls) == 1:
            append(client, partition, table)
        return append(client, partition, table)

    monkeypatch.setattr(DataFrameClient, "append_partition", twice)
    with caplog.at_level(logging.WARNING, "bluesky_cdi"):
        assert [fed.events for fed in feed(feeder)] == [20]
    assert "came to the catalog with {'primary': 36} events in place of {'primary': 20}" in caplog.text
    check(catalog, docs)
