"""rPIE on scans whose truth is known."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from bluesky_cdi.engines.ptychography import Schedule, Solution, iterate
from bluesky_cdi.engines.rpie import Rpie, RpieSettings
from bluesky_cdi.engines.steps import averaged_step, orthogonalise
from bluesky_cdi.evaluation import compare, complex_nrmse
from bluesky_cdi.physics.forward import Diffraction, accumulate, fft2c, intensity, rate, to_corner
from bluesky_cdi.physics.geometry import Geometry, ObjectGrid
from bluesky_cdi.physics.illuminated_frames import object_step
from bluesky_cdi.physics.likelihood import amplitude_loss, poisson_deviance
from bluesky_cdi.physics.objects import make_sample
from bluesky_cdi.physics.probes import focused_probe

GEOMETRY = Geometry(8000.0, 2.0, 172e-6, 32)


def rpie(obj, probe, data, epochs, settings=None, seed=0, probe_from=0):
    """Epochs without the averaged step at the end: object, probe, deviance."""
    engine, schedule = Rpie(settings, seed), Schedule(epochs, probe_from)
    solution = Solution.start(obj, probe, data)
    for epoch in range(epochs):
        solution = engine.epoch(solution, schedule.refine(epoch))
    return solution.object, solution.probe, solution.deviance


def make_probe(defocus_m=0.45e-3, modes=1, photons=1e6):
    return focused_probe(
        GEOMETRY, numerical_aperture=0.6e-3, defocus_m=defocus_m, modes=modes, coherent_share=0.8, photons=photons
    )[None]


class Scan:
    """A raster of 9 x 9 jittered positions, 2.5 px apart, over dense texture; noise-free unless asked."""

    def __init__(self, probe, noise_seed=None, sample="cells"):
        rng = np.random.default_rng(12)
        pixel = GEOMETRY.pixel_m
        positions = np.stack(np.meshgrid(*(np.arange(9) * 2.5,) * 2, indexing="ij"), axis=-1).reshape(-1, 2)
        positions = (positions + rng.uniform(-0.8, 0.8, positions.shape)) * pixel
        grid = ObjectGrid.covering(positions.min(axis=0), positions.max(axis=0), pixel, 32)
        corner, shift = (torch.from_numpy(a) for a in grid.place(positions))
        self.probe = probe
        self.truth = torch.from_numpy(make_sample(sample, grid.shape, seed=3))[None]
        self.vacuum = torch.ones_like(self.truth)
        counts = torch.zeros(len(positions), 32, 32)
        data = Diffraction(counts, corner, shift, (1, *grid.shape))
        expected = rate(data.probes(probe), data.patches(self.truth))
        if noise_seed is not None:
            expected = torch.poisson(expected, generator=torch.Generator().manual_seed(noise_seed))
        self.data = Diffraction(to_corner(expected), corner, shift, data.object_shape)
        self.illumination = accumulate(intensity(data.probes(probe)), corner, data.object_shape)[0].numpy()
        self.illuminated = self.illumination > 0.1 * self.illumination.max()

    def error(self, obj):
        return complex_nrmse(obj[0].numpy(), self.truth[0].numpy(), self.illuminated)

    def deviance(self, obj, probe):
        expected = intensity(torch.fft.fft2(self.data.probes(probe) * self.data.patches(obj)[:, None], norm="ortho"))
        return float(poisson_deviance(expected, self.data.counts).mean())


@pytest.fixture(scope="module")
def scan():
    return Scan(make_probe())


@pytest.fixture(scope="module")
def noisy():
    return Scan(make_probe(photons=1e4), noise_seed=5)


@pytest.mark.parametrize("modes", [1, 2])
def test_the_object_converges_to_the_truth(modes):
    scan = Scan(make_probe(modes=modes))
    obj, probe, deviance = rpie(scan.vacuum, scan.probe, scan.data, 40, probe_from=-1)
    assert scan.error(scan.vacuum) > 0.8
    assert scan.error(obj) < 0.03
    assert torch.equal(probe, scan.probe)
    assert deviance.shape == (81,) and float(deviance.max()) < 1


def test_the_deviance_falls(scan):
    start = Solution.start(scan.vacuum, scan.probe, scan.data)
    means = iterate(Rpie(), start, Schedule(8, probe_from=-1)).history
    assert all(after < before for before, after in pairwise(means))
    assert means[-1] < 0.1 * means[0]


def test_the_reported_deviance_is_that_of_the_model_before_its_update(scan):
    _, _, deviance = rpie(scan.vacuum, scan.probe, scan.data, 1, RpieSettings(batch=1000), probe_from=-1)
    assert float(deviance.mean()) == pytest.approx(scan.deviance(scan.vacuum, scan.probe), rel=1e-4)


def test_refinement_improves_a_wrong_probe(scan):
    wrong = make_probe(defocus_m=0.38e-3)
    obj, probe, _ = rpie(scan.vacuum, wrong, scan.data, 60)
    fixed, same, _ = rpie(scan.vacuum, wrong, scan.data, 60, probe_from=-1)
    assert torch.equal(same, wrong)

    def likeness(a):
        a, b = a[0, 0].flatten(), scan.probe[0, 0].flatten()
        return float((a.conj() @ b).abs() / (a.norm() * b.norm()))

    assert 1 - likeness(probe) < 0.25 * (1 - likeness(wrong))
    assert scan.deviance(obj, probe) < 0.1 * scan.deviance(fixed, wrong)
    # With both free, shift and phase ramp may pass between probe and object.
    refined, kept = (
        compare(c[0].numpy(), scan.truth[0].numpy(), scan.illumination).numbers["complex_nrmse"] for c in (obj, fixed)
    )
    assert refined < 0.25 * kept and refined < 0.02


def test_the_probe_waits_for_its_epoch(scan):
    assert torch.equal(rpie(scan.vacuum, scan.probe, scan.data, 3, probe_from=3)[1], scan.probe)
    assert not torch.equal(rpie(scan.vacuum, scan.probe, scan.data, 4, probe_from=3)[1], scan.probe)


def test_inputs_are_not_changed(scan):
    obj, probe = scan.vacuum.clone(), scan.probe.clone()
    rpie(obj, probe, scan.data, 1)
    assert torch.equal(obj, scan.vacuum) and torch.equal(probe, scan.probe)


def test_a_seed_names_the_result(scan):
    a, b, other = (rpie(scan.vacuum, scan.probe, scan.data, 2, seed=s) for s in (7, 7, 8))
    for first, second in zip(a, b, strict=True):
        assert torch.equal(first, second)
    assert not torch.equal(a[0], other[0])


def test_no_iterations_change_nothing(scan):
    obj, probe, deviance = rpie(scan.vacuum, scan.probe, scan.data, 0)
    assert torch.equal(obj, scan.vacuum) and torch.equal(probe, scan.probe)
    assert deviance.isnan().all()


@pytest.mark.parametrize("modes", [1, 2])
def test_vacuum_is_a_fixed_point(modes):
    scan = Scan(make_probe(modes=modes), sample="blank")
    obj, probe, deviance = rpie(scan.vacuum, scan.probe, scan.data, 3)
    # The floor under the square root's divisor (a thousandth of a photon) moves dark pixels a little.
    assert float((obj - 1).abs().max()) < 2e-3
    assert float((probe - scan.probe).abs().max()) < 2e-3 * float(scan.probe.abs().max())
    assert float(deviance.max()) < 1e-2


def test_pixels_without_light_are_not_touched(scan):
    dark = accumulate(intensity(scan.data.probes(scan.probe)), scan.data.corner, scan.data.object_shape) == 0
    assert dark.any()
    obj, _, _ = rpie(scan.vacuum, scan.probe, scan.data, 2)
    assert torch.equal(obj[dark], scan.vacuum[dark])
    assert torch.isfinite(torch.view_as_real(obj)).all()


def test_masked_pixels_may_hold_anything(scan):
    mask = torch.rand(32, 32, generator=torch.Generator().manual_seed(2)) > 0.1
    data = scan.data
    wild = torch.where(mask, data.counts, 65535.0)
    shown, hidden = (
        Diffraction(counts, data.corner, data.shift_px, data.object_shape, mask=mask) for counts in (data.counts, wild)
    )
    for a, b in zip(*(rpie(scan.vacuum, scan.probe, d, 2) for d in (shown, hidden)), strict=True):
        torch.testing.assert_close(a, b)
    assert scan.error(rpie(scan.vacuum, scan.probe, hidden, 40, probe_from=-1)[0]) < 0.06


def test_a_step_is_the_published_one_for_a_single_frame(scan):
    """Maiden, Johnson and Li (2017), eqs. 4 to 6, in numpy."""
    alpha, beta, k = 0.1, 0.5, 17
    one = scan.data[k : k + 1]
    obj, probe, _ = rpie(scan.vacuum * 0.9j, scan.probe, one, 1, RpieSettings(alpha=alpha, beta=beta))
    own = one.probes(scan.probe)[0, 0].numpy().astype(complex)
    y, x = one.corner[0].tolist()
    patch = np.full((32, 32), 0.9j)
    far = np.fft.fft2(own * patch, norm="ortho")
    modulus = np.sqrt(one.counts[0].numpy())
    target = np.fft.ifft2(far * modulus / np.sqrt(np.abs(far) ** 2 + 1e-3), norm="ortho")
    change = target - own * patch
    power, transmission = np.abs(own) ** 2, np.abs(patch) ** 2
    peak = (np.abs(scan.probe[0, 0].numpy()) ** 2).max()
    expected = patch + own.conj() * change / ((1 - alpha) * power + alpha * peak)
    np.testing.assert_allclose(obj[0, y : y + 32, x : x + 32], expected, atol=1e-4)
    step = patch.conj() * change / ((1 - beta) * transmission + beta * transmission.max())
    (dy, dx), frequency = one.shift_px[0].tolist(), np.fft.fftfreq(32)
    back = np.exp(2j * np.pi * (frequency[:, None] * dy + frequency * dx))
    expected_probe = scan.probe[0, 0].numpy() + np.fft.ifft2(np.fft.fft2(step) * back)
    np.testing.assert_allclose(probe[0, 0], expected_probe, atol=1e-4 * math.sqrt(peak))


@pytest.mark.parametrize("start_iterations", [0, 5])
def test_averaged_step_lowers_the_deviance(noisy, start_iterations):
    start = rpie(noisy.vacuum, noisy.probe, noisy.data, start_iterations, probe_from=-1)[0]
    after = averaged_step(start, noisy.probe, noisy.data)
    assert noisy.deviance(after, noisy.probe) < noisy.deviance(start, noisy.probe)
    assert noisy.error(after) < noisy.error(start)


@pytest.mark.parametrize("alpha", [0.1, 1.0])
def test_averaged_step_is_an_epoch_of_one_batch(noisy, alpha):
    together = RpieSettings(alpha=alpha, batch=1000)
    epoch = rpie(noisy.vacuum, noisy.probe, noisy.data, 1, together, probe_from=-1)[0]
    torch.testing.assert_close(averaged_step(noisy.vacuum, noisy.probe, noisy.data, alpha), epoch)


def test_the_step_goes_down_the_amplitude_loss(noisy):
    obj = noisy.vacuum.clone().requires_grad_()
    exits = noisy.data.probes(noisy.probe) * noisy.data.patches(obj)[:, None]
    loss = amplitude_loss(intensity(torch.fft.fft2(exits, norm="ortho")), noisy.data.counts).sum()
    (gradient,) = torch.autograd.grad(loss, obj)
    numerator, _ = object_step(noisy.vacuum, noisy.probe, noisy.data)
    a, b = torch.view_as_real(numerator).flatten(), -torch.view_as_real(gradient).flatten()
    assert float(a @ b / (a.norm() * b.norm())) > 0.95


def random_modes(seed, modes=3, size=16):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(1, modes, size, size)) + 1j * rng.normal(size=(1, modes, size, size))
    return torch.from_numpy(values)


def test_orthogonalise_keeps_every_intensity():
    probe = random_modes(1) * torch.tensor([1.0, 0.5, 2.0])[:, None, None]
    patch = random_modes(2, modes=1)[0, 0]
    found = orthogonalise(probe)
    assert found.shape == probe.shape
    for modes in (lambda p: p, lambda p: fft2c(p), lambda p: fft2c(p * patch)):
        torch.testing.assert_close(intensity(modes(found)), intensity(modes(probe)))
    flat = found[0].reshape(3, -1)
    gram = (flat @ flat.mH).numpy()
    assert np.abs(gram - np.diag(gram.diagonal())).max() < 1e-10
    assert (np.diff(gram.diagonal().real) < 0).all()


def test_orthogonalise_keeps_a_single_mode_and_orthogonal_ones():
    one = random_modes(3, modes=1)
    torch.testing.assert_close(orthogonalise(one), one)
    ordered = make_probe(modes=2).to(torch.complex128)
    torch.testing.assert_close(orthogonalise(ordered)[0, 0], ordered[0, 0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(orthogonalise(ordered).abs(), ordered.abs(), atol=1e-5, rtol=1e-5)


def test_orthogonalise_exchanges_modes_that_overlap_nowhere():
    """The strongest mode then has no overlap at all with the mode that stood first."""
    probe = torch.zeros(1, 2, 8, 8, dtype=torch.complex64)
    probe[0, 0, :, :4] = 1
    probe[0, 1, :, 4:] = 2j
    found = orthogonalise(probe)
    torch.testing.assert_close(found[0, 0], probe[0, 1])
    torch.testing.assert_close(found[0, 1].abs(), probe[0, 0].abs())


def test_orthogonalise_leaves_an_empty_mode_empty():
    probe = random_modes(4, modes=2)
    probe[0, 1] = 0
    found = orthogonalise(probe)
    torch.testing.assert_close(found, probe)
