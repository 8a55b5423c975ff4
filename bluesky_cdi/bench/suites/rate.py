"""What the live pipeline keeps up with: from a frame's documents to an image with it, at given rates.

A raster of simulated frames lies in an HDF5 file, each frame a chunk. A process of its own sends the scan's documents
at a rate; this process does with them what the reconstruction's process of a session does, with the same parts:
documents are buffered, assembled to frames, reconstructed and published.
"""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from bluesky_cdi.agent.patterns import raster
from bluesky_cdi.bench.beamline import error_of, half_window_m, measured_frames, reconstructor_of
from bluesky_cdi.bench.machine import record
from bluesky_cdi.bench.paced_run import DATASET, Form, PacedRun, Sender
from bluesky_cdi.config import Config, load_config
from bluesky_cdi.evaluation.pipeline import KEY
from bluesky_cdi.journal import Journal
from bluesky_cdi.live.flow import FrameFlow
from bluesky_cdi.live.parts import Pace
from bluesky_cdi.live.steps import Steps
from bluesky_cdi.physics.geometry import Geometry
from bluesky_cdi.protocols import Estimate, FloatArray, Frame, QuickReader, RunInfo, ScanArea
from bluesky_cdi.reconstruction.online import PtychoReconstructor
from bluesky_cdi.sim_devices import SimulatedSource

# Replays: frames a second, form of the documents, seconds. Half of the rate that is to be sustained comes first.
REPLAYS: tuple[tuple[float, Form, float], ...] = (
    (100, "rows", 15),
    (200, "rows", 15),
    (200, "pages", 15),
    (400, "rows", 10),
    (400, "pages", 10),
    (1000, "pages", 4),
)
ON_GPU: tuple[tuple[float, Form, float], ...] = (
    (500, "rows", 10),
    (1000, "pages", 10),
    (2000, "pages", 8),
    (4000, "pages", 4),
)
# A replay at a rate that is named, seconds.
NAMED_S = 10.0
# Frames along a side of the scan.
SIDE, SIDE_ON_GPU = 64, 128
# How long the frames that are not in the image when a scan ends are waited for, seconds.
MOST_S = 40.0
LOOK_S = 0.02
# Quality is judged on so many frames along a side, which come so many at a time, and by steps that may take so long.
JUDGED_SIDE, TAKEN, LONG_S = 20, 50, 1e6
# Frames of a replay that is not told of: libraries are loaded, and memory is taken, in the first one.
WARM_UP = 200


@dataclass(frozen=True)
class Options:
    """What is measured.

    Parameters
    ----------
    side : int
        Frames along each side of the raster.
    weights : str
        The network's name or file.
    threads : int
        CPU threads of the reconstruction.
    rates : sequence of float, optional
        Frames a second, each sent in both forms; those of `REPLAYS`, or on a GPU of `ON_GPU`, if absent.
    share : float
        Of the usual seconds that each is sent for.
    device : str
        Where is computed, as PyTorch calls it.
    latency_s : float, optional
        `reconstructor.latency_s`, seconds; its default if absent.
    """

    side: int = SIDE
    weights: str = "canvas-small"
    threads: int = 1
    rates: Sequence[float] | None = None
    share: float = 1.0
    device: str = "cpu"
    latency_s: float | None = None

    @property
    def replays(self) -> Sequence[tuple[float, Form, float]]:
        """Frames a second, form of the documents, and seconds of each replay."""
        usual = REPLAYS if self.device == "cpu" else ON_GPU
        if self.rates is None:
            return usual
        seconds = {frames_s: each_s for frames_s, _, each_s in usual}
        forms: tuple[Form, Form] = ("rows", "pages")
        return [(frames_s, form, seconds.get(frames_s, NAMED_S)) for frames_s in self.rates for form in forms]


def rate(options: Options | None = None, on_progress: Callable[[str], None] | None = None) -> dict[str, Any]:
    """Measure the assembler alone, and replay the scan at all rates.

    Parameters
    ----------
    options : Options, optional
        The documented ones if absent.
    on_progress : callable, optional
        Called with what is measured next.

    Returns
    -------
    dict
        ``machine``, ``settings`` (with the machine's load at the end), ``assembler`` (by form of the documents: frames,
        frames/s, CPU microseconds a frame), ``quality`` (see `_quality`), ``by_processor`` and ``replays``, a row for
        each rate (see `_by_processor`, `_replay`). Quality and processors are looked at on a CPU only, and quality
        where no rates are named.
    """
    options, tell = options or Options(), on_progress or (lambda _: None)
    config = config_of(options)
    with tempfile.TemporaryDirectory(prefix="bluesky_cdi-") as name:
        tell(f"simulating {options.side**2} frames")
        run = simulated(config, Path(name))
        assembler = {}
        for form in ("rows", "pages"):
            tell(f"assembler, documents in {form}")
            assembler[form] = _assembled(replace(run, form=form))
        by_processor = []
        for frames_s, form, seconds in options.replays if options.device == "cpu" else ():
            if form == "pages":
                number = _number(run, frames_s, seconds, options)
                tell(f"{frames_s:g} frames/s by the processor's clock, {number} frames")
                part = replace(run, positions_m=run.positions_m[:number])
                by_processor.append(_by_processor(part, _counts(run), frames_s, config))
        quality = {}
        if options.device == "cpu" and options.rates is None:
            tell("quality")
            quality = _quality(config_of(replace(options, side=JUDGED_SIDE)))
        tell("warming up")
        _replay(replace(run, positions_m=run.positions_m[:WARM_UP]), 100.0, config, Path(name) / "first")
        rows = []
        for frames_s, form, seconds in options.replays:
            number = _number(run, frames_s, seconds, options)
            tell(f"{frames_s:g} frames/s, documents in {form}, {number} frames")
            part = replace(run, form=form, positions_m=run.positions_m[:number])
            rows.append(_replay(part, frames_s, config, Path(name) / f"{frames_s:g}-{form}"))
    settings = {**asdict(options), "frames": options.side**2, "frame_px": config.geometry.frame_px}
    settings["load"] = os.getloadavg()[0]
    results = {"assembler": assembler, "quality": quality, "by_processor": by_processor, "replays": rows}
    return record([torch.device(options.device)], settings, **results)


def _number(run: PacedRun, frames_s: float, seconds: float, options: Options) -> int:
    """Give the frames of a replay."""
    return min(len(run.positions_m), max(1, round(frames_s * seconds * options.share)))


def _counts(run: PacedRun) -> npt.NDArray[Any]:
    import h5py
    import hdf5plugin  # noqa: F401  # registers the compression filters

    with h5py.File(run.path) as file:
        counts: npt.NDArray[Any] = file[DATASET][:]
    return counts


class _ProcessorClock:
    """A clock that runs while this thread computes, however busy the machine is; pauses are skipped."""

    def __init__(self) -> None:
        self._skipped_s = 0.0

    def __call__(self) -> float:
        return time.thread_time() + self._skipped_s

    def wait_until(self, time_s: float) -> None:
        """Skip the time until then, if it is to come."""
        self._skipped_s += max(0.0, time_s - self())


def _by_processor(run: PacedRun, counts: npt.NDArray[Any], frames_s: float, config: Config) -> dict[str, Any]:
    """Make the images of a scan by the clock of the thread that makes them: as if it had a core to itself.

    Frames are in memory, and come at their rate by that clock. The check of the probe has a thread, and so a core, of
    its own.

    Returns
    -------
    dict
        ``rate``, ``frames``, ``imaged_at_end``, ``images``, ``thinned``, ``latency_p50_s``, ``latency_p95_s``, as of
        `_replay`; ``ms_per_frame``, what each frame took.
    """
    clock, reconstructor = _ProcessorClock(), reconstructor_of(config)
    if isinstance(reconstructor, PtychoReconstructor) and reconstructor.quick is not None:
        reconstructor.quick.clock = clock
    flow, number, came, images = FrameFlow(clock), len(run.positions_m), 0, 0
    steps = Steps(reconstructor, Pace(latency_s=config.reconstructor.latency_s), flow, clock=clock)
    began, spent = clock(), time.thread_time()
    while came < number:
        clock.wait_until(began + (came + 1) / frames_s)
        due = min(number, max(came + 1, int(frames_s * (clock() - began))))
        frames = [Frame(k + 1, run.positions_m[k], counts[k]) for k in range(came, due)]
        for frame in frames:
            flow.receive(frame.seq_num, began + frame.seq_num / frames_s)
        reconstructor.add(frames)
        images, came = images + (steps.make(lambda: False) is not None), due
    spent, notes = time.thread_time() - spent, flow.notes()
    reconstructor.close()
    return {
        "rate": frames_s,
        "frames": number,
        "imaged_at_end": notes["imaged"],
        "images": images,
        "thinned": notes["ever_thinned"],
        "latency_p50_s": notes["latency_p50_s"],
        "latency_p95_s": notes["latency_p95_s"],
        "ms_per_frame": 1e3 * spent / number,
    }


def _quality(config: Config) -> dict[str, Any]:
    """Compare images of quick readings with those of full steps, on the same frames.

    Frames come `TAKEN` at a time; the first of them are read by a full step both ways.

    Returns
    -------
    dict
        By way the complex NRMSE to the truth after each, and at the end of the last refinements.
    """
    source, found = SimulatedSource(config), {}
    frames = measured_frames(config, source, _raster(config))
    for way in ("full steps", "quick readings"):
        reconstructor, errors = reconstructor_of(config), []
        for first in range(0, len(frames), TAKEN):
            reconstructor.add(frames[first : first + TAKEN])
            if first and way == "quick readings" and isinstance(reconstructor, QuickReader):
                image = reconstructor.read_quickly(LONG_S)
            else:
                image = reconstructor.step(LONG_S)
            errors.append(math.nan if image is None else error_of(image, source))
        end = errors[-1]
        for _ in range(config.reconstructor.final_steps):
            if (image := reconstructor.step(LONG_S)) is None:
                break
            end = error_of(image, source)
        reconstructor.close()
        found[way] = {"complex_nrmse": errors, "at_the_end": end}
    return found


def _raster(config: Config) -> FloatArray:
    half_m = half_window_m(config)
    return raster(-half_m, half_m, config.scan.step_um * 1e-6)


def config_of(options: Options) -> Config:
    """Make the configuration of a raster of a simulated sample, so many frames along each side.

    Parameters
    ----------
    options : Options
        What is measured.
    """
    config = load_config(
        overrides={
            "simulation": {"sample": "natural"},
            "reconstructor": {"weights": options.weights, "device": options.device, "threads": options.threads}
            | ({} if options.latency_s is None else {"latency_s": options.latency_s}),
        }
    )
    extent_um = (options.side - 1) * config.scan.step_um
    scan = {"extent_um": [extent_um, extent_um], "step_um": config.scan.step_um, "budget": options.side**2}
    return Config.model_validate({**config.model_dump(), "scan": {**config.scan.model_dump(), **scan}})


def simulated(config: Config, folder: Path) -> PacedRun:
    """Measure the configured raster, and write its frames.

    Parameters
    ----------
    config : Config
        The beamline's, and the raster's.
    folder : Path
        Gets the file.

    Returns
    -------
    PacedRun
        Its documents, a row each.
    """
    import h5py

    from bluesky_cdi.io import filter_options

    half_m, positions_m = half_window_m(config), _raster(config)
    frames = measured_frames(config, SimulatedSource(config), positions_m)
    counts = np.array([frame.counts for frame in frames])
    with h5py.File(folder / "frames.h5", "w") as file:
        file.create_dataset(DATASET, data=counts, chunks=(1, *counts.shape[1:]), **filter_options("bitshuffle-lz4"))
    geometry = Geometry(**config.geometry.model_dump())
    metadata = {"geometry": geometry.as_metadata(), "window_m": [(-half_m).tolist(), half_m.tolist()]}
    shape = (geometry.frame_px, geometry.frame_px)
    return PacedRun(folder / "frames.h5", positions_m, shape, metadata, "rows")


class _Counter:
    """A sink that only counts."""

    def __init__(self) -> None:
        self.frames = 0

    def start_run(self, info: RunInfo) -> None:
        """Open a run."""

    def put(self, frame: Frame) -> None:
        """Count a frame."""
        self.frames += 1

    def leave_out(self, seq_num: int, error: Exception) -> None:
        """Leave a frame out."""

    def end_run(self, exit_status: str, reason: str, notes: Any) -> None:
        """Close the run."""

    def fail(self, error: Exception, start: Any) -> None:
        """Give up on a run."""


def _assembled(run: PacedRun) -> dict[str, float]:
    """Hand all documents of a run to an assembler at once."""
    from bluesky_cdi.callbacks import FrameAssembler

    documents = [doc for _, docs in run.documents(1000.0) for doc in docs]
    sink = _Counter()
    assembler = FrameAssembler(sink)
    began, cpu = time.perf_counter(), time.process_time()
    for name, doc in documents:
        assembler(name, doc)
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    return {"frames": sink.frames, "frames_per_s": sink.frames / seconds, "cpu_us_per_frame": 1e6 * cpu / sink.frames}


class Images:
    """When each frame was first in an image, and the newest counts: a listener.

    Parameters
    ----------
    frames : int
        Of the run.

    Attributes
    ----------
    first_s : ndarray, shape (frames,)
        Seconds of `time.monotonic`; infinite where it is in none yet.
    images, imaged : int
        Images so far, and frames that any had.
    counts : dict
        Of the newest one.
    """

    def __init__(self, frames: int) -> None:
        self.first_s: npt.NDArray[np.float64] = np.full(frames, np.inf)
        self.images = self.imaged = 0
        self.counts: dict[str, Any] = {}

    def __call__(self, estimate: Estimate) -> None:
        """Take an image."""
        there = estimate.frame_seq_nums - 1
        self.first_s[there] = np.minimum(self.first_s[there], time.monotonic())
        self.images, self.counts = self.images + 1, dict(estimate.source[KEY])
        self.imaged = int(np.isfinite(self.first_s).sum())


def _replay(run: PacedRun, frames_s: float, config: Config, folder: Path) -> dict[str, Any]:
    """Reconstruct a run as a session does, while its documents come.

    Returns
    -------
    dict
        ``rate``, ``form``, ``frames``, ``scan_s``; ``imaged_at_end``: frames in an image when the last document was
        sent; ``images`` by then; ``thinned``: frames that an image passed over; ``dropped``: frames that the full inbox
        did not take; ``latency_p50_s``, ``latency_p95_s``, ``latency_last_s``: from a frame's documents to an image
        with it, of all frames, and of the last; ``rest_s``: from the last document until all frames were in an image;
        ``missing``: those that were not within `MOST_S`; ``cpu_ms_per_frame``: of this process while the scan lasted.
    """
    from bluesky_cdi.remote.setup import live_arguments, live_setup

    number = len(run.positions_m)
    images, journal = Images(number), Journal(folder / "journal")
    worker, documents = live_setup(live_arguments(config, folder), journal).start([images])
    try:
        sent, cpu = np.zeros(number), time.process_time()
        for name, doc in Sender(run, frames_s).documents():
            if name == "sent":
                sent = np.array(doc)
            else:
                documents(name, doc)
                cpu = time.process_time() if name == "start" else cpu
        cpu, shown = time.process_time() - cpu, images.images
        counts = dict(images.counts)
        while not np.isfinite(images.first_s).all() and time.monotonic() < sent[-1] + MOST_S:
            worker.check()
            time.sleep(LOOK_S)
        first_s, dropped = images.first_s.copy(), worker.n_dropped
        # A newer scan comes first: the last refinements of this one are not measured.
        worker.begin(ScanArea((0.0, 0.0), (1e-6, 1e-6), 1e-7, 1, adaptive=False)).result(MOST_S * 2)
    finally:
        documents.close()
        worker.close(MOST_S * 2)
        journal.close()
    there = np.isfinite(first_s)
    latency = (first_s - sent)[there]
    p50, p95 = np.quantile(latency, (0.5, 0.95)).tolist() if there.any() else (None, None)
    return {
        "rate": frames_s,
        "form": run.form,
        "frames": number,
        "scan_s": float(sent[-1] - sent[0]),
        "imaged_at_end": int((first_s <= sent[-1]).sum()),
        "images": shown,
        "thinned": int(counts.get("ever_thinned", 0)),
        "dropped": dropped,
        "latency_p50_s": p50,
        "latency_p95_s": p95,
        "latency_last_s": float(first_s[-1] - sent[-1]),
        "rest_s": float(first_s.max() - sent[-1]),
        "missing": int((~there).sum()),
        "cpu_ms_per_frame": 1e3 * cpu / number,
    }
