"""What a killed process leaves is tested in tests/faults."""

import contextlib
import errno
import os

import numpy as np
import pytest
from event_model import compose_run

from bluesky_cdi import journal as journal_module
from bluesky_cdi.errors import JournalError, RefusedError
from bluesky_cdi.journal import FORM, Journal, JournalReader, is_written, run_files


def documents(n=3, time=None, **metadata):
    """The documents of a run with n events."""
    run = compose_run(metadata=metadata, time=time)
    stream = run.compose_descriptor(
        name="primary", data_keys={"frame": {"source": "s", "dtype": "array", "shape": [4, 4]}}
    )
    events = [
        stream.compose_event(data={"frame": np.full((4, 4), k, np.uint16)}, timestamps={"frame": k}) for k in range(n)
    ]
    named = [("start", run.start_doc), ("descriptor", stream.descriptor_doc), *(("event", each) for each in events)]
    return [*named, ("stop", run.compose_stop())]


def write(journal, docs):
    for name, doc in docs:
        journal(name, doc)


def read(path, found=None):
    found = [] if found is None else found
    with contextlib.closing(JournalReader(path)) as reader:
        for each in reader.documents():
            found.append(each)
    return found


def assert_same(found, docs):
    assert [name for name, _ in found] == [name for name, _ in docs]
    np.testing.assert_equal([dict(doc) for _, doc in found], [dict(doc) for _, doc in docs])


@pytest.fixture
def journal(tmp_path):
    journal = Journal(tmp_path / "journal")
    yield journal
    journal.close()


def path_of(journal, docs):
    return journal.folder / f"{docs[0][1]['uid']}.journal"


def test_each_document_is_in_the_file_when_the_call_returns(journal):
    docs = documents()
    for k, (name, doc) in enumerate(docs, 1):
        journal(name, doc)
        assert_same(read(path_of(journal, docs)), docs[:k])


def test_interleaved_runs_have_a_file_each(journal):
    one, other = documents(time=2.0), documents(time=1.0)
    for pair in zip(one, other, strict=True):
        write(journal, pair)
    assert_same(read(path_of(journal, one)), one)
    assert_same(read(path_of(journal, other)), other)
    assert run_files(journal.folder) == [path_of(journal, other), path_of(journal, one)]


def test_a_reader_goes_on_while_the_file_grows_and_after_it_is_taken_away(journal):
    docs = documents()
    write(journal, docs[:3])
    reader = JournalReader(path_of(journal, docs))
    assert_same(list(reader.documents()), docs[:3])
    assert not list(reader.documents())
    write(journal, docs[3:])
    path_of(journal, docs).unlink()
    assert_same(list(reader.documents()), docs[3:])
    reader.rewind()
    assert_same(list(reader.documents()), docs)
    reader.close()


def test_who_listens_finds_the_document(tmp_path):
    found = []
    journal = Journal(tmp_path, lambda path: found.append(len(read(path))))
    write(journal, documents())
    journal.close()
    assert found == [1, 2, 3, 4, 5, 6]


def test_a_record_that_is_cut_costs_that_record(journal):
    docs = documents()
    write(journal, docs)
    whole = path_of(journal, docs).read_bytes()
    ends = []
    reader = JournalReader(path_of(journal, docs))
    for _ in reader.packed():
        ends.append(reader.offset)
    reader.close()
    assert ends[-1] == len(whole)
    for size in range(len(whole)):
        path_of(journal, docs).write_bytes(whole[:size])
        assert len(read(path_of(journal, docs))) == sum(end <= size for end in ends)


def test_a_damaged_record_is_told(journal):
    docs = documents()
    write(journal, docs)
    path = path_of(journal, docs)
    data = bytearray(path.read_bytes())
    data[-10] ^= 1
    path.write_bytes(data)
    found = []
    with pytest.raises(JournalError, match="is damaged: the record at byte"):
        read(path, found)
    assert_same(found, docs[:-1])


def test_it_tells_who_still_writes(journal):
    docs = documents()
    write(journal, docs[:-1])
    assert is_written(path_of(journal, docs))
    write(journal, docs[-1:])
    assert not is_written(path_of(journal, docs))
    with pytest.raises(JournalError, match="can't look at"):
        is_written(journal.folder / "absent")


def test_a_document_that_does_not_fit_leaves_the_file_whole(journal, monkeypatch):
    docs = documents()
    write(journal, docs[:3])
    path = path_of(journal, docs)
    before, really = path.read_bytes(), os.write

    def full(fd, data):
        if data.startswith(b"\0\0") and len(data) > 60:
            really(fd, data[:50])
            raise OSError(errno.ENOSPC, "No space left on device")
        return really(fd, data)

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(JournalError, match=r"can't write a document of .* No space left.*Make room"):
        journal(*docs[3])
    assert path.read_bytes() == before
    monkeypatch.setattr(os, "write", lambda fd, data: really(fd, data[:40]))
    with pytest.raises(JournalError, match=r"40 of \d+ bytes were written"):
        journal(*docs[3])
    assert path.read_bytes() == before
    monkeypatch.undo()
    write(journal, docs[3:])
    assert_same(read(path), docs)


def test_a_document_that_no_file_can_hold_is_refused_and_the_rest_written(journal, monkeypatch):
    docs = documents()
    uid = docs[0][1]["uid"]
    large = ("event", {**docs[3][1], "data": {"frame": np.zeros(5000, np.uint8)}})
    loose = ("event", {"uid": "a", "data": {"frame": np.zeros(5000, np.uint8)}})
    monkeypatch.setattr(journal_module, "RECORD_MAX", 5000)
    write(journal, docs[:3])
    with pytest.raises(
        RefusedError, match=rf"the event document {large[1]['uid']} of run {uid} can't be kept: it has 5"
    ):
        journal(*large)
    with pytest.raises(RefusedError, match="the event document a of run None can't be kept"):
        journal(*loose)
    write(journal, docs[3:])
    assert_same(read(path_of(journal, docs)), docs)


def test_a_document_that_can_not_be_packed(journal, monkeypatch):
    docs = documents()
    uid = docs[0][1]["uid"]
    with pytest.raises(
        RefusedError, match=f"start document {uid} of run {uid} can't be kept: .* can't be packed: Value"
    ):
        journal("start", {"uid": uid, "data": bytes(1 << 32)})
    assert not list(journal.folder.iterdir())

    def no_room(value):
        raise MemoryError("no room")

    with (
        monkeypatch.context() as patch,
        pytest.raises(JournalError, match=f"pack the start document {uid} .* no room") as caught,
    ):
        patch.setattr(journal_module, "pack", no_room)
        journal(*docs[0])
    assert not isinstance(caught.value, RefusedError)
    write(journal, docs)
    assert_same(read(path_of(journal, docs)), docs)


def test_documents_of_no_run_are_refused(journal):
    docs = documents()
    with pytest.raises(RefusedError, match="a descriptor document must belong to a run that has begun"):
        journal(*docs[1])
    write(journal, docs)
    with pytest.raises(RefusedError, match="begun and not ended"):
        journal(*docs[2])
    with pytest.raises(JournalError, match="File exists"):
        journal(*docs[0])
    journal.close()
    with pytest.raises(JournalError, match="is closed; a start document came after that"):
        journal(*documents()[0])


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "a.journal"
    path.write_bytes(b"something else, and long enough")
    with pytest.raises(JournalError, match="must be a file of a journal"):
        read(path)
    path.write_bytes(FORM + b"\xff" * 20)
    with pytest.raises(JournalError, match="is damaged: the record at byte 22"):
        read(path)
    with pytest.raises(JournalError, match="can't read"):
        read(tmp_path / "absent.journal")
    (tmp_path / "file").write_text("")
    with pytest.raises(JournalError, match="needs a folder that can be written"):
        Journal(tmp_path / "file" / "journal")
