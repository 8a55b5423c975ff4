"""Benchmarks: how many frames a second a network reconstructs, from counts in memory to the stitched object.

The timed path begins with uint16 counts in the host's memory (pinned where a GPU computes) and stage
positions, and ends with the stitched object on the device: copy, conversion to float32, zero frequency
to the corner, placement on the object, every stage of the network. Simulating the frames is not in it.
"""

from __future__ import annotations

import math
import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from bluesky_cdi.bench.machine import machine, synchronise
from bluesky_cdi.errors import ConfigError
from bluesky_cdi.models.unrolled import PRESETS, UNet, UnrolledConfig, UnrolledNet, run_unet
from bluesky_cdi.models.weights import load_weights
from bluesky_cdi.physics.forward import Diffraction, to_corner
from bluesky_cdi.physics.illuminated_frames import IlluminatedFrames, frames_at_once
from bluesky_cdi.physics.patterns import power_law_texture
from bluesky_cdi.physics.probes import partially_coherent
from bluesky_cdi.training.stream import place

# The step of the simulated scans as a share of the frame: 16 pixels for frames of 128x128, of which the
# probe lights about half. Neighbours overlap by 88 %, and every pixel of the object is in 64 frames.
STEP_SHARE = 1 / 8
PHOTONS = 1e5
# Pixels of the frames in one batch: 4096 frames of 128x128 on a GPU, 64 of 64x64 on a CPU.
GPU_BATCH_PX, CPU_BATCH_PX = 2**26, 2**18
# Frames of one scan; a batch of more is several scans.
SCAN_FRAMES = 1024
# Batches before the clock starts: kernels are compiled, plans made, memory taken.
WARM_UP = 2

Result = TypeVar("Result")


@dataclass(frozen=True)
class Workload:
    """What a batch holds.

    Parameters
    ----------
    frame_px : int
        N.
    scans : int
        Scans computed together, B; they share their object and differ in noise.
    side : int
        Frames along each side of a scan's square grid.
    modes : int
        Probe modes, M.
    """

    frame_px: int
    scans: int
    side: int
    modes: int = 1

    @classmethod
    def fitting(cls, frame_px: int, device: torch.device, frames: int | None = None, modes: int = 1) -> Workload:
        """Choose square scans of `frames` frames in all, or a few less.

        Parameters
        ----------
        frame_px : int
            Pixels along a side of the frames.
        device : torch.device
            Device that computes.
        frames : int, optional
            What keeps the device busy if absent.
        modes : int
            Probe modes.

        Returns
        -------
        Workload
        """
        default = (GPU_BATCH_PX if device.type == "cuda" else CPU_BATCH_PX) // frame_px**2
        number = frames or max(4, default)
        side = math.isqrt(min(number, SCAN_FRAMES))
        return cls(frame_px, max(1, number // side**2), side, modes)

    @property
    def frames(self) -> int:
        """Frames of a batch."""
        return self.scans * self.side**2

    @property
    def step_px(self) -> int:
        """Pixels from frame to frame."""
        return max(1, round(STEP_SHARE * self.frame_px))

    @property
    def grid_px(self) -> int:
        """Side of each object: a pixel of room around the frames."""
        return self.frame_px + self.step_px * (self.side - 1) + 4


@dataclass(frozen=True, eq=False)
class Measured:
    """A batch as a detector and a stage leave it, in the host's memory or copied to a device.

    Attributes
    ----------
    counts : Tensor, shape (n, N, N), uint16
        Zero frequency at ``[N // 2, N // 2]``.
    centre_px : Tensor, shape (n, 2)
        Probe centres (y, x) on their objects.
    scene : Tensor, shape (n,), int64
        Scan of each frame.
    probe : Tensor, shape (B, M, N, N), complex64
    """

    counts: Tensor
    centre_px: Tensor
    scene: Tensor
    probe: Tensor

    def pinned(self) -> Measured:
        """Copy it into page-locked memory, from which a GPU copies by itself."""
        return Measured(*(tensor.pin_memory() for tensor in self._tensors()))

    def on(self, device: torch.device) -> Measured:
        """Copy it to a device."""
        return Measured(*(tensor.to(device) for tensor in self._tensors()))

    def copy(self) -> Measured:
        """Copy it where it is."""
        return Measured(*(tensor.clone() for tensor in self._tensors()))

    def take(self, other: Measured) -> None:
        """Become another batch of the same size, in place; the copy may still be under way."""
        for here, there in zip(self._tensors(), other._tensors(), strict=True):
            here.copy_(there, non_blocking=True)

    def _tensors(self) -> tuple[Tensor, ...]:
        return self.counts, self.centre_px, self.scene, self.probe


def simulate(work: Workload, device: torch.device, seed: int = 0) -> Measured:
    """Simulate Poisson counts of scans over a texture, on a device, and bring them to the host.

    Parameters
    ----------
    work : Workload
        How many of what size.
    device : torch.device
        Device that simulates.
    seed : int
        Of texture, positions and noise.

    Returns
    -------
    Measured
    """
    rng = np.random.default_rng(seed)
    generator = torch.Generator(device).manual_seed(seed)
    side, size = work.grid_px, work.frame_px
    sample = textured(side, rng, device).expand(work.scans, side, side).contiguous()
    probe = _defocused(size, work.modes).to(device).expand(work.scans, -1, -1, -1).contiguous()
    grid = torch.arange(work.side, device=device) * work.step_px
    corners = torch.cartesian_prod(grid, grid).repeat(work.scans, 1)
    off = torch.rand(work.frames, 2, generator=generator, device=device) - 0.5
    centre = corners + size // 2 + 1.5 + off
    scene = torch.arange(work.scans, device=device).repeat_interleave(work.side**2)
    placed, shift = place(centre, size, side)
    blank = torch.zeros((), device=device).expand(work.frames, size, size)
    data = Diffraction(blank, placed, shift, (work.scans, side, side), scene=scene)
    counts = [
        torch.poisson(data.propagator.to_detector(part.rate(part.probes(probe), part.patches(sample))), generator)
        .clamp(max=65535)
        .to(torch.uint16)
        .cpu()
        for part in data.chunks(frames_at_once(probe))
    ]
    return Measured(torch.cat(counts), centre.cpu(), scene.cpu(), probe.cpu())


def textured(side: int, rng: np.random.Generator, device: torch.device) -> Tensor:
    """Draw the objects of these benchmarks, complex64 (side, side).

    Parameters
    ----------
    side : int
        Pixels along a side.
    rng : Generator
        Draws it.
    device : torch.device
        Where it is to be.
    """
    thickness = torch.from_numpy(power_law_texture((side, side), rng)).to(device, torch.float32)
    return torch.polar(torch.exp(-0.08 * thickness), -0.9 * thickness)


def _defocused(size: int, modes: int) -> Tensor:
    """Draw a Gaussian beam out of focus, (1, M, N, N), that illuminates about half of the frame's width."""
    index = torch.arange(size) - size // 2
    squared = (index[:, None] ** 2 + index**2) / (size / 6) ** 2
    field = torch.polar(torch.exp(-squared / 2), 3 * squared)
    return partially_coherent(field, modes, 1.0 if modes == 1 else 0.8, PHOTONS)[None]


class Pipeline:
    """From counts in the host's memory to stitched objects on a device.

    On a GPU the next batch is copied while one is computed, and all work on a batch is recorded once and started at
    once (`recorded`): to start its kernels one by one takes Python about as long as an H100 takes to compute them.

    Parameters
    ----------
    net : UnrolledNet
        On the device.
    measured : Measured
    grid_px : int
        Side of the objects.
    device : torch.device

    Attributes
    ----------
    net : UnrolledNet
    computed : callable
        Reconstruct the batch that is on the device: the objects, (B, Y, X), which hold until the next batch.
    """

    def __init__(self, net: UnrolledNet, measured: Measured, grid_px: int, device: torch.device) -> None:
        self.net = net
        self._shape = (len(measured.probe), grid_px, grid_px)
        self._host = measured.pinned() if device.type == "cuda" else measured
        self._copying = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._arriving = measured.on(device)
        self._arrived: torch.cuda.Event | None = None
        # What is computed lies still, where the recorded kernels look for it.
        self._batch = self._arriving.copy() if device.type == "cuda" else self._arriving
        self.computed = recorded(lambda: self._reconstructed(self._batch), device)

    def copied(self) -> Measured:
        """Copy the batch to the device; that may still be under way in the current stream.

        `streamed` copies to the same place from a stream of its own: synchronise between the two.
        """
        self._arriving.take(self._host)
        return self._arriving

    def placed(self, raw: Measured) -> Diffraction:
        """Lay frames on their object, ready for computing."""
        corner, shift = place(raw.centre_px, raw.counts.shape[-1], self._shape[-1])
        return Diffraction(to_corner(raw.counts.to(torch.float32)), corner, shift, self._shape, scene=raw.scene)

    def one(self) -> Tensor:
        """Copy a batch, then reconstruct it; the objects hold until the next batch."""
        self._batch.take(self._host)
        return self.computed()

    def streamed(self) -> Tensor:
        """Reconstruct the batch that is being copied, and begin to copy the one after it; on a CPU as `one`."""
        copying = self._copying
        if copying is None:
            return self.one()
        computing = torch.cuda.current_stream(copying.device)
        computing.wait_event(self._arrived or self._ahead(copying, computing))
        self._batch.take(self._arriving)
        self._arrived = self._ahead(copying, computing)
        return self.computed()

    def _reconstructed(self, raw: Measured) -> Tensor:
        objects: list[Tensor] = self.net(raw.probe, self.placed(raw))
        return objects[-1]

    def _ahead(self, copying: torch.cuda.Stream, computing: torch.cuda.Stream) -> torch.cuda.Event:
        """Begin to copy a batch once `computing` has taken the one before; the event when it is there."""
        copying.wait_stream(computing)
        with torch.cuda.stream(copying):
            self.copied()
            arrived: torch.cuda.Event = copying.record_event()
        return arrived


def recorded(run: Callable[[], Result], device: torch.device) -> Callable[[], Result]:
    """Record a call as one CUDA graph, which starts all its kernels at once; on a CPU it stays the call itself.

    Parameters
    ----------
    run : callable
        Works on tensors that stay where they are, and waits for nothing that it computes.
    device : torch.device
        Device that computes.

    Returns
    -------
    callable
        On a GPU its result lies in the same place each time, and so holds until the next call.
    """
    if device.type != "cuda":
        return run
    with torch.cuda.device(device):
        # Kernels are compiled and plans made before, on a stream of their own as recording wants it.
        aside = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(aside):
            for _ in range(WARM_UP):
                run()
        torch.cuda.current_stream(device).wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=aside):
            result = run()

    def replay() -> Result:
        with torch.cuda.device(device):
            graph.replay()
        return result

    return replay


def throughput(
    models: Mapping[str, UnrolledNet],
    sizes: Sequence[int],
    devices: Sequence[torch.device],
    seconds: float = 3.0,
    frames: int | None = None,
    modes: int = 1,
    on_progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Measure networks on frames of several sizes.

    Parameters
    ----------
    models : Mapping of str to UnrolledNet
        Networks and their names.
    sizes : sequence of int
        Pixels along one side of the frames.
    devices : sequence of torch.device
        Each computes scans of its own, all at the same time.
    seconds : float
        Least time that each number is measured for; the parts get a fifth of it.
    frames : int, optional
        Frames of a batch on each device.
    modes : int
        Probe modes.
    on_progress : callable, optional
        Called with the name of each case before it is measured.

    Returns
    -------
    dict
        ``machine``, ``settings`` and ``cases``, as plain JSON values.
    """
    cases = []
    for size in sizes:
        work = Workload.fitting(size, devices[0], frames, modes)
        measured = simulate(work, devices[0])
        for name, net in models.items():
            if on_progress is not None:
                on_progress(f"{name}, {work.frames} frames of {size}x{size}")
            cases.append({"model": name, **_case(net, work, measured, devices, seconds)})
    settings = {
        "seconds": seconds,
        "step_share_of_frame": STEP_SHARE,
        "photons_per_frame": PHOTONS,
        "models": {name: net.config.as_dict() for name, net in models.items()},
    }
    return {"machine": machine(devices), "settings": settings, "cases": cases}


def model_config(text: str) -> UnrolledConfig:
    """Read a network's size: the name of a preset, or ``stages=2,channels=16``, where the rest is as in ``small``.

    Raises
    ------
    ConfigError
        If it is neither.
    """
    if text in PRESETS:
        return PRESETS[text]
    known = [field.name for field in fields(UnrolledConfig)]
    changes: dict[str, Any] = {}
    for item in text.split(","):
        key, _, value = item.partition("=")
        if key not in known or not value.isdigit() or not int(value):
            raise ConfigError(
                f"a model is one of {', '.join(PRESETS)}, or positive numbers such as stages=2,channels=16 "
                f"(of {', '.join(known)}); got {text!r}"
            )
        changes[key] = type(getattr(UnrolledConfig(), key))(int(value))
    return replace(UnrolledConfig(), **changes)


def models_of(weights: Sequence[str], configs: Sequence[str]) -> dict[str, UnrolledNet]:
    """Load trained networks, and make untrained ones.

    Parameters
    ----------
    weights : sequence of str
        Names of trained ones.
    configs : sequence of str
        Sizes of untrained ones, which `model_config` reads.

    Returns
    -------
    dict of str to UnrolledNet
        By name or size.

    Raises
    ------
    ConfigError
        If none is named, or a size means nothing.
    WeightsError
        If there are no such weights.
    """
    if not weights and not configs:
        raise ConfigError("no network is named: give --weights a name, or --model a size")
    trained = {name: load_weights(name).unrolled_net for name in weights}
    torch.manual_seed(0)
    untrained = {f"{text} (untrained)": UnrolledNet(model_config(text)) for text in configs}
    return trained | untrained


def _case(
    net: UnrolledNet, work: Workload, measured: Measured, devices: Sequence[torch.device], seconds: float
) -> dict[str, Any]:
    """Measure one network on one batch: all devices together, then the parts on the first."""
    for device in set(devices):
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
    with torch.inference_mode():
        pipelines = [Pipeline(_on(net, device), measured, work.grid_px, device) for device in devices]
    barrier = threading.Barrier(len(devices))
    with ThreadPoolExecutor(len(devices)) as pool:
        lanes = [pool.submit(_lane, *lane, seconds, barrier) for lane in zip(pipelines, devices, strict=True)]
    failed = [lane.exception() for lane in lanes]
    for error in failed:
        # A barrier breaks when another lane has failed.
        if error is not None and not isinstance(error, threading.BrokenBarrierError):
            raise error
    times = [lane.result() for lane in lanes]
    rates = [[work.frames / t for t in lane] for lane in times]
    pipeline, device = pipelines[0], devices[0]
    with torch.inference_mode():
        alone = _seconds(pipeline.one, device, seconds / 5)
        parts = _parts(pipeline, work, device, seconds / 5)
    memory = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    return {
        "frame_px": work.frame_px,
        "frames": work.frames,
        "scans": work.scans,
        "modes": work.modes,
        "step_px": work.step_px,
        "grid_px": work.grid_px,
        "devices": len(devices),
        "batches": sum(map(len, times)),
        # Every device has its own batches, so their rates add up.
        "frames_per_s": sum(statistics.median(lane) for lane in rates),
        "frames_per_s_p10": sum(float(np.quantile(lane, 0.1)) for lane in rates),
        "frames_per_s_p90": sum(float(np.quantile(lane, 0.9)) for lane in rates),
        "one_batch_frames_per_s": work.frames / statistics.median(alone),
        "one_batch_s": statistics.median(alone),
        "gpu_memory_bytes": memory,
        "us_per_frame": {name: 1e6 * statistics.median(value) / work.frames for name, value in parts.items()},
    }


def _lane(pipeline: Pipeline, device: torch.device, seconds: float, barrier: threading.Barrier) -> list[float]:
    """Time one device's batches, begun when all devices are ready."""
    try:
        # Modes and streams belong to a thread, so they are set in this one.
        with torch.inference_mode():
            for _ in range(WARM_UP):
                pipeline.streamed()
            barrier.wait()
            return _seconds(pipeline.streamed, device, seconds, warm_up=0)
    except BaseException:
        # The other lanes must not wait for this one.
        barrier.abort()
        raise


def _on(net: UnrolledNet, device: torch.device) -> UnrolledNet:
    """Copy a network to a device, where it is alone with its thread."""
    here = UnrolledNet(net.config)
    here.load_state_dict(net.state_dict())
    here.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stubs
    return here.eval().requires_grad_(False)


def _seconds(run: Callable[[], object], device: torch.device, least_s: float, warm_up: int = WARM_UP) -> list[float]:
    """Time calls, each to its end on the device; at least three."""
    for _ in range(warm_up):
        run()
    synchronise(device)
    times: list[float] = []
    while sum(times) < least_s or len(times) < 3:
        start = time.perf_counter()
        run()
        synchronise(device)
        times.append(time.perf_counter() - start)
    return times


def _parts(pipeline: Pipeline, work: Workload, device: torch.device, seconds: float) -> dict[str, list[float]]:
    """Time the parts of one batch, each alone."""
    raw, net = pipeline.copied(), pipeline.net
    data = pipeline.placed(raw)
    side, config = work.grid_px, net.config
    obj = torch.ones(data.object_shape, dtype=torch.complex64, device=device)
    channels = torch.rand(work.scans, cast(UNet, net.stages[0]).inputs, side, side, device=device)

    def physics() -> None:
        frames = IlluminatedFrames(raw.probe, data)
        for _ in range(config.stages * config.steps):
            frames.step(obj)

    def networks() -> None:
        for unet in net.stages:
            run_unet(cast(UNet, unet), channels)

    runs: dict[str, Callable[[], object]] = {
        "copy": pipeline.copied,
        "conversion and placement": recorded(lambda: pipeline.placed(raw), device),
        "physics of all stages": recorded(physics, device),
        "networks of all stages": recorded(networks, device),
        "all on the device": pipeline.computed,
    }
    return {name: _seconds(run, device, seconds) for name, run in runs.items()}
