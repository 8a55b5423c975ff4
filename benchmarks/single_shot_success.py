"""How often, and how well, single-shot reconstruction succeeds: random starts, kinds of objects, doses.

    python benchmarks/single_shot_success.py [--size 96] [--starts 20] [--seeds 3] [--json FILE] [--figure FILE]

An isolated irregular sample fills 0.4 of the frame's width (an oversampling of about 2.5 in each
direction), its far field is drawn from Poisson statistics, and nothing but the frame is told: the support
comes from the autocorrelation and shrinks. The default recipe but for `positive`, whose support is cut at a
lower threshold, and the last two kinds: one is told that the sample is real and positive; the other is half
as large on a clear film, in a known curved beam around it, and its support is given with a margin of two
pixels (Fresnel coherent diffraction imaging).

A start succeeds when its complex NRMSE, without translation, twin and complex scale, is below 0.15: that of
the exit wave over the whole frame, in the curved beam that of the transmission over the sample. `ok` is
the share of starts that do (they guide each other, so they succeed together or not at all), `frame_ok` that of
frames whose `chosen` start does; `median` and `best` are errors of starts; `chosen` is that of the start with the
lowest R-factor and `average` that of the mean of the starts that count as converged, and both know no truth;
`floor` is where error reduction from the truth in its true support ends: about what the photons allow.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bluesky_cdi import metrics
from bluesky_cdi.engines.single_shot import (
    MeasuredModulus,
    SampleConstraint,
    ShrinkWrap,
    SingleShotResult,
    SingleShotSettings,
    Stage,
    error_reduction,
    reconstruct_single_shot,
)
from bluesky_cdi.metrics.single_shot import resolve_ambiguities
from bluesky_cdi.physics.objects import particles, power_law_texture
from bluesky_cdi.physics.propagators import FAR_FIELD, FresnelField, Propagator

SUCCESS_NRMSE = 0.15
DOSES = (1e6, 1e7, 1e8)


def outline(size: int, rng: np.random.Generator) -> np.ndarray[Any, Any]:
    """An irregular round shape with an edge one pixel soft, 0 to 1."""
    y, x = np.indices((size, size)) - size // 2
    angle = np.arctan2(y, x)
    bumps = sum(rng.uniform(-0.18, 0.18) / k * np.cos(k * angle + rng.uniform(0, 2 * np.pi)) for k in range(2, 6))
    return np.clip(0.2 * size * (1 + bumps) - np.hypot(y, x) + 0.5, 0, 1)


def texture(size: int, rng: np.random.Generator) -> np.ndarray[Any, Any]:
    """Random structure 0..1 on all scales."""
    return power_law_texture((size, size), rng, 1.5)


def binary(size: int, rng: np.random.Generator) -> np.ndarray[Any, Any]:
    """Opaque grains on nothing, like a gold test sample."""
    grains = particles((size, size), rng, 160, (0.01 * size, 0.03 * size)) > 0.35
    return (outline(size, rng) > 0.5) * grains + 0j


def positive(size: int, rng: np.random.Generator) -> np.ndarray[Any, Any]:
    """Real and positive grey levels, like a thin density."""
    return outline(size, rng) * (0.2 + 0.8 * texture(size, rng)) + 0j


def weak_phase(size: int, rng: np.random.Generator) -> np.ndarray[Any, Any]:
    """Phases of half a radian with 30 % of absorption."""
    shape, phase = outline(size, rng), 0.5 * texture(size, rng)
    return shape * (0.7 + 0.3 * texture(size, rng)) * np.exp(1j * phase)


def strong_phase(size: int, rng: np.random.Generator) -> np.ndarray[Any, Any]:
    """Phases all the way round with 60 % of absorption."""
    shape, phase = outline(size, rng), 2 * np.pi * texture(size, rng)
    return shape * (0.4 + 0.6 * texture(size, rng)) * np.exp(1j * phase)


@dataclass(frozen=True)
class Case:
    """A kind of object, and what the reconstruction is told."""

    make: Callable[[int, np.random.Generator], np.ndarray[Any, Any]]
    settings: SingleShotSettings = field(default_factory=SingleShotSettings)
    curved: bool = False


# The dim parts of `positive` are a fifth as bright as its brightest: a fifth is too high a threshold for it.
DIM = ShrinkWrap(threshold=0.15)
CASES = {
    "binary": Case(binary),
    "positive": Case(positive, SingleShotSettings(shrink_wrap=DIM)),
    "weak phase": Case(weak_phase),
    "strong phase": Case(strong_phase),
    "positive, told so": Case(positive, SingleShotSettings(shrink_wrap=DIM, max_phase_rad=0.0)),
    "strong phase, curved beam": Case(
        strong_phase, SingleShotSettings(cycle=(Stage("raar", 80), Stage("er", 20)), shrink_wrap=None), curved=True
    ),
}


@dataclass(frozen=True, eq=False)
class Experiment:
    """A sample, one frame of it, and what is known."""

    truth: np.ndarray[Any, Any]
    counts: torch.Tensor
    propagator: Propagator
    beam: torch.Tensor | None
    support: torch.Tensor | None

    def error(self, found: np.ndarray[Any, Any]) -> float:
        """Complex NRMSE to the truth."""
        return metrics.complex_nrmse(self.comparable(found), self.truth, self.weight)

    def comparable(self, found: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """What was found without its ambiguities; a known beam leaves none."""
        return found if self.beam is not None or not found.any() else resolve_ambiguities(found, self.truth).object

    @property
    def weight(self) -> np.ndarray[Any, Any]:
        """Pixels that count."""
        return np.ones(self.truth.shape) if self.beam is None else self.truth != 1


def measure(case: Case, photons: float, size: int, seed: int) -> Experiment:
    """Draw one frame."""
    rng = np.random.default_rng(seed)
    truth, propagator, beam, support = case.make(size, rng), FAR_FIELD, None, None
    wave = torch.from_numpy(truth * math.sqrt(photons / (np.abs(truth) ** 2).sum()))
    if case.curved:
        # Its middle, half as large, with the beam (sigma of its amplitude: 0.22 frames) around it.
        inside = np.pad((truth != 0)[::2, ::2], size // 4)
        truth = np.where(inside, truth, 1)
        y, x = np.indices((size, size)) - size // 2
        profile = np.exp(-(y**2 + x**2) / (2 * (0.22 * size) ** 2))
        beam = torch.from_numpy(profile * math.sqrt(photons / (profile**2).sum()))
        wave = beam * torch.from_numpy(truth)
        support = torch.nn.functional.max_pool2d(torch.from_numpy(inside)[None].float(), 5, 1, 2)[0] > 0
        # 1.25 times the distance at which the curved phase is sampled at the frame's border.
        propagator = FresnelField(size, 1e-7, 1e-10, 1.25 * size * 1e-4)
    rate = propagator.to_detector(propagator.forward(wave[None, None])[0, 0].abs().square()).numpy()
    counts = torch.from_numpy(rng.poisson(rate).astype(np.float32))
    return Experiment(truth, counts, propagator, beam, support)


def floor(made: Experiment) -> float:
    """Error of error reduction from the truth in its true support."""
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


def run(case: Case, photons: float, args: argparse.Namespace, seed: int) -> tuple[dict[str, Any], SingleShotResult]:
    """All starts on one frame."""
    made = measure(case, photons, args.size, seed)
    started = time.perf_counter()
    result = reconstruct_single_shot(
        made.counts.to(args.device),
        propagator=made.propagator,
        illumination=made.beam,
        surround="dark" if made.beam is None else "clear",
        support=made.support,
        starts=args.starts,
        seed=seed,
        settings=case.settings,
    )
    seconds = time.perf_counter() - started
    errors = [made.error(found) for found in result.objects]
    record = {
        "ok": float(np.mean(np.array(errors) < SUCCESS_NRMSE)),
        "frame_ok": float(errors[result.best] < SUCCESS_NRMSE),
        "median": float(np.median(errors)),
        "best": min(errors),
        "chosen": errors[result.best],
        "average": made.error(result.average),
        "floor": floor(made),
        "r_factor": float(result.r_factor[result.best]),
        "noise_r_factor": result.noise_r_factor,
        "status": {word: result.status.count(word) for word in ("converged", "stagnated", "diverged")},
        "errors": errors,
        "r_factors": result.r_factor.tolist(),
        "iterations": result.iterations,
        "seconds": seconds,
    }
    return record, result


def figure(path: Path, args: argparse.Namespace, photons: float) -> None:
    """Truth, the chosen start and the average of each case, drawn side by side."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    drawn, axes = plt.subplots(len(CASES), 5, figsize=(11, 2.1 * len(CASES)), layout="constrained")
    for row, (name, case) in zip(axes, CASES.items(), strict=True):
        made = measure(case, photons, args.size, 0)
        truth = made.truth
        record, result = run(case, photons, args, 0)
        found = [made.comparable(one) for one in (result.objects[result.best], result.average)]
        shown = np.abs(truth) > 0.02 * np.abs(truth).max()
        window = slice(args.size // 4, -args.size // 4)
        panels = [("truth, modulus", np.abs(truth)), (f"best R, {record['chosen']:.3f}", np.abs(found[0])),
                  (f"average, {record['average']:.3f}", np.abs(found[1])),
                  ("truth, phase", np.where(shown, np.angle(truth), np.nan)),
                  ("best R, phase", np.where(shown, np.angle(found[0]), np.nan))]  # fmt: skip
        for axis, (title, image) in zip(row, panels, strict=True):
            phase = "phase" in title
            limits = (-np.pi, np.pi) if phase else (0, np.abs(truth).max())
            axis.imshow(image[window, window], cmap="twilight" if phase else "gray", vmin=limits[0], vmax=limits[1])
            axis.set_title(title, fontsize=8)
            axis.set_xticks([], [])
            axis.set_yticks([], [])
        row[0].set_ylabel(name, fontsize=8)
    drawn.suptitle(f"one frame, {photons:.0e} photons, {args.starts} starts; NRMSE above the images", fontsize=9)
    drawn.savefig(path, dpi=130)


def main() -> None:
    """Run all and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--starts", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--figure", type=Path, help="draw the reconstructions at the middle dose")
    args = parser.parse_args()
    if args.device == "cpu":
        torch.set_num_threads(1)
    if args.figure:
        figure(args.figure, args, DOSES[1])
    errors = ("ok", "frame_ok", "median", "best", "chosen", "average", "floor")
    columns = (*errors, "r_factor", "noise_r_factor", "seconds")
    print(f"{args.starts} starts, {args.seeds} objects a row, {args.size} px, {args.device}; medians, ok: means")
    print(f"{'object':27}{'photons':>8}" + "".join(f"{c.replace('_factor', ''):>9}" for c in columns))
    rows = []
    for name, case in CASES.items():
        for photons in DOSES:
            runs = [run(case, photons, args, seed)[0] for seed in range(args.seeds)]
            cells = [(np.mean if "ok" in c else np.median)([r[c] for r in runs]) for c in columns]
            print(f"{name:27}{photons:>8.0e}" + "".join(f"{c:>9.3f}" for c in cells), flush=True)
            rows.append({"object": name, "photons": photons, "runs": runs})
    if args.json:
        head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
        record = {
            "rows": rows,
            "success_nrmse": SUCCESS_NRMSE,
            "size": args.size,
            "starts": args.starts,
            "device": args.device,
            "machine": platform.processor() or platform.machine(),
            "commit": head.stdout.strip(),
        }
        args.json.write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
