"""How frames are compressed in HDF5 files: without loss, and, where that is asked for, after rounding their counts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from bluesky_cdi.errors import ScanFileError
from bluesky_cdi.io.frames import Frames
from bluesky_cdi.io.scan import ROUNDED, Scan

# The smallest of those that read fast (docs/results.md, "Compression").
DEFAULT = "bitshuffle-zstd"
COMPRESSIONS = (DEFAULT, "bitshuffle-lz4", "gzip")
# Fewer counts than photon noise hides four of stay exact: they have few bits to take away, and a step would be a large
# share of the signal.
LEAST_POWER = 4


def filter_options(name: str) -> Mapping[str, Any]:
    """Give the keywords of h5py's ``create_dataset`` that compress without loss.

    Parameters
    ----------
    name : str
        Of `COMPRESSIONS`; programs without the plugins of hdf5plugin read ``gzip`` only.

    Raises
    ------
    ScanFileError
        If there is none of that name.
    """
    import hdf5plugin

    if name == "gzip":
        return {"compression": "gzip", "shuffle": True}
    if name not in COMPRESSIONS:
        raise ScanFileError(f"frames are compressed by one of {', '.join(COMPRESSIONS)}; got {name!r}")
    return dict(hdf5plugin.Bitshuffle(cname=name.removeprefix("bitshuffle-")))


@dataclass(frozen=True)
class Rounding:
    """Rounding of counts to multiples of powers of two that photon noise hides: their low bits become zero.

    A count n is rounded to the nearest multiple of the largest power of two that is at most ``step * sqrt(n)``, halves
    to even multiples; where that power is below `LEAST_POWER` (up to 15 counts with a step of 1), it stays. The error
    is at most half of ``step`` standard deviations of Poisson's distribution, on average next to zero: each value
    stands for an expected count. Square-root quantisation has the same idea (Bernstein et al., PASP 122, 336 (2010));
    powers of two leave counts in the file, which every program reads, and zero bits, which the HDF5 filter takes away.

    Parameters
    ----------
    step : float
        Largest step, standard deviations of a count.
    saturation : float, optional
        Counts from which on a pixel is saturated; these stay, and none below comes to be one.

    Raises
    ------
    ScanFileError
        If the step is not positive, or above 1.
    """

    step: float
    saturation: float | None = None

    def __post_init__(self) -> None:
        """Check the step."""
        if not (math.isfinite(self.step) and 0 < self.step <= 1):
            raise ScanFileError(
                f"counts are rounded in steps above 0 and up to 1 of their standard deviations; got {self.step}. "
                "1 adds up to a tenth to the variance of photon noise; more would no longer hide in it."
            )

    def __call__(self, counts: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Round counts of any shape, in their own type; flags (NaN, negative, nearly the largest integer) stay."""
        # In float64, which holds integers of up to 53 bits.
        values = np.where(counts > 0, counts, 0).astype(np.float64)
        power = np.exp2(np.floor(np.log2(np.maximum(1.0, self.step * np.sqrt(values)))))
        rounded = np.rint(values / power) * power
        top = np.iinfo(counts.dtype).max - 1 if counts.dtype.kind in "iu" else math.inf
        level = min(top, math.inf if self.saturation is None else self.saturation)
        changed = (power >= LEAST_POWER) & (values < level) & (rounded < level)
        return np.where(changed, rounded, counts).astype(counts.dtype)

    def as_notes(self) -> dict[str, Any]:
        """State it as plain JSON values, for a scan's `source`."""
        return {
            "step": self.step,
            "saturation": self.saturation,
            "what": "counts n rounded to the nearest multiple of the largest power of two that is at most "
            "step * sqrt(n), if that is 4 or more: each stands for an expected count",
        }


def with_rounded_counts(scan: Scan, rounding: Rounding) -> Scan:
    """Give a scan whose counts are rounded when they are read; its `source` says so.

    Parameters
    ----------
    scan : Scan
        As it was measured.
    rounding : Rounding
        How.

    Raises
    ------
    ScanFileError
        If its counts were rounded before.
    """
    if ROUNDED in scan.source:
        raise ScanFileError(
            f"the counts of this scan were rounded before, in steps of {scan.source[ROUNDED].get('step')} standard "
            "deviations; they can't be once more. Begin with the measured frames."
        )
    source = {**scan.source, ROUNDED: rounding.as_notes()}
    rounded = replace(scan, counts=_RoundedFrames(scan.counts, rounding), source=source)
    if scan.probe is None:
        return rounded
    # Its photons are those of the frames, which changed by the mean of what was rounded.
    return replace(rounded, probe=scan.probe * np.float32(math.sqrt(rounded.mean_photons / scan.mean_photons)))


@dataclass(frozen=True, eq=False)
class _RoundedFrames:
    """Frames that are rounded as they are asked for."""

    frames: Frames
    rounding: Rounding

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, H, W)."""
        return self.frames.shape

    @property
    def ndim(self) -> int:
        """3."""
        return 3

    @property
    def dtype(self) -> np.dtype[Any]:
        """That of the frames."""
        return self.frames.dtype

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, key: Any, /) -> npt.NDArray[Any]:
        return self.rounding(np.asarray(self.frames[key]))

    def __array__(self, dtype: Any = None, /, *, copy: bool | None = None) -> npt.NDArray[Any]:
        frames: npt.NDArray[Any] = np.asarray(self[:], dtype)
        return frames
