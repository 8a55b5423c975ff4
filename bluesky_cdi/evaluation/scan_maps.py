"""What each frame of a scan says by itself, without any reconstruction: transmission, dark field, differential phase.

Sums of a frame's pixels, each a number at the frame's position. The shift of a far-field pattern's centre of mass is
the mean phase gradient under the probe, weighted with the light (E. M. Waddell and J. N. Chapman, Optik 54, 83 (1979);
for X-rays A. Menzel et al., Ultramicroscopy 110, 1143 (2010)). No torch is loaded.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bluesky_cdi.evaluation._checks import BoolArray
from bluesky_cdi.physics.geometry import Geometry
from bluesky_cdi.protocols import FloatArray, Frame

logger = logging.getLogger(__name__)

# When so many frames are in, it is looked at which pixels are bad and where the direct beam is; the last one is final.
LOOKS = (4, 32)
FIRST_FRAMES = LOOKS[-1]
# The direct beam's cone goes as far out as the mean frame, averaged over rings, has this share of its brightest ring.
CONE_SHARE = 0.1
# Neighbours further apart than so many usual distances have a gap between them, across which nothing is integrated.
GAP = 2.5
# Integration stops at this relative error; noise is larger.
TOLERANCE = 1e-6


@dataclass(frozen=True, eq=False)
class ScanMaps:
    """Numbers of frames, in the order in which they came; each at its position.

    Attributes
    ----------
    seq_nums : ndarray, shape (n,), int
        Numbers of the frames.
    positions_m : ndarray, shape (n, 2), float64
        (y, x) as read back, metres.
    photons : ndarray, shape (n,), float32
        Of all valid pixels, at the mean incident flux: the transmission, up to a factor.
    dark_photons : ndarray, shape (n,), float32
        Of those outside the direct beam's cone; NaN in the near field, which has none, and before the first of the
        `LOOKS`.
    gradient_rad_per_m : ndarray, shape (n, 2), float32
        Mean slope (y, x) of the phase under the probe, radians per metre; NaN there too, and without light. A
        beam that is not in the middle of the frames, and a probe whose light is not, add the same to all.
    """

    seq_nums: npt.NDArray[np.int64]
    positions_m: FloatArray
    photons: FloatArray
    dark_photons: FloatArray
    gradient_rad_per_m: FloatArray

    def __len__(self) -> int:
        return len(self.seq_nums)


class ScanMapper:
    """Sums frames as they come; cheap enough for the thread that reads them.

    The first `FIRST_FRAMES` frames are kept and summed again when it is known better which pixels are bad, and how
    far the direct beam reaches; before the first of the `LOOKS`, all pixels count that are known to be valid. A
    saturated pixel counts as what it holds.

    Parameters
    ----------
    geometry : Geometry
        Of the frames.
    valid : ndarray, shape (N, N), bool, optional
        Pixels that hold counts; all where it is absent.
    find_valid : callable, optional
        Gives the pixels (N, N), bool, that some frames (n, N, N) show to be neither hot nor dead.

    Attributes
    ----------
    valid : ndarray, shape (N, N), bool
        Pixels that count, as far as it is known by now.
    """

    def __init__(
        self,
        geometry: Geometry,
        valid: BoolArray | None = None,
        find_valid: Callable[[npt.NDArray[np.float32]], BoolArray] | None = None,
    ) -> None:
        self._geometry, self._find_valid = geometry, find_valid
        side = geometry.frame_px
        self._known = np.ones((side, side), bool) if valid is None else np.asarray(valid, bool)
        self.valid, self._all_known = self._known, bool(self._known.all())
        self._first: dict[int, npt.NDArray[np.float32]] = {}
        self._rows: dict[int, int] = {}
        self._positions = np.zeros((FIRST_FRAMES, 2))
        self._flux = np.ones(FIRST_FRAMES)
        # Of each frame: photons, those outside the cone, and photons times row and column from the middle.
        self._sums = np.zeros((FIRST_FRAMES, 4), np.float32)
        self._weights, self._has_looked, self._is_final = _weights(self.valid, None), False, False

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, frame: Frame) -> None:
        """Take a frame in; one of a known number replaces the earlier one.

        Parameters
        ----------
        frame : Frame
            Of (N, N) counts.
        """
        row = self._rows.setdefault(frame.seq_num, len(self._rows))
        if row >= len(self._sums):
            self._positions, self._flux, self._sums = (
                np.concatenate([each, np.zeros_like(each)]) for each in (self._positions, self._flux, self._sums)
            )
        self._positions[row], self._flux[row] = frame.position_m, frame.flux
        # Before anything is computed: what is not valid may hold a flag, and 0 times NaN is none.
        counts = frame.counts if self._all_known else np.where(self._known, frame.counts, 0)
        is_kept = row < FIRST_FRAMES and not self._is_final
        counts = counts.astype(np.float32, copy=is_kept)
        self._sums[row] = self._weights @ counts.ravel()
        if is_kept:
            self._first[row] = counts
            if row + 1 == len(self._first) and len(self._first) in LOOKS:
                self._look_again()
            if len(self._first) == FIRST_FRAMES:
                # A frame that is taken again is summed like the others from now on.
                self._first, self._is_final = {}, True

    def maps(self) -> ScanMaps:
        """Give the numbers of all frames by now."""
        n, geometry = len(self._rows), self._geometry
        seq_nums = np.fromiter(self._rows, np.int64, n)
        flux = self._flux[:n]
        stated = np.isfinite(flux) & (flux > 0)
        relative = np.where(stated, flux / flux[stated].mean(), 1.0) if stated.any() else np.ones(n)
        photons, outside, *moments = self._sums[:n].T
        if geometry.propagation == "far" and self._has_looked:
            # One pixel of the detector is one turn over the field of view of a frame.
            per_pixel = 2 * math.pi / (geometry.frame_px * geometry.pixel_m)
            bright = np.where(photons > 0, photons, np.nan)
            gradient = per_pixel * np.stack(moments, axis=1) / bright[:, None]
            dark = outside / relative
        else:
            gradient, dark = np.full((n, 2), np.nan), np.full(n, np.nan)
        return ScanMaps(
            seq_nums,
            self._positions[:n].copy(),
            (photons / relative).astype(np.float32),
            dark.astype(np.float32),
            gradient.astype(np.float32),
        )

    def _look_again(self) -> None:
        """Find bad pixels and the direct beam's cone in the first frames, and sum these once more."""
        frames = np.stack(list(self._first.values()))
        if self._find_valid is not None:
            self.valid = self._known & self._find_valid(frames)
        mean = np.where(self.valid, frames.mean(axis=0), 0.0)
        self._weights = _weights(self.valid, None if self._geometry.propagation == "near" else direct_beam(mean))
        self._has_looked = True
        self._sums[list(self._first)] = frames.reshape(len(frames), -1) @ self._weights.T


def direct_beam(mean: FloatArray) -> BoolArray:
    """Find the pixels that the direct beam's cone reaches, shape (N, N).

    Parameters
    ----------
    mean : ndarray, shape (N, N)
        Mean of frames, counts; 0 where a pixel is not valid.
    """
    row, column = np.indices(mean.shape)
    total = max(float(mean.sum()), 1e-30)
    ring = np.rint(np.hypot(row - (mean * row).sum() / total, column - (mean * column).sum() / total)).astype(int)
    seen = mean > 0
    if not seen.any():
        return np.asarray(seen)
    profile = np.bincount(ring[seen], mean[seen]) / np.maximum(np.bincount(ring[seen]), 1)
    bright = np.flatnonzero(profile >= CONE_SHARE * profile.max())
    return np.asarray(ring <= bright[-1])


def integrated_phase(positions_m: FloatArray, gradient_rad_per_m: FloatArray) -> FloatArray:
    """Integrate the slopes of a phase over scattered places, by least squares over neighbours.

    Between neighbours in Delaunay's triangulation the phase differs by the mean of their slopes along the way, as in
    W. H. Southwell, J. Opt. Soc. Am. 70, 998 (1980) on a grid. It is exact for slopes that change evenly. Nothing is
    integrated across gaps: parts of a scan that lie apart have a mean phase of 0 each.

    Parameters
    ----------
    positions_m : ndarray, shape (n, 2)
        (y, x), metres.
    gradient_rad_per_m : ndarray, shape (n, 2)
        Slopes along y and x, radians per metre.

    Returns
    -------
    ndarray, shape (n,)
        Radians, smoothed by the probe as the slopes are; NaN where a place has no slope or no neighbour, and
        where there are fewer than four places.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components
    from scipy.sparse.linalg import lsqr

    phase = np.full(len(positions_m), np.nan)
    known = np.flatnonzero(np.isfinite(gradient_rad_per_m).all(axis=1))
    edges = _neighbours(positions_m[known])
    if not len(edges):
        return phase
    one, other = known[edges].T
    way = positions_m[other] - positions_m[one]
    steps = np.sum(way * (gradient_rad_per_m[one] + gradient_rad_per_m[other]) / 2, axis=1)
    number, n = np.arange(len(edges)), len(known)
    signs = np.concatenate([-np.ones(len(edges)), np.ones(len(edges))])
    ends = (np.concatenate([number, number]), np.concatenate(edges.T))
    system = coo_array((signs, ends), shape=(len(edges), n)).tocsr()
    found = lsqr(system, steps, atol=TOLERANCE, btol=TOLERANCE)[0]
    links = coo_array((np.ones(len(edges)), edges.T), shape=(n, n))
    _, part = connected_components(links, directed=False)
    size = np.bincount(part)
    found -= (np.bincount(part, found) / size)[part]
    phase[known] = np.where(size[part] > 1, found, np.nan)
    return phase


def _neighbours(positions_m: FloatArray) -> npt.NDArray[np.int64]:
    """Give pairs of neighbours, (m, 2), without those that have a gap between them."""
    from scipy.spatial import Delaunay

    nothing = np.zeros((0, 2), np.int64)
    across_m = float(np.ptp(positions_m, axis=0).max()) if len(positions_m) > 3 else 0.0
    if across_m == 0:
        return nothing
    # Joggled, so that the places of a raster's first line have neighbours too.
    triangles = Delaunay(positions_m / across_m, qhull_options="QJ").simplices
    pairs = np.concatenate([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [0, 2]]])
    pairs = np.unique(np.sort(pairs, axis=1), axis=0).astype(np.int64)
    length = np.hypot(*(positions_m[pairs[:, 0]] - positions_m[pairs[:, 1]]).T)
    return np.asarray(pairs[length <= GAP * np.median(length)])


def _weights(valid: BoolArray, cone: BoolArray | None) -> npt.NDArray[np.float32]:
    """Give what a frame's pixels count in its four sums, (4, N * N)."""
    row, column = (index - side // 2 for index, side in zip(np.indices(valid.shape), valid.shape, strict=True))
    outside = np.zeros_like(valid) if cone is None else valid & ~cone
    return np.stack([valid, outside, valid * row, valid * column]).reshape(4, -1).astype(np.float32)
