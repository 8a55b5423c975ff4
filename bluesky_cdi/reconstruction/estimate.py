"""What the parts of a reconstructor know, as an estimate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from bluesky_cdi.config import ReconstructorConfig
from bluesky_cdi.latents.store import CRITIC, RADIAL_PROFILE
from bluesky_cdi.models.unrolled import has_native_bf16
from bluesky_cdi.models.weights import Trained
from bluesky_cdi.protocols import Estimate
from bluesky_cdi.reconstruction.frame_embedding import FrameEmbedding
from bluesky_cdi.reconstruction.frame_metrics import FrameMetrics
from bluesky_cdi.reconstruction.frame_table import FrameTable
from bluesky_cdi.reconstruction.frames import MeasuredFrames
from bluesky_cdi.reconstruction.object_map import ObjectMap
from bluesky_cdi.reconstruction.region_solver import RegionSolver
from bluesky_cdi.reconstruction.shared_probe import SharedProbe
from bluesky_cdi.reconstruction.uncertainty import PhotonNoiseEstimator


def source_of(
    config: ReconstructorConfig, trained: Trained | None, seed: int, device: str, embedding: FrameEmbedding | None
) -> dict[str, Any]:
    """Describe what makes a run's estimates.

    Parameters
    ----------
    config : ReconstructorConfig
        Its settings.
    trained : Trained or None
        The network, if there is one.
    seed : int
        Of the order of frames.
    device : str
        Where it computes.
    embedding : FrameEmbedding or None
        What describes its frames; None: what predicts errors.
    """
    usual = CRITIC if trained and config.uncertainty != PhotonNoiseEstimator.name else RADIAL_PROFILE
    return {
        "reconstructor": config.name,
        "network": trained.name if trained else None,
        "weights_sha256": trained.sha256 if trained else None,
        **({"embedding": usual} if embedding is None else embedding.source),
        "settings": config.model_dump(mode="json"),
        "seed": seed,
        "device": device,
        **({} if trained is None or trained.unrolled_net is None else {"quick_unets": type_of_quick_unets(device)}),
    }


def type_of_quick_unets(device: str) -> str:
    """Name the type in which U-Nets of quick readings compute on a device: on a CPU it depends on which that is."""
    return "float32" if torch.device(device).type == "cpu" and not has_native_bf16() else "bfloat16"


def progress_of(solver: RegionSolver, frames: MeasuredFrames, *, refine_flux: bool) -> dict[str, Any]:
    """Describe how far a run has come, and what its frames show by themselves.

    Parameters
    ----------
    solver : RegionSolver
        Whose iterations are told of.
    frames : MeasuredFrames
        Of the run.
    refine_flux : bool
        Whether fluxes are refined; frames under another flux are told of only where they are not.
    """
    courses, table = solver.courses, frames.table
    told: dict[str, Any] = {
        "iterations": solver.iterations,
        "ended": courses.ended,
        "diverged": courses.diverged,
        "falling": courses.falling,
        "off_centre_px": frames.off_centre_px,
        "plain_residual": frames.light.plain_residual(),
    }
    if (found := table.flux.others) and not refine_flux:
        told["other_flux"] = found
    if len(frames.light.dark):
        told["dark_frames"] = np.sort(table.seq_nums[frames.light.dark]).tolist()
    return told


def estimate_of(
    table: FrameTable,
    metrics: FrameMetrics,
    object_map: ObjectMap,
    probe: SharedProbe,
    *,
    seconds: float,
    source: Mapping[str, Any],
) -> Estimate:
    """Copy what is known into an estimate; frames that nothing is known of yet are not in it.

    Parameters
    ----------
    table : FrameTable
        Numbers and places of the frames.
    metrics : FrameMetrics
        What each frame brought.
    object_map : ObjectMap
        The object, its illumination and its predicted errors.
    probe : SharedProbe
        The probe's modes.
    seconds : float
        Time that the step took.
    source : Mapping
        What made it.
    """
    rows = table.rows[metrics.known[table.rows]]
    noise = metrics.noise[rows]
    if np.isfinite(noise).any():
        source = {**source, "noise_residual": float(np.nanmean(noise))}
    images = object_map.checkpoint()
    return Estimate(
        n_frames=len(rows),
        object=images["object"][0],
        origin_m=table.grid.origin_m,
        pixel_m=table.grid.pixel_m,
        probe=probe.modes[0].cpu().numpy().copy(),
        std_amplitude=images["std_amplitude"],
        std_phase_rad=images["std_phase_rad"],
        coverage=images["illumination"][0],
        frame_seq_nums=table.seq_nums[rows],
        positions_m=table.positions_m[rows],
        embedding=metrics.embedding[rows],
        frame_uncertainty=metrics.uncertainty[rows],
        residual=metrics.residual[rows],
        novelty=metrics.novelty(rows),
        seconds=seconds,
        source=source,
        vacuum_residual=metrics.vacuum[rows],
    )
