"""How fast a frame encoder learns an instrument that it has not seen: tuned without labels on few frames of one scan.

Each tuning is judged on frames of the same scan that it was not given, by what `training.pretraining.losses` compares:
the mean logarithm of 1 and the deviance a hidden pixel, of patches and of whole frames. It begins with what
pretraining left or with nothing. All are given the same probe, which LSQ-ML has found from all frames of the scan, as a
beamline has it of an earlier reconstruction.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bluesky_cdi.bench.cases import Case, simulate
from bluesky_cdi.bench.explained import EXPLAINED
from bluesky_cdi.bench.machine import record, synchronise
from bluesky_cdi.engines import make_engine
from bluesky_cdi.engines.ptychography import Schedule, Solution, iterate
from bluesky_cdi.errors import BlueskyCDIError
from bluesky_cdi.models.frame_decoders import MaskedFrameModel
from bluesky_cdi.models.frame_encoder import Shown
from bluesky_cdi.models.frame_weights import TrainedFrameModel
from bluesky_cdi.physics.forward import Diffraction
from bluesky_cdi.training.denormals import denormals_flushed
from bluesky_cdi.training.draws import Draws
from bluesky_cdi.training.pretraining.losses import MaskedLosses, masked_losses
from bluesky_cdi.training.pretraining.masking import draw_shown
from bluesky_cdi.training.pretraining.run import learn, make_optimiser
from bluesky_cdi.training.pretraining.scans import Scans
from bluesky_cdi.training.pretraining.validation import SEED, SHOWN

SIMULATED = "simulated"
"""A zone plate with an order-sorting aperture, which training does not draw, over an object that it does not draw."""
CASE = Case(sample="circuit", dose=1e5, field=2.4)
STARTS = ("pretrained", "nothing")
# Frames of a window that a step learns from; of a window that is judged, and how many of these.
WINDOW, JUDGED, WINDOWS_JUDGED = 6, 8, 2
# Peak rate of pretraining from nothing, and a quarter of it where something is to be kept; reached after so many steps.
RATES, WARM_UP = {"nothing": 8e-4, "pretrained": 2e-4}, 10
# Shares of the time after which tunings are judged.
MARKS = (0.1, 0.25, 0.5, 1.0)
# Pixels around the frames of a window.
MARGIN_PX = 2


@dataclass(frozen=True)
class Options:
    """What is measured.

    Parameters
    ----------
    instruments : sequence of str
        Recorded scans of `bench.explained`, and ``simulated``.
    frames : sequence of int
        That a tuning is given; all but those that are judged where a scan has no more.
    seconds : float
        Time of a tuning: of the processor on a CPU, by the clock on a GPU.
    epochs : int
        Of LSQ-ML, for the probe.
    seed : int
        Of windows, of what is hidden, and of weights that begin with nothing.
    data : Path, optional
        Folder of recorded scans.
    device : torch.device
        Where to compute.
    """

    instruments: Sequence[str] = ("star64", "p25", SIMULATED)
    frames: Sequence[int] = (16, 64, 256)
    seconds: float = 60.0
    epochs: int = 20
    seed: int = 1
    data: Path | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


@dataclass(frozen=True, eq=False)
class Instrument:
    """A scan of an instrument, and which of its frames are judged.

    Attributes
    ----------
    probe : Tensor, shape (1, M, N, N), complex64
    data : Diffraction
    order : ndarray, shape (n,)
        All other frames, the nearest to the middle of the scan first.
    judged : list of Scans
        Windows that no tuning is given.
    """

    probe: Tensor
    data: Diffraction
    order: npt.NDArray[np.int64]
    judged: list[Scans]


def transfer(
    trained: TrainedFrameModel, options: Options | None = None, on_progress: Callable[[str], None] | None = None
) -> dict[str, Any]:
    """Tune on all instruments.

    Parameters
    ----------
    trained : TrainedFrameModel
        What pretraining left.
    options : Options, optional
        The documented ones if absent.
    on_progress : callable, optional
        Called with a line for each tuning.

    Returns
    -------
    dict
        ``machine``, ``settings`` and ``rows``: of each tuning ``instrument``, ``frames``, ``start`` and ``curve``,
        whose points have ``seconds`` of tuning, ``steps``, and the errors of hidden ``patches`` and ``frames``.

    Raises
    ------
    BlueskyCDIError
        If a scan is recorded and no folder is named.
    """
    options, tell = options or Options(), on_progress or (lambda _: None)
    rows = []
    with denormals_flushed():
        for name in options.instruments:
            tell(f"{name}: probe")
            instrument = instrument_of(*_scan(name, options), options.epochs)
            for frames in dict.fromkeys(min(each, len(instrument.order)) for each in options.frames):
                for start in STARTS:
                    curve = tuned(trained.model, instrument, frames, start, options)
                    rows.append({"instrument": name, "frames": frames, "start": start, "curve": curve})
                    first, last = (each["patches"] + each["frames"] for each in (curve[0], curve[-1]))
                    tell(f"{name}, {frames} frames from {start}: {first:.3f}, then {last:.3f}")
    named = {"data": str(options.data), "device": str(options.device), "encoder_sha256": trained.sha256}
    return record([options.device], {**asdict(options), **named}, rows=rows)


def tuned(
    model: MaskedFrameModel,
    instrument: Instrument,
    frames: int,
    start: str,
    options: Options,
    clock: Callable[[], float] | None = None,
) -> list[dict[str, float]]:
    """Tune on some frames, and judge now and then by the others.

    Parameters
    ----------
    model : MaskedFrameModel
        What pretraining left, which stays as it is.
    instrument : Instrument
        The scan.
    frames : int
        How many are given, those nearest to its middle.
    start : str
        Of `STARTS`.
    options : Options
        Time and seed.
    clock : callable, optional
        Tells the time, seconds, judging does not count; that of `Options.seconds` if absent.

    Returns
    -------
    list of dict
        The curve; see `transfer`.
    """
    clock = clock or _clock(options.device)
    torch.manual_seed(options.seed)
    tuning = MaskedFrameModel(model.config).to(options.device)
    if start == "pretrained":
        tuning.load_state_dict(model.state_dict())
    losses, optimiser = MaskedLosses(tuning), make_optimiser(tuning, RATES[start])
    rng, draws = np.random.default_rng(options.seed), Draws(options.device, options.seed)
    given, spent, steps = instrument.order[:frames], 0.0, 0
    curve = [{"seconds": 0.0, "steps": 0, **judged(tuning, instrument)}]
    for mark in MARKS:
        while spent < mark * options.seconds:
            began = clock()
            scans = window(instrument, around(instrument.data, given, int(rng.choice(given)), WINDOW))
            shown = draw_shown(scans, model.config.patch, draws)
            learn(losses, optimiser, scans, shown, RATES[start] * min(1.0, (steps + 1) / WARM_UP))
            steps += 1
            spent += clock() - began
        curve.append({"seconds": spent, "steps": steps, **judged(tuning, instrument)})
    return curve


@torch.no_grad()
def judged(model: MaskedFrameModel, instrument: Instrument) -> dict[str, float]:
    """Compute the mean errors of hidden ``patches`` and ``frames`` of what no tuning was given."""
    patch, found = model.config.patch, []
    for scans in instrument.judged:
        shown: Shown = draw_shown(scans, patch, Draws(scans.probe.device, SEED), SHOWN)
        found.append(masked_losses(model(scans.probe, scans.data, shown), scans, patch))
    return {name: float(np.mean([float(each[name]) for each in found])) for name in found[0]}


def instrument_of(probe: Tensor, data: Diffraction, epochs: int) -> Instrument:
    """Find the probe of a scan, and set the frames aside that are judged: those farthest from its middle.

    Parameters
    ----------
    probe : Tensor, shape (1, M, N, N), complex64
        First guess.
    data : Diffraction
        All frames.
    epochs : int
        Of LSQ-ML.
    """
    vacuum = torch.ones(data.object_shape, dtype=torch.complex64, device=probe.device)
    with torch.no_grad():
        start = Solution.start(vacuum, probe, data)
        found = iterate(make_engine("lsqml"), start, Schedule(epochs)).solution if epochs else start
    everyone = np.arange(len(data))
    place = _places(data)
    middle = int(np.linalg.norm(place - np.median(place, axis=0), axis=1).argmin())
    left, aside = around(data, everyone, middle, len(everyone)), []
    for _ in range(WINDOWS_JUDGED):
        aside.append(around(data, left, int(left[-1]), JUDGED))
        left = left[~np.isin(left, aside[-1])]
    instrument = Instrument(found.probe, data, left, [])
    return replace(instrument, judged=[window(instrument, rows) for rows in aside])


def around(data: Diffraction, rows: npt.NDArray[np.int64], middle: int, number: int) -> npt.NDArray[np.int64]:
    """Give those of some frames that are nearest to one, the nearest first, (number,) or all there are."""
    place = _places(data)
    away = np.linalg.norm(place[rows] - place[middle], axis=1)
    return rows[np.argsort(away, kind="stable")[:number]]


def window(instrument: Instrument, rows: npt.NDArray[np.int64]) -> Scans:
    """Cut frames out of a scan, on an object of their own."""
    part = instrument.data[torch.from_numpy(rows).to(instrument.probe.device)]
    low, high = part.corner.amin(dim=0), part.corner.amax(dim=0)
    sides = (high - low + part.counts.shape[-1] + 2 * MARGIN_PX).tolist()
    data = replace(part, corner=part.corner - low + MARGIN_PX, object_shape=(1, *sides))
    return Scans(instrument.probe, data, instrument.probe, data)


def _places(data: Diffraction) -> npt.NDArray[np.float64]:
    return np.asarray((data.corner.double() + data.shift_px.double()).numpy(force=True), np.float64)


def _scan(name: str, options: Options) -> tuple[Tensor, Diffraction]:
    if name == SIMULATED:
        problem = simulate(CASE, options.seed, options.device)
        return problem.probe, problem.data
    if options.data is None:
        raise BlueskyCDIError(f"{name} is a recorded scan: name the folder of recorded scans (--data)")
    explained = EXPLAINED[name](options.data, options.device)
    return explained.probe, explained.data


def _clock(device: torch.device) -> Callable[[], float]:
    """Give what tells the time of a tuning: on a CPU others may be at work too, on a GPU the processor waits."""
    if device.type == "cpu":
        return time.process_time

    def after_all() -> float:
        synchronise(device)
        return time.perf_counter()

    return after_all
