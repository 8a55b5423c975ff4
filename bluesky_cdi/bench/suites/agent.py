"""What the agent gains from what describes frames: the same adaptive scans, with one embedding or another, or none.

All ways of a seed have the same sample, faults of the beamline and agent's seed, so their errors are compared in pairs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from bluesky_cdi.bench.beamline import adaptive_steps, error_of
from bluesky_cdi.bench.machine import record
from bluesky_cdi.config import Config, load_config
from bluesky_cdi.sim_devices import SimulatedSource

NOTHING = "none"
"""The way in which the agent is told of no embedding."""
# Draws of the seeds that the intervals rest on.
DRAWS = 10_000


@dataclass(frozen=True)
class Options:
    """What is measured.

    Parameters
    ----------
    embeddings : sequence of str
        Of `LatentsConfig.embedding`, and ``none``; the others are held against the first.
    samples : sequence of str
        Kinds of `objects.make_sample`.
    seeds : int
        Scans of each.
    budget, batch : int
        Frames of a scan, and of a decision.
    extent_um : float
        Side of its window.
    photons : float
        Of a frame through vacuum.
    reconstructor : str
        Name of it.
    """

    embeddings: Sequence[str] = ("critic", "radial profile", "class tokens", NOTHING)
    samples: Sequence[str] = ("particles", "leaves")
    seeds: int = 5
    budget: int = 60
    batch: int = 12
    extent_um: float = 1.8
    photons: float = 1e5
    reconstructor: str = "pinn"


def agent(options: Options | None = None, on_progress: Callable[[str], None] | None = None) -> dict[str, Any]:
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
        ``machine``, ``settings``, ``scans`` (of each ``sample``, ``seed``, ``embedding``, ``frames`` and ``errors``,
        the complex NRMSE after each decision, NaN where frames are too few to tell, and ``seconds`` of CPU time in
        all), and ``rows``: by sample and embedding
        the medians ``error`` at the end and ``course``, the geometric mean over the decisions, and how much larger
        than with the first embedding the latter is, ``ratio``, with its ``interval`` of 95 % over the seeds.
    """
    options, tell = options or Options(), on_progress or (lambda _: None)
    scans: list[dict[str, Any]] = []
    for sample in options.samples:
        for seed in range(options.seeds):
            for embedding in options.embeddings:
                row = _scan(_config(options, sample, seed, embedding), embedding)
                scans.append({"sample": sample, "seed": seed, "embedding": embedding, **row})
                tell(f"{sample}, seed {seed}, {embedding}: {row['errors'][-1]:.3f}")
    rows = [row for sample in options.samples for row in compared(scans, sample, options.embeddings)]
    return record([torch.device("cpu")], asdict(options), scans=scans, rows=rows)


def compared(scans: Sequence[Mapping[str, Any]], sample: str, embeddings: Sequence[str]) -> list[dict[str, Any]]:
    """Hold embeddings against the first, seed by seed.

    Parameters
    ----------
    scans : sequence of Mapping
        Of `agent`.
    sample : str
        Whose scans are compared.
    embeddings : sequence of str
        In the order of the rows.
    """
    rows, rng = [], np.random.default_rng(0)
    found = {
        each: [scan for scan in scans if (scan["sample"], scan["embedding"]) == (sample, each)] for each in embeddings
    }
    courses = {each: np.array([np.nanmean(np.log(scan["errors"])) for scan in found[each]]) for each in embeddings}
    for each in embeddings:
        larger = courses[each] - courses[embeddings[0]]
        drawn = larger[rng.integers(len(larger), size=(DRAWS, len(larger)))].mean(axis=1)
        rows.append(
            {
                "sample": sample,
                "embedding": each,
                "error": float(np.median([scan["errors"][-1] for scan in found[each]])),
                "course": float(np.exp(np.median(courses[each]))),
                "ratio": math.exp(larger.mean()),
                "interval": np.exp(np.quantile(drawn, [0.025, 0.975])).tolist(),
                "seconds": float(np.median([scan["seconds"] for scan in found[each]])),
            }
        )
    return rows


def _scan(config: Config, embedding: str) -> dict[str, Any]:
    source, frames, errors = SimulatedSource(config), [], []
    told = ("embedding",) if embedding == NOTHING else ()
    spent, started = 0.0, time.process_time()
    for step in adaptive_steps(config, source, config.scan.budget, lambda point: _without(point, told)):
        spent += time.process_time() - started
        if step.estimate is not None and not step.reason:
            frames.append(step.frames)
            errors.append(error_of(step.estimate, source))
        # Judging it is no part of the scan.
        started = time.process_time()
    return {"frames": frames, "errors": errors, "seconds": spent}


def _without(point: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {key: value for key, value in point.items() if key not in names}


def _config(options: Options, sample: str, seed: int, embedding: str) -> Config:
    sections = {
        "simulation": {"sample": sample, "photons": options.photons, "seed": seed},
        "scan": {
            "budget": options.budget,
            "batch": min(options.batch, options.budget),
            "extent_um": [options.extent_um] * 2,
        },
        "agent": {"stop_gain": 0.0, "seed": seed},
        # The check of the probe runs beside the scan, by the clock: what it changes would differ from way to way.
        "probe": {"trust": True},
        "reconstructor": {"name": options.reconstructor, "device": "cpu"},
        "latents": {} if embedding == NOTHING else {"embedding": embedding},
    }
    return load_config(overrides=sections)
