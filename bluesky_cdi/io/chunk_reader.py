"""Frames of an HDF5 file by its chunks: read from the file and decompressed in several threads, without HDF5's lock.

HDF5 reads and decompresses in one thread at a time. Here it only says where the chunks lie; their bytes are read by the
system, and decompressed by the functions that hdf5plugin's filter itself calls.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import struct
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from bluesky_cdi.errors import ScanFileError
from bluesky_cdi.io.hdf5 import CheckedFile

# HDF5's number of the filter bitshuffle, and what its fifth parameter says was done after shuffling.
BITSHUFFLE, LZ4, ZSTD = 32008, 2, 3
# Before a chunk's blocks: its size and that of a block, bytes, big-endian.
HEADER = struct.Struct(">QI")
# Chunks that lie no further apart are read together, bytes: HDF5 keeps its index between them.
GAP_BYTES = 2**16

# Takes bytes, where in them chunks begin and how long each is; writes their values, one chunk after the other. Many at
# a time: what Python does for each holds up all other threads.
Decode = Callable[[npt.NDArray[np.uint8], npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[Any]], None]


class ChunkReader:
    """Reads rows of a dataset (n, H, W); each chunk holds whole frames.

    Chunks that are bitshuffled and compressed by LZ4 or Zstd, or not compressed, are read in threads; others by HDF5.
    The file may not grow meanwhile.

    Parameters
    ----------
    path : path
        The file.
    place : str
        The dataset.
    threads : int
        That read at a time.

    Attributes
    ----------
    shape : tuple of int
        (n, H, W).
    dtype : dtype
    is_direct : bool
        Whether chunks are read in threads.
    reading_s, decoding_s : float
        Seconds of all threads together in which bytes were read, and decompressed; 0 where HDF5 does both.

    Raises
    ------
    ScanFileError
        If there are no such frames.
    """

    def __init__(self, path: Path | str, place: str, threads: int) -> None:
        import hdf5plugin  # noqa: F401  # registers the compression filters of fast detectors

        try:
            self._file = CheckedFile(path)
            dataset = self._file[place]
        except (OSError, KeyError) as err:
            raise ScanFileError(f"no frames can be read from `{place}` of {path}: {err}") from err
        if not isinstance(dataset, h5py.Dataset) or dataset.ndim != 3:
            raise ScanFileError(f"`{place}` of {path} must be frames (n, H, W); it is {dataset}")
        self._dataset, self.shape, self.dtype = dataset, tuple(dataset.shape), dataset.dtype
        decode = _decoder(dataset)
        whole = dataset.chunks is not None and dataset.chunks[1:] == dataset.shape[1:]
        self._decode = decode if whole and not dataset.is_virtual else None
        self._chunk = dataset.chunks[0] if dataset.chunks is not None else 1
        self._places = self._index() if self._decode is not None else np.zeros((0, 2), np.int64)
        self._bytes = os.open(path, os.O_RDONLY)
        self._threads, self._pool = threads, ThreadPoolExecutor(threads, "bluesky_cdi-chunks")
        self.reading_s = self.decoding_s = 0.0
        self._counting = threading.Lock()

    @property
    def is_direct(self) -> bool:
        """Whether chunks are read in threads."""
        return self._decode is not None

    def read(self, start: int, stop: int, out: npt.NDArray[Any]) -> None:
        """Read rows.

        Parameters
        ----------
        start, stop : int
            The first, and the one after the last.
        out : ndarray, shape (stop - start, H, W)
            Gets them; of the dataset's type.

        Raises
        ------
        ScanFileError
            If a chunk was never written, or is damaged.
        """
        if self._decode is None:
            self._dataset.read_direct(out, np.s_[start:stop])
            return
        first, last = start // self._chunk, -(-stop // self._chunk)
        edges = np.linspace(first, last, min(self._threads, last - first) + 1).astype(int)
        parts = [
            self._pool.submit(self._read_chunks, int(low), int(high), start, out)
            for low, high in itertools.pairwise(edges)
        ]
        for part in parts:
            part.result()

    def close(self) -> None:
        """Close the file."""
        self._pool.shutdown()
        os.close(self._bytes)
        self._file.close()

    def __enter__(self) -> ChunkReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _index(self) -> npt.NDArray[np.int64]:
        """List where each chunk lies: offset and bytes, (chunks, 2); -1 where it was never written, or not filtered."""
        places = np.full((-(-self.shape[0] // self._chunk), 2), -1, np.int64)

        def note(info: Any) -> None:
            if not info.filter_mask:
                places[info.chunk_offset[0] // self._chunk] = info.byte_offset, info.size

        self._dataset.id.chunk_iter(note)
        return places

    def _read_chunks(self, low: int, high: int, start: int, out: npt.NDArray[Any]) -> None:
        """Read chunks, and put what of them is wanted into `out`, which begins with row `start`."""
        offsets, sizes = self._places[low:high].T
        if (missing := np.flatnonzero(offsets < 0)).size:
            raise self._not_there(low + int(missing[0]))
        # What lies together in the file is read at once, though something small may lie between.
        far = np.flatnonzero(np.diff(offsets) - sizes[:-1] != np.clip(np.diff(offsets) - sizes[:-1], 0, GAP_BYTES)) + 1
        for first, last in itertools.pairwise([0, *far.tolist(), len(offsets)]):
            begin, end = int(offsets[first]), int(offsets[last - 1] + sizes[last - 1])
            began = time.perf_counter()
            data = np.empty(end - begin, np.uint8)
            if os.preadv(self._bytes, [data.data], begin) < len(data):
                raise self._not_there(low + first)
            read = time.perf_counter()
            self._put(low + first, data, offsets[first:last] - begin, sizes[first:last], start, out)
            with self._counting:
                self.reading_s += read - began
                self.decoding_s += time.perf_counter() - read

    def _put(
        self,
        number: int,
        data: npt.NDArray[np.uint8],
        places: npt.NDArray[np.int64],
        sizes: npt.NDArray[np.int64],
        start: int,
        out: npt.NDArray[Any],
    ) -> None:
        """Decode chunks from `number` on into the rows that are theirs, of those that are wanted."""
        decode, rows = self._decode or _copy, self._chunk
        # Of these all rows are wanted.
        low = min(max(0, -(-(start - number * rows) // rows)), len(sizes))
        high = max(low, min(len(sizes), (start + len(out)) // rows - number))
        if high > low:
            first = (number + low) * rows - start
            decode(data, places[low:high], sizes[low:high], out[first : first + (high - low) * rows])
        for k in [*range(low), *range(high, len(sizes))]:
            block = np.empty((rows, *self.shape[1:]), self.dtype)
            decode(data, places[k : k + 1], sizes[k : k + 1], block)
            row = (number + k) * rows - start
            inside = slice(max(0, -row), min(rows, len(out) - row))
            out[max(0, row) : row + inside.stop] = block[inside]

    def _not_there(self, number: int) -> ScanFileError:
        return ScanFileError(
            f"rows from {number * self._chunk} of `{self._dataset.name}` of {self._dataset.file.filename} were never "
            "written, or the file is cut off"
        )


def _decoder(dataset: h5py.Dataset) -> Decode | None:
    """Find what decompresses the chunks of a dataset; None where that is left to HDF5."""
    filters = dataset.id.get_create_plist()
    if filters.get_nfilters() == 0:
        return _copy
    if filters.get_nfilters() != 1 or filters.get_filter(0)[0] != BITSHUFFLE:
        return None
    values = filters.get_filter(0)[2]
    name = {LZ4: "bshuf_decompress_lz4", ZSTD: "bshuf_decompress_zstd"}.get(values[4] if len(values) > 4 else 0)
    function = None if name is None else _plugin_function(name)
    return None if function is None else _unshuffled(function)


def _copy(
    data: npt.NDArray[np.uint8], places: npt.NDArray[np.int64], sizes: npt.NDArray[np.int64], out: npt.NDArray[Any]
) -> None:
    for place, size, part in zip(places.tolist(), sizes.tolist(), np.split(out, len(sizes)), strict=True):
        part[...] = data[place : place + size].view(out.dtype).reshape(part.shape)


def _plugin_function(name: str) -> Any:
    """Find a function of hdf5plugin's bitshuffle; None where its library does not have it."""
    import hdf5plugin

    library = Path(hdf5plugin.PLUGIN_PATH) / "libh5bshuf.so"
    try:
        function = getattr(ctypes.CDLL(str(library)), name)
    except (OSError, AttributeError):
        return None
    # In, out, values, bytes of a value, values of a block; the bytes that it took, or an error below 0.
    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_size_t]
    function.restype = ctypes.c_int64
    return function


def _unshuffled(function: Any) -> Decode:
    """Make a decoder of a function of bitshuffle; ctypes lets other threads run while it works."""

    def decode(
        data: npt.NDArray[np.uint8], places: npt.NDArray[np.int64], sizes: npt.NDArray[np.int64], out: npt.NDArray[Any]
    ) -> None:
        width, number = out.dtype.itemsize, len(sizes)
        of_chunk, values = out.nbytes // number, out.size // number
        heads = np.array([HEADER.unpack_from(data.data, place) for place in places.tolist()])
        if len(wrong := heads[heads[:, 0] != of_chunk, 0]):
            raise ScanFileError(f"a chunk must hold {of_chunk} bytes; it says {wrong[0]}")
        begins = (data.__array_interface__["data"][0] + HEADER.size + places).tolist()
        targets = range(out.__array_interface__["data"][0], out.__array_interface__["data"][0] + out.nbytes, of_chunk)
        blocks, lengths = (heads[:, 1] // width).tolist(), (sizes - HEADER.size).tolist()
        for begin, target, block, length in zip(begins, targets, blocks, lengths, strict=True):
            if (taken := function(begin, target, values, width, block)) != length:
                raise ScanFileError(f"a chunk of {length + HEADER.size} bytes is damaged (bitshuffle gives {taken})")

    return decode
