"""From the exit wave to the detector: far field, near field, and Fresnel's field between them.

Every propagator is unitary, so its adjoint is its inverse and energy is conserved. Waves are
``(n, M, N, N)``. A scan's model shifts the probe by each frame's fraction of a pixel and not the
sample, so the whole exit wave is off by that fraction: `shift_px` says by how much, and a
propagator whose intensities would show it puts the exit wave back.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from bluesky_cdi.errors import GeometryError
from bluesky_cdi.physics.geometry import Geometry


class Propagator(Protocol):
    """Carries waves from the sample to the detector and back."""

    def forward(self, waves: Tensor, shift_px: Tensor | None = None) -> Tensor:
        """Propagate exit waves to the detector.

        Parameters
        ----------
        waves : Tensor, shape (n, M, N, N), complex
            Exit waves.
        shift_px : Tensor, shape (n, 2), optional
            By how much the exit waves are displaced (rows, columns); not at all if absent.

        Returns
        -------
        Tensor, same shape
            Detector waves, in the working order.
        """

    def adjoint(self, waves: Tensor, shift_px: Tensor | None = None) -> Tensor:
        """Propagate detector waves back to the sample: adjoint and inverse of `forward`.

        Parameters
        ----------
        waves : Tensor, shape (n, M, N, N), complex
            Detector waves, in the working order.
        shift_px : Tensor, shape (n, 2), optional
            By how much the exit waves are displaced (rows, columns); not at all if absent.

        Returns
        -------
        Tensor, same shape
            Exit waves.
        """

    def to_working(self, frames: Tensor) -> Tensor:
        """Bring frames or masks (..., N, N) from the order of a detector to that of `forward`."""

    def to_detector(self, frames: Tensor) -> Tensor:
        """Bring frames or masks (..., N, N) from the order of `forward` to that of a detector."""


class FarField:
    """Far field by an orthonormal FFT; working order: zero frequency at ``[0, 0]``.

    The exit wave is not centred before the transform: that changes the sign of every other pixel
    of the far field, which neither an intensity nor a step back to the sample sees, and saves two
    copies of the largest arrays. Nor does an intensity see a displacement.
    """

    def forward(self, waves: Tensor, shift_px: Tensor | None = None) -> Tensor:
        """Propagate exit waves to the detector by an FFT.

        Parameters
        ----------
        waves : Tensor, shape (n, M, N, N), complex
            Exit waves.
        shift_px : Tensor, shape (n, 2), optional
            By how much the exit waves are displaced (rows, columns); no far-field intensity shows it.

        Returns
        -------
        Tensor, same shape
            Detector waves, in the working order.
        """
        del shift_px
        far: Tensor = torch.fft.fft2(waves, norm="ortho")
        return far

    def adjoint(self, waves: Tensor, shift_px: Tensor | None = None) -> Tensor:
        """Propagate detector waves back to the sample by an inverse FFT.

        Parameters
        ----------
        waves : Tensor, shape (n, M, N, N), complex
            Detector waves, in the working order.
        shift_px : Tensor, shape (n, 2), optional
            By how much the exit waves are displaced (rows, columns); no far-field intensity shows it.

        Returns
        -------
        Tensor, same shape
            Exit waves.
        """
        del shift_px
        exit_waves: Tensor = torch.fft.ifft2(waves, norm="ortho")
        return exit_waves

    def to_working(self, frames: Tensor) -> Tensor:
        """Move the zero frequency from ``[N // 2, N // 2]`` to ``[0, 0]``."""
        moved: Tensor = torch.fft.ifftshift(frames, dim=(-2, -1))
        return moved

    def to_detector(self, frames: Tensor) -> Tensor:
        """Move the zero frequency from ``[0, 0]`` to ``[N // 2, N // 2]``."""
        moved: Tensor = torch.fft.fftshift(frames, dim=(-2, -1))
        return moved


class FresnelField(FarField):
    """Fresnel propagation by one Fourier transform: the far field of the exit wave times a curved phase.

    ``psi(r) exp(i pi r^2 / (wavelength z))`` is transformed (Goodman, Introduction to Fourier
    Optics, 3rd ed., eq. 4-17); the phase over the detector is left out. The detector's pixel is that
    of the far field. With the curvature of a diverging beam, ``1 / z = 1 / z1 + 1 / z2``, this is
    Fresnel coherent diffraction imaging (Williams et al., Phys. Rev. Lett. 97, 025506 (2006)).

    Parameters
    ----------
    size : int
        N.
    pixel_m : float
        Sample pixel, metres.
    wavelength_m : float
        Of the beam, metres.
    distance_m : float
        ``z``, metres; may be negative (a converging beam).

    Raises
    ------
    GeometryError
        If the curved phase turns by more than half a wave from pixel to pixel at the border.
    """

    def __init__(self, size: int, pixel_m: float, wavelength_m: float, distance_m: float) -> None:
        number = fresnel_number(size, pixel_m, wavelength_m, distance_m)
        # Negated, so that a distance that is no number is refused too.
        if not abs(number) <= 1:
            raise GeometryError(
                f"one Fourier transform carries a wave only beyond N pixel^2 / wavelength = "
                f"{size * pixel_m**2 / wavelength_m:.3g} m, where the curved phase is sampled; the distance is "
                f"{distance_m:.3g} m. Use the angular spectrum."
            )
        # In radians for one squared pixel of distance from the axis.
        self._curvature = math.pi * pixel_m**2 / (wavelength_m * distance_m)

    def forward(self, waves: Tensor, shift_px: Tensor | None = None) -> Tensor:
        """Propagate exit waves to the detector by a curved phase and an FFT.

        Parameters
        ----------
        waves : Tensor, shape (n, M, N, N), complex
            Exit waves.
        shift_px : Tensor, shape (n, 2), optional
            By how much the exit waves are displaced (rows, columns); not at all if absent.

        Returns
        -------
        Tensor, same shape
            Detector waves, in the working order.
        """
        return super().forward(waves * self._phase(waves, shift_px))

    def adjoint(self, waves: Tensor, shift_px: Tensor | None = None) -> Tensor:
        """Propagate detector waves back to the sample by an inverse FFT and the curved phase's conjugate.

        Parameters
        ----------
        waves : Tensor, shape (n, M, N, N), complex
            Detector waves, in the working order.
        shift_px : Tensor, shape (n, 2), optional
            By how much the exit waves are displaced (rows, columns); not at all if absent.

        Returns
        -------
        Tensor, same shape
            Exit waves.
        """
        exit_waves = super().adjoint(waves)
        return exit_waves * self._phase(exit_waves, shift_px).conj()

    def _phase(self, waves: Tensor, shift_px: Tensor | None) -> Tensor:
        size = waves.shape[-1]
        index = torch.arange(size, dtype=torch.float64, device=waves.device) - size // 2
        shift = torch.zeros(1, 2, device=waves.device) if shift_px is None else shift_px
        # The wave is displaced, so the axis is too: at `shift` in its own pixels.
        squared = (index[None, :, None] - shift[:, :1, None]) ** 2 + (index[None, None, :] - shift[:, 1:, None]) ** 2
        angle = self._curvature * squared  # (n, N, N)
        return torch.polar(torch.ones_like(angle), angle)[:, None].to(waves.dtype)


class AngularSpectrum:
    """Near field by the angular spectrum of plane waves, on the sample's own pixels, periodic at the borders.

    ``H = exp(i z (sqrt(k^2 - q^2) - k))`` (Goodman, Introduction to Fourier Optics, 3rd ed., eq. 3-74,
    without the phase of the axis).

    Parameters
    ----------
    size : int
        N.
    pixel_m : float
        Pixel of sample and detector, metres.
    wavelength_m : float
        Of the beam, metres.
    distance_m : float
        Metres; negative: upstream.
    paraxial : bool
        ``H = exp(-i z q^2 / (2 k))`` instead: Fresnel's transfer function.
    device : torch.device
        Where waves are computed.

    Raises
    ------
    GeometryError
        If the phase of `H` turns by more than half a wave between neighbours at the border of the
        spectrum, or waves of the highest frequency would not propagate.
    """

    def __init__(
        self,
        size: int,
        pixel_m: float,
        wavelength_m: float,
        distance_m: float,
        *,
        paraxial: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        # Negated, so that a distance that is no number is refused too.
        if not abs(fresnel_number(size, pixel_m, wavelength_m, distance_m)) >= 1:
            raise GeometryError(
                f"the angular spectrum carries a wave no further than N pixel^2 / wavelength = "
                f"{size * pixel_m**2 / wavelength_m:.3g} m, where its phase is sampled; the distance is "
                f"{distance_m:.3g} m. Use the far field or one Fresnel transform, or frames of more pixels."
            )
        frequency = torch.fft.fftfreq(size, d=pixel_m, dtype=torch.float64) * wavelength_m  # sines of angles
        sine2 = frequency[:, None] ** 2 + frequency[None, :] ** 2
        if float(sine2.max()) >= 1:
            raise GeometryError(
                f"a pixel of {pixel_m:.3g} m is too small for a wavelength of {wavelength_m:.3g} m: its highest "
                "frequencies don't propagate. Use pixels of at least 0.71 wavelengths."
            )
        # sqrt(1 - s) - 1 as -s / (sqrt(1 - s) + 1), which keeps its digits for small angles.
        cosine = -sine2 / 2 if paraxial else -sine2 / ((1 - sine2).sqrt() + 1)
        angle = 2 * math.pi / wavelength_m * distance_m * cosine
        self._transfer = torch.polar(torch.ones_like(angle), angle).to(device)

    def forward(self, waves: Tensor, shift_px: Tensor | None = None) -> Tensor:
        """Propagate exit waves to the detector by the filter `H`.

        Parameters
        ----------
        waves : Tensor, shape (n, M, N, N), complex
            Exit waves.
        shift_px : Tensor, shape (n, 2), optional
            By how much the exit waves are displaced (rows, columns); not at all if absent.

        Returns
        -------
        Tensor, same shape
            Detector waves, in the working order.
        """
        return _filtered(waves, self._filter(waves, shift_px))

    def adjoint(self, waves: Tensor, shift_px: Tensor | None = None) -> Tensor:
        """Propagate detector waves back to the sample by the conjugate of the filter `H`.

        Parameters
        ----------
        waves : Tensor, shape (n, M, N, N), complex
            Detector waves, in the working order.
        shift_px : Tensor, shape (n, 2), optional
            By how much the exit waves are displaced (rows, columns); not at all if absent.

        Returns
        -------
        Tensor, same shape
            Exit waves.
        """
        return _filtered(waves, self._filter(waves, shift_px).conj())

    def to_working(self, frames: Tensor) -> Tensor:
        """Return frames as they are: the working order is the detector's."""
        return frames

    def to_detector(self, frames: Tensor) -> Tensor:
        """Return frames as they are: the working order is the detector's."""
        return frames

    def _filter(self, waves: Tensor, shift_px: Tensor | None) -> Tensor:
        transfer = self._transfer.to(waves.dtype)
        if shift_px is None:
            return transfer
        return transfer * shift_ramp(-shift_px, waves.shape[-1]).to(waves.dtype)[:, None]


def propagator_of(geometry: Geometry, device: torch.device | str = "cpu") -> Propagator:
    """Choose the propagator of an experiment: FFT in the far field, angular spectrum in the near field.

    Parameters
    ----------
    geometry : Geometry
        Of the experiment.
    device : torch.device
        Where a near field's filter is kept.

    Returns
    -------
    Propagator

    Raises
    ------
    GeometryError
        If a near field is too far away for its pixels.
    """
    if geometry.propagation == "far":
        return FAR_FIELD
    return AngularSpectrum(
        geometry.frame_px, geometry.pixel_m, geometry.wavelength_m, geometry.effective_distance_m, device=device
    )


def fresnel_number(size: int, pixel_m: float, wavelength_m: float, distance_m: float) -> float:
    """Compute ``N pixel^2 / (wavelength z)``.

    Above 1 the angular spectrum is sampled, below 1 the single Fresnel transform. Both phases turn by at most
    half a wavelength between neighbours on their side of 1 (Voelz and Roggemann, Appl. Opt. 48, 6132 (2009)).

    Parameters
    ----------
    size : int
        Pixels along one side, N.
    pixel_m, wavelength_m : float
        Metres.
    distance_m : float
        ``z``, metres; may be negative.

    Returns
    -------
    float
        Infinite at no distance.
    """
    return math.inf if distance_m == 0 else size * pixel_m**2 / (wavelength_m * distance_m)


def shift_ramp(shift_px: Tensor, size: int, strength: Tensor | None = None) -> Tensor:
    """Compute Fourier phase ramps that shift fields to higher indices.

    Parameters
    ----------
    shift_px : Tensor, shape (n, 2)
        Rows, columns.
    size : int
        Pixels along one side, N.
    strength : Tensor, shape (n,), optional
        Factor on each field; 1 if absent.

    Returns
    -------
    Tensor, shape (n, N, N), complex
    """
    frequency = torch.fft.fftfreq(size, device=shift_px.device, dtype=shift_px.dtype)
    angle = -2 * torch.pi * shift_px[:, :, None] * frequency  # (n, 2, N)
    # A ramp in the plane is one along the rows times one along the columns: 2 N sines instead of N^2.
    along = torch.polar(torch.ones_like(angle), angle)
    down = along[:, 0] if strength is None else along[:, 0] * strength.to(angle.dtype)[:, None]
    return down[:, :, None] * along[:, 1, None, :]


FAR_FIELD = FarField()


def _filtered(waves: Tensor, transfer: Tensor) -> Tensor:
    result: Tensor = torch.fft.ifft2(torch.fft.fft2(waves) * transfer)
    return result
