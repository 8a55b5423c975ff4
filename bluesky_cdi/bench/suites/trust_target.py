"""What the phase error is when a scan stops because the predicted one has reached its target.

Frames of simulated scans come in a random order, some at a time, as an agent brings them. The live reconstructor takes
them in, and the agent's rule (`agent.target_std_rad`) looks at the predicted errors of the frames after each step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from bluesky_cdi.agent.stopping import StoppingRule
from bluesky_cdi.bench.cases import simulate
from bluesky_cdi.bench.machine import record
from bluesky_cdi.bench.suites.trust import FIELD, SCENES, frame_rms, frames_of
from bluesky_cdi.config import ReconstructorConfig
from bluesky_cdi.evaluation import compare_estimate, wrap_rad
from bluesky_cdi.models.weights import load_weights
from bluesky_cdi.reconstruction.online import PtychoReconstructor
from bluesky_cdi.reconstruction.targets import Targets

# Enough frames that the target is met in the middle of the scan.
OVERLAP = 0.8


@dataclass(frozen=True)
class Options:
    """What is scanned.

    Parameters
    ----------
    target_rad : float
        Of the rule.
    weights : str
        The network's name or file.
    dose : float
        Photons a frame.
    scans : int
        How many, of all of `SCENES` in turn.
    batch : int
        Frames that come at a time.
    device : torch.device
        Where to compute.
    first_seed : int
        Of the scans.
    """

    target_rad: float = 0.05
    weights: str = "canvas-small"
    dose: float = 1e5
    scans: int = 10
    batch: int = 16
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    first_seed: int = 0


def stopped_at_target(options: Options, on_progress: Callable[[str], None] | None = None) -> dict[str, Any]:
    """Run scans until their predicted errors have reached the target.

    Parameters
    ----------
    options : Options
        Which scans.
    on_progress : callable, optional
        Called with the name of each scan.

    Returns
    -------
    dict
        ``machine``, ``settings``, and ``rows``: of each scan the frames, whether the target was reached, and the median
        over the frames of the predicted and of the actual rms error, radians.
    """
    tell = on_progress or (lambda _: None)
    rows = []
    for number in range(options.scans):
        scene = list(SCENES)[number % len(SCENES)]
        tell(f"{scene}, scan {number}")
        rows.append({"scene": scene, **_stopped(options, scene, options.first_seed + number)})
    settings = {"target_rad": options.target_rad, "dose": options.dose, "weights": options.weights, "overlap": OVERLAP}
    return record([options.device], settings, rows=rows)


def _stopped(options: Options, scene: str, seed: int) -> dict[str, Any]:
    case = replace(SCENES[scene], dose=options.dose, overlap=OVERLAP, field=FIELD)
    problem = simulate(case, seed, torch.device("cpu"))
    grid, frames = frames_of(problem)
    order = np.random.default_rng(seed).permutation(len(frames))
    config = ReconstructorConfig.model_validate({"background": 0.0, "weights": options.weights})
    trained = load_weights(options.weights, options.device)
    targets = Targets(std_rad=options.target_rad)
    reconstructor = PtychoReconstructor(
        grid, problem.probe[0].cpu().numpy(), config, trained=trained, device=options.device, targets=targets
    )
    rule = StoppingRule(len(frames), target_std_rad=options.target_rad)
    used, estimate, reason = 0, None, None
    while used < len(frames) and reason is None:
        reconstructor.add([frames[k] for k in order[used : used + options.batch]])
        used = min(used + options.batch, len(frames))
        estimate = reconstructor.step(np.inf) or estimate
        if estimate is not None:
            reason = rule.reason(0, 1, uncertainty_rad=estimate.frame_uncertainty)
    if estimate is None:
        return {"frames": used, "reached": False, "predicted_rad": None, "actual_rad": None}
    both = compare_estimate(estimate, problem.truth, problem.origin_m).aligned
    actual = frame_rms(wrap_rad(np.angle(both.object) - np.angle(both.truth)), estimate)
    return {
        "frames": used,
        "reached": reason is not None,
        "predicted_rad": float(np.median(estimate.frame_uncertainty)),
        "actual_rad": float(np.median(actual)),
    }
