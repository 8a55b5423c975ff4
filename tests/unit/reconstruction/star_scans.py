"""Simulated frames of a star under a probe that is known."""

from dataclasses import dataclass

import numpy as np
import torch

from bluesky_cdi.io import Scan
from bluesky_cdi.physics.forward import Diffraction
from bluesky_cdi.physics.geometry import Geometry, ObjectGrid
from bluesky_cdi.physics.objects import make_sample
from bluesky_cdi.physics.probes import focused_probe
from bluesky_cdi.physics.propagators import propagator_of

FAR = Geometry(8000.0, 2.0, 172e-6, 40)
NEAR = Geometry(8000.0, 2e-3, 1.05e-6, 40, "near", 1e-4)
LENS = {"numerical_aperture": 0.9e-3, "central_stop": 0.3, "defocus_m": 0.25e-3}


@dataclass(frozen=True)
class Scene:
    """Frames of a known probe."""

    scan: Scan
    data: Diffraction
    probe: torch.Tensor


def lens(photons=1e5, modes=1, coherent_share=1.0, **changes):
    return focused_probe(FAR, photons=photons, modes=modes, coherent_share=coherent_share, **(LENS | changes))


def place(positions_m, geometry, counts, mask=None):
    grid = ObjectGrid.covering(positions_m.min(axis=0), positions_m.max(axis=0), geometry.pixel_m, geometry.frame_px, 8)
    corner, shift = (torch.from_numpy(each) for each in grid.place(positions_m))
    propagator = propagator_of(geometry)
    mask = None if mask is None else propagator.to_working(torch.from_numpy(mask))
    return Diffraction(
        propagator.to_working(torch.as_tensor(counts, dtype=torch.float32)), corner, shift.float(), (1, *grid.shape),
        mask=mask, propagator=propagator,
    )  # fmt: skip


def measure(probe, geometry=FAR, seed=0, side=(7, 6), mask=None, step=4.0):
    """Measure a star with a probe; masked pixels count nonsense."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*(np.arange(n) * step for n in side), indexing="ij"), axis=-1).reshape(-1, 2)
    positions = (grid + rng.uniform(-1, 1, grid.shape)) * geometry.pixel_m
    blank = place(positions, geometry, np.zeros((len(positions), geometry.frame_px, geometry.frame_px)))
    truth = torch.from_numpy(make_sample("star", blank.object_shape[1:], seed))[None]
    rate = blank.rate(blank.probes(probe[None]), blank.patches(truth))
    counts = blank.propagator.to_detector(torch.poisson(rate, generator=torch.Generator().manual_seed(seed))).numpy()
    if mask is not None:
        counts[:, ~mask] = 65535
    scan = Scan(counts, positions, geometry, probe.numpy(), mask, name="made")
    return Scene(scan, place(positions, geometry, counts, mask), probe)


def overlap(a, b):
    """Of the main modes, wherever they lie."""
    a, b = (each[int(each.abs().square().sum(dim=(1, 2)).argmax())] for each in (a, b))
    return float(torch.fft.ifft2(torch.fft.fft2(a) * torch.fft.fft2(b).conj()).abs().max() / a.norm() / b.norm())
