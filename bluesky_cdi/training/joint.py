"""Training of stages that change the probe: by frames that the network did not read, and by the true probe."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from bluesky_cdi.models.unrolled import UnrolledNet
from bluesky_cdi.physics.forward import Diffraction
from bluesky_cdi.training.losses import probe_overlap
from bluesky_cdi.training.stream import Batch

# Of the frames of a scene one in so many is not read, beginning with this one.
UNREAD_EVERY, FIRST_UNREAD = 6, 3


def joint_stages(net: object) -> int:
    """Count the stages of a network that change the probe; 0 of any other."""
    return net.config.joint if isinstance(net, UnrolledNet) else 0


def with_unread(batch: Batch) -> tuple[Batch, Diffraction]:
    """Keep some frames of each scene from the network.

    Parameters
    ----------
    batch : Batch
        Scenes of equally many frames, one after the other.

    Returns
    -------
    Batch
        With the frames that are read.
    Diffraction
        The others, where they truly were; where scenes have too few frames to keep any, those that are read.
    """
    per_scene = len(batch.data) // len(batch.truth)
    number = torch.arange(len(batch.data), device=batch.truth.device) % per_scene
    unread = number % UNREAD_EVERY == FIRST_UNREAD
    if per_scene <= FIRST_UNREAD:
        return batch, batch.true_data
    read = replace(batch, data=batch.data[~unread], true_data=batch.true_data[~unread])
    return read, batch.true_data[unread]


def lost_overlap(probes: list[Tensor], true: Tensor, joint: int) -> Tensor:
    """Compute how far the probes of the stages that change them are from the true one: 0 where they are it, ().

    Parameters
    ----------
    probes : list of Tensor, shape (B, M, N, N), complex
        One a stage, as `UnrolledNet.solve` gives them.
    true : Tensor, shape (B, M', N, N), complex
        The true one.
    joint : int
        How many of the last count; the last one as much as all others.
    """
    *before, last = [1 - probe_overlap(probe, true).mean() for probe in probes[len(probes) - joint :]]
    if not before:
        return last
    return last + torch.stack(before).mean()
