"""Where and when the frames of a raw run were measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from bluesky_cdi.callbacks import KeyChoice, StreamKeys, position_stream, stamped_places
from bluesky_cdi.catalog import Catalog, run_documents
from bluesky_cdi.catalog.columns import Columns, RunColumns
from bluesky_cdi.config import DocumentsConfig
from bluesky_cdi.errors import DocumentError
from bluesky_cdi.protocols import FloatArray

# The rate of a scan is that of its last frames.
RATE_FRAMES = 20

Metadata = Mapping[str, Any]
Points = dict[str, FloatArray]


def measured_points(catalog: Catalog, measured: RunColumns, settings: DocumentsConfig) -> Points:
    """Read where and when frames were measured, in their order.

    Parameters
    ----------
    catalog : Catalog
        Where the run is.
    measured : RunColumns
        Of the raw run.
    settings : DocumentsConfig
        What of the raw run's documents makes frames.

    Returns
    -------
    dict of str to ndarray, shape (n,)
        ``y_m``, ``x_m``; ``time``, seconds since 1970, of a fly scan empty: its clock is that of the detector; and
        ``stamp_s``, what the rate is told from. All are empty if the run doesn't tell.
    """
    points: Points = {name: np.empty(0) for name in ("y_m", "x_m", "time", "stamp_s")}
    if measured.metadata is None or settings.stream not in measured:
        return points
    start = measured.metadata["start"]
    try:
        if position_stream(start, settings.time_stamps) is not None:
            return points | _of_a_flight(catalog, measured.run, settings)
        return points | _of_events(start, measured.of(settings.stream), settings)
    except DocumentError:
        # A run of another kind: it is listed, and there are no positions to show.
        return points


def rate_of(points: Points) -> float | None:
    """Compute how many frames come in a second, from the last ones; None before there are two.

    Parameters
    ----------
    points : dict
        Of `measured_points`.
    """
    last = np.sort(points["stamp_s"])[-RATE_FRAMES:]
    spent = float(last[-1] - last[0]) if len(last) > 1 else 0.0
    return (len(last) - 1) / spent if spent > 0 else None


def _of_events(start: Metadata, columns: Columns, settings: DocumentsConfig) -> Points:
    choice = KeyChoice(settings.frame_key, settings.position_keys, settings.position_unit, settings.monitor_key)
    keys = StreamKeys.from_documents(start, columns.descriptor, choice)
    y, x = (
        columns.read(key).astype(np.float64) * unit for key, unit in zip(keys.position, keys.metres_per, strict=True)
    )
    times = columns.read("time").astype(np.float64)
    n = min(len(y), len(x))
    return {"y_m": y[:n], "x_m": x[:n], "time": times[:n], "stamp_s": times}


def _of_a_flight(catalog: Catalog, run: Any, settings: DocumentsConfig) -> Points:
    # By the files, as frames are read: the server fails where one holds less than is announced, and is asked again.
    documents = run_documents(catalog, run, settings.stream, positions=settings.time_stamps.stream)
    _, positions_m, centres_s = stamped_places(documents, settings)
    return {"y_m": positions_m[:, 0], "x_m": positions_m[:, 1], "stamp_s": centres_s}
