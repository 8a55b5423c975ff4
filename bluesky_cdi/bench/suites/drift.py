"""When the drift alarm of a live run rings: of scans with one probe, where it must not, and of a focus that moves.

Frames come in their order, and the reconstructor refines object and probe as it does in a run; only the check that an
alarm asks for is not made, so the probe is not replaced.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bluesky_cdi.bench.cases import Case, photons, positions_of, simulate, true_probe
from bluesky_cdi.bench.machine import record
from bluesky_cdi.bench.problem import Problem
from bluesky_cdi.config import ReconstructorConfig
from bluesky_cdi.physics.forward import to_centre
from bluesky_cdi.physics.geometry import Geometry, ObjectGrid
from bluesky_cdi.physics.probes import propagated
from bluesky_cdi.protocols import ComplexArray, Frame
from bluesky_cdi.reconstruction.frames import MeasuredFrames
from bluesky_cdi.reconstruction.online import PtychoReconstructor
from bluesky_cdi.reconstruction.probe_checkin import LiveCheckIn
from bluesky_cdi.reconstruction.probe_checkin.drift import EVERY, Drift
from bluesky_cdi.reconstruction.tiles import IndexArray

# Far longer than a step takes: what is measured doesn't depend on the machine's speed.
STEP_S = 3600.0


@dataclass(frozen=True)
class Options:
    """What is measured.

    Parameters
    ----------
    engines : sequence of str
        That reconstruct.
    doses : sequence of float
        Photons of a frame.
    errors_rad : sequence of float
        How wrong the assumed probe is.
    seeds : int
        Scans of each case.
    moved_m : float
        How far the focus moves after half of the frames.
    field : float
        Side of the scans' field in widths of a frame.
    """

    engines: Sequence[str] = ("rpie", "lsqml")
    doses: Sequence[float] = (1e3, 1e4, 1e5, 1e6)
    errors_rad: Sequence[float] = (0.0, 0.8)
    seeds: int = 1
    moved_m: float = 50e-6
    field: float = 1.25


@torch.no_grad()
def drift(options: Options, on_progress: Callable[[str], None] | None = None) -> dict[str, Any]:
    """Count alarms.

    Parameters
    ----------
    options : Options
        Scans and engines.
    on_progress : callable, optional
        Called with what is reconstructed next.

    Returns
    -------
    dict
        ``machine``, ``settings`` and ``rows``, one an engine, dose and assumed probe: ``frames`` of a scan, ``scans``,
        ``false``, how many of them rang though they had one probe, and ``late``: of each whose focus moved how many
        frames later the first alarm came, None where none did or one came before.
    """
    tell = on_progress or (lambda _: None)
    rows = []
    for engine, dose, error in itertools.product(options.engines, options.doses, options.errors_rad):
        label = f"{engine}, {photons(dose)} photons, {error:g} rad"
        tell(label)
        case = Case(dose=dose, probe_error_rad=error, field=options.field)
        rows.append({"name": label, **_row(engine, case, options)})
    return record([torch.device("cpu")], {"moved_um": 1e6 * options.moved_m}, rows=rows)


def _row(engine: str, case: Case, options: Options) -> dict[str, Any]:
    false, late = 0, []
    for seed in range(options.seeds):
        problem = simulate(case, seed, torch.device("cpu"))
        probe, frames = problem.probe[0].numpy(), _frames(problem, problem.data.counts)
        moved = _frames(problem, _further(case, problem, seed, options.moved_m))
        half = len(frames) // 2
        false += bool(_alarms(case, probe, frames, engine))
        alarms = _alarms(case, probe, [*frames[:half], *moved[half:]], engine)
        late.append(alarms[0] - half if alarms and alarms[0] > half else None)
    return {"frames": len(frames), "scans": options.seeds, "false": false, "late": late}


def _frames(problem: Problem, counts: Tensor) -> list[Frame]:
    images, positions_m = to_centre(counts).numpy(), positions_of(problem)
    return [Frame(k, p, c) for k, (p, c) in enumerate(zip(positions_m, images, strict=True))]


def _further(case: Case, problem: Problem, seed: int, by_m: float) -> Tensor:
    """Measure a scan once more with the sample further downstream: counts (n, N, N)."""
    data, truth = problem.data, torch.from_numpy(problem.truth)[None]
    probe = propagated(true_probe(case), problem.pixel_m, case.geometry.wavelength_m, by_m)[None]
    rate = data.rate(data.probes(probe), data.patches(truth))
    return torch.poisson(rate, generator=torch.Generator().manual_seed(seed))


def _alarms(case: Case, probe: ComplexArray, frames: Sequence[Frame], engine: str) -> list[int]:
    """Reconstruct frames in their order; how many there were at each alarm."""
    positions_m = np.array([frame.position_m for frame in frames])
    low, high = positions_m.min(axis=0), positions_m.max(axis=0)
    grid = ObjectGrid.covering(low, high, case.geometry.pixel_m, case.geometry.frame_px)
    settings = {"name": engine, "refine_iterations": 2, "background": 0.0, "window_px": None}
    listener = _Listener(case.geometry)
    ours = PtychoReconstructor(grid, probe, ReconstructorConfig.model_validate(settings), check_in=listener)
    for first in range(0, len(frames), EVERY):
        ours.add(frames[first : first + EVERY])
        ours.step(STEP_S)
    return listener.heard


class _Listener(LiveCheckIn):
    """Hears alarms, and checks nothing."""

    def __init__(self, geometry: Geometry) -> None:
        super().__init__(geometry)
        self.heard: list[int] = []

    def begin(self, frames: MeasuredFrames, assumed: Tensor, current: Callable[[], Tensor]) -> None:
        """Leave the first guess as it is."""

    def begin_again(
        self, frames: MeasuredFrames, lately: IndexArray, drift: Drift, current: Callable[[], Tensor], takes: bool
    ) -> None:
        """Note how many frames there are."""
        self.heard.append(len(frames))
