"""One run and its result as a browser shows them: all but the images, as plain values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bluesky_cdi.catalog import Catalog
from bluesky_cdi.catalog.columns import Columns, RunColumns
from bluesky_cdi.catalog.history import DECISIONS, decision_columns, proposals_of
from bluesky_cdi.catalog.schema import PER_FRAME, SOURCE, UPDATES, sample_of
from bluesky_cdi.config import DocumentsConfig
from bluesky_cdi.evaluation.causes import causes_of
from bluesky_cdi.evaluation.pipeline import ELSEWHERE, LATENCIES
from bluesky_cdi.evaluation.pipeline import KEY as PIPELINE
from bluesky_cdi.evaluation.resolution import KEY as RESOLUTION
from bluesky_cdi.evaluation.resolution import noted_frc, with_curve
from bluesky_cdi.evaluation.verdict import verdict_said
from bluesky_cdi.web.points import measured_points, rate_of

COUNTED = (*(f"n_{name}" for name in ("received", *ELSEWHERE)), *LATENCIES)
OF_UPDATES = ("seq_num", "time", "n_frames", "seconds", "median_frame_uncertainty_rad", "median_residual", *COUNTED)
OF_FRAMES = {
    "frame_seq_num": "number",
    "y_m": "y_m",
    "x_m": "x_m",
    "uncertainty_rad": "uncertainty_rad",
    "residual": "residual",
    "vacuum_residual": "vacuum_residual",
    "novelty": "novelty",
    "latents": "latents",
    "colour": "colour",
    "cluster": "cluster",
    "novelty_p": "novelty_p",
}

Metadata = Mapping[str, Any]


def describe(catalog: Catalog, measured: RunColumns, made: RunColumns, settings: DocumentsConfig) -> dict[str, Any]:
    """Read all of a run that is no image.

    Parameters
    ----------
    catalog : Catalog
        Where it is.
    measured, made : RunColumns
        Of the raw run and of its result.
    settings : DocumentsConfig
        What of the raw run's documents makes frames.

    Returns
    -------
    dict
        What the page needs; its keys are those that the page reads.
    """
    derived, points = made.metadata, measured_points(catalog, measured, settings)
    return {
        "run": _about_raw(measured.metadata),
        "result": None if derived is None else _about_result(derived),
        "measured": {
            **{name: _rounded(points[name]) for name in ("y_m", "x_m", "time")},
            "rate_hz": rate_of(points),
        },
        "decisions": _decisions(measured.of(DECISIONS)) if DECISIONS in measured else [],
        "updates": (updates := _updates(made.of(UPDATES))),
        "pipeline": _pipeline(derived, updates),
        "grid": _grid(made.of(UPDATES)) if UPDATES in made else None,
        "frames": _frames(made.of(PER_FRAME), derived) if PER_FRAME in made else None,
    }


def _about_raw(raw: Metadata | None) -> dict[str, Any] | None:
    if raw is None:
        return None
    start, stop = raw["start"], raw.get("stop") or {}
    return {
        "uid": start["uid"],
        "scan_id": start.get("scan_id"),
        "plan": start.get("plan_name"),
        "sample": sample_of(start),
        "time": start["time"],
        "ended": stop.get("time"),
        "status": stop.get("exit_status"),
        "reason": stop.get("reason"),
        "budget": start.get("budget"),
        "start": dict(start),
    }


def _about_result(derived: Metadata) -> dict[str, Any]:
    start, stop = derived["start"], derived.get("stop") or {}
    noted = {**(start.get("source") or {}), **stop}
    return {
        "uid": start["uid"],
        "title": start.get("title") or f"scan {start.get('scan_id')}",
        "time": start["time"],
        "ended": stop.get("time"),
        "status": stop.get("exit_status"),
        "reason": stop.get("reason"),
        "complete": bool(stop.get("complete")),
        "n_frames": stop.get("n_frames"),
        "verdict": stop.get("verdict"),
        "verdict_said": verdict_said(noted),
        "causes": list(causes_of(noted)),
        "uncertainty": stop.get("uncertainty"),
        "halves": _halves(stop),
        "why_no_halves": (stop.get(RESOLUTION) or {}).get("says"),
        "loss_history": stop.get("loss_history"),
        "start": dict(start),
    }


def _halves(stop: Metadata) -> dict[str, Any] | None:
    """Give the ring correlation of two halves with its threshold; None where no halves were compared."""
    if (notes := with_curve(stop)) is None:
        return None
    frc = noted_frc(notes)
    found = notes["resolution_m"][-1]
    return {
        "frequency_per_um": _rounded(frc.frequency_per_m * 1e-6),
        "correlation": _rounded(frc.correlation),
        "threshold": _rounded(frc.half_bit),
        "resolution_m": found,
        "target_m": notes.get("target_m"),
        "n_frames": notes["n_frames"][-1],
    }


def _updates(columns: Columns) -> dict[str, list[Any]]:
    found = {name: columns.read(name) for name in OF_UPDATES}
    # Of a repeated row the last counts, as in `load_result`.
    last = list({int(number): row for row, number in enumerate(found["seq_num"])}.values())
    return {name: _rounded(values[last]) if len(values) else [] for name, values in found.items()}


def _pipeline(derived: Metadata | None, updates: Mapping[str, list[Any]]) -> dict[str, float | None] | None:
    """Give how many frames are where on their way into the image, and how long they take; None where nobody counted.

    While a run goes on that is what was so at its newest image.
    """
    told = None if derived is None else ((derived.get("stop") or {}).get("source") or {}).get(PIPELINE)
    if told:
        return {name: told.get(name) for name in ("received", "imaged", *ELSEWHERE, *LATENCIES)}
    last = {name.removeprefix("n_"): _number(updates[name][-1]) for name in COUNTED if updates.get(name)}
    if last.get("received") is None:
        return None
    return {**last, "imaged": _number(updates["n_frames"][-1])}


def _grid(columns: Columns) -> dict[str, Any]:
    told, keys = columns.descriptor["configuration"][SOURCE]["data"], columns.descriptor["data_keys"]
    shape, modes = keys["object"]["shape"], keys["probe"]["shape"][0]
    return {
        "pixel_m": told["pixel_m"],
        "origin_m": [told["origin_y_m"], told["origin_x_m"]],
        "shape": list(shape)[-2:],
        "modes": int(modes),
    }


def _frames(columns: Columns, derived: Metadata | None) -> dict[str, list[Any]] | None:
    """Read what is told of each frame of a final estimate; None before there is one."""
    if derived is None or not (derived.get("stop") or {}).get("complete"):
        return None
    return {name: _rounded(columns.read(column)) for column, name in OF_FRAMES.items() if column in columns}


def _decisions(stream: Columns) -> list[dict[str, Any]]:
    """Read the decisions of an adaptive scan, in their order."""
    columns = decision_columns(stream)
    return [
        {
            "y_m": _rounded(made.positions_m[:, 0]),
            "x_m": _rounded(made.positions_m[:, 1]),
            "gain": _rounded(made.expected_gain),
            "reason": made.reason,
            "acquisition": made.acquisition,
            "time": float(at),
            "n_ingested": made.n_ingested,
            "n_pending": made.pending,
            "decision_s": _number(made.decision_s),
        }
        for made, at in zip(proposals_of(columns), columns["time"], strict=True)
    ]


def _number(value: Any) -> float | None:
    value = float(value)
    return value if math.isfinite(value) else None


def _rounded(values: npt.NDArray[Any] | Sequence[float]) -> list[Any]:
    """Give numbers as short texts hold them, six digits; times and whole numbers are left as they are."""
    array = np.asarray(values)
    if array.dtype.kind != "f" or (array.size and np.nanmax(np.abs(array), initial=0.0) > 1e8):
        return list(array)
    flat = [float(f"{value:.6g}") for value in array.ravel().tolist()]
    return list(np.reshape(np.array(flat, dtype=np.float64), array.shape))
