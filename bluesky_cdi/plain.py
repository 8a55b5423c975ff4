"""Values as JSON can carry them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np


def to_json(value: Any, *, indent: int | None = None) -> str:
    """Write `value` as JSON: arrays as lists, NumPy scalars as numbers, NaN and infinities as null, all else as text.

    Parameters
    ----------
    value : object
        What is to be written.
    indent : int, optional
        Spaces for each level; one line if absent.
    """
    return json.dumps(_plain(value), indent=indent, allow_nan=False)


def as_plain(value: Any) -> Any:
    """Return `value` as JSON would give it back."""
    return json.loads(to_json(value))


def _plain(value: Any) -> Any:
    if isinstance(value, (np.ndarray, np.generic)):
        value = value.tolist()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (str, int)):
        return value
    if isinstance(value, Mapping):
        # Keys are left to `json`, which refuses those that have no text.
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return str(value)
