"""Values as JSON can carry them."""

from __future__ import annotations

import json
from typing import Any

import numpy as np


def to_json(value: Any) -> str:
    """Write `value` as JSON: arrays as lists, NumPy scalars as numbers, what else JSON lacks as text."""
    return json.dumps(value, default=_plain)


def as_plain(value: Any) -> Any:
    """Return `value` as JSON would give it back."""
    return json.loads(to_json(value))


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else str(value)
