"""What becomes of documents when a disk is full, on a RunEngine with a plan that has checkpoints."""

import contextlib
import errno
import logging
import os

import bluesky.plan_stubs as bps
import bluesky.preprocessors as bpp
import numpy as np
import pytest
from bluesky.utils import RunEngineInterrupted
from ophyd import Signal
from ophyd.sim import SynAxis, SynGauss

from bluesky_cdi import journal as journal_module
from bluesky_cdi import recording
from bluesky_cdi.errors import JournalError
from bluesky_cdi.journal import Journal, JournalReader
from bluesky_cdi.recording import Recording


@pytest.fixture
def journal(tmp_path):
    with contextlib.closing(Journal(tmp_path / "journal")) as opened:
        yield opened


@pytest.fixture
def record(RE, journal, tmp_path):
    made = Recording(journal, RE, {"the journal": journal.folder, "frames": tmp_path / "frames"}, 100_000_000)
    RE.subscribe(made)
    return made


def plan(n=6, num_points=None):
    motor = SynAxis(name="motor")
    detector = SynGauss("det", motor, "motor", center=0, Imax=1)

    @bpp.run_decorator(md={} if num_points is None else {"num_points": num_points})
    def points():
        for k in range(n):
            yield from bps.checkpoint()
            yield from bps.mv(motor, k)
            yield from bps.trigger_and_read([detector, motor])

    return points()


def numbers(journal):
    (path,) = journal.folder.glob("*.journal")
    with contextlib.closing(JournalReader(path)) as reader:
        return [doc["seq_num"] for name, doc in reader.documents() if name == "event"]


def room(monkeypatch, free):
    """Tell that a disk has so many bytes; the number may change."""
    monkeypatch.setattr(recording, "free_bytes", lambda folder: free[folder.name])


def full_disk(monkeypatch):
    """Let writing fail while the list that is returned holds something."""
    really, full = os.write, []

    def write(fd, data):
        if full and len(data) > 20:
            raise OSError(errno.ENOSPC, "No space left on device")
        return really(fd, data)

    monkeypatch.setattr(os, "write", write)
    return full


def told(caplog):
    """What the package has logged."""
    return [r.getMessage() for r in caplog.records if r.name.startswith("bluesky_cdi")]


def test_a_scan_pauses_below_the_reserve_and_goes_on(RE, journal, record, monkeypatch, caplog):
    free = {"journal": 10**9, "frames": 10**9}
    room(monkeypatch, free)
    RE.subscribe(lambda name, doc: free.update(frames=99_000_000) if doc["seq_num"] == 2 else None, "event")
    with caplog.at_level(logging.ERROR, "bluesky_cdi"), pytest.raises(RunEngineInterrupted):
        RE(plan())
    assert RE.state == "paused" and len(numbers(journal)) < 6
    (told,) = (r.getMessage() for r in caplog.records if r.name.startswith("bluesky_cdi"))
    assert told.startswith("the scan pauses: the disk of frames (") and "has 99 MB left" in told
    assert "reserve of 100 MB (catalog.reserve_mb)" in told
    free["frames"] = 10**9
    assert RE.resume().exit_status == "success"
    assert numbers(journal) == [1, 2, 3, 4, 5, 6]


def test_a_scan_that_is_resumed_on_a_disk_that_is_still_full_pauses_again(RE, journal, record, monkeypatch, caplog):
    free = {"journal": 10**9, "frames": 99_000_000}
    room(monkeypatch, free)
    with caplog.at_level(logging.ERROR, "bluesky_cdi"):
        with pytest.raises(RunEngineInterrupted):
            RE(plan(40))
        for n in (2, 3):
            before = numbers(journal)
            with pytest.raises(RunEngineInterrupted):
                RE.resume()
            assert RE.state == "paused" and len(before) < len(numbers(journal)) < 40
            assert ["the disk of frames" in line for line in told(caplog)] == [True] * n
    free["frames"] = 10**9
    assert RE.resume().exit_status == "success"
    assert numbers(journal) == list(range(1, 41))


def test_a_scan_that_is_resumed_while_the_journal_still_has_no_room_pauses_again(
    RE, journal, record, monkeypatch, caplog
):
    full = full_disk(monkeypatch)
    RE.subscribe(lambda name, doc: full.append(1) if doc["seq_num"] == 2 else None, "event")
    with caplog.at_level(logging.ERROR, "bluesky_cdi"):
        with pytest.raises(RunEngineInterrupted):
            RE(plan(40))
        with pytest.raises(RunEngineInterrupted):
            RE.resume()
    assert RE.state == "paused" and numbers(journal) == [1, 2]
    assert [" document(s) wait in memory" in line for line in told(caplog)] == [True, True]
    full.clear()
    assert RE.resume().exit_status == "success"
    assert numbers(journal) == list(range(1, 41))


def test_a_scan_that_would_not_fit_pauses_before_it_measures(RE, journal, record, monkeypatch, caplog):
    free = {"journal": 10**9, "frames": 10**9}
    room(monkeypatch, free)
    monkeypatch.setattr(recording, "_bytes_of", lambda descriptor: 10**6)
    with caplog.at_level(logging.ERROR, "bluesky_cdi"), pytest.raises(RunEngineInterrupted):
        RE(plan(num_points=1000))
    assert "the run is expected to need 1000 MB and a reserve of 100 MB" in caplog.text
    assert len(numbers(journal)) <= 2
    RE.abort()


def test_size_of_an_event():
    keys = {
        "frame": {"dtype": "array", "shape": [1, 128, 100], "dtype_numpy": "<u2", "external": "STREAM:"},
        "y": {"dtype": "number", "shape": [], "dtype_numpy": "<f8"},
        "other": {"dtype": "array", "shape": [None, 7]},
    }
    assert recording._bytes_of({"data_keys": keys}) == 2 * 128 * 100 + 8 * 7


def test_a_disk_that_tells_nothing_does_not_hold_the_scan_up(RE, journal, record, monkeypatch, caplog):
    def stale(folder):
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(recording, "free_bytes", stale)
    with caplog.at_level(logging.WARNING, "bluesky_cdi"):
        assert RE(plan(num_points="many")).exit_status == "success"
    assert numbers(journal) == [1, 2, 3, 4, 5, 6]
    assert [line.startswith("can't tell whether there is room for the run:") for line in told(caplog)] == [True, True]
    assert "Stale file handle" in told(caplog)[1]


def test_a_descriptor_of_an_odd_shape_does_not_hold_the_scan_up(record, caplog):
    with caplog.at_level(logging.WARNING, "bluesky_cdi"):
        record("start", {"uid": "a", "num_points": 5})
        record("descriptor", {"uid": "b", "run_start": "a", "data_keys": {"x": {"shape": ["n", 3]}}})
        record("descriptor", {"uid": "c", "run_start": "a", "data_keys": {"x": {"shape": [2, 3], "dtype_numpy": "?!"}}})
        record("descriptor", {"uid": "d", "run_start": "a"})
        record("stop", {"uid": "e", "run_start": "a"})
    assert ["there is room for the run" in line for line in told(caplog)] == [True] * 3


def test_documents_wait_in_memory_while_the_journal_has_no_room(RE, journal, record, monkeypatch, caplog):
    full = full_disk(monkeypatch)
    RE.subscribe(lambda name, doc: full.append(1) if doc["seq_num"] == 3 else None, "event")
    with caplog.at_level(logging.ERROR, "bluesky_cdi"), pytest.raises(RunEngineInterrupted):
        RE(plan())
    assert numbers(journal) == [1, 2, 3] and "No space left" in caplog.text and "in memory" in caplog.text
    with pytest.raises(JournalError, match=r"document\(s\) of the last run could not be kept"):
        record.close()
    full.clear()
    RE.subscribe(lambda name, doc: full.clear(), "event")
    assert RE.resume().exit_status == "success"
    assert numbers(journal) == [1, 2, 3, 4, 5, 6]
    record.close()


def test_room_of_a_folder_that_is_not_made_yet(tmp_path):
    assert recording.free_bytes(tmp_path / "a" / "b") == pytest.approx(recording.free_bytes(tmp_path), rel=0.01)


def plan_with(values):
    """A run with a value in each of its events."""
    signal = Signal(name="value", value=values[0])

    @bpp.run_decorator()
    def points():
        for value in values:
            yield from bps.checkpoint()
            signal.put(value)
            yield from bps.trigger_and_read([signal])

    return points()


def test_a_document_that_can_not_be_kept_is_told_and_left_out(RE, journal, record, monkeypatch, caplog):
    monkeypatch.setattr(journal_module, "RECORD_MAX", 4000)
    seen = []
    RE.subscribe(lambda name, doc: seen.append((name, doc)))
    with caplog.at_level(logging.WARNING, "bluesky_cdi"):
        assert RE(plan_with([np.zeros(600 if k == 1 else 3) for k in range(4)])).exit_status == "success"
    (start, *_), (uid,) = [doc for name, doc in seen], [doc["uid"] for _, doc in seen if doc.get("seq_num") == 2]
    assert numbers(journal) == [1, 3, 4]
    (line,) = told(caplog)
    assert line.startswith(f"left out: the event document {uid} of run {start['uid']} can't be kept: it has ")
    record.close()


def test_what_belongs_to_a_document_that_was_left_out_does_not_hold_the_scan_up(
    RE, journal, record, monkeypatch, caplog
):
    with monkeypatch.context() as patch, caplog.at_level(logging.ERROR, "bluesky_cdi"):
        patch.setattr(journal, "_run_of", {})
        RE.subscribe(lambda name, doc: journal._run_of.clear(), "descriptor")
        assert RE(plan_with([1.0, 2.0])).exit_status == "success"
    assert [line.startswith("left out: a event document must belong to a run") for line in told(caplog)] == [True] * 2
    assert numbers(journal) == []
    assert RE(plan_with([1.0, 2.0])).exit_status == "success"
    record.close()


def test_whatever_a_document_holds_the_scan_goes_on(RE, journal, record, caplog):
    loop = []
    loop.append(loop)
    values = [7, 2**70, "\ud800", np.longdouble(0.5), np.datetime64("2026-01-02"), loop, (1, {2}), object]
    with caplog.at_level(logging.WARNING, "bluesky_cdi"):
        assert RE(plan_with(values), loop=loop, name="\udc80", n=2**70).exit_status == "success"
    (path,) = journal.folder.glob("*.journal")
    with contextlib.closing(JournalReader(path)) as reader:
        (_, start), *docs = reader.documents()
    assert (start["loop"], start["name"], start["n"]) == (["[[...]]"], "\udc80", str(2**70))
    found = [doc["data"]["value"] for name, doc in docs if name == "event"]
    assert found == [7, str(2**70), "\ud800", 0.5, "2026-01-02", ["[[...]]"], [1, [2]], "<class 'object'>"]
    assert not told(caplog)


def short_of_memory(monkeypatch, *numbers):
    """Let there be no memory to pack these events while the list that is returned holds something."""
    really, short = journal_module.pack, [1]

    def pack(value):
        if short and value[1].get("seq_num") in numbers:
            raise MemoryError
        return really(value)

    monkeypatch.setattr(journal_module, "pack", pack)
    return short


def test_documents_that_no_memory_is_found_for_after_a_pause_are_told_and_left_out(
    RE, journal, record, monkeypatch, caplog
):
    # Both come before the checkpoint at which the scan pauses, and none comes twice.
    short_of_memory(monkeypatch, 1, 2)
    signal = Signal(name="value", value=1.0)
    events = []
    RE.subscribe(lambda name, doc: events.append(doc["uid"]), "event")

    @bpp.run_decorator()
    def three_events_a_checkpoint():
        for k in range(3):
            yield from bps.checkpoint()
            for _ in range(3):
                yield from bps.trigger_and_read([signal])
            while k == 0 and not RE.deferred_pause_requested:
                yield from bps.sleep(0.01)

    with caplog.at_level(logging.ERROR, "bluesky_cdi"):
        with pytest.raises(RunEngineInterrupted):
            RE(three_events_a_checkpoint())
        # Those behind them wait with them, until the pause is over.
        assert RE.state == "paused" and numbers(journal) == [] and len(events) == 3
        assert RE.resume().exit_status == "success"
    assert numbers(journal) == list(range(3, 10))
    pauses, *left_out = told(caplog)
    which = [f"can't pack the event document {uid} of run " for uid in events[:2]]
    assert pauses.startswith(f"the scan pauses: {which[0]}") and ": no memory. Make room in memory. 1 doc" in pauses
    assert [line.startswith(f"left out: {each}") for line, each in zip(left_out, which, strict=True)] == [True, True]
    record.close()


def test_a_document_that_waited_for_a_disk_is_not_left_out_for_lack_of_memory(RE, journal, record, monkeypatch, caplog):
    full = full_disk(monkeypatch)
    short = short_of_memory(monkeypatch, 2)
    RE.subscribe(lambda name, doc: full.append(1) if doc["seq_num"] == 1 else None, "event")
    short.clear()
    with pytest.raises(RunEngineInterrupted):
        RE(plan(40))
    full.clear()
    short.append(1)
    with pytest.raises(RunEngineInterrupted):
        RE.resume()
    short.clear()
    assert RE.resume().exit_status == "success"
    assert numbers(journal) == list(range(1, 41))
    assert [line.startswith("the scan pauses: can't ") for line in told(caplog)] == [True, True]


def test_a_document_that_memory_is_made_for_in_a_pause_is_kept(RE, journal, record, monkeypatch, caplog):
    short = short_of_memory(monkeypatch, 2)
    with pytest.raises(RunEngineInterrupted):
        RE(plan(40))
    short.clear()
    assert RE.resume().exit_status == "success"
    assert numbers(journal) == list(range(1, 41))
    assert not any("left out" in line for line in told(caplog))


def test_what_waits_behind_a_document_without_memory_is_written_at_the_end(journal, record, monkeypatch, caplog):
    short_of_memory(monkeypatch, 1)
    record("start", {"uid": "a"})
    record("descriptor", {"uid": "b", "run_start": "a", "data_keys": {}})
    record("event", {"uid": "c", "descriptor": "b", "seq_num": 1})
    record("event", {"uid": "d", "descriptor": "b", "seq_num": 2})
    record.close()
    assert numbers(journal) == [2] and "left out" in caplog.text
