"""How good the images of networks are beside those of iterative engines, on scans that training does not draw.

Each suite changes one thing about a default scan. Every method gets the same frames and the same assumed probe;
positions are exact. Errors are those of `evaluation`: shift, phase ramp and complex scale removed, on the pixels that
the true probe illuminates. Recorded scans are held against a reference that is no truth, so the Poisson deviance of
their frames, also of those that no method saw, stands beside it.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from bluesky_cdi.bench import methods
from bluesky_cdi.bench.cases import DEFOCUS_M, Case, photons, simulate
from bluesky_cdi.bench.machine import machine
from bluesky_cdi.bench.methods import Found, Network
from bluesky_cdi.bench.problem import Problem, judge
from bluesky_cdi.bench.recorded import HELD_OUT_EVERY, RECORDED, problem_of
from bluesky_cdi.bench.suites.acceptance import acceptance
from bluesky_cdi.engines.ptychography import deviance_of
from bluesky_cdi.evaluation import Comparison

DOSES = (1e3, 1e4, 1e5, 1e6, 1e7, 1e8)
OVERLAPS = (0.0, 0.4, 0.6, 0.67, 0.8)
PROBE_ERRORS_RAD = (0.0, 0.4, 0.8)
# Factors on the counts of one noise realisation, then on the photons themselves.
COUNT_SCALES = (1.0, 4.0, 16.0, 40.0)
DOSE_FACTORS = (4.0, 16.0, 40.0)
# Kinds of `objects.make_sample` whose structures training does not draw.
SAMPLES = ("star", "natural", "circuit", "cells", "particles", "phase", "gold")
SAMPLE_DOSES = (1e4, 1e5, 1e6)
# Numbers of a comparison that are reported.
ERRORS = ("complex_nrmse", "phase_mae_rad", "ssim_phase")
# Doses of the default scan that are drawn.
DRAWN_DOSES = (1e4, 1e5, 1e6)


def suites_of(base: Case) -> dict[str, dict[str, Case]]:
    """Lay out the simulated suites around a default scan: by what each is a sweep of, its cases by their labels."""
    return {
        "dose": {photons(dose): replace(base, dose=dose) for dose in DOSES},
        "overlap": {f"{100 * share:.0f} %": replace(base, overlap=share) for share in OVERLAPS},
        "probe": {
            f"{error:g} rad": replace(base, probe_error_rad=error, refine_probe=True) for error in PROBE_ERRORS_RAD
        },
        "rate": {
            **{f"counts x {scale:g}": replace(base, count_scale=scale) for scale in COUNT_SCALES},
            **{f"photons x {factor:g}": replace(base, dose=factor * base.dose) for factor in DOSE_FACTORS},
        },
        "objects": {
            f"{kind} {photons(dose)}": replace(base, sample=kind, dose=dose)
            for kind in SAMPLES
            for dose in SAMPLE_DOSES
        },
    }


SIMULATED = tuple(suites_of(Case()))
SUITES = (*SIMULATED, "recorded")


@dataclass(frozen=True)
class Options:
    """What is measured, and on what.

    Parameters
    ----------
    suites : sequence of str
        Of `SUITES`.
    seeds : int
        Scans of each simulated case.
    base : Case
        The default scan.
    data : Path, optional
        Folder of recorded scans.
    device : torch.device
    """

    suites: Sequence[str] = SUITES
    seeds: int = 3
    base: Case = field(default_factory=Case)
    data: Path | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


# Called with the name of a scan, the scan, and the methods' objects beside its truth.
Drawer = Callable[[str, Problem, Mapping[str, Comparison]], None]


def quality(
    networks: Sequence[Network],
    options: Options,
    on_progress: Callable[[str], None] | None = None,
    draw: Drawer | None = None,
) -> dict[str, Any]:
    """Measure networks and engines.

    Parameters
    ----------
    networks : sequence of Network
        What is measured beside the engines.
    options : Options
        Suites, scans and device.
    on_progress : callable, optional
        Called with the name of each scan before it is reconstructed.
    draw : callable, optional
        Called with the scans that are worth a figure: the default one at `DRAWN_DOSES`, and the recorded ones.

    Returns
    -------
    dict
        ``machine``, ``settings``, ``suites``, ``skipped`` and ``acceptance``, as plain JSON values.
    """
    bench = _Bench(networks, options, on_progress or (lambda _: None), draw or (lambda *_: None))
    sweeps = suites_of(options.base)
    suites = {name: bench.simulated(sweeps[name]) for name in SIMULATED if name in options.suites}
    skipped: dict[str, str] = {}
    if "recorded" in options.suites:
        suites["recorded"], skipped = bench.recorded()
    return {
        "machine": machine([options.device]),
        "settings": _settings(networks, options),
        "suites": suites,
        "skipped": skipped,
        "acceptance": acceptance(suites, networks),
    }


class _Bench:
    """Runs each scan once, however many suites it is in."""

    def __init__(
        self, networks: Sequence[Network], options: Options, on_progress: Callable[[str], None], draw: Drawer
    ) -> None:
        self._networks, self._options, self._on_progress, self._draw = networks, options, on_progress, draw
        self._known: dict[Case, dict[str, Any]] = {}

    def simulated(self, cases: Mapping[str, Case]) -> list[dict[str, Any]]:
        """Measure the cases of a suite."""
        return [{"label": label, **self._case(case)} for label, case in cases.items()]

    def recorded(self) -> tuple[list[dict[str, Any]], dict[str, str]]:
        """Measure the recorded scans; say why those that are missing are."""
        rows, skipped = [], {}
        for name, (folder, read) in RECORDED.items():
            path = None if self._options.data is None else self._options.data / folder
            if path is None or not path.is_dir():
                skipped[name] = (
                    "no folder of recorded scans: name it with --data or BLUESKY_CDI_DATA"
                    if path is None
                    else f"{path} is no folder"
                )
                continue
            self._on_progress(name)
            problem = problem_of(read(path), self._options.device)
            summary = {"label": name, "recorded": folder, **_size(problem)}
            rows.append({**summary, "methods": _summary([self._solved(problem, 0, name)])})
        return rows, skipped

    def _case(self, case: Case) -> dict[str, Any]:
        if case not in self._known:
            runs, size = [], {}
            for seed in range(self._options.seeds):
                self._on_progress(f"{case}, seed {seed}")
                problem = simulate(case, seed, self._options.device)
                drawn = seed == 0 and case in [replace(self._options.base, dose=dose) for dose in DRAWN_DOSES]
                runs.append(self._solved(problem, seed, f"{case.sample}-{photons(case.dose)}" if drawn else None))
                size = _size(problem)
            self._known[case] = {"case": asdict(case), **size, "methods": _summary(runs)}
        return self._known[case]

    def _solved(self, problem: Problem, seed: int, figure: str | None) -> dict[str, dict[str, float]]:
        """Return the numbers of each method on one scan."""
        found = methods.solve(problem, self._networks, seed)
        judged = {name: judge(each.object, problem) for name, each in found.items()}
        if figure is not None:
            self._draw(figure, problem, judged)
        return {
            name: {**{key: judged[name].numbers[key] for key in ERRORS}, **_cost(each), **_fit(each, problem)}
            for name, each in found.items()
        }


def _size(problem: Problem) -> dict[str, int]:
    held_out = 0 if problem.held_out is None else len(problem.held_out)
    return {"frames": len(problem.data), "held_out_frames": held_out, "modes": problem.probe.shape[1]}


def _cost(found: Found) -> dict[str, float]:
    return {"seconds": found.seconds, "epochs": found.epochs}


def _fit(found: Found, problem: Problem) -> dict[str, float]:
    """Compute the mean Poisson deviance a pixel of the frames, and of those that were held out."""
    parts = {"deviance": problem.data, "held_out_deviance": problem.held_out}
    with torch.no_grad():
        return {
            name: float(deviance_of(found.object, found.probe, data).mean())
            for name, data in parts.items()
            if data is not None
        }


def _summary(runs: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, Any]]:
    """Take median and range over the seeds of each number of each method."""
    return {
        method: {name: _spread([run[method][name] for run in runs]) for name in numbers}
        for method, numbers in runs[0].items()
    }


def _spread(values: Sequence[float]) -> dict[str, Any]:
    """Take median and range; JSON has no NaN, so what is not a number becomes null."""
    each = [value if math.isfinite(value) else None for value in values]
    numbers = [value for value in each if value is not None]
    if not numbers:
        return {"median": None, "low": None, "high": None, "each": each}
    return {"median": statistics.median(numbers), "low": min(numbers), "high": max(numbers), "each": each}


def _settings(networks: Sequence[Network], options: Options) -> dict[str, Any]:
    return {
        "networks": [network.name for network in networks],
        "suites": [name for name in SUITES if name in options.suites],
        "seeds": options.seeds,
        "default": asdict(options.base),
        "overlap": "linear, 1 - step / width of the probe by its second moment",
        "probe_defocus_m": DEFOCUS_M,
        "refined_for": methods.REFINED_FOR,
        "lsqml_tolerance": methods.TOLERANCE,
        "lsqml_most_epochs": methods.MOST_EPOCHS,
        "recorded_held_out_every": HELD_OUT_EVERY,
    }
