"""How good the live image of the recorded Siemens star is, and when, with and without the check-in of its probe.

Frames come one by one, as fast as a detector gives them; the live reconstructor takes those that are there whenever it
has made a step, as the worker of a session does. Images are judged afterwards, outside of the time that is told.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bluesky_cdi.bench.machine import record
from bluesky_cdi.bench.recorded import STAR, siemens_star
from bluesky_cdi.config import Config, load_config
from bluesky_cdi.evaluation import compare_estimate
from bluesky_cdi.io import Reference, Scan, read_reference
from bluesky_cdi.protocols import Estimate, Frame, Reconstructor, RunInfo
from bluesky_cdi.reconstruction.build import build_reconstructor

WAYS = {"without check-in": True, "with check-in": False}
"""Whether the first guess is trusted, by the way's name."""
# An image is good from this NRMSE to the reference on: half of the frames, reconstructed to convergence, have 0.2.
GOOD_NRMSE = 0.25
# The longest wait for the next frame at a time, seconds.
LOOK_S = 0.01


@dataclass(frozen=True)
class Options:
    """What is replayed, and how fast.

    Parameters
    ----------
    data : Path
        Folder of recorded scans.
    weights : str
        The network's name or file.
    rate : float
        Frames a second.
    frames : int, optional
        How many of the scan's frames, from the first on; all if absent.
    threads : int
        CPU threads.
    """

    data: Path
    weights: str = "canvas-small"
    rate: float = 10.0
    frames: int | None = None
    threads: int = 1


@dataclass(frozen=True, eq=False)
class Shown:
    """An image that a run showed.

    Attributes
    ----------
    seconds : float
        Since the first frame came.
    arrived : int
        Frames that had come by then.
    estimate : Estimate
    """

    seconds: float
    arrived: int
    estimate: Estimate


def star_replayed(options: Options, on_progress: Callable[[str], None] | None = None) -> dict[str, Any]:
    """Replay the recorded star with and without the check-in.

    Parameters
    ----------
    options : Options
        Frames, rate and network.
    on_progress : callable, optional
        Called with what is replayed next.

    Returns
    -------
    dict
        ``machine``, ``settings`` and ``rows``: by way the images shown (``seconds``, ``arrived``, ``frames`` in the
        image, ``complex_nrmse``, ``deviance``, shares of the phase errors inside the intervals of 50, 90 and 95 %),
        ``first_good_s`` and ``check_in``, what that found.
    """
    tell = on_progress or (lambda _: None)
    torch.set_num_threads(options.threads)
    scan = siemens_star(options.data / STAR).scan
    reference = read_reference(options.data / STAR / "reference.npz", scan)
    rows = {}
    for name, trusts in WAYS.items():
        tell(name)
        shown = replayed(scan, _config(options, trusts), options.rate, options.frames)
        images = [_judged(each, reference) for each in shown]
        good = [image["seconds"] for image in images if image["complex_nrmse"] <= GOOD_NRMSE]
        check_in = dict(shown[-1].estimate.source.get("probe_check_in", {}))
        rows[name] = {"images": images, "first_good_s": good[0] if good else None, "check_in": check_in}
    settings = {
        "weights": options.weights,
        "rate": options.rate,
        "frames": options.frames or len(scan),
        "good_nrmse": GOOD_NRMSE,
    }
    return record([torch.device("cpu")], settings, rows=rows)


def _judged(shown: Shown, reference: Reference) -> dict[str, float]:
    estimate = shown.estimate
    compared = compare_estimate(estimate, reference.object, reference.origin_m)
    inside = {key: value for key, value in compared.numbers.items() if key.startswith("inside_")}
    return {
        **inside,
        "seconds": shown.seconds,
        "arrived": shown.arrived,
        "frames": estimate.n_frames,
        "complex_nrmse": compared.numbers["complex_nrmse"],
        "deviance": float(np.mean(estimate.residual)),
    }


def _config(options: Options, trusts: bool) -> Config:
    sections = {
        "probe": {"modes": 3, "trust": trusts},
        "reconstructor": {
            "name": "pinn",
            "weights": options.weights,
            "background": 0.0,
            "threads": options.threads,
            "device": "cpu",
        },
    }
    return load_config(overrides=sections)


def replayed(scan: Scan, config: Config, rate: float, frames: int | None = None) -> list[Shown]:
    """Reconstruct a recorded scan as if it were being measured.

    Parameters
    ----------
    scan : Scan
        With its first guess of the probe.
    config : Config
        Of the live reconstruction.
    rate : float
        Frames a second.
    frames : int, optional
        How many, from the first on; all if absent.

    Returns
    -------
    list of Shown
        All images, the last one after the last refinement.
    """
    measured = _frames(scan)[:frames]
    reconstructor = _reconstructor(scan, config)
    settings = config.reconstructor
    shown: list[Shown] = []
    taken, began = 0, time.monotonic()
    try:
        while taken < len(measured):
            arrived = min(len(measured), 1 + int(rate * (time.monotonic() - began)))
            if arrived == taken:
                time.sleep(LOOK_S)
                continue
            reconstructor.add(measured[taken:arrived])
            taken = arrived
            _show(shown, reconstructor, settings.step_budget_s, taken, began)
        last = time.monotonic()
        for _ in range(settings.final_steps):
            in_time = time.monotonic() < last + settings.final_budget_s
            if not in_time or not _show(shown, reconstructor, settings.step_budget_s, taken, began):
                break
        if shown:
            last = time.monotonic()
            estimate = reconstructor.checked(shown[-1].estimate)
            shown[-1] = Shown(shown[-1].seconds + time.monotonic() - last, taken, estimate)
    finally:
        reconstructor.close()
    return shown


def _show(shown: list[Shown], reconstructor: Reconstructor, budget_s: float, arrived: int, began: float) -> bool:
    """Make a step; whether there is a new image."""
    estimate = reconstructor.step(budget_s)
    if estimate is not None:
        shown.append(Shown(time.monotonic() - began, arrived, estimate))
    return estimate is not None


def _frames(scan: Scan) -> Sequence[Frame]:
    counts = np.asarray(scan.counts)
    return [Frame(k + 1, position, counts[k]) for k, position in enumerate(scan.positions_m)]


def _reconstructor(scan: Scan, config: Config) -> Reconstructor:
    low, high = scan.positions_m.min(axis=0), scan.positions_m.max(axis=0)
    metadata = {"geometry": scan.geometry.as_metadata(), "window_m": [low.tolist(), high.tolist()]}
    info = RunInfo(scan.name, 1, metadata, (scan.geometry.frame_px,) * 2)
    return build_reconstructor(info, config, probe=scan.probe, mask=scan.mask)
