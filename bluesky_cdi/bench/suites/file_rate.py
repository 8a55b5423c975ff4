"""How many frames a second come from an HDF5 file into the stitched image, and what limits that.

Frames of a simulated raster lie in a file, each a chunk, bitshuffled and compressed by LZ4, as fast detectors do it.
They are read, decompressed, copied to the device, read by the network once, and stitched into one object.
"""

from __future__ import annotations

import math
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bluesky_cdi.bench.machine import Stopwatch, record, synchronise
from bluesky_cdi.bench.suites.throughput import Measured, Workload, simulate, textured
from bluesky_cdi.errors import BlueskyCDIError
from bluesky_cdi.models.unrolled import UnrolledNet
from bluesky_cdi.models.weights import load_weights
from bluesky_cdi.physics.geometry import ObjectGrid
from bluesky_cdi.protocols import ComplexArray

DATASET = "entry/data/data"
# Where less of the slowest part's rate is reached, the parts hold each other up.
ALONE_SHARE = 0.8
# Threads that read and decompress, at most: between two chunks each needs Python for some microseconds, and so does the
# thread that starts the device's work.
THREADS_MAX = 8


@dataclass(frozen=True)
class Options:
    """What is measured.

    Parameters
    ----------
    frames : int
        Of the scan, or a few less: it is a square.
    frame_px : int
        N.
    batch : int
        Frames read by the network at a time.
    seconds : float
        The scan is stitched again until so much time has passed, and once at least.
    weights : str
        The network's name or file.
    readers : int, optional
        Threads that read and decompress; one a core, up to `THREADS_MAX`, if absent.
    """

    frames: int = 100_000
    frame_px: int = 128
    batch: int = 4096
    seconds: float = 60.0
    weights: str = "canvas-small"
    readers: int | None = None


def file_rate(
    device: torch.device, options: Options | None = None, on_progress: Callable[[str], None] | None = None
) -> dict[str, Any]:
    """Measure the whole way, and its two halves alone.

    Parameters
    ----------
    device : torch.device
        Device that computes.
    options : Options, optional
        The documented ones if absent.
    on_progress : callable, optional
        Called with what is done next.

    Returns
    -------
    dict
        ``machine``, ``settings``, and ``file``: ``frames``, ``object_px``, ``bytes_per_frame`` in the file,
        ``frames_per_s`` of each pass from file to image, ``waiting_share`` of the time in which the computing thread
        waited for frames, ``busy_share`` in which the device computed or waited for its next kernel,
        ``stages_us_per_frame`` (``reading`` and ``decompressing`` of a thread; ``copying``, ``placing``, ``network``
        and ``stitching`` of the device), ``alone_frames_per_s`` (``reading``: read and decompressed, nothing computed;
        ``copying`` to the device, by its time on the way; ``computing``: frames in the device's memory, nothing read),
        the ``slowest`` of these, ``limit`` (that, or ``together`` where less than `ALONE_SHARE` of its rate is
        reached), ``is_direct`` (whether chunks are read in threads), ``reading_threads``, ``cpu_us_per_frame``,
        ``complex_nrmse`` to the truth, but for its border.

    Raises
    ------
    BlueskyCDIError
        If a package is missing.
    """
    options, tell = options or Options(), on_progress or (lambda _: None)
    work = Workload(options.frame_px, 1, math.isqrt(options.frames))
    tell(f"simulating {work.frames} frames of {work.frame_px}x{work.frame_px}")
    measured = simulate(work, device)
    with tempfile.TemporaryDirectory(prefix="bluesky_cdi-") as name:
        path = Path(name) / "frames.h5"
        tell("writing them")
        _write(path, measured)
        net = load_weights(options.weights, device).unrolled_net
        if net is None:
            raise BlueskyCDIError(f"frames are stitched by an unrolled network; {options.weights} is none")
        found = _measured(net, path, measured, work, device, options, tell)
    truth = textured(work.grid_px, np.random.default_rng(0), device).cpu().numpy()
    found["complex_nrmse"] = _error(found.pop("object"), truth, work.frame_px // 2)
    return record([device], asdict(options), file=found)


def _write(path: Path, measured: Measured) -> None:
    try:
        import h5py
        import hdf5plugin
    except ImportError as err:
        raise BlueskyCDIError(f"files of frames need h5py and hdf5plugin: pip install h5py hdf5plugin ({err})") from err
    counts = measured.counts.numpy()
    with h5py.File(path, "w", libver="latest") as file:
        file.create_dataset(DATASET, data=counts, chunks=(1, *counts.shape[1:]), **hdf5plugin.Bitshuffle(cname="lz4"))


def _measured(
    net: UnrolledNet,
    path: Path,
    measured: Measured,
    work: Workload,
    device: torch.device,
    options: Options,
    tell: Callable[[str], None],
) -> dict[str, Any]:
    from bluesky_cdi.io.chunk_reader import ChunkReader
    from bluesky_cdi.reconstruction.file_stream import FileStream

    grid = ObjectGrid((0.0, 0.0), (work.grid_px, work.grid_px), 1.0, work.frame_px)
    centre, probe = measured.centre_px.numpy(), measured.probe[0].numpy()
    threads = options.readers or min(THREADS_MAX, os.cpu_count() or 1)

    def stream(frames: int) -> FileStream:
        return FileStream(net, probe, grid, centre[:frames], device, options.batch)

    with ChunkReader(path, DATASET, threads) as reader:
        tell("warming up")
        stream(min(work.frames, 2 * options.batch)).run(reader)
        tell("from file to image")
        reader.reading_s = reader.decoding_s = 0.0
        passes: list[float] = []
        waited, watch, obj = 0.0, Stopwatch(device), torch.empty(0)
        spent: defaultdict[str, float] = defaultdict(float)
        while not passes or watch.seconds < options.seconds:
            before, one = watch.seconds, stream(work.frames)
            with watch:
                obj = one.run(reader)
            passes.append(work.frames / (watch.seconds - before))
            waited += one.times.waiting_s
            for stage, seconds in one.times.seconds().items():
                spent[stage] += seconds
        spent["reading"], spent["decompressing"] = reader.reading_s, reader.decoding_s
        done = work.frames * len(passes)
        tell("reading alone, computing alone")
        alone = {"reading": _reading(reader, options.batch)}
        if "copying" in spent:
            alone["copying"] = done / spent["copying"]
        alone["computing"] = _computing(
            stream(min(work.frames, options.batch)), measured.counts[: options.batch], device
        )
        return {
            "frames": work.frames,
            "object_px": list(grid.shape),
            "bytes_per_frame": path.stat().st_size / work.frames,
            "frames_per_s": passes,
            "frames_per_s_median": statistics.median(passes),
            "seconds": watch.seconds,
            "waiting_share": waited / watch.seconds,
            "busy_share": (spent["placing"] + spent["network"] + spent["stitching"]) / watch.seconds,
            "stages_us_per_frame": {stage: 1e6 * seconds / done for stage, seconds in spent.items()},
            "alone_frames_per_s": alone,
            "slowest": (slowest := min(alone, key=alone.__getitem__)),
            "limit": slowest if statistics.median(passes) >= ALONE_SHARE * alone[slowest] else "together",
            "is_direct": reader.is_direct,
            "reading_threads": threads,
            "cpu_us_per_frame": 1e6 * watch.cpu_seconds / done,
            "object": obj[0].cpu().numpy(),
        }


def _reading(reader: Any, batch: int) -> float:
    """Read all frames; frames/s."""
    out, began = np.empty((batch, *reader.shape[1:]), reader.dtype), time.perf_counter()
    for first in range(0, reader.shape[0], batch):
        stop = min(first + batch, reader.shape[0])
        reader.read(first, stop, out[: stop - first])
    return float(reader.shape[0] / (time.perf_counter() - began))


def _computing(stream: Any, counts: Tensor, device: torch.device) -> float:
    """Stitch one batch again and again, from the device's memory; frames/s."""
    here, times = counts.to(device), []
    for _ in range(3):
        began = time.perf_counter()
        with torch.no_grad():
            stream.stitch(0, here)
        synchronise(device)
        times.append(time.perf_counter() - began)
    return len(counts) / statistics.median(times)


def _error(obj: ComplexArray, truth: ComplexArray, border_px: int) -> float:
    """Compute the complex NRMSE but for a border, where few frames have thrown light."""
    inside = np.s_[border_px:-border_px, border_px:-border_px]
    found, true = obj[inside], truth[inside]
    scaled = found * (np.vdot(found, true) / np.vdot(found, found))
    return float(np.linalg.norm(scaled - true) / np.linalg.norm(true - true.mean()))
