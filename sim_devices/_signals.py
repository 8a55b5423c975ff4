"""Signals without a control system: setting one takes effect at once."""

from __future__ import annotations

import math
from typing import Any

from ophyd import Signal
from ophyd.status import Status

from bluesky_cdi.sim_devices._errors import OutOfRangeError


class SoftSignal(Signal):  # type: ignore[misc]
    """Signal whose `set` is done when it returns, and raises a refused value to the caller."""

    def set(self, value: Any, *, timeout: float | None = None, settle_time: float | None = None) -> Status:
        """Take a value at once.

        Parameters
        ----------
        value : Any
            The new value.
        timeout, settle_time : float, optional
            Passed to the status, seconds.

        Returns
        -------
        Status
            Finished.
        """
        self.put(value)
        status = Status(self, timeout=timeout, settle_time=settle_time or 0)
        status.set_finished()
        return status


class BoundedSignal(SoftSignal):
    """Number with a lower bound and a unit.

    Parameters
    ----------
    minimum : float
        Smallest value taken.
    units : str
        Unit that `describe` states.
    **kwargs
        As for `ophyd.Signal`; `name` is required.
    """

    def __init__(self, *, minimum: float, units: str, **kwargs: Any) -> None:
        self._minimum = minimum
        self._units = units
        super().__init__(**kwargs)

    def check_value(self, value: Any) -> None:
        """Refuse what is not a finite number of at least the minimum.

        Raises
        ------
        OutOfRangeError
            If `value` is not.
        """
        if not (math.isfinite(value) and value >= self._minimum):
            raise OutOfRangeError(
                f"{self.name} must be a finite number of at least {self._minimum:g} {self._units}; got {value!r}"
            )

    def describe(self) -> dict[str, Any]:
        """Describe the value, with its unit."""
        described: dict[str, Any] = super().describe()
        described[self.name]["units"] = self._units
        return described
