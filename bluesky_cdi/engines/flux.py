"""The incident flux of single frames that no monitor tells: a shutter on its way, a ring being filled.

Taken with the flux of the others, such a frame is a dark spot of the sample. The frames that overlap with it say
otherwise: under the object that all make together it has far less light than is expected, and so its own flux is what
explains it. An absorbing place, which its neighbours see as well, is explained by the object.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from bluesky_cdi.physics.forward import Diffraction
from bluesky_cdi.physics.illuminated_frames import frames_at_once

# A frame stands out if its flux differs from the stated one by this share of the larger of both, and by so many
# standard deviations of all frames' ratios and of its own counts. The flux of all others stays as stated: refined too,
# it takes a part of the sample's absorption.
LEAST_CHANGE, SIGMAS = 0.25, 4.0
# Standard deviation of a normal distribution over its median absolute deviation.
MAD = 1.4826


def with_outliers_flux(obj: Tensor, probe: Tensor, data: Diffraction) -> Diffraction:
    """Give frames that stand out the flux that explains their light best, and all others the stated one.

    Parameters
    ----------
    obj : Tensor, shape (1, Y, X), complex
        What is known of the object.
    probe : Tensor, shape (1, M, N, N), complex
        Its modes.
    data : Diffraction
        The frames, with what was found of their fluxes before.

    Returns
    -------
    Diffraction
        Where the light of all frames differs from what is expected, as under a wrong object, none stands out.
    """
    counted, expected = _light(obj, probe, data)
    stated = torch.ones_like(counted) if data.stated_flux is None else data.stated_flux
    flux = stated if data.flux is None else data.flux
    ratio = (counted.clamp_min(0) + 0.5) / (expected.clamp_min(0) + 0.5)
    logs = (ratio / ratio.median()).log()
    spread = torch.maximum(MAD * logs.abs().median(), expected.clamp_min(1).rsqrt())
    change = logs + (flux / stated).log()
    out = change.abs() > (SIGMAS * spread).clamp_min(-math.log(1 - LEAST_CHANGE))
    return replace(data, flux=torch.where(out, stated * change.exp(), stated))


def _light(obj: Tensor, probe: Tensor, data: Diffraction) -> tuple[Tensor, Tensor]:
    """Sum what each frame counted on its valid pixels, and what is expected there, (n,) each, without background."""
    sums = []
    for part in data.chunks(frames_at_once(probe)):
        both = torch.stack([part.counts, part.rate(part.probes(probe), part.patches(obj))]) - part.background
        valid = part.valid
        sums.append((both if valid is None else torch.where(valid, both, 0.0)).sum(dim=(-2, -1)))
    counted, expected = torch.cat(sums, dim=1)
    return counted, expected
