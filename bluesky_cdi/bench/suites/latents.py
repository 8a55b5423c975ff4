"""What latents are worth: how far a frame moves when it is read again, and how surely unusual frames are recognised.

False alarms are counted on scenes that the projection doesn't rest on, detections on the samples of `bench.cases`,
whose probe training does not draw either.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from bluesky_cdi.bench.cases import Case, simulate
from bluesky_cdi.bench.machine import record
from bluesky_cdi.errors import WeightsError
from bluesky_cdi.latents import LatentProjection, find_projection
from bluesky_cdi.latents.fitting import SceneEmbeddings, stability
from bluesky_cdi.latents.store import CLASS_TOKENS, CRITIC
from bluesky_cdi.models.frame_weights import TrainedFrameModel
from bluesky_cdi.models.weights import Trained
from bluesky_cdi.reconstruction.latent_scenes import Scene, class_tokens_of, critic_of, draw_scenes, embed_scenes

# Of the null scenes; far from the seeds that projections rest on.
NULL_SEED = 1000
FALSE_ALARMS = 0.01
# The assumed probe of the samples is a little off, as after a check-in.
PROBE_ERROR_RAD = 0.2


@dataclass(frozen=True)
class Options:
    """What is measured.

    Parameters
    ----------
    samples : sequence of str
        Kinds of `objects.make_sample`.
    doses : sequence of float
        Photons of a frame.
    seeds : int
        Scans of each sample and dose.
    scenes : int
        Of the kinds that training draws.
    field : float
        Side of the scans' field in widths of a frame.
    """

    samples: Sequence[str]
    doses: Sequence[float] = (1e4, 1e5, 1e6)
    seeds: int = 2
    scenes: int = 100
    field: float = 0.9


def latents(
    trained: Trained | TrainedFrameModel,
    options: Options,
    device: torch.device,
    on_progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Measure stability and novelty.

    Parameters
    ----------
    trained : Trained or TrainedFrameModel
        The network or the frame encoder whose projection is measured.
    options : Options
        Scenes and samples.
    device : torch.device
        Device that computes.
    on_progress : callable, optional
        Called with what is reconstructed next.

    Returns
    -------
    dict
        ``machine``, ``settings`` and ``rows``, one for the kinds that training draws and one a sample: ``scans``,
        ``frames``, ``embedding`` and ``latents``, the median ratio of `stability`, and ``unusual``, the share of frames
        that are told with `FALSE_ALARMS`, and ``scans_unusual``, that of scans in which more than a tenth are.

    Raises
    ------
    WeightsError
        If the weights have no projection.
    """
    if isinstance(trained, TrainedFrameModel):
        source, describes = {"encoder_sha256": trained.sha256, "embedding": CLASS_TOKENS}, class_tokens_of(trained)
    else:
        source, describes = {"weights_sha256": trained.sha256, "embedding": CRITIC}, critic_of(trained.unrolled_net)
    projection = find_projection(source)
    if projection is None:
        raise WeightsError(f"{trained.name} has no projection: make it with `bluesky-cdi fit-latents {trained.name}`")
    tell = on_progress or (lambda _: None)
    tell("kinds that training draws")
    null = embed_scenes(describes, draw_scenes(device, options.scenes, NULL_SEED), NULL_SEED)
    rows = [{"name": "as in training", **_row(projection, null)}]
    for sample in options.samples:
        tell(sample)
        rows.append({"name": sample, **_row(projection, embed_scenes(describes, _scans(sample, options, device), 0))})
    return record([device], {"weights": trained.name, **asdict(options)}, rows=rows)


def _scans(sample: str, options: Options, device: torch.device) -> Iterator[Scene]:
    for dose, seed in itertools.product(options.doses, range(options.seeds)):
        case = Case(sample=sample, dose=dose, probe_error_rad=PROBE_ERROR_RAD, field=options.field)
        problem = simulate(case, seed, device)
        yield problem.probe, problem.data


def _row(projection: LatentProjection, found: SceneEmbeddings) -> dict[str, Any]:
    values, again = projection.latents(found.embedding), projection.latents(found.again)
    unusual = projection.p_values(values) <= FALSE_ALARMS
    of_scans = [float(unusual[found.scene == scene].mean()) for scene in np.unique(found.scene)]
    return {
        "scans": len(of_scans),
        "frames": len(values),
        "embedding": _median(stability(found.embedding, found.again, found.scene)),
        "latents": _median(stability(values, again, found.scene)),
        "unusual": float(unusual.mean()),
        "scans_unusual": float(np.mean(np.asarray(of_scans) > 0.1)),
    }


def _median(values: Any) -> float:
    return float(np.median(values))
