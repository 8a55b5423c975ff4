"""A scan's frames from their file to the stitched object, as fast as the device computes.

While a batch is computed the next ones are read and decompressed in threads, into page-locked memory where a GPU
computes, and copied to it: nothing that is done to a batch on a GPU makes Python wait for it. Each batch is read by the
network once, alone, and stitched into the object as live frames are that are read quickly.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
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
# Batches on the device: one is computed, one arrives.
ON_DEVICE = 2

# The row of its first frame, and counts (n, N, N).
_Batch = tuple[int, Tensor]


@dataclass
class StageTimes:
    """Seconds that each stage took: of a GPU by its own clock, in the order of its work; else by the clock.

    Parameters
    ----------
    device : torch.device

    Attributes
    ----------
    waiting_s : float
        That the thread which starts the device's work waited for frames that were not read yet.
    """

    device: torch.device
    waiting_s: float = 0.0
    _seconds: dict[str, float] = field(default_factory=dict)
    _events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = field(default_factory=list)

    @contextmanager
    def of(self, stage: str) -> Iterator[None]:
        """Measure what is done within, on a GPU in the stream that is the current one.

        Parameters
        ----------
        stage : str
            Its name.
        """
        if self.device.type == "cuda":
            stream = torch.cuda.current_stream(self.device)
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            first.record(stream)
            yield
            last.record(stream)
            self._events.append((stage, first, last))
            return
        began = time.perf_counter()
        yield
        self._add(stage, time.perf_counter() - began)

    def seconds(self) -> dict[str, float]:
        """Give the sum of each stage, once the device has done all."""
        for stage, first, last in self._events:
            last.synchronize()
            self._add(stage, first.elapsed_time(last) / 1e3)
        self._events.clear()
        return dict(self._seconds)

    def _add(self, stage: str, seconds: float) -> None:
        self._seconds[stage] = self._seconds.get(stage, 0.0) + seconds


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
    times : StageTimes
        Where time went: ``copying`` to the device, ``placing``, ``network`` and ``stitching``.
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
        self._corner, shift = grid.place(positions_m)
        self._corner_there = torch.from_numpy(self._corner).to(device)
        self._shift_there = torch.from_numpy(shift).to(device, torch.float32)
        self.map = ObjectMap(grid.shape, grid.frame_px, True, device)
        self.times = StageTimes(device)

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
        counted = self._copied(reader) if self._device.type == "cuda" else self._read(reader)
        for first, counts in counted:
            self.stitch(first, counts)
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return self.map.object

    def _read(self, reader: ChunkReader, copied: list[torch.cuda.Event | None] | None = None) -> Iterator[_Batch]:
        """Give batches in the host's memory, each with its first row; the next ones are read meanwhile.

        Each holds until the next is asked for, or on a GPU until its copy is over, which `copied` tells.
        """
        is_pinned, total = copied is not None, len(self._corner)
        dtype = torch.from_numpy(np.empty(0, reader.dtype)).dtype
        shape = (min(self._batch, total), *reader.shape[1:])
        buffers = [torch.empty(shape, dtype=dtype, pin_memory=is_pinned) for _ in range(AHEAD)]

        def read(number: int) -> Tensor:
            # The batch before may still be on its way from this buffer.
            if copied is not None and (event := copied[number % AHEAD]) is not None:
                event.synchronize()
            first, stop = number * self._batch, min((number + 1) * self._batch, total)
            part = buffers[number % AHEAD][: stop - first]
            reader.read(first, stop, part.numpy())
            return part

        batches = range(-(-total // self._batch))
        with ThreadPoolExecutor(1, "bluesky_cdi-reading") as pool:
            reads: list[Future[Tensor]] = [pool.submit(read, number) for number in batches[: AHEAD - 1]]
            for number in batches:
                waiting = time.perf_counter()
                part = reads.pop(0).result()
                self.times.waiting_s += time.perf_counter() - waiting
                # Into the buffer of the batch before, which is computed, or whose copy has begun.
                if number + AHEAD - 1 < len(batches):
                    reads.append(pool.submit(read, number + AHEAD - 1))
                yield number * self._batch, part

    def _copied(self, reader: ChunkReader) -> Iterator[_Batch]:
        """Give batches on the GPU, each with its first row; the next one is copied while one is computed."""
        copying = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        computing = torch.cuda.current_stream(self._device)
        copied: list[torch.cuda.Event | None] = [None] * AHEAD
        computed: list[torch.cuda.Event | None] = [None] * ON_DEVICE
        there: list[Tensor | None] = [None] * ON_DEVICE
        for number, (first, part) in enumerate(self._read(reader, copied)):
            place = number % ON_DEVICE
            if (event := computed[place]) is not None:
                # Python runs no further ahead of the device than this.
                event.synchronize()
            if (room := there[place]) is None:
                room = there[place] = torch.empty(part.shape, dtype=part.dtype, device=self._device)
                # What is still to be computed may use the memory until then.
                copying.wait_stream(computing)
            with torch.cuda.stream(copying), self.times.of("copying"):
                counts = room[: len(part)].copy_(part, non_blocking=True)
            copied[number % AHEAD] = copying.record_event()
            computing.wait_stream(copying)
            yield first, counts
            computed[place] = computing.record_event()

    def stitch(self, first: int, counts: Tensor) -> None:
        """Read a batch by the network, and stitch it in.

        Parameters
        ----------
        first : int
            Row of its first frame; the others follow.
        counts : Tensor, shape (n, N, N)
            Theirs, on the device.
        """
        rows = slice(first, first + len(counts))
        box = box_of(self._corner[rows], self._grid.frame_px, self._grid.shape)
        with self.times.of("placing"):
            data = self._placed(rows, counts, box)
        with self.times.of("network"):
            obj = self._net(self._probe, data)[-1]
        with self.times.of("stitching"):
            self.map.stitch(box, obj, summed_illumination(self._probe, data))

    def _placed(self, rows: slice, counts: Tensor, box: Box) -> Diffraction:
        corner = self._corner_there[rows].clone()
        corner[:, 0] -= box.low[0]
        corner[:, 1] -= box.low[1]
        return Diffraction(to_corner(counts.to(torch.float32)), corner, self._shift_there[rows], (1, *box.shape))
