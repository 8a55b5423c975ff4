"""Which data keys of a stream are the frame, the position and the flux: read from the documents, never guessed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bluesky_cdi.callbacks._positions import listed, metres_of, position_keys
from bluesky_cdi.errors import DocumentError, NoPtychographyError

# Last words of the names under which detectors keep their exposure, in seconds (ophyd's AreaDetector: acquire_time).
EXPOSURE_SUFFIXES = ("exposure_s", "exposure_time", "acquire_time")


@dataclass(frozen=True)
class KeyChoice:
    """What the user fixes instead of leaving it to the documents; None leaves it."""

    frame_key: str | None = None
    position_keys: tuple[str, str] | None = None
    position_unit: str | None = None
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
    n_images : int
        How many of them an event has.
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
    n_images: int
    position: tuple[str, str]
    metres_per: tuple[float, float]
    monitor: str | None
    exposure_s: float

    @property
    def parts(self) -> dict[str | None, str]:
        """What each key of the stream is for: ``frame``, ``y``, ``x``, ``monitor``."""
        y, x = self.position
        monitor: dict[str | None, str] = {} if self.monitor is None else {self.monitor: "monitor"}
        return {self.frame: "frame", y: "y", x: "x", **monitor}

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
        NoPtychographyError
            If there are no frames, or no two lengths were scanned.
        DocumentError
            If there is more than one key with frames, a position without a unit, or no such monitor.
        """
        images = _images(descriptor, choice.frame_key)
        position = position_keys(start, descriptor, choice.position_keys)
        scale_y, scale_x = (metres_of(key, descriptor, choice.position_unit) for key in position)
        frame = _only(images, descriptor)
        n_images, *shape = images[frame]
        return cls(
            frame=frame,
            frame_shape=(shape[0], shape[1]),
            n_images=n_images,
            position=position,
            metres_per=(scale_y, scale_x),
            monitor=_monitor_key(start, descriptor, choice),
            exposure_s=_exposure_s(descriptor, frame),
        )


def _stack_shape(data_key: Mapping[str, Any]) -> tuple[int, int, int] | None:
    """Read (n, H, W) of a data key that holds n 2-D frames an event, else give None."""
    shape = tuple(data_key.get("shape") or ())
    if data_key.get("dtype") != "array" or len(shape) not in (2, 3) or not all(isinstance(n, int) for n in shape):
        return None
    n, height, width = shape if len(shape) == 3 else (1, *shape)
    return (n, height, width) if n >= 1 and min(height, width) > 1 else None


def _images(descriptor: Mapping[str, Any], chosen: str | None) -> dict[str, tuple[int, int, int]]:
    """Find the keys with frames, and their shapes (n, H, W): the chosen one, those of one frame, or those of several.

    Raises
    ------
    NoPtychographyError
        If there are none.
    """
    stacks = {key: shape for key, value in descriptor["data_keys"].items() if (shape := _stack_shape(value))}
    if chosen is not None and chosen not in stacks:
        raise NoPtychographyError(
            f"the run's stream {descriptor['name']!r} has no 2-D frames under frame_key={chosen!r}; those of its keys "
            f"that hold frames: {listed(stacks)}; all its keys: {listed(descriptor['data_keys'])}",
            has_frames=bool(stacks),
        )
    if not stacks:
        raise NoPtychographyError(
            f"the run's stream {descriptor['name']!r} has no 2-D frames; its keys: {listed(descriptor['data_keys'])}"
        )
    if chosen is not None:
        return {chosen: stacks[chosen]}
    return {key: shape for key, shape in stacks.items() if shape[0] == 1} or stacks


def frame_key_of(descriptor: Mapping[str, Any], chosen: str | None = None) -> str:
    """Find the data key of a stream's frames.

    Parameters
    ----------
    descriptor : Mapping
        The stream's.
    chosen : str, optional
        The key that the user fixes.

    Raises
    ------
    NoPtychographyError
        If the stream has no frames.
    DocumentError
        If it has several keys with frames.
    """
    return _only(_images(descriptor, chosen), descriptor)


def _only(images: Mapping[str, Any], descriptor: Mapping[str, Any]) -> str:
    if len(images) != 1:
        raise DocumentError(
            f"the stream {descriptor['name']!r} must have exactly one data key with 2-D frames; "
            f"it has {len(images)}: {listed(images)} (all its keys: {listed(descriptor['data_keys'])}). "
            "Read one area detector in this stream, or name the key: documents.frame_key of the configuration, "
            "FrameAssembler(..., frame_key=...)."
        )
    (key,) = images
    return key


def _monitor_key(start: Mapping[str, Any], descriptor: Mapping[str, Any], choice: KeyChoice) -> str | None:
    key = choice.monitor_key if choice.monitor_key is not None else start.get("monitor")
    if key is not None and key not in descriptor["data_keys"]:
        told = (
            f"the monitor {key!r} must be a data key of the stream {descriptor['name']!r}; "
            f"its keys: {listed(descriptor['data_keys'])}. Read it in every event, "
            "or leave out monitor_key (documents.monitor_key) and the metadata's `monitor`."
        )
        if choice.position_keys is None and not start.get("motors"):
            # Where no motors are named either, it was hardly meant to be a scan.
            raise NoPtychographyError(told, has_frames=True)
        raise DocumentError(told)
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
