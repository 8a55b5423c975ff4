"""Lengths and times as devices state them, in metres and seconds."""

from __future__ import annotations

import unicodedata

from bluesky_cdi.errors import DocumentError

METRES_PER = {
    "m": 1.0, "cm": 1e-2, "mm": 1e-3, "um": 1e-6, "µm": 1e-6, "μm": 1e-6, "micron": 1e-6, "microns": 1e-6, "nm": 1e-9,
    "pm": 1e-12, "angstrom": 1e-10, "å": 1e-10, "inch": 25.4e-3,
}  # fmt: skip

_PREFIXES = {"": 1.0, "centi": 1e-2, "milli": 1e-3, "micro": 1e-6, "nano": 1e-9, "pico": 1e-12}
_WORDS = {
    f"{prefix}{word}": factor for prefix, factor in _PREFIXES.items() for word in ("meter", "meters", "metre", "metres")
}
_SHORT = {"angstroms": 1e-10, "ang": 1e-10, "inches": 25.4e-3, "in": 25.4e-3, "µ": 1e-6}

_SECONDS = {
    "s": 1.0, "sec": 1.0, "second": 1.0, "seconds": 1.0, "ms": 1e-3, "millisecond": 1e-3, "milliseconds": 1e-3,
    "us": 1e-6, "µs": 1e-6, "microsecond": 1e-6, "microseconds": 1e-6, "ns": 1e-9, "nanosecond": 1e-9,
    "nanoseconds": 1e-9,
}  # fmt: skip

# What else axes and sensors state, in lower case: a scan of these is no scan of the sample.
_OTHERS = frozenset({
    "deg", "degree", "degrees", "°", "rad", "radian", "radians", "mrad", "urad", "μrad", "nrad", "arcsec",
    "ev", "kev", "mev", "k", "c", "degc", "°c", "f", "pa", "kpa", "mbar", "bar", "torr", "t", "tesla",
    "a", "ma", "ua", "μa", "na", "amp", "amps", "ampere", "v", "mv", "uv", "volt", "volts", "w", "mw",
    "s", "sec", "second", "seconds", "ms", "us", "μs", "ns", "min", "h", "hz", "khz", "mhz", "ghz", "%",
})  # fmt: skip


def _plain(unit: str) -> str:
    """Bring a unit to one spelling: no spaces or brackets around it, lower case, one sign for micro."""
    return unicodedata.normalize("NFKC", unit).strip(" \t\r\n[](){}.").casefold()


# Both signs for micro are one after this.
_BY_PLAIN_NAME = {_plain(name): factor for name, factor in {**METRES_PER, **_WORDS, **_SHORT}.items()}
_SECONDS_BY_PLAIN_NAME = {_plain(name): factor for name, factor in _SECONDS.items()}


def metres_per(unit: str | None, what: str) -> float:
    """Return how many metres one `unit` is.

    Parameters
    ----------
    unit : str or None
        A device's engineering unit, as its data key states it: its sign or its name, in upper or lower case (an axis
        never counts in megametres).
    what : str
        Name of the device or data key, for the error.

    Raises
    ------
    DocumentError
        If the unit is absent or not a length.
    """
    factor = _BY_PLAIN_NAME.get(_plain(unit)) if isinstance(unit, str) else None
    if factor is None:
        raise DocumentError(
            f"{what} must state a unit of length, one of {', '.join(METRES_PER)}, or its name; it states {unit!r}. "
            "Set the device's engineering unit (`egu`, or `units` in what it describes): a position without one can't "
            "be placed."
        )
    return factor


def seconds_per(unit: str | None) -> float | None:
    """Return how many seconds one `unit` is; None where it is no unit of time.

    Parameters
    ----------
    unit : str or None
        As a data key states it: its sign or its name.
    """
    return _SECONDS_BY_PLAIN_NAME.get(_plain(unit)) if isinstance(unit, str) else None


def is_other_quantity(unit: str | None) -> bool:
    """Tell whether a unit is known, and of no length: an angle, an energy, a temperature, a time."""
    return isinstance(unit, str) and _plain(unit) in _OTHERS
