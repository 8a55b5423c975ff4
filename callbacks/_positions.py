"""Which data keys of a stream are the position: what the user says, else the plan, else what is read."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from bluesky_cdi.errors import DocumentError, NoPtychographyError
from bluesky_cdi.units import is_other_quantity, metres_per

logger = logging.getLogger(__name__)

Document = Mapping[str, Any]


def position_keys(start: Document, descriptor: Document, chosen: Sequence[str] | None) -> tuple[str, str]:
    """Find the data keys of the position, (y, x).

    Without a choice these are the read-backs of the two motors that the start document names (`motors`, else the
    dimensions of its `hints`); of a plan that names none, the only two lengths that its devices hint at. Two that are
    called the same but for an x and a y, or that a plan calls ``x_motor`` and ``y_motor``, are brought to that order;
    others are taken to be (y, x) as they come.

    Parameters
    ----------
    start : Mapping
        The run's start document.
    descriptor : Mapping
        The stream's.
    chosen : sequence of str or None
        What the user fixes, (y, x).

    Raises
    ------
    NoPtychographyError
        If no two motors are scanned, or the chosen keys are not read.
    DocumentError
        If motors are scanned and not read.
    """
    if chosen is not None:
        if missing := [key for key in chosen if key not in descriptor["data_keys"]]:
            raise NoPtychographyError(
                f"the run's stream {descriptor['name']!r} does not hold the position {' and '.join(missing)} "
                f"(position_keys); its keys: {listed(descriptor['data_keys'])}",
                has_frames=True,
            )
        y, x = chosen
        return y, x
    motors = list(start.get("motors") or ())
    keys = [_read_back_key(motor, descriptor) for motor in motors] if len(motors) == 2 else []
    if not motors:
        motors = keys = _of_the_hints(start, descriptor) or _lengths(descriptor)
    if len(keys) != 2:
        raise NoPtychographyError(
            f"a position is a pair (y, x); the run names {len(motors)} motor(s): {listed(motors)}. If it is a scan, "
            "put the two scanned motors into the start document's `motors`, in the order y, x, or name their data keys "
            "(documents.position_keys)",
            has_frames=True,
        )
    first, second = keys
    return (second, first) if _is_x_before_y(motors, start) else (first, second)


def metres_of(key: str, descriptor: Document, otherwise: str | None) -> float:
    """Find how many metres one unit of a position is.

    Parameters
    ----------
    key : str
        Its data key.
    descriptor : Mapping
        The stream's, with the unit in the data key, or in its device's configuration (``..._egu``).
    otherwise : str or None
        Unit of devices that state none.

    Raises
    ------
    NoPtychographyError
        If it is an angle, an energy or another quantity.
    DocumentError
        If it is no unit, or there is none.
    """
    unit = descriptor["data_keys"][key].get("units") or _configured_unit(key, descriptor) or otherwise
    if is_other_quantity(unit):
        raise NoPtychographyError(f"the run's motor {key!r} moves in {unit!r}, which is no length", has_frames=True)
    return metres_per(unit, f"the position key {key!r}")


def listed(names: Sequence[str] | Mapping[str, Any]) -> str:
    """Write names in a row."""
    return ", ".join(map(str, names)) or "none"


def _read_back_key(motor: str, descriptor: Document) -> str:
    """Find the data key of a motor's position: its own name, or the one field that its hints name."""
    data_keys = descriptor["data_keys"]
    if motor in data_keys:
        return motor
    fields = [key for key in descriptor.get("hints", {}).get(motor, {}).get("fields", ()) if key in data_keys]
    if len(fields) != 1:
        raise DocumentError(
            f"the stream {descriptor['name']!r} must hold the position of {motor!r}, as a data key of that name or as "
            f"the one field of its hints; its keys: {listed(data_keys)}. Read the motor in every event, "
            "or name the keys: documents.position_keys of the configuration."
        )
    return str(fields[0])


def _of_the_hints(start: Document, descriptor: Document) -> list[str]:
    """Give the fields of the plan's dimensions in this stream that are read there."""
    dimensions = (start.get("hints") or {}).get("dimensions") or ()
    fields = [key for keys, stream in dimensions if stream == descriptor["name"] for key in keys]
    return [key for key in fields if key in descriptor["data_keys"]]


def _lengths(descriptor: Document) -> list[str]:
    """Give the numbers with a unit of length that the devices hint at, or all of them where nothing is hinted at."""
    data_keys = descriptor["data_keys"]
    hinted = [key for hints in descriptor.get("hints", {}).values() for key in hints.get("fields", ())]
    found = []
    for key in data_keys:
        try:
            metres_of(key, descriptor, None)
        except DocumentError:
            continue
        if not data_keys[key].get("shape") and data_keys[key].get("dtype") in ("number", "integer"):
            found.append(key)
    return [key for key in found if key in hinted] or found


def _configured_unit(key: str, descriptor: Document) -> str | None:
    """Find the unit in the configuration of a key's device."""
    owners = [name for name, keys in descriptor.get("object_keys", {}).items() if key in keys]
    for owner in owners:
        for name, value in descriptor.get("configuration", {}).get(owner, {}).get("data", {}).items():
            if name.endswith(("egu", "units")) and isinstance(value, str):
                return value
    return None


def _is_x_before_y(motors: Sequence[str], start: Document) -> bool:
    first, second = (motor.casefold() for motor in motors)
    differing = [(a, b) for a, b in zip(first, second, strict=False) if a != b]
    if len(first) == len(second) and len(differing) == 1 and set(differing[0]) == {"x", "y"}:
        return differing[0] == ("x", "y")
    x_motor, y_motor = (str((start.get("plan_args") or {}).get(name, "")) for name in ("x_motor", "y_motor"))
    named = [motor for motor in motors if is_named(motor, y_motor) and not is_named(motor, x_motor)]
    return named == [motors[1]]


def is_named(motor: str, text: str) -> bool:
    """Tell whether the representation of a device, ``SynAxis(name='sample', ...)``, is that of a motor."""
    return any(f"{quote}{motor}{quote}" in text for quote in ("'", '"')) or text == motor
