"""The type of a plan that gives a result."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, TypeVar

from bluesky.utils import Msg

T = TypeVar("T")
Plan = Generator[Msg, Any, T]
