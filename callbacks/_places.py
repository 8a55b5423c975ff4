"""Where the frames of a run were measured whose positions have a stream and time stamps of their own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from bluesky_cdi.callbacks._frame_files import FrameFiles
from bluesky_cdi.callbacks._stamped_run import StampedRun, position_stream
from bluesky_cdi.callbacks._stream_keys import KeyChoice, StreamKeys
from bluesky_cdi.config import DocumentsConfig
from bluesky_cdi.errors import DocumentError
from bluesky_cdi.protocols import FloatArray


def stamped_places(
    documents: Iterable[tuple[str, Mapping[str, Any]]], settings: DocumentsConfig
) -> tuple[npt.NDArray[np.int64], FloatArray, FloatArray]:
    """Find where and when frames were measured, without reading any; those of unknown position are left out.

    Columns that files do not hold yet, though they are announced, count as unknown.

    Parameters
    ----------
    documents : iterable of (name, document)
        Of a run, from its start on.
    settings : DocumentsConfig
        What of the documents makes a frame.

    Returns
    -------
    numbers : ndarray, shape (n,)
        Of the frames, in their order.
    positions_m : ndarray, shape (n, 2)
        (y, x) of the middle of each exposure, metres.
    centres_s : ndarray, shape (n,)
        When that was by the clock of the time stamps, seconds.

    Raises
    ------
    DocumentError
        If the run has no stream of positions, or it can't be told how frames find theirs.
    """
    choice = KeyChoice(settings.frame_key, settings.position_keys, settings.position_unit, settings.monitor_key)
    places: dict[int, tuple[float, float, float]] = {}
    placed = 0
    run: StampedRun | None = None
    keys: StreamKeys | None = None
    start: Mapping[str, Any] = {}
    with contextlib.closing(FrameFiles()) as files:
        for name, doc in documents:
            if name == "start":
                start, samples = doc, position_stream(doc, settings.time_stamps)
                if samples is None:
                    raise DocumentError(
                        "the run must name the stream of its positions (position_stream in its start document, or "
                        "documents.time_stamps.stream); it names none. Positions that come with the frames are read "
                        "from their stream."
                    )
                run = StampedRun(doc, settings.stream, samples, settings.time_stamps, choice, files)
            if run is None or name == "stop":
                continue
            for kind, each in run.translated(name, doc):
                if kind == "descriptor":
                    keys = StreamKeys.from_documents(start, each, choice)
                elif kind == "event" and keys is not None and all(key in each["data"] for key in keys.position):
                    y, x = (each["data"][key] * unit for key, unit in zip(keys.position, keys.metres_per, strict=True))
                    places[int(each["seq_num"])] = (float(y), float(x), run.positions.centre_s[placed])
                    placed += 1
    numbers = np.array(sorted(places), np.int64)
    found = np.array([places[number] for number in numbers.tolist()], np.float64).reshape(-1, 3)
    return numbers, found[:, :2], found[:, 2]
