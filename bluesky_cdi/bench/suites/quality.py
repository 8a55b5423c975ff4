"""How good the images of networks are beside those of iterative engines, on scans that training does not draw.

Each suite changes one thing about a default scan. Every method gets the same frames and the same assumed probe;
positions are exact but where the pixel is assumed wrongly. Errors are those of `evaluation`: shift, phase ramp and
complex scale removed, on the pixels that the true probe illuminates. Where the assumed probe is wrong, all is measured
once more after its check-in, which knows no more than the methods do. Recorded scans are held against a reference that
is no truth, so the Poisson deviance of their frames, also of those that no method saw, stands beside it. The methods of
the suite ``passes`` are networks that make passes in a row.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bluesky_cdi.bench import methods
from bluesky_cdi.bench.cases import DEFOCUS_M, Case, Wrong, photons, simulate, true_probe
from bluesky_cdi.bench.checked import CHECKED, checked, overlap
from bluesky_cdi.bench.machine import machine, plain
from bluesky_cdi.bench.methods import Found, Network
from bluesky_cdi.bench.problem import Problem, judge
from bluesky_cdi.bench.recorded import HELD_OUT_EVERY, RECORDED, problem_of
from bluesky_cdi.bench.suites.acceptance import acceptance
from bluesky_cdi.bench.suites.design_figures import design_figures
from bluesky_cdi.bench.suites.passes import solve_passes
from bluesky_cdi.bench.suites.recorded import Reached, solve_recorded
from bluesky_cdi.errors import ConfigError
from bluesky_cdi.evaluation import Comparison

DOSES = (1e3, 1e4, 1e5, 1e6, 1e7, 1e8)
OVERLAPS = (0.0, 0.4, 0.6, 0.67, 0.8)
PROBE_ERRORS_RAD = (0.0, 0.4, 0.8, 1.6, 2.5)
# What else is assumed wrongly of the probe, of a beam of how many modes.
WRONG_PROBES = {
    "aperture x 1.3": (1, Wrong(aperture=1.3)),
    "no stop": (1, Wrong(no_stop=True)),
    "3 modes, equal": (3, Wrong(powers="equal")),
    "1 mode of 3": (3, Wrong(powers="one")),
    "centre 3 px off": (1, Wrong(centre_px=(3, -2))),
    "pixel + 2 %": (1, Wrong(pixel=0.02)),
    "pixel + 5 %": (1, Wrong(pixel=0.05)),
}
# Factors on the counts of one noise realisation, then on the photons themselves.
COUNT_SCALES = (1.0, 4.0, 16.0, 40.0)
DOSE_FACTORS = (4.0, 16.0, 40.0)
# Kinds of `objects.make_sample` whose structures training does not draw.
SAMPLES = ("star", "natural", "circuit", "cells", "particles", "phase", "gold")
SAMPLE_DOSES = (1e4, 1e5, 1e6)
# Kinds whose phase turns one to two times, and how many times thicker than usual they are for that.
THICK = {"star": 12.0, "natural": 12.0, "cells": 12.0, "phase": 8.0, "gold": 1.0}
THICK_DOSES = (1e5, 1e6)
# Photons at which passes in a row are measured on the default object, besides thick ones at its own.
PASSES_DOSES = (1e5, 1e7)
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
            **{f"{error:g} rad": replace(base, probe_error_rad=error, refine_probe=True) for error in PROBE_ERRORS_RAD},
            **{
                name: replace(base, modes=modes, wrong=wrong, refine_probe=True)
                for name, (modes, wrong) in WRONG_PROBES.items()
            },
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
        "thick": {
            f"{kind} {photons(dose)}": replace(base, sample=kind, thickness=thickness, dose=dose)
            for kind, thickness in THICK.items()
            for dose in THICK_DOSES
        },
        "passes": {
            **{f"{photons(dose)}": replace(base, dose=dose) for dose in PASSES_DOSES},
            **{f"{kind}, thick": replace(base, sample=kind, thickness=thickness) for kind, thickness in THICK.items()},
        },
    }


SIMULATED = tuple(suites_of(Case()))
SUITES = (*SIMULATED, "recorded")
# Where the probe is checked, too.
CHECKED_SUITES = ("probe",)
# Where networks make passes in a row, in place of the methods of all other suites.
PASSES_SUITES = ("passes",)


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
    labels : sequence of str
        Cases, and recorded scans, that are measured, by their labels; all of the suites if empty.
    recorded_rpie : bool
        Whether rPIE is run on recorded scans, and networks from what it has found.
    """

    suites: Sequence[str] = SUITES
    seeds: int = 3
    base: Case = field(default_factory=Case)
    data: Path | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    labels: Sequence[str] = ()
    recorded_rpie: bool = True

    def wants(self, label: str) -> bool:
        """Whether a case is measured."""
        return not self.labels or label in self.labels


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
        ``machine``, ``settings``, ``suites``, ``skipped``, ``acceptance`` and ``design_figures``, as plain JSON values.

    Raises
    ------
    ConfigError
        If a label is none of the suites'.
    """
    _check_labels(options)
    bench = _Bench(networks, options, on_progress or (lambda _: None), draw or (lambda *_: None))
    sweeps = suites_of(options.base)
    suites = {name: bench.simulated(name, sweeps[name]) for name in SIMULATED if name in options.suites}
    skipped: dict[str, str] = {}
    if "recorded" in options.suites:
        suites["recorded"], skipped = bench.recorded()
    found = {
        "machine": machine([options.device]),
        "settings": _settings(networks, options),
        "suites": suites,
        "skipped": skipped,
        "acceptance": acceptance(suites, networks),
        "design_figures": [asdict(each) for each in design_figures(suites, networks)],
    }
    return {name: plain(value) for name, value in found.items()}


class _Bench:
    """Runs each scan once, however many suites it is in."""

    def __init__(
        self, networks: Sequence[Network], options: Options, on_progress: Callable[[str], None], draw: Drawer
    ) -> None:
        self._networks, self._options, self._on_progress, self._draw = networks, options, on_progress, draw
        self._known: dict[tuple[Case, bool, bool], dict[str, Any]] = {}

    def simulated(self, suite: str, cases: Mapping[str, Case]) -> list[dict[str, Any]]:
        """Measure the cases of a suite."""
        wanted = {label: case for label, case in cases.items() if self._options.wants(label)}
        checks, passes = suite in CHECKED_SUITES, suite in PASSES_SUITES
        return [{"label": label, **self._case(case, checks, passes)} for label, case in wanted.items()]

    def recorded(self) -> tuple[list[dict[str, Any]], dict[str, str]]:
        """Measure the recorded scans; say why those that are missing are."""
        rows, skipped = [], {}
        for name, (folder, read) in RECORDED.items():
            if not self._options.wants(name):
                continue
            path = None if self._options.data is None else self._options.data / folder
            if path is None or not path.is_dir():
                skipped[name] = (
                    "no folder of recorded scans: name it with --data or BLUESKY_CDI_DATA"
                    if path is None
                    else f"{path} is no folder"
                )
                continue
            problem = problem_of(read(path), self._options.device)
            self._on_progress(name)
            rpie = self._options.recorded_rpie
            found, says = solve_recorded(problem, self._networks, 0, self._on_progress, rpie=rpie)
            numbers = self._numbers(problem, {method: each.found for method, each in found.items()}, name)
            lowest = min(found[way + methods.CONVERGED].unseen for way in ("", CHECKED))
            for method, each in found.items():
                numbers[method] |= _of_recorded(each, lowest)
            summary = {"label": name, "recorded": folder, **_size(problem), "check_in": says}
            rows.append({**summary, "methods": _summary([numbers])})
        return rows, skipped

    def _case(self, case: Case, checks: bool, passes: bool) -> dict[str, Any]:
        solve = solve_passes if passes else methods.solve
        if (case, checks, passes) not in self._known:
            runs, check_ins, size = [], [], {}
            for seed in range(self._options.seeds):
                self._on_progress(f"{case}, seed {seed}")
                problem = simulate(case, seed, self._options.device)
                worth = [replace(self._options.base, dose=dose) for dose in DRAWN_DOSES]
                drawn = seed == 0 and not passes and case in worth
                found = solve(problem, self._networks, seed)
                if checks:
                    true = true_probe(case).to(problem.probe.device)
                    after, its = self._after_check_in(problem, true, seed)
                    finding = methods.finding_probes(self._networks, problem)
                    its["overlap"] |= {name: overlap(each.probe[0], true) for name, each in finding.items()}
                    found |= finding | after
                    check_ins.append(its)
                figure = f"{case.sample}-{photons(case.dose)}" if drawn else None
                runs.append(self._numbers(problem, found, figure))
                size = _size(problem)
            self._known[case, checks, passes] = {
                "case": asdict(case),
                **size,
                **({"check_ins": check_ins} if checks else {}),
                "methods": _summary(runs),
            }
        return self._known[case, checks, passes]

    def _after_check_in(self, problem: Problem, true: Tensor, seed: int) -> tuple[dict[str, Found], dict[str, Any]]:
        """Return each method's result after the check-in, whose time is in its, and what that found."""
        after = checked(problem, methods.finder_of(self._networks))
        found = methods.solve(after.problem, self._networks, seed)
        its = {
            "says": after.says,
            "seconds": after.watch.seconds,
            "cpu_seconds": after.watch.cpu_seconds,
            "overlap": {"assumed": overlap(problem.probe[0], true), "found": overlap(after.problem.probe[0], true)},
        }
        return {CHECKED + name: each.after(after.watch) for name, each in found.items()}, its

    def _numbers(self, problem: Problem, found: Mapping[str, Found], figure: str | None) -> dict[str, dict[str, float]]:
        """Return the numbers of each method's result on one scan."""
        judged = {name: judge(each.object, problem) for name, each in found.items()}
        if figure is not None:
            self._draw(figure, problem, judged)
        return {
            name: {**{key: judged[name].numbers[key] for key in ERRORS}, **_cost(each)} for name, each in found.items()
        }


def _check_labels(options: Options) -> None:
    """Refuse labels that no suite of those asked for has."""
    sweeps = suites_of(options.base)
    known = [label for name in options.suites for label in sweeps.get(name, RECORDED)]
    if unknown := [label for label in options.labels if label not in known]:
        raise ConfigError(f"no case of {', '.join(options.suites)} is called {unknown[0]!r}; there are {known}")


def _size(problem: Problem) -> dict[str, int]:
    held_out = 0 if problem.held_out is None else len(problem.held_out)
    return {"frames": len(problem.data), "held_out_frames": held_out, "modes": problem.probe.shape[1]}


def _cost(found: Found) -> dict[str, float]:
    return {"seconds": found.seconds, "cpu_seconds": found.cpu_seconds, "epochs": found.epochs}


def _of_recorded(reached: Reached, lowest: float) -> dict[str, float]:
    """Give how well frames are explained, and when they were as well as the better converged LSQ-ML explains them."""
    image = reached.image
    return {
        "deviance": reached.given,
        "held_out_deviance": reached.unseen,
        "over_lsqml": reached.unseen / lowest,
        "seconds_to_image": math.nan if image is None else image.seconds,
        "cpu_seconds_to_image": math.nan if image is None else image.cpu_seconds,
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
        "labels": list(options.labels),
        "seeds": options.seeds,
        "default": asdict(options.base),
        "overlap": "linear, 1 - step / width of the probe by its second moment",
        "probe_defocus_m": DEFOCUS_M,
        "refined_for": methods.REFINED_FOR,
        "lsqml_tolerance": methods.TOLERANCE,
        "lsqml_most_epochs": methods.MOST_EPOCHS,
        "recorded_held_out_every": HELD_OUT_EVERY,
    }
