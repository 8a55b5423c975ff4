"""One recorded scan, whatever file it came from."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from bluesky_cdi.errors import FrameError, GeometryError, ScanFileError
from bluesky_cdi.io.frames import Frames, flagged_pixels, mean_photons, taken
from bluesky_cdi.io.positions import check_unit
from bluesky_cdi.physics.geometry import HC_EV_M, Geometry
from bluesky_cdi.protocols import ComplexArray, FloatArray

logger = logging.getLogger(__name__)

# A hard X-ray instrument of common size, for data that come with a sample pixel only.
NOMINAL_ENERGY_EV = 8000.0
NOMINAL_DISTANCE_M = 1.0

# A square detector of more pixels a side doesn't exist; a damaged file may state one.
_MOST_PIXELS = 2**15


@dataclass(frozen=True, eq=False)
class Scan:
    """A scan: frames, where they were taken, and what is known of the optics.

    Attributes
    ----------
    counts : Frames, shape (n, H, W)
        Photons per pixel; in the far field zero frequency at ``[H // 2, W // 2]``. An array, or
        `LazyFrames` that stay in their HDF5 file: index them, or make them an array with ``numpy.asarray``.
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
        where only a nominal sample pixel is known; ``propagation`` says how the frames arose:
        ``far field``, ``near field``, or ``far field (assumed)`` where the file doesn't tell.

    Raises
    ------
    ScanFileError
        If lengths or shapes of the parts don't fit together.
    FrameError
        If a valid pixel is no number, not finite or negative, or all are dark.
    GeometryError
        If frames aren't squares of the geometry's size, or a position is not finite.
    """

    counts: Frames
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
        """Keep only some frames, in the order of `indices` (or where a bool array is True).

        Frames of a file stay there.
        """
        chosen = np.asarray(indices)
        return replace(self, counts=taken(self.counts, chosen), positions_m=self.positions_m[chosen])

    def _check_shapes(self) -> None:
        size = self.geometry.frame_px
        if self.counts.ndim != 3 or not len(self.counts):
            raise ScanFileError(f"a scan needs frames of shape (n, H, W) with n > 0; they have {self.counts.shape}")
        if self.counts.shape[1:] != (size, size):
            raise GeometryError(
                f"frames must be squares of the geometry's {size} pixels; they are "
                f"{self.counts.shape[1]} x {self.counts.shape[2]}. Crop them around the direct beam."
            )
        if size > _MOST_PIXELS:
            raise GeometryError(f"frames of {size} pixels a side are beyond any detector; at most {_MOST_PIXELS}")
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
        if self.positions_m.dtype.kind not in "iuf" or not np.isfinite(self.positions_m).all():
            raise GeometryError("positions must be finite real numbers, metres; some are not. Leave out such frames.")
        if self.probe is not None and not (np.isfinite(self.probe).all() and self.probe.any()):
            raise ScanFileError("a probe must be finite and not 0 everywhere; leave it out where none is known")
        mean_photons(self.counts, self.mask)  # Last, for it reads every frame.


def recorded(
    counts: Frames,
    probe: npt.NDArray[Any] | None = None,
    *,
    mask: npt.NDArray[np.bool_] | None = None,
    source: Mapping[str, Any],
    **parts: Any,
) -> Scan:
    """Make a scan of what a reader has read.

    The positions' unit is checked, pixels that hold flags are masked, and the probe gets the project's shape and gauge.

    Parameters
    ----------
    counts : Frames, shape (n, H, W)
        As in the file.
    probe : ndarray, shape (N, N) or (..., modes, N, N) with leading axes of length 1, optional
        In any gauge.
    mask : ndarray, shape (H, W), bool, optional
        Valid pixels, as far as the file states them.
    source : Mapping
        Where the scan came from; `flagged_pixels`, how many were masked here, is added where there are any.
    **parts
        The other attributes of `Scan`.

    Returns
    -------
    Scan
        Its probe has the shape (modes, N, N), and the sum of its ``abs(probe)**2`` is the mean photons of a
        frame; ``source["probe_scale"]`` is what it was multiplied by: 1 where it was in this gauge, None without one.

    Raises
    ------
    FrameError, GeometryError, ScanFileError
        If the scan is not sound, the positions can't be in metres, or the probe can't belong to the frames.
    """
    mask, flagged = _without_flagged(counts, mask)
    noted = {"flagged_pixels": flagged} if flagged else {}
    scan = Scan(counts=counts, mask=mask, source={**source, **noted}, **parts)
    check_unit(scan.positions_m, scan.geometry)
    if probe is None:
        return replace(scan, source={**scan.source, "probe_scale": None})
    modes, scale = _in_photons(probe, scan.mean_photons)
    return replace(scan, probe=modes, source={**scan.source, "probe_scale": scale})


def _without_flagged(counts: Frames, mask: npt.NDArray[np.bool_] | None) -> tuple[npt.NDArray[np.bool_] | None, int]:
    """Mask the valid pixels that hold flags, and count them; frames of nothing but flags stay for `Scan` to refuse."""
    if counts.ndim != 3 or not math.prod(counts.shape) or (mask is not None and mask.shape != counts.shape[1:]):
        return mask, 0
    flagged = flagged_pixels(counts)
    if mask is not None and mask.dtype == np.bool_:
        flagged = flagged & mask
    number = int(flagged.sum())
    if not 0 < number <= flagged.size // 2:
        return mask, 0
    logger.warning(
        "%d pixels hold a flag in place of counts (NaN, a negative number, or the largest of their type): they are "
        "masked. State them in the file's mask to be sure of it.",
        number,
    )
    return ~flagged if mask is None else mask & ~flagged, number


def _in_photons(probe: npt.NDArray[Any], photons: float) -> tuple[ComplexArray, float]:
    if probe.ndim < 2 or not probe.size or probe.dtype.kind not in "biufc" or not np.isfinite(probe).all():
        raise ScanFileError(f"a probe must hold finite numbers (modes, N, N); it holds {probe.dtype} {probe.shape}")
    modes = probe.reshape(-1, *probe.shape[-2:])
    power = float((np.abs(modes.astype(np.complex128)) ** 2).sum())
    scale = float(np.sqrt(photons / power)) if power > 0 else 1.0
    # A probe already in the gauge, up to the rounding of float32, stays as it is, bit by bit.
    if abs(scale - 1) < 1e-6:
        scale = 1.0
    return (modes * scale).astype(np.complex64), scale


def nominal_geometry(pixel_m: float, frame_px: int, energy_ev: float = NOMINAL_ENERGY_EV) -> Geometry:
    """Make up a geometry whose sample pixel is `pixel_m` where nothing else (or only the energy) is known.

    Energy (8 keV) and distance (1 m) are chosen and the detector pixel follows; a scan that uses
    it says ``nominal_geometry: True`` in its `source`.

    Parameters
    ----------
    pixel_m : float
        Sample pixel, metres.
    frame_px : int
        Pixels along a side of the frames.
    energy_ev : float
        Photon energy, eV.

    Raises
    ------
    GeometryError
        If pixel or energy are not finite and positive.
    """
    for name, value in (("pixel", pixel_m), ("energy", energy_ev)):
        if not (math.isfinite(value) and value > 0):
            raise GeometryError(f"the {name} must be a finite positive number; it is {value!r}")
    detector_pixel_m = HC_EV_M / energy_ev * NOMINAL_DISTANCE_M / (frame_px * pixel_m)
    return Geometry(energy_ev, NOMINAL_DISTANCE_M, detector_pixel_m, frame_px)
