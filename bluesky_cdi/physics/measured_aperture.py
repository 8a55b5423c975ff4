"""Which frequencies of an object frames support: all that the probe brings onto valid pixels, by how much light.

A frequency of the object scatters the probe's own spectrum about itself. So a detector measures a little more than its
aperture, as far as the probe's spectrum reaches (Maiden, Humphry, Zhang and Rodenburg, J. Opt. Soc. Am. A 28, 604
(2011)), and at its border less than all of the light.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bluesky_cdi.physics.illumination_shares import MEASURED_SHARE

# Photons on a pixel that tell its amplitude to 3 %, 1 / (4 0.03^2): about the contrast of samples at high frequencies.
TELLING_PHOTONS = 300.0


def inner_pixels(size: int, share: float) -> Tensor:
    """Mark the square in the middle of a detector, (N, N), bool, in the detector's order.

    Parameters
    ----------
    size : int
        Pixels along a side, N.
    share : float
        Of a side, above 0 and below 1.

    Raises
    ------
    ValueError
        If the square has fewer than two pixels along a side, or is all of the detector.
    """
    side = inner_side(size, share)
    inside = torch.zeros(size, size, dtype=torch.bool)
    first = size // 2 - side // 2
    inside[first : first + side, first : first + side] = True
    return inside


def inner_side(size: int, share: float) -> int:
    """Count the pixels along a side of the square of `inner_pixels`: an even number.

    Parameters
    ----------
    size : int
        Pixels along a side of the detector.
    share : float
        Of it.

    Raises
    ------
    ValueError
        As of `inner_pixels`.
    """
    side = 2 * int(share * size / 2)
    if not 2 <= side < size:
        raise ValueError(f"a share of the detector's {size} pixels above 0 and below 1 is needed; got {share}")
    return side


def measured_share(probe: Tensor, valid: Tensor, shape: tuple[int, int]) -> Tensor:
    """Compute which share of the light that each frequency of an object scatters falls on valid pixels.

    Frequencies beyond the frame's window come back on its other side, as they do in the forward model. Positions shift
    phases alone, so one share holds for all frames.

    Parameters
    ----------
    probe : Tensor, shape (B, M, N, N), complex
        Modes, in the far field's plane of the sample.
    valid : Tensor, shape (N, N), bool
        True where a pixel is measured; zero frequency at ``[0, 0]``.
    shape : tuple of int
        (Y, X) of the object.

    Returns
    -------
    Tensor, shape (B, Y, X)
        0 to 1; zero frequency at ``[0, 0]``.
    """
    power = torch.fft.fft2(probe).abs().square().sum(dim=1)  # (B, N, N)
    power = power / power.sum(dim=(-2, -1), keepdim=True)
    # Of frequency q the part p of the probe's spectrum falls on pixel p + q.
    correlation = torch.fft.fft2(power).conj() * torch.fft.fft2(valid.to(power.dtype))
    share = torch.fft.ifft2(correlation).real.clamp(0, 1)
    rows, columns = (_interpolation(valid.shape[-1], side, share) for side in shape)
    interpolated: Tensor = rows @ share @ columns.mT
    return interpolated


def data_support(share: Tensor, illumination: Tensor) -> Tensor:
    """Compute how far frames support each frequency of an object, in proportion to what whole frames would.

    Of the photons I on a pixel a frequency has the share S that fell on valid pixels. A contrast of 3 %, told by
    `TELLING_PHOTONS`, is found as far as Wiener's filter lets it pass, ``S I / (S I + T)``; the support is that over
    ``I / (I + T)``. It is S where there are few photons, and 1 for any S where there are enough.

    Parameters
    ----------
    share : Tensor, shape (B, Y, X)
        As of `measured_share`.
    illumination : Tensor, shape (B, Y, X)
        Photons on each pixel of the objects, of all frames; its mean over illuminated pixels counts.

    Returns
    -------
    Tensor, shape (B, Y, X)
        0 to 1; zero frequency at ``[0, 0]``.
    """
    seen = illumination > MEASURED_SHARE * illumination.amax(dim=(-2, -1), keepdim=True)
    photons = (illumination * seen).sum(dim=(-2, -1), keepdim=True) / seen.sum(dim=(-2, -1), keepdim=True).clamp_min(1)
    return share * (photons + TELLING_PHOTONS) / (share * photons + TELLING_PHOTONS)


def supported(obj: Tensor, support: Tensor) -> Tensor:
    """Damp an object's frequencies, about vacuum, as far as frames don't support them.

    Parameters
    ----------
    obj : Tensor, shape (B, Y, X), complex
        The object.
    support : Tensor, shape (B, Y, X)
        As of `data_support`.

    Returns
    -------
    Tensor, shape (B, Y, X), complex
    """
    return obj - beyond(obj - 1, support)


def beyond(change: Tensor, support: Tensor) -> Tensor:
    """Give the part of a change of an object at frequencies that frames don't support, each as far as they don't.

    Parameters
    ----------
    change : Tensor, shape (B, Y, X), complex
        Of the object; of the object itself that from vacuum.
    support : Tensor, shape (B, Y, X)
        As of `data_support`.

    Returns
    -------
    Tensor, shape (B, Y, X), complex
    """
    outside: Tensor = torch.fft.ifft2((1 - support) * torch.fft.fft2(change))
    return outside


def _interpolation(size: int, side: int, like: Tensor) -> Tensor:
    """Make a matrix (side, size) from values at `size` frequencies of a period to `side` of them, linear between."""
    at = torch.fft.fftfreq(side, device=like.device, dtype=like.dtype) * size
    below = at.floor()
    weight = at - below
    low = below.long() % size
    matrix = torch.zeros(side, size, device=like.device, dtype=like.dtype)
    matrix = matrix.scatter_add(1, low[:, None], (1 - weight)[:, None])
    return matrix.scatter_add(1, ((low + 1) % size)[:, None], weight[:, None])
