"""The forward model of scanning diffraction, and the adjoint parts that a reconstruction needs.

One formulation serves one scan and a batch of scans: canvases are ``(B, Y, X)``, the frames of
all of them form one axis of length n, and ``scene`` tells which canvas a frame belongs to.
Sub-pixel positions are in the model: each frame has the probe shifted by its own fraction of a
pixel. Shifting the probe instead of the object moves the whole exit wave, which no intensity
in the far field can see; the other propagators are told of it and put the wave back.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from bluesky_cdi.physics.propagators import FAR_FIELD, Propagator, shift_ramp

# How noise is counted where a step asks for a change: of equal weight in every pixel's amplitude, or as counts have it.
Likelihood = Literal["amplitude", "poisson"]
# Below this the logarithm of a rate is not taken: far under one photon in any frame.
RATE_FLOOR = 1e-8
# Added to the rate where a step divides by it: dark pixels then ask for finite changes, and
# gradients through a step stay finite. A thousandth of a photon is far below any noise.
STEP_FLOOR = 1e-3


def fft2c(field: Tensor) -> Tensor:
    """Centred, orthonormal 2-D FFT over the last two axes; zero frequency at ``[H // 2, W // 2]``."""
    centred = torch.fft.ifftshift(field, dim=(-2, -1))
    spectrum: Tensor = torch.fft.fftshift(torch.fft.fft2(centred, norm="ortho"), dim=(-2, -1))
    return spectrum


def ifft2c(field: Tensor) -> Tensor:
    """Inverse and adjoint of `fft2c`."""
    centred = torch.fft.ifftshift(field, dim=(-2, -1))
    original: Tensor = torch.fft.fftshift(torch.fft.ifft2(centred, norm="ortho"), dim=(-2, -1))
    return original


def patch_index(corner: Tensor, size: int, canvas_shape: tuple[int, ...], scene: Tensor | None = None) -> Tensor:
    """Flat indices of each frame's patch in its canvas.

    Parameters
    ----------
    corner : Tensor, shape (n, 2), int64
        First row and column of each patch.
    size : int
        Pixels along one side, N.
    canvas_shape : tuple of int
        (..., Y, X).
    scene : Tensor, shape (n,), int64, optional
        Canvas of each frame; all 0 if absent.

    Returns
    -------
    Tensor, shape (n, N, N), int64
        Index into the flattened (B, Y, X).
    """
    height, width = canvas_shape[-2:]
    steps = torch.arange(size, device=corner.device)
    rows = corner[:, :1] + steps  # (n, N)
    columns = corner[:, 1:] + steps  # (n, N)
    if scene is not None:
        rows = rows + scene[:, None] * height
    return rows[:, :, None] * width + columns[:, None, :]


def extract(canvas: Tensor, corner: Tensor, size: int, scene: Tensor | None = None) -> Tensor:
    """Cut each frame's patch out of its canvas.

    Parameters
    ----------
    canvas : Tensor, shape (B, Y, X)
    corner : Tensor, shape (n, 2), int64
    size : int
        N.
    scene : Tensor, shape (n,), int64, optional

    Returns
    -------
    Tensor, shape (n, N, N)
    """
    index = patch_index(corner, size, tuple(canvas.shape), scene)
    found: Tensor = _Gather.apply(canvas, index)  # type: ignore[no-untyped-call]  # torch's own are untyped
    return found


def accumulate(patches: Tensor, corner: Tensor, shape: tuple[int, int, int], scene: Tensor | None = None) -> Tensor:
    """Sum patches into their canvases: the adjoint of `extract`.

    Parameters
    ----------
    patches : Tensor, shape (n, N, N), real or complex
    corner : Tensor, shape (n, 2), int64
    shape : tuple of int
        (B, Y, X).
    scene : Tensor, shape (n,), int64, optional

    Returns
    -------
    Tensor, shape (B, Y, X)
    """
    return _scatter(patches, patch_index(corner, patches.shape[-1], shape, scene), shape)


def _scatter(patches: Tensor, index: Tensor, shape: tuple[int, ...]) -> Tensor:
    flat = torch.zeros(math.prod(shape), dtype=patches.dtype, device=patches.device)
    index = index.reshape(-1)
    if patches.is_complex():
        pairs = torch.view_as_real(flat).index_add(0, index, torch.view_as_real(patches.reshape(-1)))
        return torch.view_as_complex(pairs).reshape(shape)
    return flat.index_add(0, index, patches.reshape(-1)).reshape(shape)


class _Gather(torch.autograd.Function):
    """``canvas.reshape(-1)[index]``, whose gradient is summed by atomic additions; PyTorch's own sorts the index."""

    @staticmethod
    def forward(canvas: Tensor, index: Tensor) -> Tensor:
        return canvas.reshape(-1)[index]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        canvas, index = inputs
        ctx.save_for_backward(index)
        ctx.shape = tuple(canvas.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        return _scatter(gradients[0].resolve_conj(), index, ctx.shape), None


def shift_fields(fields: Tensor, shift_px: Tensor) -> Tensor:
    """Shift fields by fractions of a pixel with a Fourier phase ramp (periodic, energy preserving).

    Parameters
    ----------
    fields : Tensor, shape (n, M, N, N) or (1, M, N, N), complex
    shift_px : Tensor, shape (n, 2)
        Rows, columns; positive moves content to higher indices.

    Returns
    -------
    Tensor, shape (n, M, N, N), complex
    """
    return _shifted(torch.fft.fft2(fields, norm="forward"), shift_px)


def frame_probes(probe: Tensor, shift_px: Tensor, gain: Tensor | None = None, scene: Tensor | None = None) -> Tensor:
    """Give every frame its own probe: shifted to its sub-pixel position, scaled to its flux.

    Parameters
    ----------
    probe : Tensor, shape (B, M, N, N), complex
        Modes of each scene.
    shift_px : Tensor, shape (n, 2)
    gain : Tensor, shape (n,), optional
        Incident flux of each frame relative to the mean.
    scene : Tensor, shape (n,), int64, optional

    Returns
    -------
    Tensor, shape (n, M, N, N), complex
    """
    spectra = torch.fft.fft2(probe, norm="forward")  # (B, M, N, N)
    return _shifted(spectra[:1] if scene is None else spectra[scene], shift_px, gain)


def diffract(probes: Tensor, patches: Tensor) -> Tensor:
    """Far-field waves of each mode, zero frequency at ``[0, 0]``.

    Parameters
    ----------
    probes : Tensor, shape (n, M, N, N), complex
    patches : Tensor, shape (n, N, N), complex

    Returns
    -------
    Tensor, shape (n, M, N, N), complex
    """
    return FAR_FIELD.forward(probes * patches[:, None])


def to_corner(frames: Tensor) -> Tensor:
    """Move the zero frequency of frames or masks from ``[H // 2, W // 2]`` to ``[0, 0]``."""
    return FAR_FIELD.to_working(frames)


def to_centre(frames: Tensor) -> Tensor:
    """Inverse of `to_corner`."""
    return FAR_FIELD.to_detector(frames)


def rate(probes: Tensor, patches: Tensor, background: Tensor | float = 0.0) -> Tensor:
    """Expected counts in the far field, ``sum_m |F psi_m|^2 + background``, (n, N, N), zero frequency at the centre."""
    return to_centre(intensity(diffract(probes, patches))) + background


def intensity(waves: Tensor) -> Tensor:
    """Sum of the modes' intensities: (n, M, N, N) complex to (n, N, N) real."""
    return (waves.real.square() + waves.imag.square()).sum(dim=1)


def modulus_step(
    waves: Tensor,
    counts: Tensor,
    background: Tensor | float = 0.0,
    mask: Tensor | None = None,
    propagator: Propagator = FAR_FIELD,
    shift_px: Tensor | None = None,
    likelihood: Likelihood = "amplitude",
) -> tuple[Tensor, Tensor]:
    """Change of the exit waves that the measured counts ask for, and the rate before it.

    For the likelihood of the amplitudes, ``sum (sqrt(rate) - sqrt(counts))^2``, the step is its gradient,
    which for zero background is the projection on the measured modulus. For Poisson's it is the
    proximal step: the new modulus ``a`` minimises ``a^2 - counts log(a^2) + (a - sqrt(rate))^2``, so
    ``a = (sqrt(rate) + sqrt(rate + 8 counts)) / 4``, which goes half of the way to darkness where nothing
    was counted and is nowhere unbounded (Yan, New J. Phys. 22, 023035 (2020)). Masked pixels ask for nothing.

    Parameters
    ----------
    waves : Tensor, shape (n, M, N, N), complex
        Exit waves.
    counts : Tensor, shape (n, N, N)
        In the propagator's working order.
    background : Tensor or float
        Photons per pixel.
    mask : Tensor, shape (N, N) or (n, N, N), bool, optional
        True where a pixel is valid; in the propagator's working order.
    propagator : Propagator
    shift_px : Tensor, shape (n, 2), optional
        By how much the exit waves are displaced.
    likelihood : {'amplitude', 'poisson'}

    Returns
    -------
    step : Tensor, shape (n, M, N, N), complex
    rate : Tensor, shape (n, N, N)
        In the propagator's working order.
    """
    at_detector = propagator.forward(waves, shift_px)
    expected = intensity(at_detector) + background
    if likelihood == "poisson":
        factor = (1 + (1 + 8 * counts / (expected + STEP_FLOOR)).sqrt()) / 4 - 1
    else:
        factor = counts.sqrt() * (expected + STEP_FLOOR).rsqrt() - 1
    if mask is not None:
        factor = factor * mask
    return propagator.adjoint(at_detector * factor[:, None], shift_px), expected


def object_step(
    probes: Tensor, wave_step: Tensor, corner: Tensor, shape: tuple[int, int, int], scene: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Stitch exit-wave changes into an object change and the illumination that supports it.

    Parameters
    ----------
    probes, wave_step : Tensor, shape (n, M, N, N), complex
    corner : Tensor, shape (n, 2), int64
    shape : tuple of int
        (B, Y, X).
    scene : Tensor, shape (n,), int64, optional

    Returns
    -------
    numerator : Tensor, shape (B, Y, X), complex
        ``sum conj(probe) * step``.
    illumination : Tensor, shape (B, Y, X)
        ``sum |probe|^2``, photons per pixel.
    """
    numerator = accumulate((probes.conj() * wave_step).sum(dim=1), corner, shape, scene)
    return numerator, accumulate(intensity(probes), corner, shape, scene)


@dataclass(frozen=True, eq=False)
class Diffraction:
    """Measured frames, placed on their canvases and ready for computing.

    Attributes
    ----------
    counts : Tensor, shape (n, N, N), float32
        Photons, in the propagator's working order: zero frequency at ``[0, 0]`` in the far field.
    corner : Tensor, shape (n, 2), int64
        First row and column of each patch on its canvas.
    shift_px : Tensor, shape (n, 2)
        Sub-pixel remainder of each position.
    canvas_shape : tuple of int
        (B, Y, X).
    gain : Tensor, shape (n,), optional
        Incident flux of each frame relative to the mean.
    scene : Tensor, shape (n,), int64, optional
        Canvas of each frame; all 0 if absent.
    mask : Tensor, shape (N, N), bool, optional
        True where a pixel is valid; in the propagator's working order.
    background : float
        Expected background, photons per pixel.
    saturation : float, optional
        Counts from which on a pixel is saturated, and so not valid in its frame.
    propagator : Propagator
        From the sample to the detector.
    """

    counts: Tensor
    corner: Tensor
    shift_px: Tensor
    canvas_shape: tuple[int, int, int]
    gain: Tensor | None = None
    scene: Tensor | None = None
    mask: Tensor | None = None
    background: float = 0.0
    saturation: float | None = None
    propagator: Propagator = FAR_FIELD

    def __len__(self) -> int:
        return self.counts.shape[0]

    def __getitem__(self, index: slice | Tensor) -> Diffraction:
        """Select frames; the canvases stay."""
        return replace(
            self,
            counts=self.counts[index],
            corner=self.corner[index],
            shift_px=self.shift_px[index],
            gain=None if self.gain is None else self.gain[index],
            scene=None if self.scene is None else self.scene[index],
        )

    def chunks(self, size: int) -> Iterator[Diffraction]:
        """Go through the frames `size` at a time."""
        for start in range(0, len(self), size):
            yield self[start : start + size]

    @property
    def valid(self) -> Tensor | None:
        """Valid pixels: (N, N), or (n, N, N) where pixels saturate; None: all."""
        if self.saturation is None:
            return self.mask
        below = self.counts < self.saturation
        return below if self.mask is None else below & self.mask

    def rate(self, probes: Tensor, patches: Tensor) -> Tensor:
        """Expected counts, ``sum_m |F psi_m|^2 + background``, (n, N, N), in the propagator's working order."""
        return intensity(self.propagator.forward(probes * patches[:, None], self.shift_px)) + self.background

    def modulus_step(self, waves: Tensor, likelihood: Likelihood = "amplitude") -> tuple[Tensor, Tensor]:
        """`modulus_step` of exit waves of these frames."""
        return modulus_step(
            waves, self.counts, self.background, self.valid, self.propagator, self.shift_px, likelihood
        )

    def wave_step(
        self, probes: Tensor, patches: Tensor, likelihood: Likelihood = "amplitude"
    ) -> tuple[Tensor, Tensor]:
        """`modulus_step` of probes (n, M, N, N) on patches (n, N, N)."""
        return self.modulus_step(probes * patches[:, None], likelihood)

    def probes(self, probe: Tensor) -> Tensor:
        """Each frame's own probe: (B, M, N, N) to (n, M, N, N)."""
        return frame_probes(probe, self.shift_px, self.gain, self.scene)

    def patches(self, canvas: Tensor) -> Tensor:
        """Each frame's patch: (B, Y, X) to (n, N, N)."""
        return extract(canvas, self.corner, self.counts.shape[-1], self.scene)


def peak_intensity(probe: Tensor) -> Tensor:
    """Brightest pixel of each scene's probe: (B, M, N, N) to (B, 1, 1)."""
    return intensity(probe).amax(dim=(-2, -1))[:, None, None]


def _shifted(spectra: Tensor, shift_px: Tensor, gain: Tensor | None = None) -> Tensor:
    """Fields of spectra (n or 1, M, N, N), shifted by `shift_px` (n, 2), with their flux.

    The spectra are already divided by N^2, which spares a pass over the shifted fields.
    """
    shift = shift_px.to(spectra.real.dtype)
    ramp = shift_ramp(shift, spectra.shape[-1], None if gain is None else gain.sqrt())  # (n, N, N)
    shifted: Tensor = torch.fft.ifft2(spectra * ramp[:, None], norm="forward")
    return shifted
