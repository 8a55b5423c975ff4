"""What is kept of frames once they have been looked at, and a look at the newest of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bluesky_cdi.physics.forward import Diffraction
from bluesky_cdi.protocols import FloatArray
from bluesky_cdi.reconstruction.causes.detector import TOP, detector_findings, saturation_findings
from bluesky_cdi.reconstruction.causes.finding import Finding
from bluesky_cdi.reconstruction.causes.misfit import explained
from bluesky_cdi.reconstruction.causes.model import model_findings
from bluesky_cdi.reconstruction.probe_checkin.drift import LOOKED_AT
from bluesky_cdi.reconstruction.probe_checkin.pupil import Pupil
from bluesky_cdi.reconstruction.scores import Scores, scores_of

# The newest blocks that tell what the detector does: half of a dead pixel's usual counts would look like an object's.
DETECTOR = 2


@dataclass(frozen=True, eq=False)
class Block:
    """Frames that were scored together, when they were the newest.

    Attributes
    ----------
    seq_nums : ndarray, shape (n,)
    scores : Scores
    photons : float
        Of a frame, on average.
    pixels : int
        Valid ones.
    brightest : ndarray, shape (m,)
        Highest counts of all.
    highest : ndarray, shape (n,)
        Of each frame.
    embedding : ndarray, shape (n, d)
    sums : ndarray, shape (2, N, N)
        What they count on their valid pixels and what is expected of them, as the detector has them; photons.
    """

    seq_nums: npt.NDArray[np.int64]
    scores: Scores
    photons: float
    pixels: int
    brightest: FloatArray
    highest: FloatArray
    embedding: FloatArray
    sums: FloatArray


def block_of(
    obj: Tensor, probe: Tensor, data: Diffraction, seq_nums: npt.NDArray[np.int64], embedding: FloatArray
) -> Block:
    """Score frames.

    Parameters
    ----------
    obj : Tensor, shape (1, Y, X), complex64
        As it is known by now.
    probe : Tensor, shape (1, M, N, N), complex64
        Its modes.
    data : Diffraction
        The frames.
    seq_nums : ndarray, shape (n,)
        Their numbers.
    embedding : ndarray, shape (n, d)
        Their features.
    """
    scores, sums = scores_of(obj, probe, data, Pupil(probe[0], data).derivatives(LOOKED_AT))
    valid = data.counts if data.valid is None else torch.where(data.valid, data.counts, 0.0)
    flat = valid.flatten()
    brightest = torch.topk(flat, min(TOP, len(flat))).values
    return Block(
        seq_nums,
        scores,
        float(valid.sum()) / len(data),
        valid[0].numel() if data.mask is None else int(data.mask.sum()),
        brightest.cpu().double().numpy(),
        valid.amax(dim=(-2, -1)).cpu().double().numpy(),
        embedding,
        np.asarray(data.propagator.to_detector(sums).cpu(), np.float64),
    )


def saturated(lately: Sequence[Block]) -> list[Finding]:
    """Look for a ceiling of the newest frames' counts."""
    lately = lately[-DETECTOR:]
    brightest = np.sort(np.concatenate([block.brightest for block in lately]))[-TOP:]
    highest = np.concatenate([block.highest for block in lately])
    return list(saturation_findings(brightest, int((highest == highest.max()).sum()), len(highest)))


def looked_at(
    before: Sequence[Block], sums_before: FloatArray, lately: Sequence[Block], found: Sequence[Finding]
) -> list[Finding]:
    """Compare the newest frames with those before.

    Parameters
    ----------
    before : sequence of Block
        At least one.
    sums_before : ndarray, shape (2, N, N)
        The sums of all before.
    lately : sequence of Block
        At least one.
    found : sequence of Finding
        What else was found of the newest.
    """
    early, late = (Scores.joined([block.scores for block in blocks]) for blocks in (before, lately))
    sums = sum((block.sums for block in lately[-DETECTOR:]), np.zeros_like(sums_before))
    photons, pixels = (float(np.mean([getattr(block, name) for block in lately])) for name in ("photons", "pixels"))
    found = [
        *found,
        *saturated(lately),
        *detector_findings(*sums, *sums_before, is_steady=not found),
        *model_findings(early, late, photons, sums[0].size),
    ]
    features = tuple(np.concatenate([block.embedding for block in blocks]) for blocks in (before, lately))
    return explained(found, early, late, int(pixels), (features[0], features[1]))
