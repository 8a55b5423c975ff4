"""Single frames by a network, beside random starts: how often, how well, and how long.

The samples and doses of `suites.single_shot` that lie in darkness, none of which training draws. The network reads an
exit wave off a frame in one pass; that is held against the truth as it is, after error reduction, and after the same
recipe that random starts go through, for which it is the one start. Random starts are taken twice: as many as are
usual, which guide each other and of which the one with the lowest R-factor counts, and one. What the network owes to
its own beginning alone, light in the box that the frame tells, is a row too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bluesky_cdi.bench.machine import Stopwatch, record
from bluesky_cdi.bench.suites.single_shot import CASES, SUCCESS_NRMSE, Case, Experiment, measure
from bluesky_cdi.models.frame_decoders import MaskedFrameModel
from bluesky_cdi.models.frame_weights import TrainedFrameModel
from bluesky_cdi.single_shot import SingleShotSettings, Stage, reconstruct_single_shot
from bluesky_cdi.training.pretraining.single_frames import exit_waves, measured_frames

# Error reduction as long as one cycle of the recipe and its finish.
REDUCTION = (Stage("er", 310),)
ALONE, REDUCED, STARTED = "network", "network, error reduction", "network, then the recipe"
LIGHT = "light in the box, then the recipe"


@dataclass(frozen=True)
class Options:
    """What is measured, and on what.

    Parameters
    ----------
    size : int
        Pixels along a side of the frame.
    starts : int
        Random starts on each frame.
    seeds : int
        Objects of each kind and dose.
    doses : sequence of float
        Photons of a frame.
    device : str
        PyTorch device.
    """

    size: int = 64
    starts: int = 20
    seeds: int = 3
    doses: Sequence[float] = (1e6, 1e8)
    device: str = "cpu"


def beside_network(
    trained: TrainedFrameModel, options: Options, on_progress: Callable[[str], None] | None = None
) -> dict[str, Any]:
    """Measure all kinds of isolated samples.

    Parameters
    ----------
    trained : TrainedFrameModel
        Trained on single frames; on the device.
    options : Options
        What is measured.
    on_progress : callable, optional
        Called with the name of each row before it is measured.

    Returns
    -------
    dict
        ``machine``, ``settings`` and ``rows``: one a frame and method, with ``error`` to the truth, ``r_factor`` over
        that of photon noise, and ``seconds``.
    """
    tell = on_progress or (lambda _: None)
    rows = []
    for name, case in CASES.items():
        if case.curved or case.settings.max_phase_rad is not None:
            continue
        for photons in options.doses:
            tell(f"{name}, {photons:.0e} photons")
            for seed in range(options.seeds):
                # Far from the seeds of other tables.
                made = measure(case, photons, options.size, 1000 + seed)
                for method, numbers in frame_by_all(trained.model, made, case, options, seed).items():
                    rows.append({"object": name, "photons": photons, "seed": seed, "method": method, **numbers})
    settings = {
        **asdict(options),
        "success_nrmse": SUCCESS_NRMSE,
        "encoder": trained.name,
        "encoder_sha256": trained.sha256,
    }
    return record([torch.device(options.device)], settings, rows=rows)


def frame_by_all(
    model: MaskedFrameModel, made: Experiment, case: Case, options: Options, seed: int
) -> dict[str, dict[str, float]]:
    """Reconstruct one frame in all ways.

    Parameters
    ----------
    model : MaskedFrameModel
        On the device.
    made : Experiment
        The frame.
    case : Case
        Its kind.
    options : Options
        Starts and device.
    seed : int
        Of random starts.

    Returns
    -------
    dict of str to dict
    """
    device = torch.device(options.device)
    counts = made.counts.to(device)
    read_waves(model, counts[None])  # what the first use loads, the clock should not see
    with Stopwatch(device) as reading:
        waves = read_waves(model, counts[None])
    found: dict[str, dict[str, float]] = {}
    for method, first, settings in (
        (f"{options.starts} random starts", None, case.settings),
        ("one random start", None, case.settings),
        (LIGHT, measured_frames(torch.fft.ifftshift(counts[None], dim=(-2, -1))).probe[:, 0], case.settings),
        (REDUCED, waves, replace(case.settings, cycles=0, finish=REDUCTION)),
        (STARTED, waves, case.settings),
    ):
        starts = options.starts if str(options.starts) in method else 1
        found[method] = _judged(made, counts, first, settings, starts, seed)
        if first is waves:
            found[method]["seconds"] += reading.seconds
    # Of the wave as it was read, no iteration.
    alone = _judged(made, counts, waves, replace(case.settings, cycles=0, finish=()), 1, seed)
    found[ALONE] = {**alone, "error": made.error(waves[0].cpu().numpy()), "seconds": reading.seconds}
    return found


@torch.no_grad()
def read_waves(model: MaskedFrameModel, counts: Tensor) -> Tensor:
    """Read exit waves off frames in one pass.

    Parameters
    ----------
    model : MaskedFrameModel
        Trained on single frames.
    counts : Tensor, shape (B, N, N)
        Photons, in the detector's order.

    Returns
    -------
    Tensor, shape (B, N, N), complex64
    """
    frames = measured_frames(torch.fft.ifftshift(counts, dim=(-2, -1)))
    return exit_waves(model(frames.probe, frames.data).object, frames.probe)


def _judged(
    made: Experiment, counts: Tensor, first: Tensor | None, settings: SingleShotSettings, starts: int, seed: int
) -> dict[str, float]:
    with Stopwatch(counts.device) as watch:
        result = reconstruct_single_shot(counts, starts=starts, seed=seed, first=first, settings=settings)
    error = made.error(result.objects[result.best])
    relative = float(result.r_factor[result.best]) / result.noise_r_factor
    return {"error": error, "r_factor": relative if np.isfinite(relative) else np.inf, "seconds": watch.seconds}
