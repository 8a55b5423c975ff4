"""The forward model of scanning diffraction, and the adjoint parts that a reconstruction needs.

One formulation serves one scan and a batch of scans: objects are ``(B, Y, X)``, the frames of
all of them form one axis of length n, and ``scene`` is the number of the object that a frame belongs to.
Sub-pixel positions are in the model: each frame has the probe shifted by its own fraction of a
pixel. Shifting the probe instead of the object moves the whole exit wave, which no intensity
in the far field can see; other propagators take the shift and put the exit wave back.
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
    """Transform the last two axes: centred, orthonormal 2-D FFT, zero frequency at ``[H // 2, W // 2]``.

    Parameters
    ----------
    field : Tensor, shape (..., H, W), complex
        Waves at the sample.
    """
    centred = torch.fft.ifftshift(field, dim=(-2, -1))
    spectrum: Tensor = torch.fft.fftshift(torch.fft.fft2(centred, norm="ortho"), dim=(-2, -1))
    return spectrum


def ifft2c(field: Tensor) -> Tensor:
    """Invert `fft2c`; it is unitary, so this is its adjoint too.

    Parameters
    ----------
    field : Tensor, shape (..., H, W), complex
        Waves at the detector.
    """
    centred = torch.fft.ifftshift(field, dim=(-2, -1))
    original: Tensor = torch.fft.fftshift(torch.fft.ifft2(centred, norm="ortho"), dim=(-2, -1))
    return original


def patch_index(corner: Tensor, size: int, object_shape: tuple[int, ...], scene: Tensor | None = None) -> Tensor:
    """Compute flat indices of each frame's patch in its object.

    Parameters
    ----------
    corner : Tensor, shape (n, 2), int64
        First row and column of each patch.
    size : int
        Pixels along one side, N.
    object_shape : tuple of int
        (..., Y, X).
    scene : Tensor, shape (n,), int64, optional
        Object of each frame; all 0 if absent.

    Returns
    -------
    Tensor, shape (n, N, N), int64
        Index into the flattened (B, Y, X).
    """
    height, width = object_shape[-2:]
    steps = torch.arange(size, device=corner.device)
    rows = corner[:, :1] + steps  # (n, N)
    columns = corner[:, 1:] + steps  # (n, N)
    if scene is not None:
        rows = rows + scene[:, None] * height
    return rows[:, :, None] * width + columns[:, None, :]


def extract(obj: Tensor, corner: Tensor, size: int, scene: Tensor | None = None) -> Tensor:
    """Cut each frame's patch out of its object.

    Parameters
    ----------
    obj : Tensor, shape (B, Y, X)
        Transmission of each scene.
    corner : Tensor, shape (n, 2), int64
        First row and column of each patch.
    size : int
        Pixels along one side of a patch, N.
    scene : Tensor, shape (n,), int64, optional
        Object of each frame; all 0 if absent.

    Returns
    -------
    Tensor, shape (n, N, N)
    """
    index = patch_index(corner, size, tuple(obj.shape), scene)
    if not (obj.requires_grad and torch.is_grad_enabled()):
        return _gathered(obj, index)  # where patches are few, most of the time would go into the function's context
    found: Tensor = _Gather.apply(obj, index)  # type: ignore[no-untyped-call]  # torch's own are untyped
    return found


def accumulate(patches: Tensor, corner: Tensor, shape: tuple[int, int, int], scene: Tensor | None = None) -> Tensor:
    """Sum patches into their objects: the adjoint of `extract`.

    Parameters
    ----------
    patches : Tensor, shape (n, N, N), real or complex
        Of the object, one a frame.
    corner : Tensor, shape (n, 2), int64
        First row and column of each patch.
    shape : tuple of int
        (B, Y, X).
    scene : Tensor, shape (n,), int64, optional
        Object of each frame; all 0 if absent.

    Returns
    -------
    Tensor, shape (B, Y, X)
    """
    return _scatter(patches, patch_index(corner, patches.shape[-1], shape, scene), shape)


def _scatter(patches: Tensor, index: Tensor, shape: tuple[int, ...]) -> Tensor:
    flat = torch.zeros(math.prod(shape), dtype=patches.dtype, device=patches.device)
    index = index.reshape(-1)
    if patches.device.type == "cpu":
        # Six times as fast there as additions of pairs.
        return flat.scatter_add(0, index, patches.reshape(-1)).reshape(shape)
    if patches.is_complex():
        pairs = torch.view_as_real(flat).index_add(0, index, torch.view_as_real(patches.reshape(-1)))
        return torch.view_as_complex(pairs).reshape(shape)
    return flat.index_add(0, index, patches.reshape(-1)).reshape(shape)


def _gathered(obj: Tensor, index: Tensor) -> Tensor:
    flat = obj.reshape(-1)
    if index.device.type == "cpu":  # there it is quicker than an index
        return flat.index_select(0, index.reshape(-1)).reshape(index.shape)
    return flat[index]


class _Gather(torch.autograd.Function):
    """``object.reshape(-1)[index]``, whose gradient is summed by atomic additions; PyTorch's own sorts the index."""

    @staticmethod
    def forward(obj: Tensor, index: Tensor) -> Tensor:
        return _gathered(obj, index)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        obj, index = inputs
        ctx.save_for_backward(index)
        ctx.shape = tuple(obj.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        return _scatter(gradients[0].resolve_conj(), index, ctx.shape), None


def shift_fields(fields: Tensor, shift_px: Tensor) -> Tensor:
    """Shift fields by fractions of a pixel with a Fourier phase ramp (periodic, energy preserving).

    Parameters
    ----------
    fields : Tensor, shape (n, M, N, N) or (1, M, N, N), complex
        One for all frames, or each frame's own.
    shift_px : Tensor, shape (n, 2)
        Rows, columns; positive moves content to higher indices.

    Returns
    -------
    Tensor, shape (n, M, N, N), complex
    """
    return _shifted(torch.fft.fft2(fields, norm="forward"), shift_px)


def frame_probes(probe: Tensor, shift_px: Tensor, flux: Tensor | None = None, scene: Tensor | None = None) -> Tensor:
    """Give every frame its own probe: shifted to its sub-pixel position, scaled to its flux.

    Parameters
    ----------
    probe : Tensor, shape (B, M, N, N), complex
        Modes of each scene.
    shift_px : Tensor, shape (n, 2)
        Rows, columns; positive moves the probe to higher indices.
    flux : Tensor, shape (n,), optional
        Incident flux of each frame relative to the mean.
    scene : Tensor, shape (n,), int64, optional
        Probe of each frame; all 0 if absent.

    Returns
    -------
    Tensor, shape (n, M, N, N), complex
    """
    spectra = torch.fft.fft2(probe, norm="forward")  # (B, M, N, N)
    return _shifted(spectra[:1] if scene is None else spectra[scene], shift_px, flux)


def diffract(probes: Tensor, patches: Tensor) -> Tensor:
    """Propagate the exit waves of each mode to the far field, zero frequency at ``[0, 0]``.

    Parameters
    ----------
    probes : Tensor, shape (n, M, N, N), complex
        Each frame's own.
    patches : Tensor, shape (n, N, N), complex
        Of the object, one a frame.

    Returns
    -------
    Tensor, shape (n, M, N, N), complex
    """
    return FAR_FIELD.forward(probes * patches[:, None])


def to_corner(frames: Tensor) -> Tensor:
    """Move the zero frequency of frames or masks from ``[H // 2, W // 2]`` to ``[0, 0]``.

    Parameters
    ----------
    frames : Tensor, shape (..., H, W)
        Frames or masks in the order of a detector.
    """
    return FAR_FIELD.to_working(frames)


def to_centre(frames: Tensor) -> Tensor:
    """Move the zero frequency of frames or masks from ``[0, 0]`` to ``[H // 2, W // 2]``.

    Parameters
    ----------
    frames : Tensor, shape (..., H, W)
        Frames or masks in the working order of the far field.
    """
    return FAR_FIELD.to_detector(frames)


def rate(probes: Tensor, patches: Tensor, background: Tensor | float = 0.0) -> Tensor:
    """Compute expected counts in the far field, ``sum_m |F psi_m|^2 + background``.

    Parameters
    ----------
    probes : Tensor, shape (n, M, N, N), complex
        In sqrt(photons).
    patches : Tensor, shape (n, N, N), complex
        Of the object, one a frame.
    background : Tensor or float
        Photons per pixel.

    Returns
    -------
    Tensor, shape (n, N, N)
        Photons; zero frequency at ``[N // 2, N // 2]``.
    """
    return to_centre(intensity(diffract(probes, patches))) + background


def intensity(waves: Tensor) -> Tensor:
    """Sum the modes' intensities: (n, M, N, N) complex to (n, N, N) real.

    Parameters
    ----------
    waves : Tensor, shape (n, M, N, N), complex
        Of incoherent modes.
    """
    squares = torch.view_as_real(waves.resolve_conj()).square()
    return (squares[..., 0] + squares[..., 1]).sum(dim=1)


def modulus_step(
    waves: Tensor,
    counts: Tensor,
    background: Tensor | float = 0.0,
    mask: Tensor | None = None,
    propagator: Propagator = FAR_FIELD,
    shift_px: Tensor | None = None,
    likelihood: Likelihood = "amplitude",
) -> tuple[Tensor, Tensor]:
    """Compute the change of exit waves that the measured counts ask for, and the rate before it.

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
        Photons, in the propagator's working order.
    background : Tensor or float
        Photons per pixel.
    mask : Tensor, shape (N, N) or (n, N, N), bool, optional
        True where a pixel is valid, in the propagator's working order; what other pixels count is not looked at.
    propagator : Propagator
        From the sample to the detector.
    shift_px : Tensor, shape (n, 2), optional
        By how much the exit waves are displaced.
    likelihood : {'amplitude', 'poisson'}
        How noise is counted.

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
        # The root so, because `sqrt` takes a CPU four times as long.
        factor = counts.rsqrt().reciprocal() * (expected + STEP_FLOOR).rsqrt() - 1
    if mask is not None:
        # Selected, not multiplied: a masked pixel may hold anything, and NaN times 0 is NaN.
        factor = torch.where(mask, factor, 0.0)
    return propagator.adjoint(at_detector * factor[:, None], shift_px), expected


def object_step(
    probes: Tensor, exit_wave_step: Tensor, corner: Tensor, shape: tuple[int, int, int], scene: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Stitch changes of exit waves into a change of the object and the illumination behind it.

    Parameters
    ----------
    probes, exit_wave_step : Tensor, shape (n, M, N, N), complex
        Each frame's probe, and the change of its exit waves.
    corner : Tensor, shape (n, 2), int64
        First row and column of each patch.
    shape : tuple of int
        (B, Y, X).
    scene : Tensor, shape (n,), int64, optional
        Object of each frame; all 0 if absent.

    Returns
    -------
    numerator : Tensor, shape (B, Y, X), complex
        ``sum conj(probe) * step``.
    illumination : Tensor, shape (B, Y, X)
        ``sum |probe|^2``, photons per pixel.
    """
    numerator = accumulate((probes.conj() * exit_wave_step).sum(dim=1), corner, shape, scene)
    return numerator, accumulate(intensity(probes), corner, shape, scene)


@dataclass(frozen=True, eq=False)
class Diffraction:
    """Measured frames, placed on their objects and ready for computing.

    Attributes
    ----------
    counts : Tensor, shape (n, N, N), float32
        Photons, in the propagator's working order: zero frequency at ``[0, 0]`` in the far field.
    corner : Tensor, shape (n, 2), int64
        First row and column of each patch on its object.
    shift_px : Tensor, shape (n, 2)
        Sub-pixel remainder of each position.
    object_shape : tuple of int
        (B, Y, X).
    flux : Tensor, shape (n,), optional
        Incident flux of each frame relative to the mean.
    scene : Tensor, shape (n,), int64, optional
        Object of each frame; all 0 if absent.
    mask : Tensor, shape (N, N), bool, optional
        True where a pixel is valid; in the propagator's working order.
    background : float
        Expected background, photons per pixel.
    saturation : float, optional
        Counts from which on a pixel is saturated, and so not valid in its frame.
    propagator : Propagator
        From the sample to the detector.
    stated_flux : Tensor, shape (n,), optional
        The flux as a monitor tells it, before anything was found of it; 1 if absent.
    own_probes : Tensor, shape (n, M, N, N), complex, optional
        What `probes` gives; see `with_probes`.
    own_probes_of : tuple of Tensor, optional
        The probe, shifts, fluxes and scenes that they are of; of any others they are not taken.
    """

    counts: Tensor
    corner: Tensor
    shift_px: Tensor
    object_shape: tuple[int, int, int]
    flux: Tensor | None = None
    scene: Tensor | None = None
    mask: Tensor | None = None
    background: float = 0.0
    saturation: float | None = None
    propagator: Propagator = FAR_FIELD
    stated_flux: Tensor | None = None
    own_probes: Tensor | None = None
    own_probes_of: tuple[Tensor, Tensor, Tensor | None, Tensor | None] | None = None

    def __len__(self) -> int:
        return self.counts.shape[0]

    def __getitem__(self, index: slice | Tensor) -> Diffraction:
        """Select frames; the objects stay. Without a copy of the counts where that is a slice, or all of them."""
        if isinstance(index, Tensor) and _is_all(index, len(self)):
            return self
        part = replace(
            self,
            counts=self.counts[index],
            corner=self.corner[index],
            shift_px=self.shift_px[index],
            flux=None if self.flux is None else self.flux[index],
            scene=None if self.scene is None else self.scene[index],
            stated_flux=None if self.stated_flux is None else self.stated_flux[index],
            own_probes=None,
            own_probes_of=None,
        )
        if self.own_probes_of is None:
            return part
        kept = self._kept(probe := self.own_probes_of[0])
        return part if kept is None else part._holding(kept[index], probe)

    def with_probes(self, probe: Tensor) -> Diffraction:
        """Give the same frames with their own probes, which what is computed of them with this very tensor shares.

        Where positions or fluxes are replaced afterwards, they are computed anew.

        Parameters
        ----------
        probe : Tensor, shape (B, M, N, N), complex
            Modes of each scene, square root of photons.
        """
        return self._holding(self.probes(probe), probe)

    def chunks(self, size: int) -> Iterator[Diffraction]:
        """Go through the frames `size` at a time.

        Parameters
        ----------
        size : int
            Most frames a time.
        """
        for start in range(0, len(self), size):
            yield self[start : start + size]

    @property
    def valid(self) -> Tensor | None:
        """Valid pixels, bool: (N, N), or (n, N, N) where pixels saturate; None if all are."""
        if self.saturation is None:
            return self.mask
        below = self.counts < self.saturation
        return below if self.mask is None else below & self.mask

    def rate(self, probes: Tensor, patches: Tensor) -> Tensor:
        """Compute expected counts, ``sum_m |F psi_m|^2 + background``.

        Parameters
        ----------
        probes : Tensor, shape (n, M, N, N), complex
            Each frame's own, in sqrt(photons).
        patches : Tensor, shape (n, N, N), complex
            Of the object, one a frame.

        Returns
        -------
        Tensor, shape (n, N, N)
            Photons, in the propagator's working order.
        """
        return intensity(self.propagator.forward(probes * patches[:, None], self.shift_px)) + self.background

    def modulus_step(self, waves: Tensor, likelihood: Likelihood = "amplitude") -> tuple[Tensor, Tensor]:
        """Compute the change of exit waves that these frames ask for; see `modulus_step`.

        Parameters
        ----------
        waves : Tensor, shape (n, M, N, N), complex
            Exit waves.
        likelihood : {'amplitude', 'poisson'}
            How noise is counted.

        Returns
        -------
        step : Tensor, shape (n, M, N, N), complex
        rate : Tensor, shape (n, N, N)
        """
        return modulus_step(waves, self.counts, self.background, self.valid, self.propagator, self.shift_px, likelihood)

    def exit_wave_step(
        self, probes: Tensor, patches: Tensor, likelihood: Likelihood = "amplitude"
    ) -> tuple[Tensor, Tensor]:
        """Compute the change that these frames ask of the exit waves of probes on patches; see `modulus_step`.

        Parameters
        ----------
        probes : Tensor, shape (n, M, N, N), complex
            Each frame's own.
        patches : Tensor, shape (n, N, N), complex
            Of the object, one a frame.
        likelihood : {'amplitude', 'poisson'}
            How noise is counted.

        Returns
        -------
        step : Tensor, shape (n, M, N, N), complex
        rate : Tensor, shape (n, N, N)
        """
        return self.modulus_step(probes * patches[:, None], likelihood)

    def probes(self, probe: Tensor) -> Tensor:
        """Give each frame its own probe: (B, M, N, N) to (n, M, N, N); see `frame_probes`.

        Parameters
        ----------
        probe : Tensor, shape (B, M, N, N), complex
            Modes of each scene, square root of photons.
        """
        kept = self._kept(probe)
        return frame_probes(probe, self.shift_px, self.flux, self.scene) if kept is None else kept

    def patches(self, obj: Tensor) -> Tensor:
        """Cut each frame's patch out of its object: (B, Y, X) to (n, N, N).

        Parameters
        ----------
        obj : Tensor, shape (B, Y, X), complex
            Transmission functions.
        """
        return extract(obj, self.corner, self.counts.shape[-1], self.scene)

    def _holding(self, own_probes: Tensor, probe: Tensor) -> Diffraction:
        of = probe, self.shift_px, self.flux, self.scene
        return replace(self, own_probes=own_probes, own_probes_of=of)

    def _kept(self, probe: Tensor) -> Tensor | None:
        """Give the own probes if they are of this probe, and of positions and fluxes as they are."""
        if self.own_probes_of is None:
            return None
        now = probe, self.shift_px, self.flux, self.scene
        return self.own_probes if all(a is b for a, b in zip(self.own_probes_of, now, strict=True)) else None


def peak_intensity(probe: Tensor) -> Tensor:
    """Find the intensity of the brightest pixel of each scene's probe: (B, M, N, N) to (B, 1, 1).

    Parameters
    ----------
    probe : Tensor, shape (B, M, N, N), complex
        Modes, square root of photons.
    """
    return intensity(probe).amax(dim=(-2, -1))[:, None, None]


def _is_all(index: Tensor, number: int) -> bool:
    """Tell whether an index, (number,) bool or (m,) int, selects all in their order."""
    if len(index) != number:
        return False
    return bool(index.all()) if index.dtype == torch.bool else torch.equal(index, torch.arange(number).to(index))


def _shifted(spectra: Tensor, shift_px: Tensor, flux: Tensor | None = None) -> Tensor:
    """Transform spectra (n or 1, M, N, N) to fields, shifted by `shift_px` (n, 2) and scaled to their flux.

    The spectra are already divided by N^2, which spares a pass over the shifted fields.
    """
    shift = shift_px.to(spectra.real.dtype)
    ramp = shift_ramp(shift, spectra.shape[-1], None if flux is None else flux.sqrt())  # (n, N, N)
    shifted: Tensor = torch.fft.ifft2(spectra * ramp[:, None], norm="forward")
    return shifted
