"""How often, and how well, single-shot reconstruction succeeds: random starts, kinds of objects, doses.

An isolated irregular sample fills 0.4 of the frame's width (an oversampling of about 2.5 in each direction), its far
field is drawn from Poisson statistics, and nothing but the frame is stated: the support comes from the autocorrelation
and shrinks. The default recipe but for `positive`, whose support is cut at a lower threshold, and the last two kinds:
one states that the sample is real and positive; the other is half as large on a clear film, in a known curved beam
around it, and its support is given with a margin of two pixels (Fresnel coherent diffraction imaging).

A start succeeds when its complex NRMSE, without translation, twin and complex scale, is below 0.15: that of the exit
wave over the whole frame, in the curved beam that of the transmission over the sample. `ok` is the share of starts that
do (they guide each other, so they succeed together or not at all), `frame_ok` that of frames whose `chosen` start does;
`median` and `best` are errors of starts; `chosen` is that of the start with the lowest R-factor and `average` that of
the mean of the starts that count as converged, and both know no truth; `floor` is where error reduction from the truth
in its true support ends: about what the photons allow.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from bluesky_cdi.bench.machine import record
from bluesky_cdi.evaluation import complex_nrmse, resolve_ambiguities
from bluesky_cdi.physics.geometry import Geometry
from bluesky_cdi.physics.patterns import particles, power_law_texture
from bluesky_cdi.physics.propagators import FAR_FIELD, FresnelField, Propagator
from bluesky_cdi.protocols import ComplexArray, FloatArray
from bluesky_cdi.single_shot import (
    MeasuredModulus,
    SampleConstraint,
    ShrinkWrap,
    SingleShotResult,
    SingleShotSettings,
    Stage,
    error_reduction,
    reconstruct_single_shot,
)

SUCCESS_NRMSE = 0.15
DOSES = (1e6, 1e7, 1e8)


def _outline(size: int, rng: np.random.Generator) -> FloatArray:
    """Draw an irregular round shape with an edge one pixel soft, 0 to 1."""
    y, x = np.indices((size, size)) - size // 2
    angle = np.arctan2(y, x)
    bumps = sum(rng.uniform(-0.18, 0.18) / k * np.cos(k * angle + rng.uniform(0, 2 * np.pi)) for k in range(2, 6))
    return np.asarray(np.clip(0.2 * size * (1 + bumps) - np.hypot(y, x) + 0.5, 0, 1))


def _texture(size: int, rng: np.random.Generator) -> FloatArray:
    """Draw random structure 0..1 on all scales."""
    return power_law_texture((size, size), rng, 1.5)


def binary(size: int, rng: np.random.Generator) -> npt.NDArray[np.complex128]:
    """Draw opaque grains on nothing, like a gold test sample.

    Parameters
    ----------
    size : int
        Pixels along a side.
    rng : Generator
        Draws the sample.

    Returns
    -------
    ndarray, shape (size, size), complex128
        0 outside the sample.
    """
    grains = particles((size, size), rng, 160, (0.01 * size, 0.03 * size)) > 0.35
    return np.asarray((_outline(size, rng) > 0.5) * grains + 0j)


def positive(size: int, rng: np.random.Generator) -> npt.NDArray[np.complex128]:
    """Draw real and positive grey levels, like a thin density.

    Parameters
    ----------
    size : int
        Pixels along a side.
    rng : Generator
        Draws the sample.

    Returns
    -------
    ndarray, shape (size, size), complex128
        0 outside the sample.
    """
    return np.asarray(_outline(size, rng) * (0.2 + 0.8 * _texture(size, rng)) + 0j)


def weak_phase(size: int, rng: np.random.Generator) -> npt.NDArray[np.complex128]:
    """Draw phases of half a radian with 30 % of absorption.

    Parameters
    ----------
    size : int
        Pixels along a side.
    rng : Generator
        Draws the sample.

    Returns
    -------
    ndarray, shape (size, size), complex128
        0 outside the sample.
    """
    shape, phase = _outline(size, rng), 0.5 * _texture(size, rng)
    return np.asarray(shape * (0.7 + 0.3 * _texture(size, rng)) * np.exp(1j * phase))


def strong_phase(size: int, rng: np.random.Generator) -> npt.NDArray[np.complex128]:
    """Draw phases all the way round with 60 % of absorption.

    Parameters
    ----------
    size : int
        Pixels along a side.
    rng : Generator
        Draws the sample.

    Returns
    -------
    ndarray, shape (size, size), complex128
        0 outside the sample.
    """
    shape, phase = _outline(size, rng), 2 * np.pi * _texture(size, rng)
    return np.asarray(shape * (0.4 + 0.6 * _texture(size, rng)) * np.exp(1j * phase))


@dataclass(frozen=True)
class Case:
    """A kind of object, and what the reconstruction is given.

    Parameters
    ----------
    make : callable
        Draws a sample of a size, shape (N, N).
    settings : SingleShotSettings
    curved : bool
        Whether it lies in a known curved beam.
    """

    make: Callable[[int, np.random.Generator], npt.NDArray[np.complex128]]
    settings: SingleShotSettings = field(default_factory=SingleShotSettings)
    curved: bool = False


# The dim parts of `positive` are a fifth as bright as its brightest: a fifth is too high a threshold for it.
DIM = ShrinkWrap(threshold=0.15)
CASES = {
    "binary": Case(binary),
    "positive": Case(positive, SingleShotSettings(shrink_wrap=DIM)),
    "weak phase": Case(weak_phase),
    "strong phase": Case(strong_phase),
    "positive, constrained": Case(positive, SingleShotSettings(shrink_wrap=DIM, max_phase_rad=0.0)),
    "strong phase, curved beam": Case(
        strong_phase, SingleShotSettings(cycle=(Stage("raar", 80), Stage("er", 20)), shrink_wrap=None), curved=True
    ),
}


@dataclass(frozen=True, eq=False)
class Experiment:
    """A sample, one frame of it, and what is known.

    Attributes
    ----------
    truth : ndarray, shape (N, N), complex
    exit_wave : Tensor, shape (N, N), complex
        Behind the sample.
    counts : Tensor, shape (N, N)
        Photons, in the order of the detector.
    propagator : Propagator
    beam : Tensor, shape (N, N), or None
        Known beam.
    support : Tensor, shape (N, N), bool, or None
        Known support.
    """

    truth: npt.NDArray[np.complex128]
    exit_wave: torch.Tensor
    counts: torch.Tensor
    propagator: Propagator
    beam: torch.Tensor | None
    support: torch.Tensor | None

    def error(self, found: ComplexArray) -> float:
        """Compute the complex NRMSE to the truth."""
        return complex_nrmse(self.comparable(found), self.truth, self.weight)

    def comparable(self, found: ComplexArray) -> ComplexArray:
        """Take the ambiguities out of what was found; a known beam leaves none."""
        return found if self.beam is not None or not found.any() else resolve_ambiguities(found, self.truth).object

    @property
    def weight(self) -> npt.NDArray[Any]:
        """Pixels that count."""
        return np.ones(self.truth.shape) if self.beam is None else self.truth != 1


def measure(case: Case, photons: float, size: int, seed: int) -> Experiment:
    """Draw one frame.

    Parameters
    ----------
    case : Case
        Kind of object.
    photons : float
        Of the frame.
    size : int
        Pixels along its side.
    seed : int
        Of sample and noise.

    Returns
    -------
    Experiment
    """
    rng = np.random.default_rng(seed)
    sample = case.make(size, rng)
    made = _in_curved_beam(sample, photons) if case.curved else _isolated(sample, photons)
    rate = made.propagator.to_detector(made.propagator.forward(made.exit_wave[None, None])[0, 0].abs().square()).numpy()
    return replace(made, counts=torch.from_numpy(rng.poisson(rate).astype(np.float32)))


def write_frames(path: Path, size: int) -> list[str]:
    """Write one frame of each isolated sample at the middle dose, with its truth, as other programs can read it.

    Parameters
    ----------
    path : Path
        NPZ file: ``frames`` and ``truth``, shape (n, N, N), and ``geometry``, a JSON text.
    size : int
        Pixels along a side of the frames, N.

    Returns
    -------
    list of str
        Kinds of the samples, in order.
    """
    # A kind that states more of its sample has the frames of the kind that does not.
    kinds = {name: case for name, case in CASES.items() if not case.curved and "constrained" not in name}
    made = [measure(case, DOSES[1], size, 0) for case in kinds.values()]
    np.savez_compressed(
        path,
        frames=np.array([one.counts.numpy() for one in made], np.uint32),
        truth=np.array([one.truth for one in made], np.complex64),
        geometry=json.dumps(Geometry(8000.0, 1.0, 75e-6, size).as_metadata()),
    )
    return list(kinds)


def _isolated(sample: npt.NDArray[np.complex128], photons: float) -> Experiment:
    """Put a sample on nothing into a plane beam."""
    wave = torch.from_numpy(sample * math.sqrt(photons / (np.abs(sample) ** 2).sum()))
    return Experiment(sample, wave, torch.empty(0), FAR_FIELD, None, None)


def _in_curved_beam(sample: npt.NDArray[np.complex128], photons: float) -> Experiment:
    """Put the middle of a sample, half as large, on a clear film, and the beam around it."""
    size = len(sample)
    inside = np.pad((sample != 0)[::2, ::2], size // 4)
    truth = np.where(inside, sample, 1)
    y, x = np.indices((size, size)) - size // 2
    # The sigma of the beam's amplitude is 0.22 frames.
    profile = np.exp(-(y**2 + x**2) / (2 * (0.22 * size) ** 2))
    beam = torch.from_numpy(profile * math.sqrt(photons / (profile**2).sum()))
    support = torch.nn.functional.max_pool2d(torch.from_numpy(inside)[None].float(), 5, 1, 2)[0] > 0
    # 1.25 times the distance at which the curved phase is sampled at the frame's border.
    propagator = FresnelField(size, 1e-7, 1e-10, 1.25 * size * 1e-4)
    return Experiment(truth, beam * torch.from_numpy(truth), torch.empty(0), propagator, beam, support)


def _floor(made: Experiment) -> float:
    """Compute the error of error reduction from the truth in its true support."""
    mask = torch.ones_like(made.counts, dtype=torch.bool)
    modulus = MeasuredModulus(made.propagator.to_working(made.counts), mask, propagator=made.propagator)
    truth = torch.from_numpy(made.truth).to(torch.complex64)
    # Without a beam any start in the right units does, since the modulus has them.
    beam = None if made.beam is None else made.beam.to(torch.complex64)
    sample = SampleConstraint(torch.from_numpy(made.truth != (0 if beam is None else 1)), beam)
    waves = (truth if beam is None else truth * beam)[None]
    for _ in range(200):
        waves = error_reduction(waves, modulus, sample)
    return made.error((waves[0] if beam is None else waves[0] / beam).numpy())


@dataclass(frozen=True)
class Options:
    """What is measured, and on what.

    Parameters
    ----------
    size : int
        Pixels along a side of the frame.
    starts : int
        Random starts on each frame.
    seeds : int
        Objects of each kind and dose.
    device : str
        PyTorch device.
    """

    size: int = 96
    starts: int = 20
    seeds: int = 3
    device: str = "cpu"


def single_shot(options: Options | None = None, on_progress: Callable[[str], None] | None = None) -> dict[str, Any]:
    """Measure all kinds of objects at all doses.

    Parameters
    ----------
    options : Options, optional
        The documented ones if absent.
    on_progress : callable, optional
        Called with the name of each row before it is measured.

    Returns
    -------
    dict
        ``machine``, ``settings`` and ``rows``, each of an object and a number of photons: the runs, one an object.
    """
    options, tell = options or Options(), on_progress or (lambda _: None)
    rows = []
    for name, case in CASES.items():
        for photons in DOSES:
            tell(f"{name}, {photons:.0e} photons")
            runs = [run(case, photons, options, seed)[0] for seed in range(options.seeds)]
            rows.append({"object": name, "photons": photons, "runs": runs})
    settings = {**asdict(options), "success_nrmse": SUCCESS_NRMSE}
    return record([torch.device(options.device)], settings, rows=rows)


def run(case: Case, photons: float, options: Options, seed: int) -> tuple[dict[str, Any], SingleShotResult]:
    """Reconstruct one frame from all starts.

    Parameters
    ----------
    case : Case
        Kind of object.
    photons : float
        Of the frame.
    options : Options
        Size, starts and device.
    seed : int
        Of sample, noise and starts.

    Returns
    -------
    dict
        Its numbers.
    SingleShotResult
        What was found.
    """
    made = measure(case, photons, options.size, seed)
    started = time.perf_counter()
    result = reconstruct_single_shot(
        made.counts.to(options.device),
        propagator=made.propagator,
        illumination=made.beam,
        surround="dark" if made.beam is None else "clear",
        support=made.support,
        starts=options.starts,
        seed=seed,
        settings=case.settings,
    )
    seconds = time.perf_counter() - started
    return {**_judged(made, result), "seconds": seconds}, result


def _judged(made: Experiment, result: SingleShotResult) -> dict[str, Any]:
    errors = [made.error(found) for found in result.objects]
    return {
        "ok": float(np.mean(np.array(errors) < SUCCESS_NRMSE)),
        "frame_ok": float(errors[result.best] < SUCCESS_NRMSE),
        "median": float(np.median(errors)),
        "best": min(errors),
        "chosen": errors[result.best],
        "average": made.error(result.average),
        "floor": _floor(made),
        "r_factor": float(result.r_factor[result.best]),
        "noise_r_factor": result.noise_r_factor,
        "status": {word: result.status.count(word) for word in ("converged", "stagnated", "diverged")},
        "errors": errors,
        "r_factors": result.r_factor.tolist(),
        "iterations": result.iterations,
    }
