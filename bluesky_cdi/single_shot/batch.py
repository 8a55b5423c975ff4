"""All random starts of one frame as one batch: where they begin, how they guide each other, and how far they are."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bluesky_cdi.errors import FrameError
from bluesky_cdi.evaluation.single_shot import resolve_ambiguities
from bluesky_cdi.single_shot.constraints import MeasuredModulus, SampleConstraint

# Random part of the transmission with which starts in a known beam begin.
SPECKLE = 0.5


@dataclass(frozen=True, eq=False)
class Batch:
    """All starts of one frame at one moment.

    Attributes
    ----------
    waves : Tensor, shape (s, N, N), complex
        Exit waves, one a start.
    sample : SampleConstraint
        Its support is one for all, or (s, N, N).
    iterations : int
        Iterations made.
    shrunk : int
        Updates of the support made.
    """

    waves: Tensor
    sample: SampleConstraint
    iterations: int = 0
    shrunk: int = 0


def random_starts(modulus: MeasuredModulus, sample: SampleConstraint, starts: int, seed: int) -> Tensor:
    """Draw exit waves to begin with: measured moduli with random phases; in a known beam, speckle on the beam.

    Parameters
    ----------
    modulus : MeasuredModulus
        The frame.
    sample : SampleConstraint
        Every start satisfies it.
    starts : int
        Number of starts, s.
    seed : int
        The same starts on every device.

    Returns
    -------
    Tensor, shape (s, N, N), complex
    """
    # On the CPU, so that a seed means the same on every device.
    generator = torch.Generator().manual_seed(seed)
    if sample.surround is not None:
        speckle = torch.randn(starts, *modulus.counts.shape, generator=generator, dtype=torch.complex64)
        waves = sample.surround * (1 + SPECKLE * speckle.to(modulus.counts.device))
        return sample.project(modulus.project(sample.project(waves)))
    phase = 2 * math.pi * torch.rand(starts, *modulus.counts.shape, generator=generator)
    detected = torch.polar(modulus.counts.sqrt().expand(phase.shape), phase.to(modulus.counts.device))
    return sample.project(modulus.propagator.adjoint(detected[:, None])[:, 0])


def given_starts(first: Tensor, modulus: MeasuredModulus, sample: SampleConstraint) -> Tensor:
    """Check exit waves to begin with, and bring them into the sample's constraint.

    Parameters
    ----------
    first : Tensor, shape (s, N, N), complex
        Exit waves; of their scale nothing is asked.
    modulus : MeasuredModulus
        The frame.
    sample : SampleConstraint
        Every start satisfies it.

    Returns
    -------
    Tensor, shape (s, N, N), complex64

    Raises
    ------
    FrameError
        If they are of another size than the frame, or not finite.
    """
    if first.ndim != 3 or first.shape[1:] != modulus.counts.shape or not bool(torch.isfinite(first.abs()).all()):
        raise FrameError(
            f"exit waves to begin with must be finite and (s, {modulus.counts.shape[0]}, {modulus.counts.shape[1]}); "
            f"got {tuple(first.shape)}, of which {int((~torch.isfinite(first.abs())).sum())} pixels are not finite"
        )
    waves = modulus.project(first.to(modulus.counts.device, torch.complex64))
    return sample.project(waves)


def guided(batch: Batch, r_factor: npt.NDArray[np.float64]) -> Batch:
    """Bring all starts half the way to the best of them, and into its support.

    Parameters
    ----------
    batch : Batch
        Place, twin and phase of its waves are open; they are brought to the best one's.
    r_factor : ndarray, shape (s,)
        R-factor of each start.

    Returns
    -------
    Batch
        The same batch if no start is finite.
    """
    found = batch.sample.project(batch.waves).cpu().numpy()
    usable = [i for i, wave in enumerate(found) if np.isfinite(wave).all() and wave.any()]
    if not usable:
        return batch
    best = min(usable, key=lambda i: r_factor[i])
    led = np.repeat(found[best][None], len(found), axis=0)
    for i in usable:
        if i != best:
            led[i] = (found[best] + resolve_ambiguities(found[i], found[best], scale="phase").object) / 2
    support = batch.sample.support.expand(found.shape)[best]
    waves = torch.from_numpy(led).to(batch.waves.device)
    return replace(batch, waves=waves, sample=replace(batch.sample, support=support))


def r_factors(batch: Batch, modulus: MeasuredModulus) -> npt.NDArray[np.float64]:
    """Compute the R-factor of each start within the sample's constraint.

    Parameters
    ----------
    batch : Batch
        All starts.
    modulus : MeasuredModulus
        The frame.

    Returns
    -------
    ndarray, shape (s,), float64
    """
    return modulus.r_factor(batch.sample.project(batch.waves)).double().cpu().numpy()
