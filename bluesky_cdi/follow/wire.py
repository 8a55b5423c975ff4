"""Documents as bytes, as publishers write them.

Three forms are told apart by their first byte: msgpack, with arrays as `bluesky_cdi.packing` or the package
msgpack-numpy writes them; JSON; and pickle, which is refused. Bytes of the first two run no code, whoever sent them;
msgpack-numpy's own reader does not promise that: it unpickles arrays of objects.
"""

from __future__ import annotations

import json
import pickle
from typing import Any

import msgpack  # type: ignore[import-untyped]
import numpy as np

from bluesky_cdi.errors import DocumentError
from bluesky_cdi.packing import unpack

# Booleans, numbers, texts, bytes and times.
_KINDS = "biufcSUmM"
# How a pickle begins, of a protocol from 2 on; in msgpack this is an empty mapping, with something behind it.
_PICKLE, _PROTOCOLS = 0x80, range(2, 6)


class PickleError(DocumentError):
    """A document is pickled, and whoever could have sent it is not trusted."""


def decode(data: bytes, *, trust_pickle: bool = False) -> Any:
    """Read what a publisher wrote.

    Parameters
    ----------
    data : bytes
        One value: msgpack, JSON or pickle.
    trust_pickle : bool
        Read pickles: bytes that run whatever code their sender wants.

    Raises
    ------
    PickleError
        If it is pickled, and that is not trusted.
    DocumentError
        If it can't be read.
    """
    if len(data) > 1 and data[0] == _PICKLE and data[1] in _PROTOCOLS:
        if not trust_pickle:
            raise PickleError(
                "documents must come as msgpack or JSON; these are pickled, as bluesky's 0MQ Publisher does unless it "
                "is told otherwise: Publisher(address, serializer=functools.partial(msgpack.packb, "
                "default=msgpack_numpy.encode))"
            )
        try:
            return pickle.loads(data)
        except Exception as err:
            raise DocumentError(f"{len(data)} pickled bytes can't be read: {err!r}") from err
    if data[:1] in (b"{", b"["):
        try:
            return json.loads(data)
        except (ValueError, RecursionError) as err:
            raise DocumentError(f"{len(data)} bytes that begin as JSON can't be read: {err!r}") from err
    return unpack(data, object_hook=_array)


def encode(value: Any) -> bytes:
    """Write a value as msgpack with arrays as msgpack-numpy has them, which consumers of bluesky-kafka read.

    Parameters
    ----------
    value : object
        A document, or a pair of its name and it.

    Raises
    ------
    DocumentError
        If it holds something else than plain values, NumPy's and bytes.
    """
    try:
        return msgpack.packb(value, default=_as_mapping)  # type: ignore[no-any-return]
    except (TypeError, ValueError, OverflowError) as err:
        raise DocumentError(f"a document can't be published: {err!r}") from err


def _array(value: dict[Any, Any]) -> Any:
    """Give the array, number or mapping that a mapping stands for."""
    if b"nd" in value:
        dtype = value[b"type"]
        if isinstance(dtype, bytes):
            dtype = dtype.decode("ascii")
        # A list describes columns, and `O` objects, which only a pickle could hold.
        if not isinstance(dtype, str) or np.dtype(dtype).kind not in _KINDS:
            raise ValueError(f"an array of {dtype!r}; it must have one type of numbers, texts or times")
        found = np.frombuffer(value[b"data"], np.dtype(dtype))
        return found.reshape(value[b"shape"]) if value[b"nd"] is True else found[0]
    if b"complex" in value:
        written = value[b"data"]
        return complex(written.decode("ascii") if isinstance(written, bytes) else written)
    return value


def _as_mapping(value: Any) -> Any:
    if isinstance(value, np.ndarray) and value.dtype.kind in _KINDS:
        return {b"nd": True, b"type": value.dtype.str, b"kind": b"", b"shape": value.shape, b"data": value.tobytes()}
    if isinstance(value, np.generic) and value.dtype.kind in _KINDS:
        return {b"nd": False, b"type": value.dtype.str, b"data": value.tobytes()}
    if isinstance(value, complex):
        return {b"complex": True, b"data": repr(value)}
    raise TypeError(f"{type(value).__name__} is no plain value")
