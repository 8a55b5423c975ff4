"""Documents and messages as bytes: msgpack, with NumPy arrays as they are, masked ones with their masks.

Nothing in these bytes can run code, so they may come from another process or another machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import msgpack  # type: ignore[import-untyped]
import numpy as np

from bluesky_cdi.errors import DocumentError

_ARRAY, _COMPLEX, _MASKED = 1, 2, 3
# Integers, numbers and bools; texts, bytes and times. Arrays of objects are packed as lists.
_KINDS = "biufcSUmM"
# What msgpack packs as it is. ExtType is a tuple, which would be taken for a list.
_LEAVES = (type(None), bool, int, float, str, bytes, bytearray, msgpack.ExtType, msgpack.Timestamp)
_SURROGATES = "surrogatepass"
# Lists in lists, where a value has to be copied.
LEVELS_MAX = 100


def pack(value: Any) -> bytes:
    """Write a value as bytes: what JSON knows, bytes, arrays, complex numbers; tuples as lists, all else as text.

    Integers beyond 64 bits come as text too, and so does what holds itself or lies too deep. Texts keep surrogates
    that stand alone, as in names of files that are no UTF-8. Of masked arrays, data and mask are kept, also of what
    is masked, but not the value that stands for it (`fill_value`); in lists of objects None stands for it.

    Parameters
    ----------
    value : object
        NumPy scalars become Python's.

    Raises
    ------
    DocumentError
        If it is larger than can be packed: several GB in one piece.
    """
    try:
        return msgpack.packb(value, default=_pack_other)  # type: ignore[no-any-return]
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - whatever it is, all else that the value holds must be kept
        # The slow way: a copy in which only what can't be packed is replaced.
        value = _packable(value, ())
    try:
        return msgpack.packb(value, default=_pack_other, unicode_errors=_SURROGATES)  # type: ignore[no-any-return]
    except (ValueError, TypeError, OverflowError) as err:
        raise DocumentError(f"this {type(value).__name__} can't be packed: {type(err).__name__}: {err}") from err


def unpack(data: bytes, object_hook: Callable[[dict[Any, Any]], Any] | None = None) -> Any:
    """Read what `pack` wrote; arrays are read-only, and keys that were tuples are texts.

    Parameters
    ----------
    data : bytes
        One packed value.
    object_hook : callable, optional
        Gives what stands for a mapping, of bytes that another package has packed.

    Raises
    ------
    DocumentError
        If these are other bytes.
    """
    options: dict[str, Any] = {"ext_hook": _unpack_other, "strict_map_key": False, "unicode_errors": _SURROGATES}
    try:
        try:
            return msgpack.unpackb(data, **options, object_hook=object_hook)
        except TypeError:  # a key that is no key of Python's
            if object_hook is not None:
                raise
            return msgpack.unpackb(data, **options, object_pairs_hook=_with_texts_as_keys)
    except (ValueError, TypeError, LookupError, msgpack.UnpackException) as err:
        raise DocumentError(f"{len(data)} bytes must be what this package packed; they can't be read: {err!r}") from err


def _pack_other(value: Any) -> Any:
    """Give what msgpack knows in place of what it does not."""
    if isinstance(value, np.generic):
        if value.dtype.kind in "mM":
            return str(value)
        plain = value.item()
        # The long kinds of numbers have no other form of Python's.
        value = (
            plain if not isinstance(plain, np.generic) else complex(value) if value.dtype.kind == "c" else float(value)
        )
        return _pack_other(value) if isinstance(value, complex) else value
    if isinstance(value, complex):
        return msgpack.ExtType(_COMPLEX, msgpack.packb([value.real, value.imag]))
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in _KINDS:
            return value.tolist()
        if isinstance(value, np.ma.MaskedArray):
            # A mask that is not there stays so: None.
            mask = None if value.mask is np.ma.nomask else np.asarray(value.mask)
            return msgpack.ExtType(_MASKED, msgpack.packb([np.asarray(value.data), mask], default=_pack_other))
        return msgpack.ExtType(_ARRAY, msgpack.packb([value.dtype.str, value.shape, value.tobytes()]))
    if isinstance(value, memoryview):
        return value.tobytes()
    # A set; a mapping or sequence of another kind, such as an event-model document that checks its own values.
    if isinstance(value, Iterable) and not isinstance(value, (str, bytes, Iterator)):
        return dict(value) if hasattr(value, "keys") else list(value)
    return _text(value)


def _packable(value: Any, above: tuple[int, ...]) -> Any:
    """Copy a value, with text in place of what fails, holds itself or lies too deep.

    Parameters
    ----------
    value : object
        The value.
    above : tuple of int
        Identities of what it lies in.
    """
    if isinstance(value, _LEAVES):
        return value
    if id(value) in above or len(above) >= LEVELS_MAX:
        return _text(value)
    above = (*above, id(value))
    try:
        if isinstance(value, dict):
            # Other keys would be packed as what can't be a key.
            keys = {key: key if isinstance(key, (*_LEAVES, np.generic)) else _text(key) for key in value}
            return {keys[key]: _packable(each, above) for key, each in value.items()}
        if isinstance(value, (list, tuple)):
            return [_packable(each, above) for each in value]
        return _packable(_pack_other(value), above)
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - an object may do anything when it is asked what it holds
        return _text(value)


def _text(value: Any) -> str:
    """Write a value as text, whatever it does when it is asked for one."""
    try:
        return str(value)
    except Exception:  # noqa: BLE001 - as above; and Python writes no integer of more than 4300 digits in tens
        kind = type(value)
        return f"{value:#x}" if isinstance(value, int) else f"<{kind.__module__}.{kind.__qualname__}>"


def _with_texts_as_keys(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    return {_text(_as_tuple(key)) if isinstance(key, (list, dict)) else key: value for key, value in pairs}


def _as_tuple(value: Any) -> Any:
    return tuple(map(_as_tuple, value)) if isinstance(value, list) else value


def _unpack_other(code: int, data: bytes) -> Any:
    if code == _COMPLEX:
        return complex(*msgpack.unpackb(data))
    if code == _MASKED:
        values, mask = msgpack.unpackb(data, ext_hook=_unpack_other)
        return np.ma.array(values, mask=np.ma.nomask if mask is None else mask, copy=False)
    if code != _ARRAY:
        raise ValueError(f"a value of the unknown kind {code}")
    dtype, shape, raw = msgpack.unpackb(data)
    return np.frombuffer(raw, np.dtype(dtype)).reshape(shape)
