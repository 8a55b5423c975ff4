"""From the journal to the catalog; what a killed process leaves is tested in tests/faults."""

import contextlib
import errno
import logging
import shutil
import threading

import httpx
import numpy as np
import pytest
import stamina
from event_model import compose_run
from tiled.client.dataframe import DataFrameClient

from bluesky_cdi.catalog import feeder as feeder_module
from bluesky_cdi.catalog import open_catalog, run_documents, run_transfer, serve
from bluesky_cdi.catalog.feeder import PATIENCE, RAW, Feeder, waiting_files
from bluesky_cdi.catalog.waiting_documents import Patience
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


def test_what_is_not_a_full_batch_is_seen_soon_and_written_at_once(catalog, journal, feeder, monkeypatch):
    """A decision does not wait for fifteen others; frames that came since the last look are one write."""
    written, append = [], DataFrameClient.append_partition
    monkeypatch.setattr(
        DataFrameClient, "append_partition", lambda *args: written.append(len(args[2])) or append(*args)
    )
    # As after half a second in which nothing has come; that it is waited for is tested by a clock of its own.
    monkeypatch.setitem(PATIENCE, RAW, Patience(16))
    docs = documents(20)
    uid = docs[0][1]["uid"]
    write(journal, docs[:5])
    assert not feeder.feed()
    assert list(catalog.raw[uid]["primary"].base["internal"].read()["seq_num"]) == [1, 2, 3]
    write(journal, docs[5:])
    assert len(feed(feeder)) == 1
    assert written == [3, 16, 1]
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


MASK = np.arange(16).reshape(4, 4) % 5 == 0
MASKED_KEYS = {
    "y": {"source": "s", "dtype": "number", "dtype_numpy": "<f8", "shape": []},
    "n": {"source": "s", "dtype": "integer", "dtype_numpy": "<i8", "shape": []},
    "frame": {"source": "s", "dtype": "array", "dtype_numpy": "<u2", "shape": [4, 4]},
    "sums": {"source": "s", "dtype": "array", "dtype_numpy": "<f4", "shape": [2]},
}


def masked_documents(masked, n=20):
    """The documents of a run of which the events in `masked`, by their index, hold masked arrays."""
    docs = documents(n, data_keys=MASKED_KEYS)
    docs[0][1]["widths"] = np.ma.array([1, 2], mask=[False, True])
    for k in range(n):
        data = docs[2 + k][1]["data"]
        data.update(n=k, sums=np.array([k, 0.5], np.float32))
        if k in masked:
            data.update(y=np.ma.masked, n=np.ma.array(k, mask=True), sums=np.ma.array(data["sums"], mask=[False, True]))
            data["frame"] = np.ma.array(data["frame"], mask=MASK)
        docs[2 + k][1]["timestamps"] = dict.fromkeys(data, float(k))
    return docs


@pytest.mark.parametrize("masked", [{0, 19}, {18}], ids=["from the first event on", "when others were written"])
def test_masked_arrays_come_with_their_masks(catalog, journal, feeder, masked, caplog):
    docs = masked_documents(masked)
    uid = docs[0][1]["uid"]
    write(journal, docs)
    (fed,) = feed(feeder)
    assert (fed.events, fed.refused, fed.note) == (20, 0, "") and not caplog.records
    run, are_masked = catalog.raw[uid], np.isin(np.arange(20), list(masked))
    assert run.start["widths"] == [1, None]
    stream = run["primary"]
    table = stream.base["internal"].read()
    # What can be NaN is; of what can't, the mask lies beside the values as they were.
    np.testing.assert_array_equal(table["y"], np.where(are_masked, np.nan, 0.5 * np.arange(20)))
    np.testing.assert_array_equal(stream["sums"].read()[:, 1], np.where(are_masked, np.nan, 0.5).astype(np.float32))
    assert list(table["n"]) == list(range(20)) and list(table["n_mask"]) == list(are_masked)
    frames, masks = stream["frame"].read(), stream["frame_mask"].read()
    assert frames.dtype == np.uint16 and masks.dtype == bool
    np.testing.assert_array_equal(frames, np.broadcast_to(np.arange(20)[:, None, None], (20, 4, 4)))
    np.testing.assert_array_equal(masks, are_masked[:, None, None] & MASK)
    # As documents, the run is what was written.
    back = list(run_documents(catalog, run))
    assert list(back[1][1]["data_keys"]) == list(MASKED_KEYS)
    for (_, found), (_, wanted) in zip(back[2:-1], docs[2:-1], strict=True):
        data, event = found["data"], wanted["data"]
        assert data.keys() == event.keys() == found["timestamps"].keys()
        np.testing.assert_array_equal(np.ma.getmaskarray(data["frame"]), np.ma.getmaskarray(event["frame"]))
        assert np.ma.allequal(data["frame"], event["frame"]) and np.ma.is_masked(data["n"]) == np.ma.is_masked(
            event["n"]
        )


def test_masks_in_pages_of_events(catalog, journal, feeder):
    docs = masked_documents({1})
    _, (_, descriptor), *events = docs[:-1]
    page = {
        "uid": [event["uid"] for _, event in events], "descriptor": descriptor["uid"], "filled": {},
        "seq_num": list(range(1, 21)), "time": [event["time"] for _, event in events],
        "data": {key: [event["data"][key] for _, event in events] for key in MASKED_KEYS},
        "timestamps": {key: [event["timestamps"][key] for _, event in events] for key in MASKED_KEYS},
    }  # fmt: skip
    page["data"]["n"] = np.ma.array(range(20), mask=np.arange(20) == 1)
    write(journal, [*docs[:2], ("event_page", page), docs[-1]])
    assert [(fed.events, fed.refused) for fed in feed(feeder)] == [(20, 0)]
    stream = catalog.raw[docs[0][1]["uid"]]["primary"]
    np.testing.assert_array_equal(stream["frame_mask"].read(), (np.arange(20) == 1)[:, None, None] & MASK)
    table = stream.base["internal"].read()
    assert list(table["n_mask"]) == [k == 1 for k in range(20)] and list(table["n"]) == list(range(20))
    assert list(np.isnan(table["y"])) == [k == 1 for k in range(20)]


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


def test_a_damaged_file_of_which_something_is_refused_is_kept_whole(catalog, tmp_path, feeder, caplog):
    docs = documents(stop=False, shapes=lambda k: (5, 3) if k == 6 else (4, 4))
    with contextlib.closing(Journal(tmp_path / "journal" / "raw")) as journal:
        write(journal, docs)
    uid = docs[0][1]["uid"]
    path = tmp_path / "journal" / "raw" / f"{uid}.journal"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    with caplog.at_level(logging.ERROR, "bluesky_cdi"):
        # Once more for what is refused.
        (fed,) = [*feeder.feed(), *feeder.feed()]
    kept = tmp_path / "journal" / "refused" / path.name
    assert (fed.events, fed.refused) == (18, 1) and "damaged" in fed.note and not path.exists()
    assert kept.read_bytes() == data and f"does not take document 8 of run {uid}" in caplog.text


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


@pytest.fixture
def bad_disk(monkeypatch):
    """Files whose names are in the set that is returned can't be read."""
    bad, really = set(), JournalReader._record

    def record(reader, file):
        if reader.path.stem in bad:
            raise OSError(errno.EIO, "Input/output error")
        return really(reader, file)

    monkeypatch.setattr(JournalReader, "_record", record)
    return bad


@pytest.mark.parametrize("n", [1, 10], ids=["from the start on", "in the middle"])
def test_a_live_run_that_can_not_be_read_for_a_moment_is_read_on_later(catalog, journal, feeder, bad_disk, caplog, n):
    docs, other = documents(), documents()
    uid, path = docs[0][1]["uid"], journal.folder / f"{docs[0][1]['uid']}.journal"
    write(journal, docs[:n])
    if n > 1:
        assert not feeder.feed()
    bad_disk.add(uid)
    write(journal, docs[n : n + 5])
    write(journal, other)
    with caplog.at_level(logging.WARNING, "bluesky_cdi"):
        # The others are not held up.
        assert [fed.uid for fed in feeder.feed()] == [other[0][1]["uid"]]
        assert not feeder.feed()
    (told,) = (r.getMessage() for r in caplog.records if r.name.startswith("bluesky_cdi"))
    assert told == f"run {uid} is tried again: can't read the journal's file {path}: [Errno 5] Input/output error"
    assert path.is_file() and not (journal.folder.parent / "refused").exists()
    # As long as nothing can be read, nobody knows what the writer, now gone, has written: the run is not ended.
    write(journal, docs[n + 5 :])
    assert not feeder.feed() and path.is_file()
    bad_disk.clear()
    (fed,) = feed(feeder)
    assert (fed.uid, fed.events, fed.note) == (uid, 20, "")
    check(catalog, docs)
    check(catalog, other)


def test_a_live_run_of_which_nobody_can_tell_whether_it_goes_on_is_not_ended(catalog, journal, feeder, monkeypatch):
    docs = documents()
    write(journal, docs[:10])
    assert not feeder.feed()
    really = run_transfer.is_written

    def unknown(path):
        raise run_transfer.JournalError("can't look") from OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(run_transfer, "is_written", unknown)
    write(journal, docs[10:15])
    assert not feeder.feed()
    monkeypatch.setattr(run_transfer, "is_written", really)
    write(journal, docs[15:])
    assert [(fed.events, fed.note) for fed in feed(feeder)] == [(20, "")]
    check(catalog, docs)


@pytest.mark.parametrize(("record", "left"), [(0, 0), (9, 7)], ids=["the first record", "a later one"])
def test_damage_in_a_file_that_is_still_written_waits_for_its_writer(catalog, tmp_path, feeder, caplog, record, left):
    docs = documents()
    journal = Journal(tmp_path / "journal" / "raw")
    path = journal.folder / f"{docs[0][1]['uid']}.journal"
    write(journal, docs[:15])
    ends = [0]
    with contextlib.closing(JournalReader(path)) as reader:
        ends += [reader.offset for _ in reader.packed()]
    with path.open("r+b") as file:
        file.seek(ends[record + 1] - 5)
        file.write(b"\xff\xfe")
    with caplog.at_level(logging.ERROR, "bluesky_cdi"):
        for _ in range(3):
            assert not feeder.feed()
        write(journal, docs[15:-1])
        assert not feeder.feed() and path.is_file() and not caplog.records
        journal.close()
        (fed,) = feed(feeder)
    assert fed.events == left and "is damaged: the record at byte" in fed.note and "is damaged" in caplog.text
    kept = tmp_path / "journal" / "refused" / path.name
    # What was written behind the damage is in the file that is kept.
    assert not path.exists() and kept.stat().st_size > ends[-1]
    if left:
        assert catalog.raw[fed.uid].stop["reason"] == fed.note


@contextlib.contextmanager
def running(feeder, monkeypatch):
    """Run a feeder in its thread; gives what waits until it has finished a run."""
    finished, changed = [], threading.Condition()

    def tell(fed):
        with changed:
            finished.append(fed.uid)
            changed.notify_all()

    def wait_for(uid):
        with changed:
            return changed.wait_for(lambda: uid in finished, SOON_S)

    monkeypatch.setattr(feeder_module, "_tell", tell)
    thread = threading.Thread(target=feeder.run)
    thread.start()
    try:
        yield wait_for
    finally:
        feeder.stop()
        thread.join()


def test_an_error_of_the_disk_does_not_end_the_feeder(catalog, journal, feeder, monkeypatch, caplog):
    docs, really, failed = documents(), feeder_module.waiting_files, threading.Event()
    errors = [OSError(errno.EIO, "Input/output error") for _ in range(2)]

    def fails_twice(folder):
        if errors:
            raise errors.pop()
        failed.set()
        return really(folder)

    monkeypatch.setattr(feeder_module, "waiting_files", fails_twice)
    with caplog.at_level(logging.WARNING, "bluesky_cdi"), running(feeder, monkeypatch) as wait_for:
        assert failed.wait(SOON_S)
        write(journal, docs)
        assert wait_for(docs[0][1]["uid"])
    check(catalog, docs)
    told = [r.getMessage() for r in caplog.records if r.name.startswith("bluesky_cdi")]
    assert told[0].startswith("[Errno 5] Input/output error What is measured waits in")
    assert told[1:] == ["the catalog takes what is measured again"]


def test_a_server_that_fails_on_one_run_takes_the_others(catalog, journal, feeder, monkeypatch):
    docs, other = documents(), documents()
    uid = docs[0][1]["uid"]
    write(journal, docs)
    write(journal, other)
    send, failures = httpx.Client.send, []

    def faulty(client, request, **options):
        if uid in str(request.url):
            failures.append(request.method)
            raise httpx.HTTPStatusError("fault", request=request, response=httpx.Response(500, request=request))
        return send(client, request, **options)

    # Without the client's own pauses between its attempts.
    with monkeypatch.context() as patch, stamina.set_testing(True, attempts=2):
        patch.setattr(httpx.Client, "send", faulty)
        assert [fed.uid for fed in feeder.feed()] == [other[0][1]["uid"]]
    assert failures and [path.stem for path in waiting_files(journal.folder.parent)] == [uid]
    assert [fed.events for fed in feed(feeder)] == [20]
    check(catalog, docs)
    check(catalog, other)
