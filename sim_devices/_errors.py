"""Errors of the simulated devices."""

from __future__ import annotations

from ophyd.utils.errors import LimitError

from bluesky_cdi.errors import BlueskyCDIError


class OutOfRangeError(BlueskyCDIError, LimitError):  # type: ignore[misc]
    """A device was asked for a position or a value that it can't take; also ophyd's `LimitError`."""


class NotStagedError(BlueskyCDIError, RuntimeError):
    """A detector was triggered before it was staged."""
