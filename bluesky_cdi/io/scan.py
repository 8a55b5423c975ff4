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
from bluesky_cdi.io.detector import DetectorPlan, prepared
from bluesky_cdi.io.frame_summaries import without_flagged
from bluesky_cdi.io.frames import Frames, LazyFrames, mean_photons, taken
from bluesky_cdi.io.positions import check_unit
from bluesky_cdi.io.preprocessing import Preprocessing
from bluesky_cdi.physics.geometry import HC_EV_M, Geometry
from bluesky_cdi.protocols import ComplexArray, FloatArray

logger = logging.getLogger(__name__)

# A hard X-ray instrument of common size, for data that come with a sample pixel only.
NOMINAL_ENERGY_EV = 8000.0
NOMINAL_DISTANCE_M = 1.0

# Key of a scan's `source` that says how its counts were rounded (`compression.Rounding`), where they were.
ROUNDED = "rounded_counts"

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
        Energy, distances and pixel of the frames.
    probe : ndarray, shape (modes, N, N), complex64, or None
        First guess; the sum of ``abs(probe)**2`` is the mean photons of a frame.
    mask : ndarray, shape (H, W), bool, or None
        True where a pixel is valid; None: all are.
    name : str
        What the scan is called, after its file.
    source : Mapping
        Where it came from and what the reader changed or assumed: ``nominal_geometry`` is True
        where only a nominal sample pixel is known; ``propagation`` says how the frames arose:
        ``far field``, ``near field``, or ``far field (assumed)`` where the file doesn't tell.
    flux : ndarray, shape (n,), or None
        Incident flux of each frame, on any fixed scale; None: nothing monitored it.

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
    flux: FloatArray | None = None

    def __post_init__(self) -> None:
        self._check_shapes()
        self._check_values()

    def __len__(self) -> int:
        return len(self.counts)

    @property
    def mean_photons(self) -> float:
        """Mean photons of a frame, on valid pixels."""
        return mean_photons(self.counts, self.mask)

    def saturation(self, stated: float | None) -> float | None:
        """Give the counts from which on a pixel is saturated: what preprocessing made of them, else what is stated.

        Parameters
        ----------
        stated : float or None
            Counts of the detector, as configured.

        Raises
        ------
        ScanFileError
            If it is stated for counts that were summed, divided or rounded without it.
        """
        rounding = self.source.get(ROUNDED)
        if rounding is not None and stated is not None and rounding.get("saturation") != stated:
            raise ScanFileError(
                f"which pixels reached {stated:g} counts can't be told any more: the counts were rounded when the file "
                f"was written, with a saturation of {rounding.get('saturation')}. State the saturation where they are "
                "rounded."
            )
        notes = self.source.get("preprocessing", {})
        level = notes.get("saturation")
        if level is not None or stated is None:
            return None if level is None else float(level)
        if notes.get("bin", 1) > 1 or "dark" in notes or "flat" in notes:
            raise ScanFileError(
                f"which pixels reached {stated:g} counts can't be told any more: the frames were summed, or a dark "
                "frame or sensitivity was applied, when the file was written. State the saturation where they are "
                "converted."
            )
        return stated

    def subset(self, indices: Sequence[int] | npt.NDArray[Any]) -> Scan:
        """Keep only some frames, in the order of `indices` (or where a bool array is True).

        Frames of a file stay there.

        Parameters
        ----------
        indices : ndarray, slice or sequence of int
            Which frames.
        """
        chosen = np.asarray(indices)
        flux = None if self.flux is None else self.flux[chosen]
        return replace(self, counts=taken(self.counts, chosen), positions_m=self.positions_m[chosen], flux=flux)

    def refuse_rounded(self, form: str) -> None:
        """Raise `ScanFileError` if counts are rounded, for a form of file that can't say so.

        Parameters
        ----------
        form : str
            What the form of file is called.
        """
        if ROUNDED in self.source:
            raise ScanFileError(
                f"{form}'s files can't say that counts are rounded; write CXI or canonical NPZ, or don't round them."
            )

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
        if self.flux is not None and self.flux.shape != (len(self.counts),):
            raise ScanFileError(f"{len(self.counts)} frames need as many values of flux; they are {self.flux.shape}")
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
    geometry: Geometry,
    preprocessing: Preprocessing | None = None,
    **parts: Any,
) -> Scan:
    """Make a scan of what a reader has read.

    Frames that the file doesn't hold are left out (`unwritten`), the others preprocessed where that is wanted; the
    positions' unit is checked, pixels that hold flags are masked, and the probe gets the project's shape and gauge.

    Parameters
    ----------
    counts : Frames, shape (n, H, W)
        As in the file.
    probe : ndarray, shape (N, N) or (..., modes, N, N) with leading axes of length 1, optional
        In any gauge.
    mask : ndarray, shape (H, W), bool, optional
        Valid pixels, as far as the file states them.
    source : Mapping
        Where the scan came from; `flagged_pixels`, how many were masked here, is added where there are any,
        `unwritten_frames`, the numbers (from 1) of those left out, and `preprocessing`, what was done to the frames.
    geometry : Geometry
        Of the frames in the file; its `frame_px` is their width.
    preprocessing : Preprocessing, optional
        What is done to the frames first.
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
    # Where there is not a position for each, the scan is refused below; a damaged file may state any number of frames.
    unwritten = np.zeros(0, bool)
    if counts.ndim == 3 and np.shape(parts["positions_m"])[:1] == counts.shape[:1]:
        counts, unwritten = _without_unwritten(counts)
    if len(unwritten):
        source = {**source, "unwritten_frames": (np.flatnonzero(unwritten) + 1).tolist()}
        parts["positions_m"] = parts["positions_m"][~unwritten]
    if preprocessing is not None and counts.ndim == 3 and 0 not in counts.shape:
        plan = _plan(preprocessing, counts, mask, source, geometry)
        probe = _fitting(probe, plan, geometry)
        geometry, mask = plan.geometry(geometry), None if plan.mask.all() else plan.mask
        counts = counts.seen(plan) if isinstance(counts, LazyFrames) else prepared(np.asarray(counts), plan)
        source, flagged = {**source, "preprocessing": plan.as_notes()}, int(plan.notes["flagged_pixels"])
    else:
        mask, flagged = _without_flagged(counts, mask)
    noted = {"flagged_pixels": flagged} if flagged else {}
    scan = Scan(counts=counts, mask=mask, source={**source, **noted}, geometry=geometry, **parts)
    if ROUNDED in source:
        step = source[ROUNDED].get("step")
        logger.warning("the counts of %s are not as measured: rounded in steps of %s deviations", scan.name, step)
    check_unit(scan.positions_m, scan.geometry)
    if probe is None:
        return replace(scan, source={**scan.source, "probe_scale": None})
    modes, scale = _in_photons(probe, scan.mean_photons)
    return replace(scan, probe=modes, source={**scan.source, "probe_scale": scale})


def _without_unwritten(counts: Frames) -> tuple[Frames, npt.NDArray[np.bool_]]:
    """Leave out frames that their file announces and doesn't hold; which, (n,), empty where there are none."""
    if not isinstance(counts, LazyFrames):
        return counts, np.zeros(0, bool)
    found = counts.unwritten()
    number = int(found.frames.sum())
    if not number:
        return counts, np.zeros(0, bool)
    if number == len(counts):
        raise ScanFileError(f"none of the {len(counts)} frames was ever written: {found.why}. Bring the missing files.")
    logger.warning(
        "%d of %d frames were never written and are left out, the first is number %d: %s",
        number,
        len(counts),
        int(np.argmax(found.frames)) + 1,
        found.why,
    )
    return counts.select(~found.frames), found.frames


def _plan(
    preprocessing: Preprocessing,
    counts: Frames,
    mask: npt.NDArray[np.bool_] | None,
    source: Mapping[str, Any],
    geometry: Geometry,
) -> DetectorPlan:
    if "preprocessing" in source:
        raise ScanFileError(
            "the frames were preprocessed when the file was written, as its notes say; they can't be once more. Leave "
            "out the section `detector` and its options, but for the saturation, or read the detector's own file."
        )
    if geometry.propagation == "near" and preprocessing.settings.beam_centre_px == "find":
        raise GeometryError(
            "near-field frames are shadows, in which no direct beam can be found: state detector.beam_centre_px, or "
            "leave it out."
        )
    height, width = counts.shape[1:]
    return preprocessing.plan((height, width), counts.dtype, frames=counts, mask=mask, mask_flagged=True)


def _fitting(probe: npt.NDArray[Any] | None, plan: DetectorPlan, raw: Geometry) -> npt.NDArray[Any] | None:
    """Bring the probe of a file to preprocessed frames; None, with a warning, where that can't be done.

    A probe of the frames' own size is theirs; it is brought to the new sample pixel. One of the size that comes out is
    taken as it is.
    """
    side, new = plan.raw_shape[0], plan.window.side
    if probe is None or probe.shape[-2:] == (new, new):
        return probe
    if probe.shape[-2:] == plan.raw_shape == (side, side) and raw.propagation == "far":
        return _resampled(probe, new * plan.window.bin, new)
    logger.warning(
        "the file's probe, %s, does not fit frames of %d x %d pixels after preprocessing: it is left out. "
        "Give one that does (--probe).",
        probe.shape,
        new,
        new,
    )
    return None


def _resampled(probe: npt.NDArray[Any], whole: int, new: int) -> npt.NDArray[np.complex128]:
    """Give a far-field probe on the pixels of frames that were cropped to `whole` pixels and binned to `new`.

    Cropping cuts its spectrum, which makes the pixel larger; binning leaves the pixel, and cuts the probe.
    """
    far = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(probe, axes=(-2, -1))), axes=(-2, -1))
    near = np.fft.ifft2(np.fft.ifftshift(_middle(far, whole), axes=(-2, -1)))
    return _middle(np.fft.fftshift(near, axes=(-2, -1)), new)


def _middle(images: npt.NDArray[Any], side: int) -> npt.NDArray[Any]:
    """Cut images to a side, or add zeros, so that pixel ``[N // 2, N // 2]`` stays what it is."""
    first = images.shape[-1] // 2 - side // 2
    more, less = max(0, -first), max(0, side + first - images.shape[-1])
    padded = np.pad(images, [(0, 0)] * (images.ndim - 2) + [(more, less)] * 2)
    start = max(0, first)
    return padded[..., start : start + side, start : start + side]


def _without_flagged(counts: Frames, mask: npt.NDArray[np.bool_] | None) -> tuple[npt.NDArray[np.bool_] | None, int]:
    """Mask the valid pixels that hold flags, and count them; None stays where there are none."""
    if counts.ndim != 3 or not math.prod(counts.shape) or (mask is not None and mask.shape != counts.shape[1:]):
        return mask, 0
    whole = np.ones(counts.shape[1:], bool) if mask is None or mask.dtype != np.bool_ else mask
    found, number = without_flagged(counts, whole)
    if not number:
        return mask, 0
    return found if mask is None else mask & found, number


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
