"""Whether a run names what goes wrong: faults that begin at a known frame, and scans where nothing does.

Frames come in their order, and the reconstructor refines object and probe as it does in a run. What comes before the
fault is reconstructed once for all faults of a scan.
"""

from __future__ import annotations

import copy
import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from bluesky_cdi.bench.cases import Case, photons, simulate
from bluesky_cdi.bench.faults import FAULTS, FaultyScan, Measured
from bluesky_cdi.bench.machine import record
from bluesky_cdi.config import ReconstructorConfig
from bluesky_cdi.models.weights import Trained, load_weights
from bluesky_cdi.physics.geometry import ObjectGrid
from bluesky_cdi.protocols import Estimate, Frame
from bluesky_cdi.reconstruction.causes.watch import EVERY, LATELY, LEAST_BEFORE
from bluesky_cdi.reconstruction.online import PtychoReconstructor

# Far longer than a step takes: what is measured doesn't depend on the machine's speed.
STEP_S = 3600.0
# A fault must be told within so many frames.
WITHIN = 32
# Frames that come at a time.
FED = 16
# Pixels around the scan, for frames whose places are told wrongly.
ROOM_PX = 12


@dataclass(frozen=True)
class Options:
    """What is measured.

    Parameters
    ----------
    engines : sequence of str
        That reconstruct; ``pinn`` with the weights `network`.
    doses : sequence of float
        Photons of a frame.
    samples : sequence of str
        Kinds of sample.
    seeds : int
        Scans of each case.
    errors_rad : sequence of float
        How wrong the assumed probe is in scans without a fault; faults are put into those where it is right.
    faults : sequence of str
        Of `bench.faults.FAULTS`.
    network : str
        Weights.
    """

    engines: Sequence[str] = ("lsqml",)
    doses: Sequence[float] = (1e3, 1e4, 1e5, 1e6)
    samples: Sequence[str] = ("star", "circuit", "particles")
    seeds: int = 1
    errors_rad: Sequence[float] = (0.0,)
    faults: Sequence[str] = tuple(FAULTS)
    network: str = "canvas-small"


def faults(options: Options, on_progress: Callable[[str], None] | None = None) -> dict[str, Any]:
    """Count what is told.

    Parameters
    ----------
    options : Options
        Scans and faults.
    on_progress : callable, optional
        Called with what is reconstructed next.

    Returns
    -------
    dict
        ``machine``, ``settings``; ``clean``, one an engine and dose: ``checks`` of scans without a fault, one after
        each 16 frames, after how many there were ``alarms``, and by cause how often it was ``told``; ``rows``, one a
        fault, engine and dose: ``scans``, how many were ``detected`` (any cause within 32 frames that was not there
        before) and ``named`` (the right one among these), and how often each cause was ``told``.
    """
    tell = on_progress or (lambda _: None)
    trained = load_weights(options.network, torch.device("cpu")) if "pinn" in options.engines else None
    clean: dict[str, Counter[str]] = {}
    rows: dict[tuple[str, str], Counter[str]] = {}
    for engine, dose, sample, seed in itertools.product(
        options.engines, options.doses, options.samples, range(options.seeds)
    ):
        label = f"{engine}, {photons(dose)} photons"
        for error in options.errors_rad:
            tell(f"{label}, {sample}, seed {seed}, {error:g} rad")
            run = _Run(Case(dose=dose, sample=sample, probe_error_rad=error), seed, engine, trained)
            found = clean.setdefault(label, Counter())
            for fault in options.faults if not error else ():
                rows.setdefault((fault, label), Counter()).update(run.with_fault(fault))
            found.update(run.without())
    return record(
        [torch.device("cpu")],
        asdict(options),
        clean=[{"name": label, **_counted(found)} for label, found in clean.items()],
        rows=[{"fault": fault, "name": label, **_counted(found)} for (fault, label), found in rows.items()],
    )


def _counted(found: Mapping[str, int]) -> dict[str, Any]:
    numbers = {name: found[name] for name in ("checks", "scans", "alarms", "detected", "named") if name in found}
    return {**numbers, "told": {name[5:]: number for name, number in found.items() if name.startswith("told ")}}


class _Run:
    """A scan as it is reconstructed, until the block in which faults begin."""

    def __init__(self, case: Case, seed: int, engine: str, trained: Trained | None) -> None:
        self._scan_of = case, simulate(case, seed, torch.device("cpu")), seed
        self._first = EVERY * (LATELY + LEAST_BEFORE)
        start = self._first + int(np.random.default_rng(seed).integers(FED))
        self._scan = FaultyScan(*self._scan_of, start)
        self._frames = _frames(self._scan.well)
        geometry, settings = case.geometry, {"name": engine, "background": 0.0, "window_px": None}
        places = self._scan.well.positions_m
        margin_m = ROOM_PX * geometry.pixel_m
        low, high = places.min(axis=0) - margin_m, places.max(axis=0) + margin_m
        grid = ObjectGrid.covering(low, high, geometry.pixel_m, geometry.frame_px)
        self._ours = PtychoReconstructor(
            grid,
            self._scan.problem.probe[0].numpy(),
            ReconstructorConfig.model_validate(settings),
            trained=trained if engine == "pinn" else None,
        )
        self._alarms = self._go(self._ours, self._frames[: self._first])

    def without(self) -> Counter[str]:
        """Go on without a fault; what was told, by checks."""
        later = self._go(copy.deepcopy(self._ours), self._frames[self._first :])
        found = Counter({"checks": 0, "alarms": 0})
        for told in [*self._alarms, *later]:
            found.update({"checks": 1, "alarms": bool(told)})
            found.update(f"told {cause}" for cause in told)
        return found

    def with_fault(self, fault: str) -> Counter[str]:
        """Go on with a fault; whether it was told in time, and as what."""
        make, right = FAULTS[fault]
        frames = _frames(make(FaultyScan(*self._scan_of, self._scan.start)))
        until = self._scan.start + WITHIN
        told = set().union(*self._go(copy.deepcopy(self._ours), frames[self._first : until]))
        told -= set().union(*self._alarms[-1:])
        found = Counter({"scans": 1, "detected": int(bool(told)), "named": int(bool(told & set(right)))})
        found.update([f"told {cause}" for cause in told] or ["told nothing"])
        return found

    def _go(self, ours: PtychoReconstructor, frames: Sequence[Frame]) -> list[set[str]]:
        """Reconstruct frames in their order; what goes on after each look."""
        looks = []
        for first in range(0, len(frames), FED):
            ours.add(frames[first : first + FED])
            estimate = ours.step(STEP_S)
            looks.append(_going_on(estimate))
        return looks


def _going_on(estimate: Estimate | None) -> set[str]:
    return set() if estimate is None else {each["cause"] for each in estimate.source["causes"] if each["goes_on"]}


def _frames(measured: Measured) -> list[Frame]:
    return [Frame(k, p, c) for k, (p, c) in enumerate(zip(measured.positions_m, measured.counts.numpy(), strict=True))]
