"""Lengths as devices state them, in metres."""

from __future__ import annotations

from bluesky_cdi.errors import DocumentError

METRES_PER = {"m": 1.0, "mm": 1e-3, "um": 1e-6, "µm": 1e-6, "μm": 1e-6, "micron": 1e-6, "microns": 1e-6, "nm": 1e-9}


def metres_per(unit: str | None, what: str) -> float:
    """Return how many metres one `unit` is.

    Parameters
    ----------
    unit : str or None
        A device's engineering unit, as its data key states it.
    what : str
        Name of the device or data key, for the error.

    Raises
    ------
    DocumentError
        If the unit is absent or not a length.
    """
    if unit not in METRES_PER:
        raise DocumentError(
            f"{what} must state a unit of length, one of {', '.join(METRES_PER)}; it states {unit!r}. "
            "Set the device's engineering unit (`egu`): a position without one can't be placed."
        )
    return METRES_PER[unit]
