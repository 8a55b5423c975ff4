"""What fine-tuning on the frames of one run brings on recorded scans, beside an engine and the reference.

Nine frames of ten are given to every row but the reference's, which has seen them all; the tenth is unseen, and also
unseen by what tuning itself holds out. Deviance is that of a frame a pixel, and beside it over that of the reference
on the same frames. NRMSE and phase error are against the reference's object, which is not the truth. In the row ``its
probe alone`` the network as it was has the tuned one's probe; its seconds are those of the whole tuning. The reference
of P25 lacks what its package refined beside object and probe: its deviance is far above that of any engine.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from bluesky_cdi.bench.explained import Explained
from bluesky_cdi.bench.machine import record, synchronise
from bluesky_cdi.engines import make_engine
from bluesky_cdi.engines.ptychography import Schedule, Solution, deviance_of, iterate
from bluesky_cdi.evaluation import compare, illuminated_mask
from bluesky_cdi.models.unrolled import UnrolledNet
from bluesky_cdi.models.weights import Trained
from bluesky_cdi.physics.forward import Diffraction
from bluesky_cdi.physics.illumination import summed_illumination
from bluesky_cdi.physics.illumination_shares import ENGINES_SHARE
from bluesky_cdi.protocols import ComplexArray
from bluesky_cdi.reconstruction.fine_tuning import FineTuner
from bluesky_cdi.reconstruction.prediction import predict_object
from bluesky_cdi.reconstruction.refinement import prior_of, refiner

# Iterations after a network.
REFINED_FOR = 5

Clock = Callable[[], float]
Result = TypeVar("Result")


@dataclass(frozen=True)
class Options:
    """What is measured.

    Parameters
    ----------
    seconds : float
        Of tuning.
    epochs : int
        Of LSQ-ML, the converged engine.
    cpu_time : bool
        Whether the process's CPU time is counted instead of the wall's: on a busy machine.
    """

    seconds: float = 120.0
    epochs: int = 200
    cpu_time: bool = False

    @property
    def clock(self) -> Clock:
        """Seconds, from some time on."""
        return time.process_time if self.cpu_time else time.monotonic


@dataclass(frozen=True, eq=False)
class Row:
    """One way to an object.

    Attributes
    ----------
    label : str
    object : Tensor, shape (1, Y, X), complex64
    probe : Tensor, shape (1, M, N, N), complex64
    seconds : float
    """

    label: str
    object: Tensor
    probe: Tensor
    seconds: float


def fine_tuning(
    scans: Mapping[str, Explained],
    trained: Trained,
    options: Options | None = None,
    on_progress: Callable[[str], None] | None = None,
    draw: Callable[[str, Mapping[str, ComplexArray]], None] | None = None,
) -> dict[str, Any]:
    """Measure all ways on recorded scans.

    Parameters
    ----------
    scans : Mapping of str to Explained
        Scans by name, on the device that computes.
    trained : Trained
        The network.
    options : Options, optional
        The documented ones if absent.
    on_progress : callable, optional
        Called with a line on how far the work is.
    draw : callable, optional
        Called with the name of each scan and its objects by the labels of their rows.

    Returns
    -------
    dict
        ``machine``, ``settings`` and ``scans``.
    """
    options, tell = options or Options(), on_progress or (lambda _: None)
    devices = list({scan.data.counts.device for scan in scans.values()})
    found = {}
    for name, scan in scans.items():
        found[name], images = _measured(scan, trained.unrolled_net, options, tell)
        if draw is not None:
            draw(name, images)
    settings = {**asdict(options), "weights": trained.name, "weights_sha256": trained.sha256}
    return record(devices, settings, scans=found)


def _measured(
    scan: Explained, net: UnrolledNet, options: Options, tell: Callable[[str], None]
) -> tuple[dict[str, Any], dict[str, ComplexArray]]:
    """Run all ways on one scan: its numbers, and the objects to draw."""
    index = torch.arange(len(scan.data))
    # Not the tenth that tuning holds out of what it is given.
    parts = {"given": index[index % 10 != 4], "unseen": index[index % 10 == 4]}
    rows = {"reference (has seen all)": _of_reference(scan, parts)}
    images = {"reference": scan.reference}
    for row in _ways(scan, scan.data[parts["given"].to(scan.probe.device)], net, options, tell):
        tell(f"{row.label}: {row.seconds:.1f} s")
        rows[row.label] = _judged(scan, row, parts)
        images[row.label] = row.object[0].cpu().numpy()
    sizes = {f"{name}_frames": len(part) for name, part in parts.items()}
    return {**sizes, "object_px": list(scan.data.object_shape[1:]), "rows": rows}, images


def _ways(
    scan: Explained, given: Diffraction, net: UnrolledNet, options: Options, tell: Callable[[str], None]
) -> Iterator[Row]:
    """Go through everything that is compared."""
    clock, device = options.clock, scan.probe.device
    yield from _network(net, scan.probe, given, "network", 0.0, clock)
    tuner = FineTuner(net, clock=clock)

    def on_tuning(seconds: float, deviance: float) -> None:
        tell(f"tuned for {seconds:.1f} s: held-out deviance {deviance:.4f}")

    tuned, took = _timed(lambda: tuner.tune(scan.probe, given, options.seconds, on_tuning), device, clock)
    tell(
        f"{tuned.steps} steps, held-out deviance {tuned.before:.4f} before, {tuned.after:.4f} after, "
        f"{'kept' if tuned.kept else 'not kept'}, ended by {tuned.ended}"
    )
    yield from _network(net, tuned.probe, given, "its probe alone", took, clock)
    yield from _network(tuned.net, tuned.probe, given, "fine-tuned", took, clock)
    vacuum = torch.ones(given.object_shape, dtype=torch.complex64, device=device)
    start, schedule = Solution.start(vacuum, scan.probe, given), Schedule(options.epochs)
    found, took = _timed(lambda: iterate(make_engine("lsqml"), start, schedule).solution, device, clock)
    yield Row(f"LSQ-ML, {options.epochs} epochs", found.object, found.probe, took)


def _network(
    net: UnrolledNet, probe: Tensor, data: Diffraction, label: str, before_s: float, clock: Clock
) -> Iterator[Row]:
    """Predict once, and refine that by a few iterations, as in a live run."""
    prediction, took = _timed(lambda: predict_object(net, probe, data), probe.device, clock)
    yield Row(label, prediction, probe, before_s + took)
    start = Solution.start(prediction, probe, data)

    def refined() -> Solution:
        engine = refiner(prior_of(net, prediction, probe, data), len(data), REFINED_FOR)
        return iterate(engine, start, Schedule(REFINED_FOR)).solution

    found, more = _timed(refined, probe.device, clock)
    yield Row(f"{label}, refined", found.object, found.probe, before_s + took + more)


def _timed(work: Callable[[], Result], device: torch.device, clock: Clock) -> tuple[Result, float]:
    started = clock()
    with torch.no_grad():
        done = work()
    synchronise(device)
    return done, clock() - started


def _of_reference(scan: Explained, parts: Mapping[str, Tensor]) -> dict[str, float]:
    deviance = {name: float(scan.reference_deviance[part].mean()) for name, part in parts.items()}
    return {**deviance, **{f"{name}_ratio": 1.0 for name in parts}}


@torch.no_grad()
def _judged(scan: Explained, row: Row, parts: Mapping[str, Tensor]) -> dict[str, float]:
    """Compute the deviance of each part of the frames, its ratio to the reference's, and errors against its object."""
    deviance = deviance_of(row.object, row.probe, scan.data).cpu()
    numbers = {"seconds": row.seconds}
    for name, part in parts.items():
        numbers[name] = float(deviance[part].mean())
        numbers[f"{name}_ratio"] = numbers[name] / float(scan.reference_deviance[part].mean())
    illumination = summed_illumination(row.probe, scan.data)[0].cpu().numpy()
    mask = illuminated_mask(illumination, ENGINES_SHARE)
    found = compare(row.object[0].cpu().numpy(), scan.reference, mask).numbers
    return {**numbers, **{key: found[key] for key in ("complex_nrmse", "phase_mae_rad")}}
