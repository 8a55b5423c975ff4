"""The counts of a run's frames, kept once, in bounded memory."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bluesky_cdi.errors import WorkerError

# Memory is taken in blocks of this size; the system backs their pages as they are written.
BLOCK_BYTES = 2**26
# Each file is as large as all before it, up to this: a process may hold about a thousand files open.
LARGEST_FILE_BYTES = 2**30

Counts = npt.NDArray[Any]


class CountStore:
    """Frames in the order in which they came, in their own integer type.

    Floating-point frames, and integers wider than 32 bits, are kept as float32: that is what is computed with.
    Beyond `memory_bytes` frames go to memory-mapped files without a name in the system's folder for
    temporary files (``TMPDIR``), which the system removes with the process.

    Parameters
    ----------
    side : int
        Pixels along one side of a frame, N.
    memory_bytes : int
        Most bytes of counts held in memory.
    """

    def __init__(self, side: int, memory_bytes: int) -> None:
        self._side = side
        self._memory_bytes = memory_bytes
        self._blocks: list[Counts] = []
        # Of each type the block that still has room, and how many of its frames are taken.
        self._open: dict[np.dtype[Any], tuple[int, int]] = {}
        self._places: list[tuple[int, int]] = []
        self.memory_held = self.file_held = 0

    def __len__(self) -> int:
        return len(self._places)

    @property
    def room(self) -> int:
        """Bytes of memory that are not taken yet."""
        return max(0, self._memory_bytes - self.memory_held)

    def append(self, counts: Counts) -> None:
        """Keep a frame (N, N) as the last one."""
        self._places.append(self._stored(counts))

    def replace(self, row: int, counts: Counts) -> None:
        """Keep a frame in the place of an earlier one.

        Parameters
        ----------
        row : int
            Number of the earlier frame, from 0.
        counts : ndarray, shape (N, N)
            The frame.
        """
        block, slot = self._places[row]
        if np.can_cast(_kept_type(counts), self._blocks[block].dtype, "safe"):
            self._blocks[block][slot] = counts
        else:
            self._places[row] = self._stored(counts)

    def __getitem__(self, row: int) -> Counts:
        """Give a copy of frame number `row`, (N, N), in the type in which it is kept."""
        block, slot = self._places[row]
        return np.array(self._blocks[block][slot])

    def read(self, rows: Sequence[int] | npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.float32]:
        """Give copies of some frames, (n, N, N)."""
        out = np.empty((len(rows), self._side, self._side), dtype=np.float32)
        for k, row in enumerate(rows):
            block, slot = self._places[row]
            out[k] = self._blocks[block][slot]
        return out

    def _stored(self, counts: Counts) -> tuple[int, int]:
        kind = _kept_type(counts)
        block, slot = self._open.get(kind, (-1, 0))
        if block < 0 or slot == len(self._blocks[block]):
            self._blocks.append(self._new_block(kind))
            block, slot = len(self._blocks) - 1, 0
        self._blocks[block][slot] = counts
        self._open[kind] = block, slot + 1
        return block, slot

    def _new_block(self, kind: np.dtype[Any]) -> Counts:
        frame_bytes = self._side**2 * kind.itemsize
        number = min(BLOCK_BYTES, self.room) // frame_bytes
        if number:
            self.memory_held += number * frame_bytes
            return np.empty((number, self._side, self._side), dtype=kind)
        number = max(1, min(LARGEST_FILE_BYTES, max(BLOCK_BYTES, self.file_held)) // frame_bytes)
        mapped = _mapped((number, self._side, self._side), kind)
        self.file_held += number * frame_bytes
        return mapped


def _kept_type(counts: Counts) -> np.dtype[Any]:
    whole = counts.dtype.kind in "biu" and counts.dtype.itemsize <= 4
    return counts.dtype.newbyteorder("=") if whole else np.dtype(np.float32)


def _mapped(shape: tuple[int, int, int], kind: np.dtype[Any]) -> Counts:
    """Make an array in a file without a name, which lives as long as the array."""
    size = int(np.prod(shape)) * kind.itemsize
    try:
        with tempfile.TemporaryFile(prefix="bluesky_cdi-") as file:
            if hasattr(os, "posix_fallocate"):
                # Writing to a mapped file that finds the disk full would end the process.
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                file.truncate(size)
            return np.memmap(file, dtype=kind, mode="r+", shape=shape)
    except OSError as err:
        raise WorkerError(
            f"no room for {size / 2**20:.0f} MiB of frames in {tempfile.gettempdir()}: {err}. "
            "Raise reconstructor.memory_mb, or set TMPDIR to a folder on a larger disk"
        ) from err
