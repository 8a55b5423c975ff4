"""A probe along the beam: at its pupil, in its focus, and in between. NumPy alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bluesky_cdi.protocols import ComplexArray, FloatArray

if TYPE_CHECKING:
    from bluesky_cdi.physics.geometry import Geometry

# Planes along a beam.
PLANES = 161


@dataclass(frozen=True, eq=False)
class Beam:
    """A probe, modes in the order of their powers: at the sample, at the pupil, and there less its defocus.

    The focus lies `focus_m` downstream of the sample; `depth_m` around it the beam stays within the window.
    """

    geometry: Geometry
    at_sample: ComplexArray
    at_pupil: ComplexArray
    flat_at_pupil: ComplexArray
    powers: FloatArray
    depth_m: float
    focus_m: float

    @classmethod
    def of(cls, modes: ComplexArray, geometry: Geometry) -> Beam:
        """Follow a probe from the sample.

        Parameters
        ----------
        modes : ndarray, shape (modes, N, N), complex
            The probe.
        geometry : Geometry
            Gives lengths and angles.
        """
        powers = np.square(np.abs(modes)).sum(axis=(1, 2))
        order = np.argsort(-powers, kind="stable")
        at_pupil = _to_pupil(modes[order])
        depth = _depth_m(at_pupil, geometry)
        focus = _focus_m(at_pupil[:1], geometry, depth)
        return cls(
            geometry,
            modes[order],
            at_pupil,
            at_pupil * _propagated(geometry, focus),
            powers[order] / powers.sum(),
            depth,
            focus,
        )

    def downstream(self, distance_m: float) -> ComplexArray:
        """Return the modes in a plane downstream of the sample."""
        return _carried(self.at_pupil, self.geometry, distance_m)

    def caustic(self, first_m: float, last_m: float) -> FloatArray:
        """Compute the intensity along the beam, summed over rows.

        Parameters
        ----------
        first_m, last_m : float
            The first and the last plane, metres downstream of the sample.

        Returns
        -------
        ndarray, shape (N, planes)
            By columns.
        """
        planes = _along_the_beam(self.at_pupil, self.geometry, np.linspace(first_m, last_m, PLANES))
        return np.stack([each.sum(axis=0) for each in planes], axis=1)


def _to_pupil(modes: ComplexArray) -> ComplexArray:
    shifted = np.fft.ifftshift(modes, axes=(-2, -1))
    return np.asarray(np.fft.fftshift(np.fft.fft2(shifted, norm="ortho"), axes=(-2, -1)))


def pupil_step(geometry: Geometry) -> float:
    """Return the angle between neighbours at the pupil, radians."""
    return float(geometry.wavelength_m / (geometry.frame_px * geometry.pixel_m))


def _squared_angle(geometry: Geometry) -> FloatArray:
    """Return the square of the angle to the axis at each pixel of the pupil, (N, N), rad^2."""
    index = (np.arange(geometry.frame_px) - geometry.frame_px // 2) * pupil_step(geometry)
    return np.asarray(index[:, None] ** 2 + index[None, :] ** 2)


def _propagated(geometry: Geometry, distance_m: float) -> ComplexArray:
    """Return the factor on the pupil's wave, (N, N), that carries the probe downstream."""
    return np.asarray(np.exp(-1j * np.pi * distance_m * _squared_angle(geometry) / geometry.wavelength_m))


def _depth_m(at_pupil: ComplexArray, geometry: Geometry) -> float:
    """How far from its focus a probe stays within half of the frame's window, about, metres."""
    power = np.square(np.abs(at_pupil)).sum(axis=0)
    angle = float(np.sqrt((_squared_angle(geometry) * power).sum() / power.sum()))
    return 0.3 * geometry.frame_px * geometry.pixel_m / max(angle, 1e-12)


def _carried(at_pupil: ComplexArray, geometry: Geometry, distance_m: float) -> ComplexArray:
    """Carry modes from their pupil to a plane downstream of the sample."""
    waves = np.fft.ifftshift(at_pupil * _propagated(geometry, distance_m), axes=(-2, -1))
    return np.asarray(np.fft.fftshift(np.fft.ifft2(waves, norm="ortho"), axes=(-2, -1)))


def _along_the_beam(at_pupil: ComplexArray, geometry: Geometry, planes_m: FloatArray) -> Iterator[FloatArray]:
    """Yield the intensity in planes downstream of the sample, (N, N) each."""
    for z in planes_m:
        yield np.square(np.abs(_carried(at_pupil, geometry, z))).sum(axis=0)


def _focus_m(at_pupil: ComplexArray, geometry: Geometry, depth_m: float) -> float:
    """Find the plane in which the light is on the fewest pixels, metres downstream of the sample."""
    planes = np.linspace(-1.2 * depth_m, 1.2 * depth_m, PLANES)
    sharp = np.array([np.square(each).sum() for each in _along_the_beam(at_pupil, geometry, planes)])
    best = int(np.clip(sharp.argmax(), 1, PLANES - 2))
    below, here, above = sharp[best - 1 : best + 2]
    bend = below + above - 2 * here
    # At the end of the range there is no maximum to go to.
    move = float(np.clip((below - above) / (2 * bend), -1, 1)) if bend < 0 else 0.0
    return float(planes[best] + move * (planes[1] - planes[0]))
