"""Which pixels of a detector's frame become the square that is reconstructed, and where they lie in it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bluesky_cdi.config import DetectorConfig
from bluesky_cdi.errors import GeometryError

Pair = tuple[float, float]


@dataclass(frozen=True)
class Turn:
    """One of the eight orientations of an image: rows and columns exchanged first, then turned round.

    Parameters
    ----------
    transpose : bool
    flip_rows, flip_columns : bool
        Of the image that comes out.
    """

    transpose: bool = False
    flip_rows: bool = False
    flip_columns: bool = False

    @classmethod
    def of(cls, settings: DetectorConfig) -> Turn:
        """Compose what is configured: rotation, then transposition, then flips."""
        transpose, rows, columns = {
            0: (False, False, False),
            90: (True, True, False),
            180: (False, True, True),
            270: (True, False, True),
        }[settings.rotate_deg]
        if settings.transpose:
            transpose, rows, columns = not transpose, columns, rows
        return cls(transpose, rows ^ settings.flip_rows, columns ^ settings.flip_columns)

    @property
    def reversed_axes(self) -> tuple[bool, bool]:
        """Whether rows and columns of the image that goes in run backwards in the one that comes out."""
        pair = (self.flip_rows, self.flip_columns)
        return (pair[1], pair[0]) if self.transpose else pair

    def __call__(self, images: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Turn images (..., H, W); what is given back is a view."""
        turned = np.swapaxes(images, -1, -2) if self.transpose else images
        rows, columns = (slice(None, None, -1 if flip else 1) for flip in (self.flip_rows, self.flip_columns))
        return turned[..., rows, columns]


@dataclass(frozen=True)
class Window:
    """The square of a frame that has the direct beam in its middle pixel, ``[N // 2, N // 2]``.

    Attributes
    ----------
    rows, columns : slice
        Of the raw frame: what is read.
    missing : tuple
        Raw pixels that the square has beyond that: ((above, below), (left, right)).
    bin : int
        Raw pixels a side that make one.
    turn : Turn
        What is done last.
    side : int
        N.
    offset_px : tuple of float
        Where the direct beam is, from the middle of pixel ``[N // 2, N // 2]``, in (row, column) of the square.
    """

    rows: slice
    columns: slice
    missing: tuple[tuple[int, int], tuple[int, int]]
    bin: int
    turn: Turn
    side: int
    offset_px: Pair

    @classmethod
    def around(cls, centre_px: Pair, region_px: tuple[int, int, int, int], settings: DetectorConfig) -> Window:
        """Find the square around the direct beam.

        The beam comes to lie within half a pixel of the square's middle one, as near as whole raw pixels allow.

        Parameters
        ----------
        centre_px : tuple of float
            (row, column) of the direct beam in the raw frame.
        region_px : tuple of int
            (first row, row after the last, first column, column after the last) of the raw frame.
        settings : DetectorConfig
            Its `crop_px`, `pad`, `bin` and orientation.

        Raises
        ------
        GeometryError
            If no such square lies in the region.
        """
        turn = Turn.of(settings)
        axes = [
            _Axis(centre_px[k], region_px[2 * k], region_px[2 * k + 1], settings.bin, turn.reversed_axes[k])
            for k in (0, 1)
        ]
        for side in _sides([axis.stop - axis.start for axis in axes], settings):
            firsts = [axis.first(side, crops=settings.crop_px is not None, pads=settings.pad) for axis in axes]
            if None not in firsts:
                break
        else:
            raise GeometryError(_no_square(centre_px, region_px, settings))
        whole = side * settings.bin
        parts = [axis.part(first, whole) for axis, first in zip(axes, firsts, strict=True) if first is not None]
        offsets = [axis.offset(first, side) for axis, first in zip(axes, firsts, strict=True) if first is not None]
        return cls(
            rows=parts[0][0],
            columns=parts[1][0],
            missing=(parts[0][1], parts[1][1]),
            bin=settings.bin,
            turn=turn,
            side=side,
            offset_px=(offsets[1], offsets[0]) if turn.transpose else (offsets[0], offsets[1]),
        )

    @property
    def is_padded(self) -> bool:
        """Whether the square has pixels that the detector has not."""
        return self.missing != ((0, 0), (0, 0))

    def padded(self, parts: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Add what is missing, zeros, to what was read, (n, h, w)."""
        return np.pad(parts, ((0, 0), *self.missing)) if self.is_padded else parts

    def valid(self, part: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """Give the valid pixels of the square, (N, N), from those that are read, (h, w)."""
        whole = self.padded(part[np.newaxis])
        return np.ascontiguousarray(self.turn(binned(whole, self.bin, np.logical_and, bool)[0]))


@dataclass(frozen=True)
class _Axis:
    """Rows or columns: the beam's place, the region, and whether they run backwards in the square."""

    centre: float
    start: int
    stop: int
    bin: int
    backwards: bool

    def first(self, side: int, *, crops: bool, pads: bool) -> int | None:
        """Find the first raw pixel of a square of `side` binned ones; None where none is right."""
        ideal, whole = self._ideal(side), side * self.bin
        nearest = self._nearest(ideal)
        if pads and crops:
            return nearest
        if pads:
            low, high = self.stop - whole, self.start
        else:
            # An even square turned round needs a pixel beyond the edge, opposite to the one that falls out.
            beyond = self.bin if self.backwards and side % 2 == 0 else 0
            low, high = self.start, self.stop - whole + beyond
        first = min(max(nearest, low), high)
        # Half a binned pixel; for some floating-point numbers of pixels the half is a little more.
        return first if low <= high and abs(first - ideal) <= self.bin / 2 + 1e-9 else None

    def part(self, first: int, whole: int) -> tuple[slice, tuple[int, int]]:
        """Give what of `whole` raw pixels lies in the region, and how many are missing before and after it."""
        low, high = max(first, self.start), min(first + whole, self.stop)
        if low >= high:
            raise GeometryError("the square around the direct beam must have pixels in the region; it has none")
        return slice(low, high), (low - first, first + whole - high)

    def offset(self, first: int, side: int) -> float:
        """Give the beam's place from the middle of the square's middle pixel, in binned pixels as they come out."""
        offset = (self._ideal(side) - first) / self.bin
        # Without a negative zero.
        return (-offset if self.backwards else offset) + 0.0

    def _nearest(self, ideal: float) -> int:
        """Round to a raw pixel; of two that are as near, to the one that cuts no binned pixel of the region."""
        below = math.floor(ideal)
        if ideal - below == 0.5 and (below - self.start) % self.bin == 0:
            return below
        return math.floor(ideal + 0.5)

    def _ideal(self, side: int) -> float:
        middle = (side - 1) // 2 if self.backwards else side // 2
        return self.centre - middle * self.bin - (self.bin - 1) / 2


def _sides(lengths: list[int], settings: DetectorConfig) -> Iterator[int]:
    """Give the sides that a square may have, binned, preferred ones first: even, but for a square frame as it is."""
    if settings.crop_px is not None:
        yield settings.crop_px // settings.bin
        return
    shorter, longer = (edge(lengths) for edge in (min, max))
    is_whole = shorter == longer and settings.bin == 1
    if settings.pad:
        least = -(-longer // settings.bin)
        if is_whole:
            yield least
        # With the beam in a corner of the region, or just outside it, the square is twice as wide.
        yield from range(least + least % 2, 2 * least + 5, 2)
        return
    most = shorter // settings.bin
    if is_whole and most >= 2:
        yield most
    yield from range(most - most % 2, 1, -2)


def _no_square(centre_px: Pair, region_px: tuple[int, int, int, int], settings: DetectorConfig) -> str:
    wanted = "a square" if settings.crop_px is None else f"the square of {settings.crop_px} pixels (crop_px)"
    return (
        f"{wanted} around the direct beam at row {centre_px[0]:g} and column {centre_px[1]:g} must lie in rows "
        f"{region_px[0]} to {region_px[1]} and columns {region_px[2]} to {region_px[3]}, binned by {settings.bin}; it "
        "does not. Crop to fewer pixels, correct beam_centre_px, or let what is missing be padded (pad)."
    )


def binned(images: npt.NDArray[Any], bin: int, combine: np.ufunc, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Make one pixel of each square of `bin` pixels a side.

    Parameters
    ----------
    images : ndarray, shape (n, H, W)
        Sides are multiples of `bin`.
    bin : int
        Pixels along one side that become one.
    combine : ufunc
        ``np.add`` of counts, ``np.logical_and`` or ``np.logical_or`` of truths.
    dtype : dtype
        In which that is done; it must hold what is combined.

    Returns
    -------
    ndarray, shape (n, H / bin, W / bin)
    """
    # Whole rows at a time, then columns: a reduction over axes as short as these takes forty times as long.
    rows = images[:, ::bin].astype(dtype)
    for k in range(1, bin):
        combine(rows, images[:, k::bin], out=rows, dtype=dtype, casting="unsafe")
    out = np.array(rows[:, :, ::bin])
    for k in range(1, bin):
        combine(out, rows[:, :, k::bin], out=out, dtype=dtype, casting="unsafe")
    return out
