"""Verdicts of good scans and of spoiled ones, as docs/verdict.md shows them: a table on standard output.

`python tests/verdicts_of_scans.py`; with BLUESKY_CDI_DATA also of the recorded scans. Some minutes.
"""

import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from bluesky_cdi.bench.recorded import P25, STAR, p25_near_field, siemens_star
from bluesky_cdi.config import load_config
from bluesky_cdi.evaluation import compare_estimate
from bluesky_cdi.evaluation.verdict import judge
from bluesky_cdi.io import Scan
from bluesky_cdi.physics.forward import Diffraction
from bluesky_cdi.physics.geometry import Geometry, ObjectGrid
from bluesky_cdi.physics.objects import make_sample
from bluesky_cdi.physics.probes import focused_probe
from bluesky_cdi.reconstruction.batch import reconstruct
from bluesky_cdi.reconstruction.middle import nearest_to_middle

GEOMETRY = Geometry(8000.0, 2.0, 172e-6, 64)
LENS = {"numerical_aperture": 0.86e-3, "central_stop": 0.25, "modes": 2, "coherent_share": 0.9}
ITERATIONS, RECORDED_FRAMES, RECORDED_ITERATIONS = 60, 150, 40


def simulated(kind: str, photons: float = 1e5) -> tuple[Scan, np.ndarray, tuple[float, float]]:
    """Frames of 64 x 64 at 8 x 8 places a quarter of the probe apart, the probe assumed out of focus; the truth."""
    rng = np.random.default_rng(11)
    steps = np.stack(np.meshgrid(np.arange(8), np.arange(8), indexing="ij"), axis=-1).reshape(-1, 2)
    positions = (steps * 6.0 + rng.uniform(-1.5, 1.5, steps.shape)) * GEOMETRY.pixel_m
    grid = ObjectGrid.covering(positions.min(axis=0), positions.max(axis=0), GEOMETRY.pixel_m, 64, 8)
    probe, assumed = (focused_probe(GEOMETRY, defocus_m=d, photons=photons, **LENS) for d in (0.265e-3, 0.25e-3))
    truth = make_sample(kind, grid.shape, seed=5)
    corner, shift = (torch.from_numpy(each) for each in grid.place(positions))
    data = Diffraction(torch.zeros(64, 64, 64), corner, shift.float(), (1, *grid.shape))
    rate = data.rate(data.probes(probe[None]), data.patches(torch.from_numpy(truth)[None]))
    counts = data.propagator.to_detector(torch.poisson(rate, generator=torch.Generator().manual_seed(7))).numpy()
    stated = positions + rng.normal(0, 0.1, positions.shape) * GEOMETRY.pixel_m
    return Scan(counts.astype(np.uint32), stated, GEOMETRY, assumed.numpy(), name=kind), truth, grid.origin_m


def weak_beam(scan: Scan) -> Scan:
    rng = np.random.default_rng(3)
    counts = np.asarray(scan.counts).copy()
    for frame in rng.choice(len(scan), 6, replace=False):
        counts[frame] = rng.binomial(counts[frame], rng.uniform(0.1, 0.5))
    return replace(scan, counts=counts)


def counted(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Scan], Scan]:
    return lambda scan: replace(scan, counts=change(np.asarray(scan.counts)))


def shuffled(scan: Scan) -> Scan:
    return replace(scan, positions_m=scan.positions_m[np.random.default_rng(0).permutation(len(scan))])


RNG = np.random.default_rng(0)
OTHER_LENS = focused_probe(GEOMETRY, defocus_m=-0.6e-3, **{**LENS, "numerical_aperture": 0.4e-3}).numpy()
SPOILED: dict[str, Callable[[Scan], Scan]] = {
    "6 frames under a weak beam": weak_beam,
    "positions shuffled": shuffled,
    "axes exchanged": lambda s: replace(s, positions_m=s.positions_m[:, ::-1]),
    "x turned": lambda s: replace(s, positions_m=s.positions_m * [1, -1]),
    "distance x 2": lambda s: replace(s, geometry=replace(s.geometry, distance_m=2 * s.geometry.distance_m)),
    "distance x 0.5": lambda s: replace(s, geometry=replace(s.geometry, distance_m=s.geometry.distance_m / 2)),
    "distance in mm": lambda s: replace(s, geometry=replace(s.geometry, distance_m=1e3 * s.geometry.distance_m)),
    "positions in um": lambda s: replace(s, positions_m=1e6 * s.positions_m),
    "another lens assumed, refined": lambda s: replace(s, probe=OTHER_LENS),
    "another lens assumed, kept": lambda s: replace(s, probe=OTHER_LENS),
    "zero frequency in the corner": counted(lambda c: np.fft.ifftshift(c, axes=(1, 2))),
    "frames 8 pixels off": counted(lambda c: np.roll(c, 8, axis=1)),
    "frames 16 pixels off": counted(lambda c: np.roll(c, 16, axis=1)),
    "frames transposed": counted(lambda c: c.transpose(0, 2, 1)),
    "background alone": counted(lambda c: RNG.poisson(0.002, c.shape)),
    "a flat field": counted(lambda c: RNG.poisson(5.0, c.shape)),
    "one frame repeated": counted(lambda c: np.repeat(c[:1], len(c), axis=0)),
}


def main() -> None:
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    print("| scan | NRMSE | deviance | photon noise | like their mean | unexplained | verdict |")
    print("|---|---|---|---|---|---|---|")
    for kind in ("star", "natural", "leaves", "lines", "circuit", "gold", "phase", "cells", "particles", "blank"):
        row(kind, *simulated(kind))
    for photons in (1e3, 1e4, 1e7):
        row(f"star, {photons:g} photons", *simulated("star", photons))
    for engine in ("rpie", "epie", "raar", "dm", "pinn"):
        row(f"star, {engine}", *simulated("star"), engine=engine)
    row("star, 5 iterations", *simulated("star"), iterations=5)
    for kind in ("star", "particles"):
        scan, truth, origin = simulated(kind)
        for name, spoil in SPOILED.items():
            row(f"{kind}, {name}", spoil(scan), truth, origin, refine_probe=not name.endswith("kept"))
    for name, scan, modes in recorded():
        for said, spoil in {"": lambda s: s, ", positions shuffled": shuffled}.items():
            row(name + said, spoil(scan), modes=modes, iterations=RECORDED_ITERATIONS)


def recorded() -> Iterator[tuple[str, Scan, int]]:
    if folder := os.environ.get("BLUESKY_CDI_DATA"):
        for found in (siemens_star(Path(folder) / STAR), p25_near_field(Path(folder) / P25)):
            scan = found.scan.subset(nearest_to_middle(found.scan.positions_m, RECORDED_FRAMES))
            yield f"{found.name}, recorded, {RECORDED_FRAMES} frames", scan, found.modes


def row(name, scan, truth=None, origin=None, engine="lsqml", iterations=ITERATIONS, modes=2, refine_probe=True) -> None:
    settings = {
        "name": engine, "background": 0.0, "threads": 1, "tolerance": 1e-3, "refine_probe": refine_probe,
        "refine_positions": engine in ("lsqml", "pinn"),
    }  # fmt: skip
    config = load_config(overrides={"reconstructor": settings, "probe": {"modes": modes}})
    try:
        estimate = reconstruct(scan, config, iterations)
    except ValueError as err:
        print(f"| {name} | | | | | | refused: {str(err).partition(';')[0]} |", flush=True)
        return
    error = ""
    if truth is not None and estimate.pixel_m == GEOMETRY.pixel_m and np.std(truth) > 0:
        try:
            error = f"{compare_estimate(estimate, truth, origin).numbers['complex_nrmse']:.2f}"
        except ValueError:
            error = "elsewhere"
    verdict = judge(estimate)
    if (found := verdict.measures) is None:
        numbers = f"{estimate.residual.mean():.3g} | | |"
    else:
        unexplained = "" if np.isnan(found.unexplained) else f"{100 * found.unexplained:.0f} %"
        numbers = f"{found.deviance:.3g} | {found.noise:.3g} | {found.plain:.3g} | {unexplained}"
    print(f"| {name} | {error} | {numbers} | {verdict.says} |", flush=True)


if __name__ == "__main__":
    main()
