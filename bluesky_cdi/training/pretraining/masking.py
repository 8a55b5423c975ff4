"""Which frames and patches are hidden."""

from __future__ import annotations

import torch

from bluesky_cdi.models.frame_encoder import Shown, tokens_along
from bluesky_cdi.training.draws import Draws
from bluesky_cdi.training.pretraining.scans import Scans

# Share of the frames of each scan that are hidden as a whole.
HIDDEN_FRAMES = 0.25
# Share of the patches that are shown of the others: the same for all frames of a batch. In a part of the batches all
# are, as in use.
SHOWN_PATCHES, ALL_SHARE = (0.3, 0.8), 0.2
# And of those of single frames, whose objects no other frame tells.
ALL_SHARE_OF_SINGLE = 0.6


def draw_shown(scans: Scans, patch: int, draws: Draws, share: float | None = None) -> Shown:
    """Draw what of some scans is shown.

    Parameters
    ----------
    scans : Scans
        All with as many frames.
    patch : int
        Pixels along a side of a patch.
    draws : Draws
        Its decisions choose the share of patches, its numbers what is hidden.
    share : float, optional
        Of the patches that are shown; drawn if absent.
    """
    number = len(scans.probe)
    frames = len(scans.data) // number
    kept = frames - min(frames - 1, max(1, round(HIDDEN_FRAMES * frames)))
    first = frames * torch.arange(number, device=draws.device)
    rows = draws.uniform(number, frames).argsort(dim=1)[:, :kept].sort(dim=1).values
    total = tokens_along(scans.data.counts.shape[-1], patch) ** 2
    if share is None:
        all_share = ALL_SHARE_OF_SINGLE if scans.single else ALL_SHARE
        share = 1.0 if draws.chance(all_share) else draws.between(*SHOWN_PATCHES)
    patches = draws.uniform(number * kept, total).argsort(dim=1)[:, : max(1, round(share * total))]
    return Shown((first[:, None] + rows).flatten(), patches.sort(dim=1).values)
