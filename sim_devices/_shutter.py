"""Beam shutter."""

from __future__ import annotations

from typing import Any

from bluesky_cdi.sim_devices._errors import OutOfRangeError
from bluesky_cdi.sim_devices._signals import SoftSignal

STATES = ("open", "closed")


class SimShutter(SoftSignal):
    """Shutter, set to ``'open'`` or ``'closed'``; it starts open.

    Parameters
    ----------
    **kwargs
        As for `ophyd.Signal`; `name` is required.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"value": "open"} | kwargs)

    @property
    def is_open(self) -> bool:
        """Whether the beam passes."""
        return bool(self.get() == "open")

    def check_value(self, value: Any) -> None:
        """Refuse what is neither of the two states.

        Raises
        ------
        OutOfRangeError
            If `value` is neither ``'open'`` nor ``'closed'``.
        """
        if value not in STATES:
            raise OutOfRangeError(f"{self.name} takes 'open' or 'closed'; got {value!r}")
