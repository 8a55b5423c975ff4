"""Where the sample can be: from the frame itself, and from the reconstruction as it goes on."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bluesky_cdi.errors import GeometryError


@dataclass(frozen=True)
class ShrinkWrap:
    """How the support follows the reconstruction (Marchesini et al., Phys. Rev. B 68, 140101 (2003)).

    Parameters
    ----------
    every : int
        Iterations between updates.
    threshold : float
        Share of the blurred magnitude's maximum above which a pixel belongs to the support; below the
        dimmest parts of the sample.
    sigma_px : float
        Blur at the first update, pixels.
    sigma_end_px : float
        Blur that it decays to.
    decay : float
        Factor of the blur from update to update.
    """

    every: int = 20
    threshold: float = 0.2
    sigma_px: float = 3.0
    sigma_end_px: float = 1.0
    decay: float = 0.97

    def sigma_at(self, update: int) -> float:
        """Return the blur of an update, counted from 0, pixels.

        Parameters
        ----------
        update : int
            Number of the update of the support, from 0.
        """
        return max(self.sigma_end_px, self.sigma_px * self.decay**update)


def shrink_wrap(waves: Tensor, threshold: float, sigma_px: float) -> Tensor:
    """Find the support of each exit wave: where its blurred magnitude exceeds a share of the maximum.

    Parameters
    ----------
    waves : Tensor, shape (s, N, N), complex
        Exit waves, one a start.
    threshold : float
        Share of the maximum.
    sigma_px : float
        Standard deviation of the Gaussian blur, periodic, pixels.

    Returns
    -------
    Tensor, shape (s, N, N), bool
    """
    blurred = blur(waves.abs(), sigma_px)
    return blurred > threshold * blurred.amax(dim=(-2, -1), keepdim=True)


def blur(images: Tensor, sigma_px: float) -> Tensor:
    """Blur real images with a periodic Gaussian.

    Parameters
    ----------
    images : Tensor, shape (..., N, N), real
        Each is blurred by itself.
    sigma_px : float
        Standard deviation, pixels.

    Returns
    -------
    Tensor, same shape
    """
    size = images.shape[-1]
    down = torch.fft.fftfreq(size, device=images.device, dtype=images.dtype).square()
    right = torch.fft.rfftfreq(size, device=images.device, dtype=images.dtype).square()
    window = torch.exp(-2 * (math.pi * sigma_px) ** 2 * (down[:, None] + right))
    blurred: Tensor = torch.fft.irfft2(torch.fft.rfft2(images) * window, s=images.shape[-2:])
    return blurred


def autocorrelation_support(counts: Tensor, mask: Tensor | None = None, threshold: float = 0.01) -> Tensor:
    """Find a centred box that holds the sample: half as wide and high as the frame's autocorrelation.

    Parameters
    ----------
    counts : Tensor, shape (N, N)
        Far-field photons, zero frequency at ``[0, 0]``.
    mask : Tensor, shape (N, N), bool, optional
        True where a pixel is valid; in the order of `counts`. What others hold is not looked at.
    threshold : float
        Share of its maximum above which the autocorrelation counts, where that is above five
        standard deviations of its photon noise.

    Returns
    -------
    Tensor, shape (N, N), bool
    """
    size = counts.shape[-1]
    seen = counts if mask is None else torch.where(mask, counts, 0.0)
    correlation = torch.fft.fftshift(torch.fft.ifft2(seen).abs())
    # Poisson noise of variance `counts` is white in the autocorrelation.
    noise = seen.sum().sqrt() / size**2
    there = correlation > torch.maximum(threshold * correlation.max(), 5 * noise)
    rows, columns = (_half_extent(there.any(dim=axis)) for axis in (1, 0))
    index = torch.arange(size, device=counts.device) - size // 2
    inside: Tensor = (index.abs() <= rows)[:, None] & (index.abs() <= columns)
    return inside


def check_oversampling(support: Tensor, mask: Tensor) -> None:
    """Make sure that a frame measures more numbers than the support leaves free.

    A pixel of the sample is two real numbers, a valid pixel of the frame is one (Miao, Sayre and
    Chapman, J. Opt. Soc. Am. A 15, 1662 (1998)).

    Parameters
    ----------
    support : Tensor, shape (N, N), bool
        True where the sample may be.
    mask : Tensor, shape (N, N), bool
        Valid pixels of the frame.

    Raises
    ------
    GeometryError
        If the support is empty, or larger than half of the valid pixels.
    """
    pixels, valid = int(support.sum()), int(mask.sum())
    if pixels == 0:
        raise GeometryError("the support is empty; it must hold the pixels where the sample may be")
    if 2 * pixels > valid:
        raise GeometryError(
            f"the support has {pixels} pixels, more than half of the frame's {valid} valid ones: fewer numbers are "
            "measured than are sought. Give a smaller `support`, or oversample more: a larger distance, smaller "
            "detector pixels (and more of them), a smaller sample or beam."
        )


def _half_extent(there: Tensor) -> int:
    """Compute half the extent of a sample whose autocorrelation is `there` (N,), in pixels from its middle."""
    size = there.shape[0]
    lag = (torch.nonzero(there)[:, 0] - size // 2).abs().max() if bool(there.any()) else 0
    return (int(lag) + 1) // 2
