"""A scan's frames from their file to the stitched object, as fast as the device computes.

While a batch is computed the next ones are read and decompressed in threads, into page-locked memory where a GPU
computes, and copied to it. Each batch is read by the network once, alone, and stitched into the object as live frames
are that are read quickly.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bluesky_cdi.io.chunk_reader import ChunkReader
from bluesky_cdi.models.unrolled import UnrolledNet
from bluesky_cdi.physics.forward import Diffraction, to_corner
from bluesky_cdi.physics.geometry import ObjectGrid
from bluesky_cdi.physics.illumination import summed_illumination
from bluesky_cdi.protocols import ComplexArray, FloatArray
from bluesky_cdi.reconstruction.object_map import ObjectMap
from bluesky_cdi.reconstruction.tiles import Box, box_of

# Batches that are read ahead, while one is computed and one is copied.
AHEAD = 3


@dataclass
class Waited:
    """Seconds that the computing thread waited for frames, and in all."""

    for_frames_s: float = 0.0
    in_all_s: float = 0.0


class FileStream:
    """Stitches a recorded scan.

    Parameters
    ----------
    net : UnrolledNet
        On the device.
    probe : ndarray, shape (M, N, N), complex
        In sqrt(photons).
    grid : ObjectGrid
        Holds all frames.
    positions_m : ndarray, shape (n, 2)
        (y, x) of the frames, metres. Frames that follow one another lie near each other: a batch is computed on the
        rectangle that it covers.
    device : torch.device
    batch : int
        Frames read by the network at a time.

    Attributes
    ----------
    map : ObjectMap
        What is known of the object by now.
    waited : Waited
        Where time went.
    """

    def __init__(
        self,
        net: UnrolledNet,
        probe: ComplexArray,
        grid: ObjectGrid,
        positions_m: FloatArray,
        device: torch.device,
        batch: int,
    ) -> None:
        self._net, self._grid, self._device, self._batch = net, grid, device, batch
        self._probe = torch.from_numpy(np.asarray(probe, np.complex64)).to(device)[None]
        self._corner, self._shift = grid.place(positions_m)
        self.map = ObjectMap(grid.shape, grid.frame_px, True, device)
        self.waited = Waited()

    @torch.no_grad()
    def run(self, reader: ChunkReader) -> Tensor:
        """Read all frames and stitch them.

        Parameters
        ----------
        reader : ChunkReader
            Its row k is the frame at position k.

        Returns
        -------
        Tensor, shape (1, Y, X), complex64
            The object, computed to its end.
        """
        began = time.perf_counter()
        for first, counts in self._counts(reader):
            self.stitch(np.arange(first, first + len(counts)), counts)
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self.waited.in_all_s += time.perf_counter() - began
        return self.map.object

    def _counts(self, reader: ChunkReader) -> Iterator[tuple[int, Tensor]]:
        """Give batches on the device, each with its first row; the next ones are read meanwhile."""
        is_cuda, total = self._device.type == "cuda", len(self._corner)
        dtype = torch.from_numpy(np.empty(0, reader.dtype)).dtype
        buffers = [torch.empty((self._batch, *reader.shape[1:]), dtype=dtype, pin_memory=is_cuda) for _ in range(AHEAD)]
        copied: list[torch.cuda.Event | None] = [None] * AHEAD

        def read(number: int) -> Tensor:
            # The batch before may still be on its way from this buffer.
            if (event := copied[number % AHEAD]) is not None:
                event.synchronize()
            first, stop = number * self._batch, min((number + 1) * self._batch, total)
            part = buffers[number % AHEAD][: stop - first]
            reader.read(first, stop, part.numpy())
            return part

        batches = range(-(-total // self._batch))
        copying = torch.cuda.Stream(self._device) if is_cuda else None  # type: ignore[no-untyped-call]
        with ThreadPoolExecutor(1, "bluesky_cdi-reading") as pool:
            reads: list[Future[Tensor]] = [pool.submit(read, number) for number in batches[: AHEAD - 1]]
            for number in batches:
                waiting = time.perf_counter()
                part = reads.pop(0).result()
                self.waited.for_frames_s += time.perf_counter() - waiting
                if copying is None:
                    counts = part.clone()
                else:
                    with torch.cuda.stream(copying):
                        counts = part.to(self._device, non_blocking=True)
                        copied[number % AHEAD] = copying.record_event()
                    torch.cuda.current_stream(self._device).wait_stream(copying)
                    counts.record_stream(torch.cuda.current_stream(self._device))
                if number + AHEAD - 1 < len(batches):
                    reads.append(pool.submit(read, number + AHEAD - 1))
                yield number * self._batch, counts

    def stitch(self, rows: npt.NDArray[np.int64], counts: Tensor) -> None:
        """Read a batch by the network, and stitch it in.

        Parameters
        ----------
        rows : ndarray, shape (n,)
            Which frames.
        counts : Tensor, shape (n, N, N)
            Theirs, on the device.
        """
        box = box_of(self._corner[rows], self._grid.frame_px, self._grid.shape)
        data = self._placed(rows, counts, box)
        self.map.stitch(box, self._net(self._probe, data)[-1], summed_illumination(self._probe, data))

    def _placed(self, rows: npt.NDArray[np.int64], counts: Tensor, box: Box) -> Diffraction:
        corner = torch.from_numpy(self._corner[rows] - np.asarray(box.low)).to(self._device)
        shift = torch.from_numpy(self._shift[rows]).to(self._device, torch.float32)
        return Diffraction(to_corner(counts.to(torch.float32)), corner, shift, (1, *box.shape))
