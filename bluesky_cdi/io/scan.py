"""One recorded scan, whatever file it came from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from bluesky_cdi.errors import FrameError, GeometryError, ScanFileError
from bluesky_cdi.physics.geometry import HC_EV_M, Geometry
from bluesky_cdi.protocols import ComplexArray, FloatArray

# A hard X-ray instrument of common size, for data that come with a sample pixel only.
NOMINAL_ENERGY_EV = 8000.0
NOMINAL_DISTANCE_M = 1.0

_REMOVED = "Remove such frames, or mark the pixels in the mask."


@dataclass(frozen=True, eq=False)
class Scan:
    """A scan in the far field: frames, where they were taken, and what is known of the optics.

    Attributes
    ----------
    counts : ndarray, shape (n, H, W)
        Photons per pixel, zero frequency at ``[H // 2, W // 2]``.
    positions_m : ndarray, shape (n, 2), float64
        (y, x) of the probe on the sample, metres; y grows with the rows, x with the columns.
    geometry : Geometry
    probe : ndarray, shape (modes, N, N), complex64, or None
        First guess; the sum of ``abs(probe)**2`` is the mean photons of a frame.
    mask : ndarray, shape (H, W), bool, or None
        True where a pixel is valid; None: all are.
    name : str
    source : Mapping
        Where it came from and what the reader changed or assumed: ``nominal_geometry`` is True
        where only a nominal sample pixel is known, ``propagation`` says how the frames arose.

    Raises
    ------
    ScanFileError
        If lengths or shapes of the parts don't fit together.
    FrameError
        If a valid pixel is no number, not finite or negative, or all are dark.
    GeometryError
        If frames aren't squares of the geometry's size, or a position is not finite.
    """

    counts: npt.NDArray[Any]
    positions_m: FloatArray
    geometry: Geometry
    probe: ComplexArray | None = None
    mask: npt.NDArray[np.bool_] | None = None
    name: str = ""
    source: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._check_shapes()
        self._check_values()

    def __len__(self) -> int:
        return len(self.counts)

    @property
    def mean_photons(self) -> float:
        """Mean photons of a frame, on valid pixels."""
        return mean_photons(self.counts, self.mask)

    def subset(self, indices: Sequence[int] | npt.NDArray[Any]) -> Scan:
        """The scan with only some of its frames, in the order of `indices` (or where a bool array is True)."""
        chosen = np.asarray(indices)
        return replace(self, counts=self.counts[chosen], positions_m=self.positions_m[chosen])

    def _check_shapes(self) -> None:
        size = self.geometry.frame_px
        if self.counts.ndim != 3 or not len(self.counts):
            raise ScanFileError(f"a scan needs frames of shape (n, H, W) with n > 0; they have {self.counts.shape}")
        if self.counts.shape[1:] != (size, size):
            raise GeometryError(
                f"frames must be squares of the geometry's {size} pixels; they are "
                f"{self.counts.shape[1]} x {self.counts.shape[2]}. Crop them around the direct beam."
            )
        if self.positions_m.shape != (len(self.counts), 2):
            raise ScanFileError(
                f"{len(self.counts)} frames need positions of shape ({len(self.counts)}, 2); "
                f"they have {self.positions_m.shape}"
            )
        if self.probe is not None and (self.probe.ndim != 3 or self.probe.shape[1:] != (size, size)):
            raise ScanFileError(f"a probe must have the shape (modes, {size}, {size}); it has {self.probe.shape}")
        if self.mask is not None and (self.mask.shape != (size, size) or self.mask.dtype != np.bool_):
            raise ScanFileError(
                f"a mask must be bool of shape ({size}, {size}); it is {self.mask.dtype} {self.mask.shape}"
            )

    def _check_values(self) -> None:
        if self.counts.dtype.kind not in "biuf":
            raise FrameError(f"frames must hold counts, real numbers; their type is {self.counts.dtype}")
        if self.mask is not None and not self.mask.any():
            raise FrameError("the mask leaves no valid pixel: True means valid. Is it inverted?")
        valid = self.counts if self.mask is None else self.counts[:, self.mask]
        if valid.dtype.kind == "f" and not np.isfinite(valid).all():
            raise FrameError(f"frames must be finite; {_where(~np.isfinite(valid))} are not. {_REMOVED}")
        if valid.dtype.kind in "if" and valid.min() < 0:
            raise FrameError(f"frames must hold counts, which are not negative; {_where(valid < 0)} are. {_REMOVED}")
        if not valid.any():
            raise FrameError("frames must hold photons; every valid pixel of every frame is 0")
        if not np.isfinite(self.positions_m).all():
            raise GeometryError(f"positions must be finite; {_where(~np.isfinite(self.positions_m))} are not")
        if self.probe is not None and not (np.isfinite(self.probe).all() and self.probe.any()):
            raise ScanFileError("a probe must be finite and not 0 everywhere; leave it out where none is known")


def mean_photons(counts: npt.NDArray[Any], mask: npt.NDArray[np.bool_] | None = None) -> float:
    """Mean photons of a frame on the valid pixels of `counts`, shape (n, H, W)."""
    # Summed in float64: sums of small integers would overflow their own type.
    return float(counts.mean(axis=0, dtype=np.float64)[... if mask is None else mask].sum())


def in_photons(
    probe: npt.NDArray[Any], counts: npt.NDArray[Any], mask: npt.NDArray[np.bool_] | None
) -> tuple[ComplexArray, float]:
    """Bring a file's probe to (modes, N, N) and to the gauge of the project.

    Parameters
    ----------
    probe : ndarray, shape (N, N) or (..., modes, N, N) with leading axes of length 1
    counts : ndarray, shape (n, H, W)
    mask : ndarray, shape (H, W), bool, or None

    Returns
    -------
    probe : ndarray, shape (modes, N, N), complex64
        The sum of ``abs(probe)**2`` is the mean photons of a frame.
    scale : float
        What it was multiplied by; 1 where it was in this gauge.
    """
    modes = probe.reshape(-1, *probe.shape[-2:])
    power = float((np.abs(modes.astype(np.complex128)) ** 2).sum())
    scale = float(np.sqrt(mean_photons(counts, mask) / power)) if power > 0 else 1.0
    # A probe already in the gauge, up to the rounding of float32, stays as it is, bit by bit.
    if abs(scale - 1) < 1e-6:
        scale = 1.0
    return (modes * scale).astype(np.complex64), scale


def nominal_geometry(pixel_m: float, frame_px: int) -> Geometry:
    """A geometry whose sample pixel is `pixel_m`, metres, where nothing else is known.

    Energy and distance are chosen (8 keV, 1 m) and the detector pixel follows; a scan that uses
    it says ``nominal_geometry: True`` in its `source`.
    """
    detector_pixel_m = HC_EV_M / NOMINAL_ENERGY_EV * NOMINAL_DISTANCE_M / (frame_px * pixel_m)
    return Geometry(NOMINAL_ENERGY_EV, NOMINAL_DISTANCE_M, detector_pixel_m, frame_px)


def _where(bad: npt.NDArray[np.bool_]) -> str:
    rows = np.flatnonzero(bad.reshape(len(bad), -1).any(axis=1))
    return f"{int(bad.sum())} values, the first in number {rows[0]} (from 0),"
