"""Which data keys of a stream are the frame, the position and the flux: read from the documents, never guessed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bluesky_cdi.errors import DocumentError
from bluesky_cdi.units import metres_per

# Last words of the names under which detectors keep their exposure, in seconds (ophyd's AreaDetector: acquire_time).
EXPOSURE_SUFFIXES = ("exposure_s", "exposure_time", "acquire_time")


@dataclass(frozen=True)
class KeyChoice:
    """What the user fixes instead of leaving it to the documents; None leaves it."""

    frame_key: str | None = None
    position_keys: tuple[str, str] | None = None
    monitor_key: str | None = None


@dataclass(frozen=True)
class StreamKeys:
    """The data keys of one stream that make frames.

    Attributes
    ----------
    frame : str
        Data key of the frames.
    frame_shape : tuple of int
        (H, W) as announced.
    position : tuple of str
        Data keys (y, x).
    metres_per : tuple of float
        Metres that one unit of each position key is.
    monitor : str or None
        Data key of the incident flux.
    exposure_s : float
        Seconds; NaN where the descriptor doesn't tell.
    """

    frame: str
    frame_shape: tuple[int, int]
    position: tuple[str, str]
    metres_per: tuple[float, float]
    monitor: str | None
    exposure_s: float

    @classmethod
    def from_documents(cls, start: Mapping[str, Any], descriptor: Mapping[str, Any], choice: KeyChoice) -> StreamKeys:
        """Choose the keys of a stream.

        Parameters
        ----------
        start : Mapping
            The run's start document; its `motors` and `monitor` name keys where `choice` does not.
        descriptor : Mapping
            The stream's descriptor: data keys with shapes and units, hints, configuration.
        choice : KeyChoice
            What the user fixes.

        Raises
        ------
        DocumentError
            If there is no frame key or more than one, no pair of position keys, a position
            without a unit of length, or no such monitor.
        """
        frame = _frame_key(descriptor, choice.frame_key)
        position = _position_keys(start, descriptor, choice.position_keys)
        data_keys = descriptor["data_keys"]
        scale_y, scale_x = (metres_per(data_keys[key].get("units"), f"the position key {key!r}") for key in position)
        return cls(
            frame=frame,
            frame_shape=_frame_shape(data_keys[frame]) or (0, 0),
            position=position,
            metres_per=(scale_y, scale_x),
            monitor=_monitor_key(start, descriptor, choice.monitor_key),
            exposure_s=_exposure_s(descriptor, frame),
        )


def _frame_shape(data_key: Mapping[str, Any]) -> tuple[int, int] | None:
    """Read (H, W) of a data key that holds one 2-D frame an event, else give None."""
    shape = tuple(data_key.get("shape") or ())
    if len(shape) == 3 and shape[0] == 1:
        shape = shape[1:]
    if data_key.get("dtype") != "array" or len(shape) != 2 or not all(isinstance(n, int) and n > 1 for n in shape):
        return None
    return shape[0], shape[1]


def _frame_key(descriptor: Mapping[str, Any], chosen: str | None) -> str:
    data_keys, stream = descriptor["data_keys"], descriptor["name"]
    candidates = [key for key, value in data_keys.items() if _frame_shape(value)]
    if chosen is not None:
        if chosen not in candidates:
            raise DocumentError(
                f"the stream {stream!r} must hold 2-D frames under frame_key={chosen!r}; "
                f"those of its keys that hold frames: {_listed(candidates)}; all its keys: {_listed(data_keys)}. "
                "Give frame_key one of the first, or leave it out if there is only one."
            )
        return chosen
    if len(candidates) != 1:
        raise DocumentError(
            f"the stream {stream!r} must have exactly one data key with a 2-D frame an event; "
            f"it has {len(candidates)}: {_listed(candidates)} (all its keys: {_listed(data_keys)}). "
            "Read one area detector in this stream, or name the key: FrameAssembler(..., frame_key=...)."
        )
    return str(candidates[0])


def _position_keys(
    start: Mapping[str, Any], descriptor: Mapping[str, Any], chosen: Sequence[str] | None
) -> tuple[str, str]:
    motors = chosen if chosen is not None else start.get("motors") or ()
    if len(motors) != 2:
        raise DocumentError(
            f"a position is a pair (y, x); the run names {len(motors)} motors: {_listed(motors)}. "
            "Put the two scanned motors into the start document's `motors`, in the order y, x, "
            "or name their data keys: FrameAssembler(..., position_keys=(y, x))."
        )
    y, x = (_read_back_key(motor, descriptor) for motor in motors)
    return y, x


def _read_back_key(motor: str, descriptor: Mapping[str, Any]) -> str:
    """Find the data key of a motor's position: its own name, or the one field that its hints name."""
    data_keys = descriptor["data_keys"]
    if motor in data_keys:
        return motor
    fields = [key for key in descriptor.get("hints", {}).get(motor, {}).get("fields", ()) if key in data_keys]
    if len(fields) != 1:
        raise DocumentError(
            f"the stream {descriptor['name']!r} must hold the position of {motor!r}, as a data key of that name or as "
            f"the one field of its hints; its keys: {_listed(data_keys)}. Read the motor in every event, "
            "or name the keys: FrameAssembler(..., position_keys=(y, x))."
        )
    return str(fields[0])


def _monitor_key(start: Mapping[str, Any], descriptor: Mapping[str, Any], chosen: str | None) -> str | None:
    key = chosen if chosen is not None else start.get("monitor")
    if key is not None and key not in descriptor["data_keys"]:
        raise DocumentError(
            f"the monitor {key!r} must be a data key of the stream {descriptor['name']!r}; "
            f"its keys: {_listed(descriptor['data_keys'])}. Read it in every event, "
            "or leave out monitor_key and the metadata's `monitor`."
        )
    return key


def _exposure_s(descriptor: Mapping[str, Any], frame_key: str) -> float:
    """Find the exposure in the configuration of the frames' device, seconds; NaN where it isn't stated."""
    configuration = descriptor.get("configuration", {})
    owners = [name for name, keys in descriptor.get("object_keys", {}).items() if frame_key in keys]
    for owner in owners:
        for key, value in configuration.get(owner, {}).get("data", {}).items():
            if key.endswith(EXPOSURE_SUFFIXES) and isinstance(value, (int, float)):
                return float(value)
    return math.nan


def _listed(names: Sequence[str] | Mapping[str, Any]) -> str:
    return ", ".join(map(str, names)) or "none"
