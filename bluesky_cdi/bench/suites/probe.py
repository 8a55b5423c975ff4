"""What the check-in of the probe brings: overlap with the true or the reference's main mode, and the objects after it.

One pass of a network and five iterations more, on recorded scans LSQ-ML too, with the probe as it is assumed, as the
check-in gives it, and with the true one where there is one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bluesky_cdi.bench.cases import Case, simulate, true_probe
from bluesky_cdi.bench.checked import overlap
from bluesky_cdi.bench.machine import record
from bluesky_cdi.bench.methods import Network, engine, finder_of, predict, refine
from bluesky_cdi.bench.problem import Problem, judge
from bluesky_cdi.bench.recorded import RECORDED, STAR, problem_of
from bluesky_cdi.engines.ptychography import Schedule, deviance_of
from bluesky_cdi.physics.probes import scaled_to
from bluesky_cdi.reconstruction.probe_checkin import MOST_FRAMES, check_in, in_words

# Errors of the assumed probe, radians, and doses: photons a frame.
ERRORS_RAD = (0.0, 0.8, 1.6)
DOSES = (1e3, 1e4, 1e5, 1e6)
# Epochs of LSQ-ML from vacuum, beside it on recorded scans.
EPOCHS = 30
SAMPLES = ("star", "natural", "cells", "gold")


@dataclass(frozen=True)
class Options:
    """What is measured.

    Parameters
    ----------
    samples : sequence of str
        Simulated objects.
    doses, errors_rad : sequence of float
        Photons a frame; how wrong the assumed probe is.
    seeds : int
        Scans of each case.
    frames : int
        Frames that a check-in looks at.
    data : Path, optional
        Folder of recorded scans.
    device : torch.device
    """

    samples: Sequence[str] = SAMPLES
    doses: Sequence[float] = DOSES
    errors_rad: Sequence[float] = ERRORS_RAD
    seeds: int = 1
    frames: int = MOST_FRAMES
    data: Path | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


# Called with the name of a recorded scan, the problem, and its objects by what they were made with.
Drawer = Callable[[str, Problem, dict[str, Tensor]], None]


@torch.no_grad()
def probe(
    network: Network,
    options: Options,
    on_progress: Callable[[str], None] | None = None,
    draw: Drawer | None = None,
) -> dict[str, Any]:
    """Measure check-ins.

    Parameters
    ----------
    network : Network
        Reads the frames.
    options : Options
        Scans and device.
    on_progress : callable, optional
        Called with the name of each scan.
    draw : callable, optional
        Draws the recorded scans.

    Returns
    -------
    dict
        ``machine``, ``settings`` and ``rows``, one a scan and assumed probe.
    """
    tell = on_progress or (lambda _: None)
    rows = _recorded(network, options, tell, draw) if options.data is not None else []
    for sample in options.samples:
        for dose in options.doses:
            for error in options.errors_rad:
                for seed in range(options.seeds):
                    case = Case(sample=sample, dose=dose, probe_error_rad=error, refine_probe=True)
                    name = f"{sample}, {dose:.0e} photons, {error:g} rad" + (f", seed {seed}" if seed else "")
                    tell(name)
                    rows.append(_row(name, network, options, *_simulated(case, seed, options.device)))
    return record([options.device], {"network": network.name, "frames": options.frames}, rows=rows)


def _simulated(case: Case, seed: int, device: torch.device) -> tuple[Problem, Tensor, Tensor]:
    problem = simulate(case, seed, device)
    return problem, problem.probe[0], true_probe(case).to(device)


def _recorded(
    network: Network, options: Options, tell: Callable[[str], None], draw: Drawer | None
) -> list[dict[str, Any]]:
    rows = []
    for name, (folder, read) in RECORDED.items():
        path = Path(options.data or "") / folder
        tell(name)
        problem = problem_of(read(path), options.device)
        with np.load(path / "reference.npz") as file:
            reference = torch.from_numpy(file["probe"]).to(options.device)
        assumed: list[tuple[str, Tensor | None]] = [(name, problem.probe[0])]
        if folder == STAR:
            assumed.append((f"{name}, no guess", None))
        for label, modes in assumed:
            objects: dict[str, Tensor] = {}
            rows.append(_row(label, network, options, problem, modes, reference, objects))
            if draw is not None:
                draw(label, problem, objects)
    return rows


def _row(
    name: str,
    network: Network,
    options: Options,
    problem: Problem,
    assumed: Tensor | None,
    true: Tensor,
    objects: dict[str, Tensor] | None = None,
) -> dict[str, Any]:
    began = time.process_time()
    found = check_in(problem.data, assumed, most_frames=options.frames, finder=finder_of([network]))
    seconds = time.process_time() - began
    photons = float(problem.probe.abs().square().sum())
    probes = {"assumed": found.assumed, "check-in": found.probe}
    if problem.held_out is None:
        probes["true"] = true
    row: dict[str, Any] = {"name": name, "cpu_seconds": seconds, "changed": found.changed, "says": in_words(found)}
    for label, modes in probes.items():
        posed = replace(problem, probe=(scaled_to(modes, photons))[None])
        once = predict(network, posed)
        numbers = {"overlap": overlap(modes, true), **_numbers("one_pass", once.object, once.probe, problem)}
        images = {f"{label}, one pass": once.object}
        if network.refined_name is not None:
            after = refine(network, posed, once, 0)
            numbers |= _numbers("refined", after.object, after.probe, problem)
            images[f"{label}, refined"] = after.object
        if problem.held_out is not None:
            alone = engine("lsqml", posed, Schedule(EPOCHS), 0)
            numbers |= _numbers("lsqml", alone.object, alone.probe, problem)
        if objects is not None:
            objects.update(images)
        row[label] = numbers
    return row


def _numbers(name: str, obj: Tensor, modes: Tensor, problem: Problem) -> dict[str, float]:
    numbers = {f"{name}_nrmse": judge(obj, problem).numbers["complex_nrmse"]}
    if problem.held_out is not None:
        numbers[f"{name}_unseen"] = float(deviance_of(obj, modes, problem.held_out).mean())
    return numbers
