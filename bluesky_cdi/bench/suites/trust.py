"""What predicted errors are worth: on simulated scans of kinds that nothing else has drawn, and on recorded ones.

Neither training nor calibration draws such objects and probes. Each scan is reconstructed as a run's last frames are:
predicted once, then refined, object and probe; in the end its errors are checked by halves, as a run's are. What is
counted is the share of wrapped phase errors, and of amplitude errors, inside the central intervals, with shift, ramp
and scale removed. Ranks are correlated by pixel, beside the value that is reached if each error has exactly the
predicted deviation, and by frame: rms errors under the frames' illumination.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bluesky_cdi.bench.cases import Case, photons, positions_of, simulate
from bluesky_cdi.bench.machine import record
from bluesky_cdi.bench.problem import Problem
from bluesky_cdi.bench.recorded import RECORDED
from bluesky_cdi.config import ReconstructorConfig
from bluesky_cdi.evaluation import (
    compare,
    illuminated_mask,
    interval_widths,
    rank_correlation,
    share_inside,
    wrap_rad,
)
from bluesky_cdi.models.weights import Trained, load_weights
from bluesky_cdi.physics.forward import to_centre
from bluesky_cdi.physics.geometry import ObjectGrid
from bluesky_cdi.physics.propagators import propagator_of
from bluesky_cdi.protocols import ComplexArray, Estimate, FloatArray, Frame
from bluesky_cdi.reconstruction.bad_pixels import valid_pixels
from bluesky_cdi.reconstruction.online import PtychoReconstructor
from bluesky_cdi.reconstruction.uncertainty import DeepEnsembleEstimator, under_frames

SCENES = {
    "zone plate, star": Case(sample="star"),
    "zone plate, photograph": Case(sample="natural"),
    "mirrors, circuit": Case(sample="circuit", optics="mirrors"),
    "mirrors, cells": Case(sample="cells", optics="mirrors"),
}
"""Objects and probes by the names of tables."""
DOSES, OVERLAPS = (1e4, 1e5, 1e6), (0.5, 0.67, 0.8)
# What is assumed wrongly, at the middle dose and overlap.
FAULTS: Mapping[str, Callable[[Case], Case]] = {
    "probe 0.4 rad wrong": lambda case: replace(case, probe_error_rad=0.4),
    "positions 1 pixel wrong": lambda case: replace(case, position_error_px=1.0),
}
FAULTY_SCENES = ("zone plate, star", "zone plate, photograph")
REFINED = (5, 30)
# Iterations of a step.
STEP = 5
FIELD = 0.8


@dataclass(frozen=True)
class Options:
    """What is tested.

    Parameters
    ----------
    weights : sequence of str
        Networks by name or file; ``none``: LSQ-ML alone.
    estimators : sequence of str
        What predicts errors; empty: each network's default.
    scenes : sequence of str
        Keys of `SCENES`.
    doses, overlaps : sequence of float
        Photons a frame, and linear overlaps; each dose with each overlap.
    seeds : int
        Scans of each case.
    faults : bool
        Whether the scans of `FAULTS` are among them.
    data : Path, optional
        Folder of recorded scans, which are left out without it.
    device : torch.device
        Where to compute.
    first_seed : int
        Of the scans.
    members : sequence of str
        Weights of the networks of a ``deep ensemble`` besides.
    """

    weights: Sequence[str] = ("canvas-small",)
    estimators: Sequence[str] = ()
    scenes: Sequence[str] = tuple(SCENES)
    doses: Sequence[float] = DOSES
    overlaps: Sequence[float] = OVERLAPS
    seeds: int = 1
    faults: bool = True
    data: Path | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    first_seed: int = 0
    members: Sequence[str] = ()


@dataclass(frozen=True, eq=False)
class Judged:
    """Errors of an estimate beside those that it predicts, on the pixels that count.

    Attributes
    ----------
    errors, std : Mapping of str to ndarray, shape (pixels,)
        Of ``phase`` (radians) and ``amplitude``.
    numbers : Mapping
        For the table.
    """

    errors: Mapping[str, FloatArray]
    std: Mapping[str, FloatArray]
    numbers: Mapping[str, Any]


def trust(
    options: Options,
    on_progress: Callable[[str], None] | None = None,
    keep: Callable[[str, Judged], None] | None = None,
) -> dict[str, Any]:
    """Test predicted errors.

    Parameters
    ----------
    options : Options
        Which, and on what.
    on_progress : callable, optional
        Called with the name of each scan before it is reconstructed.
    keep : callable, optional
        Called with the name of a row and what was judged, of each estimate without faults.

    Returns
    -------
    dict
        ``machine``, ``settings``, ``rows``: of each network, estimator, case and number of iterations; and
        ``recorded``: of each recorded scan the shares of the differences of halves inside their intervals.
    """
    tell = on_progress or (lambda _: None)
    rows: list[dict[str, Any]] = []
    recorded: list[dict[str, Any]] = []
    for name in options.weights:
        trained = None if name == "none" else load_weights(name, options.device)
        for estimator in options.estimators or (None,):
            for number, (labels, case) in enumerate(_cases(options)):
                tell(f"{name}, {estimator or 'default'}, {', '.join(map(str, labels.values()))}")
                seed = options.first_seed + number
                for judged, row in _estimates(
                    case, seed, trained, _uncertainty_settings(options, estimator), options.device
                ):
                    rows.append({"weights": name, **labels, **row, **judged.numbers})
                    if keep is not None and not labels["fault"]:
                        keep(f"{name}, {row['estimator']}, {way(row)}", judged)
            if options.data is not None:
                recorded += [
                    {"weights": name, **row}
                    for row in _recorded(
                        options.data, trained, _uncertainty_settings(options, estimator), options.device
                    )
                ]
    settings = {
        "weights": list(options.weights),
        "estimators": list(options.estimators),
        "scenes": list(options.scenes),
        "seeds": options.seeds,
        "first_seed": options.first_seed,
        "field": FIELD,
        "refine_iterations": STEP,
    }
    return record([options.device], settings, rows=rows, recorded=recorded)


def cells(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[str, ...], dict[str, float]]:
    """Average over the scans of each cell: weights, estimator, iterations, dose, overlap, fault.

    Parameters
    ----------
    rows : sequence of Mapping
        Those of `trust`.

    Returns
    -------
    dict
        Means of all numbers by the cell; of ratios geometric ones.
    """
    found: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        key = (row["weights"], row["estimator"], way(row), photons(row["dose"]), f"{row['overlap']:g}", row["fault"])
        found.setdefault(key, []).append(row)
    return {key: _mean(each) for key, each in found.items()}


def _mean(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    means = {"scans": float(len(rows))}
    for name in (key for key, value in rows[0].items() if isinstance(value, float)):
        values = np.array([row[name] for row in rows if row[name] is not None], np.float64)
        geometric = name.endswith("_ratio")
        means[name] = (
            float(np.exp(np.log(values).mean()) if geometric else np.nanmean(values)) if len(values) else math.nan
        )
    return means


def way(row: Mapping[str, Any]) -> str:
    """Name how far a row's object is."""
    name = "one pass" if row["iterations"] == 0 else f"{row['iterations']} iterations"
    return f"{name}, checked" if row["checked"] else name


def _cases(options: Options) -> Iterator[tuple[dict[str, Any], Case]]:
    """List the scans with their labels."""
    for _ in range(options.seeds):
        for scene in options.scenes:
            for dose in options.doses:
                for overlap in options.overlaps:
                    labels = {"scene": scene, "dose": dose, "overlap": overlap, "fault": ""}
                    yield labels, replace(SCENES[scene], dose=dose, overlap=overlap, field=FIELD)
    if not options.faults:
        return
    for _ in range(options.seeds):
        for fault, with_fault in FAULTS.items():
            for scene in FAULTY_SCENES:
                for dose in options.doses:
                    labels = {"scene": scene, "dose": dose, "overlap": 0.67, "fault": fault}
                    yield labels, with_fault(replace(SCENES[scene], dose=dose, field=FIELD))


def _uncertainty_settings(options: Options, estimator: str | None) -> dict[str, Any]:
    """Name an estimator, and the weights that it needs besides, as a configuration does."""
    files = options.members if estimator == DeepEnsembleEstimator.name else ()
    return {"uncertainty": estimator, "uncertainty_weights": tuple(files)}


def _estimates(
    case: Case, seed: int, trained: Trained | None, settings: Mapping[str, Any], device: torch.device
) -> Iterator[tuple[Judged, dict[str, Any]]]:
    """Reconstruct a scan, and judge what there is after some iterations."""
    problem = simulate(case, seed, torch.device("cpu"))
    grid, frames = frames_of(problem)
    for refined in ((), REFINED) if trained is not None else (REFINED,):
        config = ReconstructorConfig.model_validate(
            {
                "name": "lsqml" if trained is None else "pinn",
                "background": 0.0,
                "refine_iterations": STEP if refined else 0,
                **settings,
                **({} if trained is None else {"weights": str(trained.path)}),
            }
        )
        reconstructor = PtychoReconstructor(grid, problem.probe[0].numpy(), config, trained=trained, device=device)
        reconstructor.add(frames)
        began, estimate = time.perf_counter(), None
        for step in range(1, max((1, *(each // STEP for each in refined))) + 1):
            estimate = reconstructor.step(math.inf) or estimate
            iterations = step * STEP if refined else 0
            if estimate is None or (refined and iterations not in refined):
                continue
            row = {"estimator": estimate.source["uncertainty"]["estimator"], "iterations": iterations, "checked": False}
            yield judge(estimate, problem.truth), {**row, "seconds": time.perf_counter() - began}
            if iterations == max(REFINED):
                began = time.perf_counter()
                checked = reconstructor.checked(estimate)
                seconds = time.perf_counter() - began
                yield judge(checked, problem.truth), {**row, "checked": True, "seconds": seconds}


def frames_of(problem: Problem) -> tuple[ObjectGrid, list[Frame]]:
    """Give the frames of a simulated scan as a detector does, and the grid of its truth.

    Parameters
    ----------
    problem : Problem
        A far field.
    """
    counts = to_centre(problem.data.counts).cpu().numpy()
    frames = [Frame(k + 1, at, counts[k]) for k, at in enumerate(positions_of(problem))]
    rows, columns = problem.truth.shape
    return ObjectGrid(problem.origin_m, (rows, columns), problem.pixel_m, counts.shape[-1]), frames


def _recorded(
    folder: Path, trained: Trained | None, settings: Mapping[str, Any], device: torch.device
) -> Iterator[dict[str, Any]]:
    """Reconstruct recorded scans, and count how many differences of halves lie inside their predicted intervals."""
    for label, (name, read) in RECORDED.items():
        if not (folder / name).is_dir():
            continue
        scan = read(folder / name)
        valid = valid_pixels(np.asarray(scan.scan.counts, np.float32))
        valid = valid if scan.scan.mask is None else valid & scan.scan.mask
        config = ReconstructorConfig.model_validate(
            {
                "name": "lsqml" if trained is None else "pinn",
                "background": 0.0,
                "refine_iterations": STEP,
                **settings,
                **({} if trained is None else {"weights": str(trained.path)}),
            }
        )
        reconstructor = PtychoReconstructor(
            scan.grid,
            scan.first_probe(valid).numpy(),
            config,
            trained=trained,
            mask=valid,
            propagator=propagator_of(scan.scan.geometry, device),
            device=device,
        )
        places, counts = scan.scan.positions_m, scan.scan.counts
        reconstructor.add([Frame(k + 1, at, np.asarray(counts[k])) for k, at in enumerate(places)])
        estimate = None
        for _ in range(max(REFINED) // STEP):
            estimate = reconstructor.step(math.inf) or estimate
        if estimate is not None:
            checked = reconstructor.checked(estimate)
            yield {"scan": label, "frames": estimate.n_frames, **dict(checked.source["uncertainty"])}


def judge(estimate: Estimate, truth: ComplexArray) -> Judged:
    """Hold errors of an estimate against those that it predicts.

    Parameters
    ----------
    estimate : Estimate
        Of one object.
    truth : ndarray, shape (Y, X), complex
        On its grid.

    Returns
    -------
    Judged
    """
    mask = illuminated_mask(estimate.coverage)
    compared = compare(estimate.object, truth, estimate.coverage)
    both = compared.aligned
    images = {
        "phase": wrap_rad(np.angle(both.object) - np.angle(both.truth)),
        "amplitude": np.abs(both.object) - np.abs(both.truth),
    }
    predicted = {"phase": estimate.std_phase_rad, "amplitude": estimate.std_amplitude}
    numbers: dict[str, Any] = {"complex_nrmse": compared.numbers["complex_nrmse"]}
    for part, image in images.items():
        error, std = image[mask], predicted[part][mask]
        shares = share_inside(error, std, interval_widths(estimate.source, part))
        numbers |= {f"{part}_inside_{100 * level:g}": share for level, share in shares.items()}
        numbers[f"{part}_ratio"] = _rms(std) / max(_rms(error), 1e-12)
        numbers[f"{part}_rms"] = _rms(error)
        numbers[f"{part}_rank"] = rank_correlation(error, std)
        exact = np.random.default_rng(0).standard_normal(std.shape) * std
        numbers[f"{part}_rank_if_exact"] = rank_correlation(exact, std)
    actual = frame_rms(images["phase"], estimate)
    numbers["frames_rank"] = rank_correlation(actual, estimate.frame_uncertainty)
    numbers["frames_ratio"] = float(np.median(estimate.frame_uncertainty)) / max(float(np.median(actual)), 1e-12)
    numbers["flagged"] = float(is_flagged(estimate))
    return Judged(
        {part: image[mask] for part, image in images.items()},
        {part: std[mask] for part, std in predicted.items()},
        numbers,
    )


def frame_rms(error_rad: FloatArray, estimate: Estimate) -> FloatArray:
    """Compute the root mean square of an image under each frame's illumination, (n,).

    Parameters
    ----------
    error_rad : ndarray, shape (Y, X)
        On the estimate's grid.
    estimate : Estimate
        Where its frames lie, and its probe.
    """
    probe = torch.from_numpy(estimate.probe)[None]
    grid = ObjectGrid(estimate.origin_m, estimate.object.shape, estimate.pixel_m, probe.shape[-1])
    corner, _ = grid.place(estimate.positions_m)
    squares = torch.from_numpy(np.square(error_rad)).float()[None]
    return np.asarray(under_frames(squares, probe, torch.from_numpy(corner)).sqrt().numpy())


def is_flagged(estimate: Estimate) -> bool:
    """Tell whether an estimate says that something is wrong: a named cause of misfit, or errors that were widened."""
    said = estimate.source["uncertainty"].get("check", {}).get("says", "")
    return bool(estimate.source.get("causes")) or said.startswith("widened")


def _rms(values: FloatArray) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))
