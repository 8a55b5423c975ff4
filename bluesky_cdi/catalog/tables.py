"""A result as labelled arrays: axes in metres, units, and where it comes from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bluesky_cdi.catalog.browse import update_rows
from bluesky_cdi.catalog.columns import RunColumns
from bluesky_cdi.catalog.listing import ResultSummary
from bluesky_cdi.catalog.result_file import FRAMES, MAPS, SCALARS, UPDATED, Column
from bluesky_cdi.catalog.schema import MAPPED, PER_FRAME
from bluesky_cdi.evaluation.gauge import shown_images
from bluesky_cdi.protocols import Estimate, FloatArray

if TYPE_CHECKING:
    import xarray as xr

# Dimensions in the file, and what they are called beside axes.
DIMS = {"canvas_row": "y", "canvas_col": "x", "probe_row": "probe_y", "probe_col": "probe_x"}


def updates_of(run: Any) -> xr.Dataset:
    """Read the numbers of a derived run's updates, along ``update``.

    Parameters
    ----------
    run : BlueskyRun
        The derived run.
    """
    import xarray as xr

    rows = update_rows(run)
    columns = {
        name: ("update", np.array([row[name] for row in rows]), {"units": key["units"]} if key["units"] else {})
        for name, key in {**SCALARS, "time": {"units": "s since 1970"}}.items()
        # Results of earlier versions lack some.
        if all(name in row for row in rows)
    }
    return xr.Dataset(columns, coords={"update": np.arange(len(rows))})


def dataset_of(estimate: Estimate, run: Any, summary: ResultSummary) -> xr.Dataset:
    """Give a result's arrays with coordinates.

    ``y`` and ``x`` are the stage's positions of the object's pixels, ``probe_y`` and ``probe_x`` distances from the
    probe's centre, all in metres; ``frame`` counts the frames of the final estimate, with ``frame_seq_num``, ``y_m``
    and ``x_m`` as coordinates. Arrays are named as in the catalog, and have their ``units``.

    Parameters
    ----------
    estimate : Estimate
        The final one.
    run : BlueskyRun
        Its derived run, of which what an estimate does not hold is read: latents and maps, where there are any.
    summary : ResultSummary
        What its attributes tell.
    """
    import xarray as xr

    images = {name: getattr(estimate, name) for name in ("object", "probe", "std_amplitude", "std_phase_rad")}
    images |= {"coverage": estimate.coverage, **shown_images(estimate)}
    frames = _stored(run, PER_FRAME, FRAMES)
    maps = {name: values[-1] for name, values in _stored(run, MAPPED, MAPS).items()}
    arrays = {
        **{name: _variable(values, UPDATED[name]) for name, values in images.items()},
        **{name: _variable(values, FRAMES[name], "frame") for name, values in frames.items()},
        **{name: _variable(values, MAPS[name]) for name, values in maps.items()},
    }
    side, metres = estimate.probe.shape[-1], {"units": "m"}
    around = (np.arange(side) - side // 2) * estimate.pixel_m
    axes = {
        "y": ("y", _axis(estimate, 0), {**metres, "long_name": "stage position, y"}),
        "x": ("x", _axis(estimate, 1), {**metres, "long_name": "stage position, x"}),
        "probe_y": ("probe_y", around, metres),
        "probe_x": ("probe_x", around, metres),
    }
    found = xr.Dataset(arrays, coords=axes, attrs=_attributes(estimate, summary))
    return found.set_coords([name for name in ("frame_seq_num", "y_m", "x_m") if name in found])


def _axis(estimate: Estimate, axis: int) -> FloatArray:
    return estimate.origin_m[axis] + np.arange(estimate.object.shape[axis]) * estimate.pixel_m


def _variable(
    values: npt.NDArray[Any], column: Column, *leading: str
) -> tuple[tuple[str, ...], npt.NDArray[Any], Mapping[str, str]]:
    dims = (*leading, *(DIMS.get(name, name) for name in column.dims))
    return dims, np.asarray(values, column.dtype), {} if column.units is None else {"units": column.units}


def _stored(run: Any, stream: str, columns: Mapping[str, Column]) -> dict[str, npt.NDArray[Any]]:
    """Read the arrays of a stream; results of earlier versions lack some."""
    stored = RunColumns(run).of(stream)
    return {name: stored.read(name) for name in columns if name in stored}


def _attributes(estimate: Estimate, summary: ResultSummary) -> dict[str, str | int | float]:
    told = {
        "title": summary.title,
        "uid": summary.uid,
        "raw_uid": summary.raw_uid,
        "scan_id": summary.scan_id,
        "sample": summary.sample,
        "verdict": summary.verdict,
        "n_frames": estimate.n_frames,
        "pixel_m": estimate.pixel_m,
    }
    return {key: value for key, value in told.items() if value is not None}
