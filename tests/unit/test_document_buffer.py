import io
import logging
import os
import threading

import numpy as np
import pytest

from bluesky_cdi import document_buffer
from bluesky_cdi.document_buffer import DocumentBuffer

SOON_S = 120.0


def test_documents_arrive_in_order_and_drain_waits_for_the_last():
    got, go = [], threading.Event()

    def target(name, doc):
        assert go.wait(SOON_S)
        got.append((name, doc))

    buffer = DocumentBuffer(target)
    for number in range(5):
        buffer("event", number)
    assert not buffer.drain(0.01)
    go.set()
    assert buffer.drain(SOON_S)
    assert got == [("event", number) for number in range(5)]
    buffer.close()


def test_document_that_the_target_refuses_counts_as_handed_on(caplog):
    got = []

    def target(name, doc):
        if doc == 1:
            raise ValueError("no")
        got.append(doc)

    buffer = DocumentBuffer(target)
    with caplog.at_level(logging.CRITICAL):
        for number in range(3):
            buffer("event", number)
        assert buffer.drain(SOON_S)
    assert got == [0, 2]
    buffer.close()


def test_closing_hands_on_what_waits_and_refuses_what_follows():
    got, go = [], threading.Event()

    def target(name, doc):
        assert go.wait(SOON_S)
        got.append(doc)

    buffer = DocumentBuffer(target)
    buffer("event", 1)
    closing = threading.Thread(target=buffer.close)
    closing.start()
    go.set()
    closing.join(SOON_S)
    assert got == [1]
    with pytest.raises(RuntimeError):
        buffer("event", 2)
    assert buffer.drain(SOON_S)


def held_up(memory_bytes):
    """Give a buffer, what its target gets, and what lets the target go on."""
    got, go = [], threading.Event()

    def target(name, doc):
        assert go.wait(SOON_S)
        got.append((name, doc))

    return DocumentBuffer(target, memory_bytes), got, go


def frame(number):
    return {"seq_num": number, "data": {"image": np.full((64, 64), number, np.uint16), "x": 0.5}}


def of(got):
    return [(name, doc["seq_num"], int(doc["data"]["image"].sum())) for name, doc in got]


def test_what_memory_has_no_room_for_waits_in_a_file_in_its_turn(tmp_path, monkeypatch):
    monkeypatch.setattr(document_buffer.tempfile, "tempdir", str(tmp_path))
    buffer, got, go = held_up(40_000)
    for number in range(20):
        buffer("event", frame(number))
    waiting = buffer._waiting
    # Five frames of 8 KiB are more than fit.
    assert waiting._held <= 40_000 and waiting._file.unread >= 15
    go.set()
    assert buffer.drain(SOON_S)
    assert of(got) == [("event", number, number * 64 * 64) for number in range(20)]
    # Nothing stays, and it begins anew.
    assert waiting._held == 0 and waiting._file is None and not list(tmp_path.iterdir())
    buffer("event", frame(20))
    buffer.close()
    assert of(got)[-1] == ("event", 20, 20 * 64 * 64)


def test_what_is_read_is_given_back_while_more_comes(tmp_path, monkeypatch):
    """As in hours of more than can be read: the disk holds what waits, and of what was read hardly more than a file."""
    files, temporary_file = [], document_buffer.tempfile.TemporaryFile

    def made(**options):
        files.append(temporary_file(**options))
        return files[-1]

    monkeypatch.setattr(document_buffer.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(document_buffer.tempfile, "TemporaryFile", made)
    monkeypatch.setattr(document_buffer, "FILE_BYTES", 40_000)
    got, may, room = [], threading.Semaphore(0), 8_500

    def target(name, doc):
        assert may.acquire(timeout=SOON_S)
        got.append((name, doc))

    buffer = DocumentBuffer(target, 10_000)
    waiting, most = buffer._waiting, 0
    for number in range(200):
        buffer("event", frame(number))
        if number >= 20:
            # One in, one out.
            may.release()
            with buffer._changed:
                assert buffer._changed.wait_for(lambda n=number: buffer._handed_on >= n - 19, SOON_S)
                held = sum(os.fstat(file.fileno()).st_size for file in files if not file.closed)
                most = max(most, held - len(waiting) * room)
    # No file has a name: of a process that is killed nothing stays.
    named = list(tmp_path.iterdir())
    may.release(20)
    buffer.close()
    assert len(files) > 30 and most <= 40_000 + room and not named
    assert of(got) == [("event", number, number * 64 * 64) for number in range(200)]
    assert all(file.closed for file in files)


def test_much_that_waits_takes_few_files(tmp_path, monkeypatch):
    """All that are open count towards a limit of the process: connections and files of frames need some too."""
    files, temporary_file = [], document_buffer.tempfile.TemporaryFile

    def made(**options):
        files.append(temporary_file(**options))
        return files[-1]

    monkeypatch.setattr(document_buffer.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(document_buffer.tempfile, "TemporaryFile", made)
    monkeypatch.setattr(document_buffer, "FILE_BYTES", 1_000)
    buffer, got, go = held_up(10_000)
    for number in range(1_000):
        buffer("event", frame(number))
    n_files = len(files)
    go.set()
    buffer.close()
    # Of one document each they would be a thousand.
    assert n_files < 100
    assert of(got) == [("event", number, number * 64 * 64) for number in range(1_000)]
    assert all(file.closed for file in files) and buffer._waiting._on_disk == 0


def test_frames_as_lists_count_as_well():
    buffer, got, go = held_up(100_000)
    for number in range(8):
        buffer("event", {"data": {"image": [[number] * 64] * 64}})
    assert buffer._waiting._file.unread >= 6
    go.set()
    buffer.close()
    assert [doc["data"]["image"][63][63] for _, doc in got] == list(range(8))


def test_without_room_on_the_disk_they_wait_in_memory(monkeypatch, caplog):
    def full(**_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(document_buffer.tempfile, "TemporaryFile", full)
    buffer, got, go = held_up(10_000)
    for number in range(6):
        buffer("event", frame(number))
    go.set()
    buffer.close()
    assert [number for _, number, _ in of(got)] == list(range(6))
    assert caplog.text.count("some wait in memory and not in") == 1


class _SmallDisk(io.FileIO):
    """Takes so many bytes, then as much as there is room for, then nothing."""

    room = 20_000

    def write(self, data):
        part = memoryview(data)[: max(0, self.room - self.tell())]
        if len(data) and not part:
            raise OSError(28, "No space left on device")
        return super().write(part)


def test_disk_that_becomes_full_keeps_what_it_has_and_nothing_is_lost(tmp_path, monkeypatch, caplog):
    files = []

    def made(**options):
        raw = _SmallDisk(tmp_path / f"{len(files)}", "w+")
        files.append(raw if options.get("buffering") == 0 else io.BufferedRandom(raw))
        return files[-1]

    monkeypatch.setattr(document_buffer.tempfile, "TemporaryFile", made)
    buffer, got, go = held_up(10_000)
    for number in range(8):
        buffer("event", frame(number))
    # Two lie there whole; of the third, which there was no room for, nothing does.
    lies = buffer._waiting._file
    assert lies.unread == 2 and lies.end == (tmp_path / "0").stat().st_size
    go.set()
    assert buffer.drain(SOON_S)
    buffer.close()
    assert of(got) == [("event", number, number * 64 * 64) for number in range(8)] and files[0].closed
    assert caplog.text.count("some wait in memory and not in") == 1


def test_document_that_can_not_be_read_back_is_told_and_the_next_follows(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(document_buffer.tempfile, "tempdir", str(tmp_path))
    buffer, got, go = held_up(10_000)
    for number in range(4):
        buffer("event", frame(number))
    waiting = buffer._waiting
    # The disk has lost the first that lies there.
    os.pwrite(waiting._file._file.fileno(), b"\xc1" * 100, 0)
    go.set()
    assert buffer.drain(SOON_S)
    assert waiting._file is None and len(of(got)) == 3
    buffer.close()
    assert "a waiting document was not taken" in caplog.text
