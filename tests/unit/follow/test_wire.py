"""Documents as bytes: what publishers write is read, and nothing in it runs."""

import functools
import json
import pickle

import msgpack
import msgpack_numpy
import numpy as np
import pytest

from bluesky_cdi.errors import DocumentError
from bluesky_cdi.follow.wire import PickleError, decode, encode
from bluesky_cdi.packing import pack

theirs = functools.partial(msgpack.packb, default=msgpack_numpy.encode)
DOC = {
    "uid": "a", "seq_num": np.int64(3), "time": 1.5, "data": {"image": np.arange(12, dtype=np.uint16).reshape(3, 4)},
    "odd": [None, True, "µ", b"\x00", 2 + 3j, np.float32(0.5), np.array([1 + 2j]), np.array(["x", "yz"])],
}  # fmt: skip


def same(found, wanted):
    if isinstance(wanted, np.ndarray):
        return found.dtype == wanted.dtype and np.array_equal(found, wanted)
    if isinstance(wanted, dict):
        return found.keys() == wanted.keys() and all(same(found[key], wanted[key]) for key in wanted)
    if isinstance(wanted, list):
        return len(found) == len(wanted) and all(map(same, found, wanted))
    return found == wanted


@pytest.mark.parametrize("write", [theirs, encode, pack], ids=["msgpack-numpy", "published", "packed"])
def test_documents_come_as_they_were(write):
    assert same(decode(write(DOC)), DOC)
    assert same(decode(write(["event", DOC])), ["event", DOC])


def test_what_is_published_is_read_by_consumers_of_bluesky_kafka():
    assert same(msgpack.unpackb(encode(["event", DOC]), object_hook=msgpack_numpy.decode), ["event", DOC])


def test_json():
    doc = {"uid": "a", "data": {"image": [[1, 2], [3, 4]]}, "none": None, "nan": float("inf")}
    assert decode(json.dumps(doc).encode()) == doc
    assert decode(json.dumps(["start", doc]).encode()) == ["start", doc]


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickles_are_refused_unless_they_are_trusted(protocol):
    data = pickle.dumps(DOC, protocol)
    with pytest.raises(PickleError, match="serializer="):
        decode(data)
    assert same(decode(data, trust_pickle=True), DOC)


@pytest.mark.parametrize("protocol", range(6))
def test_nothing_runs_that_is_not_trusted(tmp_path, protocol):
    mark = tmp_path / "ran"
    hidden = {b"nd": True, b"type": "O", b"kind": b"O", b"shape": [1], b"data": pickle.dumps(Bomb(mark), protocol)}
    for data in (pickle.dumps(Bomb(mark), protocol), msgpack.packb({"a": hidden})):
        with pytest.raises(DocumentError):
            decode(data)
    assert not mark.exists()
    # Their own reader runs it: what this test is for.
    msgpack.unpackb(msgpack.packb(hidden), object_hook=msgpack_numpy.decode).close()
    assert mark.exists()


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\x80", b"{", b"[" * 100_000, b"\x91" * 100_000, b"\xc1", b"cos\nsystem\n(S'x'\ntR.", b"\x80\x04",
        msgpack.packb({b"nd": True, b"type": "<u2", b"shape": [7], b"data": b"abc"}),
        msgpack.packb({b"nd": True, b"type": [["a", "<u2"]], b"shape": [1], b"data": b"ab"}),
        msgpack.packb({b"nd": True}),
        msgpack.packb({b"nd": False, b"type": "<u2", b"data": b""}),
        msgpack.packb({b"complex": True, b"data": "1+"}),
    ],
)  # fmt: skip
def test_bytes_that_are_no_document_are_refused(data):
    if data == b"\x80":
        assert decode(data) == {}
        return
    with pytest.raises(DocumentError):
        decode(data)


def test_trusted_bytes_that_are_no_pickle_after_all():
    with pytest.raises(DocumentError, match="pickled bytes can't be read"):
        decode(b"\x80\x04nonsense", trust_pickle=True)


def test_what_can_not_be_published():
    with pytest.raises(DocumentError, match="object is no plain value"):
        encode({"a": object()})
