"""The flux of frames that stand out: found by every engine that has an image, others' left as stated."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from bluesky_cdi.engines import make_engine
from bluesky_cdi.engines.flux import with_outliers_flux
from bluesky_cdi.engines.ptychography import Schedule, Solution, iterate
from bluesky_cdi.physics.forward import Diffraction
from bluesky_cdi.physics.geometry import Geometry
from bluesky_cdi.physics.probes import focused_probe

SIDE = 40
DIM = {3: 0.1, 17: 0.3, 18: 0.5, 40: 0.0}


@pytest.fixture(scope="module")
def scene():
    """Frames of a weak phase with two opaque discs, 7 x 7 of them, some of them under a weak beam."""
    rng = np.random.default_rng(0)
    steps = np.stack(np.meshgrid(np.arange(7), np.arange(7), indexing="ij"), axis=-1).reshape(-1, 2)
    corner = torch.from_numpy(steps * 4 + rng.integers(0, 3, steps.shape))
    shape = (1, int(corner[:, 0].max()) + SIDE, int(corner[:, 1].max()) + SIDE)
    y, x = torch.meshgrid(torch.arange(shape[1]), torch.arange(shape[2]), indexing="ij")
    truth = torch.polar(torch.ones(shape), (0.5 * torch.sin(y / 3.0) * torch.sin(x / 4.0))[None].float())
    for row, column in ((24, 30), (40, 40)):
        truth[0, (y - row) ** 2 + (x - column) ** 2 < 16] *= 0.05
    probe = focused_probe(
        Geometry(8000.0, 2.0, 172e-6, SIDE), numerical_aperture=0.9e-3, central_stop=0.3, defocus_m=0.25e-3, photons=1e5
    )[None]
    flux = torch.ones(len(corner))
    flux[list(DIM)] = torch.tensor(list(DIM.values()))
    data = Diffraction(torch.zeros(len(corner), SIDE, SIDE), corner, torch.zeros(len(corner), 2), shape, flux=flux)
    rate = data.rate(data.probes(probe), data.patches(truth))
    counts = torch.poisson(rate, generator=torch.Generator().manual_seed(1))
    return replace(data, counts=counts, flux=None), probe, truth, flux


@pytest.mark.parametrize("engine", ["lsqml", "rpie", "raar", "epie"])
def test_frames_under_a_weak_beam_are_found_and_no_others(scene, engine):
    data, probe, truth, flux = scene
    start = Solution.start(torch.ones_like(truth), probe, data)
    found = iterate(make_engine(engine), start, Schedule(40, probe_from=-1, outliers_from=10)).solution.data.flux
    np.testing.assert_allclose(found, flux, rtol=0.16, atol=1e-3)
    assert sorted(DIM) == torch.nonzero(found != 1)[:, 0].tolist()


def test_under_the_true_object_the_flux_is_what_was_counted(scene):
    data, probe, truth, flux = scene
    found = with_outliers_flux(truth, probe, data).flux
    np.testing.assert_allclose(found, flux, rtol=0.03, atol=1e-4)
    stated = torch.full_like(flux, 0.5)
    told = with_outliers_flux(truth, probe, replace(data, flux=stated, stated_flux=stated)).flux
    np.testing.assert_allclose(told, 0.5 * flux, rtol=0.03, atol=1e-4)


def test_what_was_found_wrongly_comes_back(scene):
    data, probe, truth, flux = scene
    wrong = torch.ones_like(flux)
    wrong[[0, 24, 48]] = 0.2
    found = with_outliers_flux(truth, probe, replace(data, flux=wrong)).flux
    assert (found[[0, 24, 48]] == 1).all()


def test_where_all_differ_none_stands_out(scene):
    data, probe, truth, flux = scene
    factor = torch.from_numpy(np.random.default_rng(2).lognormal(0, 0.7, len(data))).float() / flux.clamp_min(0.05)
    spoiled = replace(data, counts=data.counts * factor[:, None, None])
    assert (with_outliers_flux(truth, probe, spoiled).flux[flux > 0] == 1).all()


def test_masked_pixels_and_background_are_no_light(scene):
    data, probe, truth, flux = scene
    mask = torch.ones(SIDE, SIDE, dtype=torch.bool)
    mask[0, 0] = False
    counts = data.counts + 2.0
    counts[:, 0, 0] = float("nan")
    found = with_outliers_flux(truth, probe, replace(data, counts=counts, mask=mask, background=2.0)).flux
    np.testing.assert_allclose(found, flux, rtol=0.03, atol=1e-3)


def test_the_light_is_looked_at_ever_less_often():
    schedule = Schedule(30, outliers_from=5)
    assert [epoch for epoch in range(30) if schedule.looks_for_outliers(epoch)] == [5, 6, 7, 9, 13, 21]
    assert not any(Schedule(30).looks_for_outliers(epoch) for epoch in range(30))
