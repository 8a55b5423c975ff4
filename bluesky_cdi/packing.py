"""Documents and messages as bytes: msgpack, with NumPy arrays as they are.

Nothing in these bytes can run code, so they may come from another process or another machine.
"""

from __future__ import annotations

from typing import Any

import msgpack  # type: ignore[import-untyped]
import numpy as np

from bluesky_cdi.errors import DocumentError

_ARRAY, _COMPLEX = 1, 2
# Integers, numbers and bools; texts, bytes and times. Arrays of objects are packed as lists.
_KINDS = "biufcSUmM"


def pack(value: Any) -> bytes:
    """Write a value as bytes: what JSON knows, bytes, arrays, complex numbers; tuples as lists, all else as text.

    Parameters
    ----------
    value : object
        NumPy scalars become Python's.
    """
    return msgpack.packb(value, default=_pack_other)  # type: ignore[no-any-return]


def unpack(data: bytes) -> Any:
    """Read what `pack` wrote; arrays are read-only.

    Parameters
    ----------
    data : bytes
        One packed value.

    Raises
    ------
    DocumentError
        If these are other bytes.
    """
    try:
        return msgpack.unpackb(data, ext_hook=_unpack_other, strict_map_key=False)
    except (ValueError, TypeError, LookupError, msgpack.UnpackException) as err:
        raise DocumentError(f"{len(data)} bytes must be what this package packed; they can't be read: {err!r}") from err


def _pack_other(value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
        return _pack_other(value) if isinstance(value, complex) else value
    if isinstance(value, complex):
        return msgpack.ExtType(_COMPLEX, msgpack.packb([value.real, value.imag]))
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in _KINDS:
            return value.tolist()
        return msgpack.ExtType(_ARRAY, msgpack.packb([value.dtype.str, value.shape, value.tobytes()]))
    if isinstance(value, (set, frozenset)):
        return list(value)
    # A mapping or sequence of another kind, such as an event-model document that checks its own values.
    for form, kind in ((dict, "keys"), (list, "__iter__")):
        if hasattr(value, kind) and not isinstance(value, (str, bytes)):
            return form(value)
    return str(value)


def _unpack_other(code: int, data: bytes) -> Any:
    if code == _COMPLEX:
        return complex(*msgpack.unpackb(data))
    if code != _ARRAY:
        raise ValueError(f"a value of the unknown kind {code}")
    dtype, shape, raw = msgpack.unpackb(data)
    return np.frombuffer(raw, np.dtype(dtype)).reshape(shape)
