"""Whether a scan that stops at a wanted resolution has it, and what looking for it costs.

Adaptive scans of the simulated beamline, all faults of its devices on, stop where two halves of their frames agree down
to the wanted full period. The truth judges: the ring correlation of the image with it falls, where halves of the frames
have a correlation of T, to ``sqrt(2 T / (1 + T))`` (Rosenthal and Henderson, J. Mol. Biol. 333, 721 (2003)), if the
halves' errors are independent.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from bluesky_cdi.bench.beamline import adaptive_steps
from bluesky_cdi.bench.machine import record
from bluesky_cdi.config import Config, load_config
from bluesky_cdi.errors import FrameError
from bluesky_cdi.evaluation import compare_estimate, fourier_ring_correlation
from bluesky_cdi.evaluation.frc import resolution_at, soft_window
from bluesky_cdi.evaluation.resolution import KEY
from bluesky_cdi.protocols import Estimate
from bluesky_cdi.sim_devices import SimulatedSource


@dataclass(frozen=True)
class Options:
    """What is measured.

    Parameters
    ----------
    samples : sequence of str
        Kinds of `objects.make_sample`.
    doses : sequence of float
        Photons of a frame through vacuum.
    targets_m : sequence of float
        Wanted full periods, metres.
    seeds : int
        Scans of each.
    budget : int
        Most frames of a scan.
    reconstructor : str
        Name of it.
    """

    samples: Sequence[str] = ("star", "leaves")
    doses: Sequence[float] = (3e3, 1e4, 3e4)
    targets_m: Sequence[float] = (75e-9, 100e-9)
    seeds: int = 1
    budget: int = 250
    reconstructor: str = "pinn"


def resolution(options: Options | None = None, on_progress: Callable[[str], None] | None = None) -> dict[str, Any]:
    """Run all scans.

    Parameters
    ----------
    options : Options, optional
        The documented ones if absent.
    on_progress : callable, optional
        Called with a line for each scan.

    Returns
    -------
    dict
        ``machine``, ``settings`` and ``rows``: of each scan ``sample``, ``photons``, ``seed``, ``target_m``,
        ``frames`` when it stopped, ``reason``, ``halves_m`` and ``true_m``, what the halves and the truth say (null:
        no ring is resolved), ``checks``, and ``cost``, the seconds of the checks over those of all else.
    """
    options, tell = options or Options(), on_progress or (lambda _: None)
    rows = []
    for sample in options.samples:
        for photons in options.doses:
            for target_m in options.targets_m:
                for seed in range(options.seeds):
                    row, _ = adaptive_scan(_config(options, sample, photons, seed, target_m), options.budget)
                    rows.append({"sample": sample, "photons": photons, "seed": seed, "target_m": target_m, **row})
                    tell(f"{sample}, {photons:.0e} photons, {1e9 * target_m:.0f} nm: {row['reason']}")
    settings = {"budget": options.budget, "seeds": options.seeds, "reconstructor": options.reconstructor}
    return record([torch.device("cpu")], settings, rows=rows)


def adaptive_scan(config: Config, budget: int) -> tuple[dict[str, Any], Estimate]:
    """Scan until the agent stops, each decision with all frames in the image.

    Parameters
    ----------
    config : Config
        With a wanted resolution.
    budget : int
        Most frames.

    Returns
    -------
    dict
        A row of `resolution`, without what the configuration says.
    Estimate
        The last one.

    Raises
    ------
    FrameError
        If there is no image.
    """
    source, started = SimulatedSource(config), time.process_time()
    last = deque(adaptive_steps(config, source, budget), maxlen=1).pop()
    estimate = last.estimate
    if estimate is None:
        raise FrameError("a scan needs frames to have a resolution; none was measured")
    notes = estimate.source.get(KEY, {"resolution_m": [None], "seconds": 0.0})
    spent = time.process_time() - started
    row = {
        "frames": last.frames,
        "reason": last.reason,
        "halves_m": notes["resolution_m"][-1],
        "true_m": true_resolution_m(estimate, source),
        "checks": len(notes["resolution_m"]),
        "cost": notes["seconds"] / max(spent - notes["seconds"], 1e-9),
    }
    return row, estimate


def true_resolution_m(estimate: Estimate, source: SimulatedSource) -> float:
    """Tell down to which full period an image is like the truth, as halves that are independent would say it.

    Parameters
    ----------
    estimate : Estimate
        The image.
    source : SimulatedSource
        The simulated beamline, which holds the true object.

    Returns
    -------
    float
        Metres; inf where no ring is.
    """
    found = compare_estimate(estimate, source.truth.object, source.truth.origin_m)
    frc = fourier_ring_correlation(found.object, found.truth, estimate.pixel_m, soft_window(found.mask))
    with_truth = np.sqrt(2 * frc.half_bit / (1 + frc.half_bit))
    crossing = resolution_at(frc.frequency_per_m, frc.correlation - with_truth)
    return 2 * estimate.pixel_m if crossing is None else crossing


def _config(options: Options, sample: str, photons: float, seed: int, target_m: float) -> Config:
    return load_config(
        overrides={
            "simulation": {"sample": sample, "photons": photons, "seed": seed},
            "scan": {"budget": options.budget},
            "agent": {"target_resolution_m": target_m, "stop_gain": 0.0, "seed": seed},
            "reconstructor": {"name": options.reconstructor},
        }
    )
