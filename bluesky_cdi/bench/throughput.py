"""Benchmarks: how many frames a second a network reconstructs, from counts in memory to the stitched object.

The timed path begins with uint16 counts in the host's memory (pinned where a GPU computes) and stage
positions, and ends with the stitched object on the device: copy, conversion to float32, zero frequency
to the corner, placement on the canvas, every stage of the network. Simulating the frames is not in it.
"""

from __future__ import annotations

import math
import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from bluesky_cdi.bench.machine import machine, synchronise
from bluesky_cdi.errors import ConfigError
from bluesky_cdi.models.canvas import PHYSICS_CHANNELS, PRESETS, CanvasConfig, CanvasNet, UNet, run_unet
from bluesky_cdi.models.weights import load_weights
from bluesky_cdi.physics.forward import Diffraction, to_corner
from bluesky_cdi.physics.lit_frames import LitFrames, frames_at_once
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
        """Square scans of `frames` frames in all, or a few less; default: what keeps the device busy."""
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
    def canvas_px(self) -> int:
        """Side of each canvas: a pixel of room around the frames."""
        return self.frame_px + self.step_px * (self.side - 1) + 4


@dataclass(frozen=True, eq=False)
class Measured:
    """A batch as a detector and a stage leave it, in the host's memory.

    Attributes
    ----------
    counts : Tensor, shape (n, N, N), uint16
        Zero frequency at ``[N // 2, N // 2]``.
    centre_px : Tensor, shape (n, 2)
        Probe centres (y, x) on their canvases.
    scene : Tensor, shape (n,), int64
        Scan of each frame.
    probe : Tensor, shape (B, M, N, N), complex64
    """

    counts: Tensor
    centre_px: Tensor
    scene: Tensor
    probe: Tensor

    def pinned(self) -> Measured:
        """The same in page-locked memory, from which a GPU copies by itself."""
        return Measured(*(getattr(self, field.name).pin_memory() for field in fields(self)))


def simulate(work: Workload, device: torch.device, seed: int = 0) -> Measured:
    """Poisson counts of scans over a texture, made on `device` and brought to the host."""
    rng = np.random.default_rng(seed)
    generator = torch.Generator(device).manual_seed(seed)
    side, size = work.canvas_px, work.frame_px
    thickness = torch.from_numpy(power_law_texture((side, side), rng)).to(device, torch.float32)
    sample = torch.polar(torch.exp(-0.08 * thickness), -0.9 * thickness).expand(work.scans, side, side).contiguous()
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
        .clamp(max=65535).to(torch.uint16).cpu()
        for part in data.chunks(frames_at_once(probe))
    ]  # fmt: skip
    return Measured(torch.cat(counts), centre.cpu(), scene.cpu(), probe.cpu())


def _defocused(size: int, modes: int) -> Tensor:
    """A Gaussian beam out of focus, (1, M, N, N), that lights about half of the frame's width."""
    index = torch.arange(size) - size // 2
    squared = (index[:, None] ** 2 + index**2) / (size / 6) ** 2
    field = torch.polar(torch.exp(-squared / 2), 3 * squared)
    return partially_coherent(field, modes, 1.0 if modes == 1 else 0.8, PHOTONS)[None]


class Pipeline:
    """From counts in the host's memory to stitched objects on a device.

    On a GPU the next batch is copied while one is computed.

    Parameters
    ----------
    net : CanvasNet
        On the device.
    measured : Measured
    canvas_px : int
        Side of the canvases.
    device : torch.device
    """

    def __init__(self, net: CanvasNet, measured: Measured, canvas_px: int, device: torch.device) -> None:
        self._net = net
        self._host = measured.pinned() if device.type == "cuda" else measured
        self._device = device
        self._shape = (len(measured.probe), canvas_px, canvas_px)
        self._copying = _stream(device)
        self._next: tuple[Measured, torch.cuda.Event] | None = None

    def copied(self) -> Measured:
        """The batch on the device; the copy may still be under way in the current stream."""
        return Measured(*(getattr(self._host, f.name).to(self._device, non_blocking=True) for f in fields(Measured)))

    def placed(self, raw: Measured) -> Diffraction:
        """Frames ready for computing."""
        corner, shift = place(raw.centre_px, raw.counts.shape[-1], self._shape[-1])
        return Diffraction(to_corner(raw.counts.to(torch.float32)), corner, shift, self._shape, scene=raw.scene)

    def reconstructed(self, raw: Measured) -> Tensor:
        """The objects, (B, Y, X)."""
        objects: list[Tensor] = self._net(raw.probe, self.placed(raw))
        return objects[-1]

    def one(self) -> Tensor:
        """Copy a batch, then reconstruct it."""
        return self.reconstructed(self.copied())

    def streamed(self) -> Tensor:
        """Reconstruct the batch that is being copied, and begin to copy the one after it."""
        if self._copying is None:
            return self.one()
        raw, ready = self._next or self._ahead()
        self._next = self._ahead()
        computing = torch.cuda.current_stream(self._device)
        computing.wait_event(ready)
        for field in fields(Measured):
            # The allocator must not give this memory to the next copy while it is being read.
            getattr(raw, field.name).record_stream(computing)
        return self.reconstructed(raw)

    def _ahead(self) -> tuple[Measured, torch.cuda.Event]:
        with torch.cuda.stream(self._copying):
            raw = self.copied()
            ready = torch.cuda.current_stream(self._device).record_event()
        return raw, ready


def _stream(device: torch.device) -> torch.cuda.Stream | None:
    return torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]


def throughput(
    models: Mapping[str, CanvasNet],
    sizes: Sequence[int],
    devices: Sequence[torch.device],
    seconds: float = 3.0,
    frames: int | None = None,
    modes: int = 1,
    told: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Measure networks on frames of several sizes.

    Parameters
    ----------
    models : Mapping of str to CanvasNet
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
    told : callable, optional
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
            if told is not None:
                told(f"{name}, {work.frames} frames of {size}x{size}")
            cases.append({"model": name, **_case(net, work, measured, devices, seconds)})
    settings = {
        "seconds": seconds,
        "step_share_of_frame": STEP_SHARE,
        "photons_per_frame": PHOTONS,
        "models": {name: net.config.as_dict() for name, net in models.items()},
    }
    return {"machine": machine(devices), "settings": settings, "cases": cases}


def model_config(text: str) -> CanvasConfig:
    """A network's size: the name of a preset, or ``stages=2,channels=16``, where the rest is as in ``small``.

    Raises
    ------
    ConfigError
        If it is neither.
    """
    if text in PRESETS:
        return PRESETS[text]
    known = [field.name for field in fields(CanvasConfig)]
    changes: dict[str, int] = {}
    for item in text.split(","):
        key, _, value = item.partition("=")
        if key not in known or not value.isdigit() or not int(value):
            raise ConfigError(
                f"a model is one of {', '.join(PRESETS)}, or positive numbers such as stages=2,channels=16 "
                f"(of {', '.join(known)}); got {text!r}"
            )
        changes[key] = int(value)
    return replace(CanvasConfig(), **changes)


def models_of(weights: Sequence[str], configs: Sequence[str]) -> dict[str, CanvasNet]:
    """Trained networks by the names of their weights, and untrained ones by their sizes, which `model_config` reads.

    Raises
    ------
    ConfigError
        If none is named, or a size means nothing.
    WeightsError
        If there are no such weights.
    """
    if not weights and not configs:
        raise ConfigError("no network is named: give --weights a name, or --model a size")
    trained = {name: load_weights(name).canvas_net for name in weights}
    torch.manual_seed(0)
    untrained = {f"{text} (untrained)": CanvasNet(model_config(text)) for text in configs}
    return trained | untrained


def _case(
    net: CanvasNet, work: Workload, measured: Measured, devices: Sequence[torch.device], seconds: float
) -> dict[str, Any]:
    """Measure one network on one batch: all devices together, then the parts on the first."""
    for device in set(devices):
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
    barrier = threading.Barrier(len(devices))
    with ThreadPoolExecutor(len(devices)) as pool:
        lanes = [pool.submit(_lane, net, work, measured, device, seconds, barrier) for device in devices]
    failed = [lane.exception() for lane in lanes]
    for error in failed:
        # A barrier breaks when another lane has failed.
        if error is not None and not isinstance(error, threading.BrokenBarrierError):
            raise error
    times = [lane.result() for lane in lanes]
    rates = [[work.frames / t for t in lane] for lane in times]
    device = devices[0]
    with torch.inference_mode():
        here = _on(net, device)
        pipeline = Pipeline(here, measured, work.canvas_px, device)
        alone = _seconds(pipeline.one, device, seconds / 5)
        parts = _parts(pipeline, here, work, device, seconds / 5)
    memory = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    return {
        "frame_px": work.frame_px,
        "frames": work.frames,
        "scans": work.scans,
        "modes": work.modes,
        "step_px": work.step_px,
        "canvas_px": work.canvas_px,
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


def _lane(
    net: CanvasNet,
    work: Workload,
    measured: Measured,
    device: torch.device,
    seconds: float,
    barrier: threading.Barrier,
) -> list[float]:
    """One device's seconds for each batch, begun when all devices are ready."""
    try:
        # Modes and streams belong to a thread, so they are set in this one.
        with torch.inference_mode():
            pipeline = Pipeline(_on(net, device), measured, work.canvas_px, device)
            for _ in range(WARM_UP):
                pipeline.streamed()
            barrier.wait()
            return _seconds(pipeline.streamed, device, seconds, warm_up=0)
    except BaseException:
        # The other lanes must not wait for this one.
        barrier.abort()
        raise


def _on(net: CanvasNet, device: torch.device) -> CanvasNet:
    """A network on a device, alone with its thread."""
    here = CanvasNet(net.config)
    here.load_state_dict(net.state_dict())
    here.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stubs
    return here.eval().requires_grad_(False)


def _seconds(run: Callable[[], object], device: torch.device, least_s: float, warm_up: int = WARM_UP) -> list[float]:
    """Seconds of each call, to its end on the device; at least three calls."""
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


def _parts(
    pipeline: Pipeline, net: CanvasNet, work: Workload, device: torch.device, seconds: float
) -> dict[str, list[float]]:
    """Seconds of the parts of one batch, each alone."""
    raw = pipeline.copied()
    data = pipeline.placed(raw)
    side, config = work.canvas_px, net.config
    canvas = torch.ones(data.canvas_shape, dtype=torch.complex64, device=device)
    channels = torch.rand(work.scans, PHYSICS_CHANNELS + config.memory, side, side, device=device)

    def physics() -> None:
        frames = LitFrames(raw.probe, data)
        for _ in range(config.stages):
            frames.step(canvas)

    def networks() -> None:
        for unet in net.stages:
            run_unet(cast(UNet, unet), channels)

    runs: dict[str, Callable[[], object]] = {
        "copy": pipeline.copied,
        "conversion and placement": lambda: pipeline.placed(raw),
        "physics of all stages": physics,
        "networks of all stages": networks,
        "all on the device": lambda: pipeline.reconstructed(raw),
    }
    return {name: _seconds(run, device, seconds) for name, run in runs.items()}
