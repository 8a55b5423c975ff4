"""The counts of a run's frames, and which of their pixels are valid."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bluesky_cdi.errors import FrameError
from bluesky_cdi.io.beam_centre import find_beam_centre
from bluesky_cdi.physics.likelihood import mean_over_valid, poisson_deviance
from bluesky_cdi.physics.propagators import FarField, Propagator
from bluesky_cdi.reconstruction.bad_pixels import valid_pixels
from bluesky_cdi.reconstruction.count_store import CountStore
from bluesky_cdi.reconstruction.tiles import IndexArray

BoolArray = npt.NDArray[np.bool_]

# Bytes of frames read at a time: what is read is a copy beside the one that is computed with.
CHUNK_BYTES = 2**24
# Rows by which what is known of each frame grows at least.
GROWTH = 256
# Frames that show how much they differ from each other.
PLAIN_FRAMES = 32


class MeasuredCounts:
    """Counts by row, on their way from the store to the device that computes.

    Parameters
    ----------
    side : int
        Pixels along one side of a frame, N.
    device : torch.device
        Where they are computed with.
    propagator : Propagator
        From the sample to the detector.
    memory_bytes : int
        Most bytes of counts held in memory; see `CountStore`.
    known_mask : ndarray, shape (N, N), bool, optional
        Pixels that are valid as far as is known before `find_bad_pixels`; all by default.

    Attributes
    ----------
    mask : Tensor, shape (N, N), bool, or None
        The valid pixels, in the propagator's working order; None: all.
    off_centre_px : tuple of float or None
        Where the direct beam of the first frames lies from the middle (rows, columns), pixels; None in the near field,
        and where it is not found.
    """

    def __init__(
        self,
        side: int,
        device: torch.device,
        propagator: Propagator,
        memory_bytes: int,
        known_mask: BoolArray | None = None,
    ) -> None:
        self.mask: Tensor | None = None
        self.off_centre_px: tuple[float, float] | None = None
        self._side, self._device, self._propagator = side, device, propagator
        self._known_mask = np.ones((side, side), bool) if known_mask is None else np.asarray(known_mask, dtype=bool)
        self._store = CountStore(side, memory_bytes)
        # By row; NaN where they are not summed yet.
        self._photons: npt.NDArray[np.float64] = np.zeros(0)
        self._cached: tuple[IndexArray, Tensor] | None = None
        self._plain: tuple[int, float | None] | None = None

    def put(self, row: int, counts: npt.NDArray[Any]) -> None:
        """Keep a frame, (N, N), as the last one or in the place of an earlier one.

        Parameters
        ----------
        row : int
            Its place.
        counts : ndarray, shape (N, N)
            As measured.
        """
        if row >= len(self._photons):
            self._photons = np.concatenate([self._photons, np.full(max(GROWTH, row), np.nan)])
        self._photons[row] = np.nan
        # A flag (NaN, -1, the type's maximum) times 0 need not be 0: it goes before anything is computed.
        counts = counts if self._known_mask.all() else np.where(self._known_mask, counts, 0)
        if row < len(self._store):
            self._store.replace(row, counts)
            self._cached = None
        else:
            self._store.append(counts)

    def use_mask(self, valid: BoolArray) -> None:
        """State the valid pixels, (N, N), bool, as the detector has them."""
        self.mask = self._propagator.to_working(torch.from_numpy(valid)).to(self._device)
        self._photons[:] = np.nan

    def find_bad_pixels(self, rows: IndexArray) -> bool:
        """Leave out the pixels that some frames show to be hot or dead; whether the mask is another one now."""
        counts = self._store.read(rows)
        before = self.mask
        # One frame may have a bright speckle that a second one moves.
        valid = self._known_mask & valid_pixels(counts) if len(counts) > 1 else self._known_mask
        self.use_mask(valid)
        if isinstance(self._propagator, FarField) and len(counts):
            self.off_centre_px = _off_centre_px(counts.mean(axis=0), valid)
        return before is None or not torch.equal(before, self.mask)  # type: ignore[arg-type]  # `use_mask` has set it

    def photons(self) -> npt.NDArray[np.float64]:
        """Sum the valid pixels of each frame, by row, (n,)."""
        found = self._photons[: len(self._store)]
        missing = np.flatnonzero(np.isnan(found))
        for rows in self._few(missing):
            found[rows] = self._valid(rows).sum(dim=(-2, -1)).cpu().numpy()
        return found

    def plain_residual(self, rows: IndexArray) -> float | None:
        """Compute the mean deviance of frames, spread over some, if each were like their mean but for its photons.

        It knows nothing of object and probe: an image must explain its frames far better. None for fewer than two.

        Parameters
        ----------
        rows : ndarray, shape (n,)
            The frames with light; it is computed again where their number is another one.
        """
        if self._plain is None or self._plain[0] != len(rows):
            some = rows[np.unique(np.linspace(0, len(rows) - 1, PLAIN_FRAMES).round().astype(np.int64))]
            self._plain = len(rows), self._deviance_of_mean(some) if len(some) > 1 else None
        return self._plain[1]

    def working(self, rows: IndexArray) -> Tensor:
        """Give frames in the propagator's working order; kept until others are asked for, if memory has room.

        Parameters
        ----------
        rows : ndarray, shape (n,)
            Which.

        Returns
        -------
        Tensor, shape (n, N, N), float32
        """
        if self._cached is not None and np.array_equal(self._cached[0], rows):
            return self._cached[1]
        self._cached = None
        counts = self._read(rows)
        if counts.nbytes <= self._store.room:
            self._cached = rows.copy(), counts
        return counts

    def checkpoint(self) -> dict[str, npt.NDArray[Any]]:
        """Give the masks, and where the beam is."""
        mask = {} if self.mask is None else {"mask": self.mask.cpu().numpy()}
        centre = {} if self.off_centre_px is None else {"off_centre_px": np.array(self.off_centre_px)}
        return {**mask, **centre, "known_mask": self._known_mask}

    def restore_known(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take what was known of the pixels beforehand: it comes before any frame, of which nothing masked is kept."""
        self._known_mask = state["known_mask"].copy()

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take the other things that `checkpoint` gave.

        Parameters
        ----------
        state : Mapping
            Of the checkpoint.
        """
        self.mask = torch.from_numpy(state["mask"].copy()).to(self._device) if "mask" in state else None
        if "off_centre_px" in state:
            row, column = state["off_centre_px"].tolist()
            self.off_centre_px = row, column

    def _read(self, rows: IndexArray) -> Tensor:
        """Read frames, block by block: beside what is given there is one block of copies at a time."""
        counts = torch.empty((len(rows), self._side, self._side), dtype=torch.float32, device=self._device)
        first = 0
        for few in self._few(rows):
            part = torch.from_numpy(self._store.read(few)).to(self._device)
            counts[first : first + len(few)] = self._propagator.to_working(part)
            first += len(few)
        return counts

    def _few(self, rows: IndexArray) -> Iterator[IndexArray]:
        """Give some rows at a time, in their order."""
        step = max(1, CHUNK_BYTES // (4 * self._side**2))
        for first in range(0, len(rows), step):
            yield rows[first : first + step]

    def _valid(self, rows: IndexArray) -> Tensor:
        """Read frames with 0 in the pixels that are not valid."""
        counts = self._read(rows)
        return counts if self.mask is None else torch.where(self.mask, counts, 0.0)

    def _deviance_of_mean(self, rows: IndexArray) -> float:
        counts = self._valid(rows)
        total, photons = counts.sum(dim=0), counts.sum(dim=(-2, -1)).clamp_min(1.0)[:, None, None]
        # Of all others: a frame is no evidence of what it looks like. A little light everywhere, for pixels that
        # count a photon in one frame only.
        others = total - counts + 0.5
        likeness = others / others.sum(dim=(-2, -1), keepdim=True)
        return float(mean_over_valid(poisson_deviance(photons * likeness, counts), self.mask).mean())


def _off_centre_px(mean: npt.NDArray[Any], valid: BoolArray) -> tuple[float, float] | None:
    try:
        row, column = find_beam_centre(mean, valid)
    except FrameError:
        return None
    side = len(mean)
    return row - side // 2, column - side // 2
