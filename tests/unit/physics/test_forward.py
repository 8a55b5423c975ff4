"""The forward model against plain numpy, its adjoints, and its invariants."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from bluesky_cdi.physics import forward, illuminated_frames
from bluesky_cdi.physics.forward import Diffraction
from bluesky_cdi.physics.likelihood import amplitude_loss, poisson_deviance
from bluesky_cdi.physics.propagators import AngularSpectrum

SIZE, MODES, OBJECT_SHAPE = 8, 2, (1, 17, 19)


def complex_(rng, *shape):
    return torch.from_numpy(rng.normal(size=shape) + 1j * rng.normal(size=shape))


def inner(a, b):
    return complex((a.conj() * b).sum())


@pytest.fixture
def rng():
    return np.random.default_rng(20)


@pytest.fixture
def scan(rng):
    """Five frames of two modes on one object, each with its own sub-pixel shift and flux; double precision."""
    n = 5
    probe, obj = complex_(rng, 1, MODES, SIZE, SIZE), complex_(rng, *OBJECT_SHAPE)
    corner = torch.from_numpy(np.stack([rng.integers(0, 10, n), rng.integers(0, 12, n)], axis=1))
    shift = torch.from_numpy(rng.uniform(-0.5, 0.5, (n, 2)))
    flux = torch.from_numpy(rng.uniform(0.5, 1.5, n))
    counts = torch.from_numpy(rng.poisson(3.0, (n, SIZE, SIZE)).astype(float))
    return probe, obj, Diffraction(counts, corner, shift, OBJECT_SHAPE, flux, background=0.25)


def numpy_frame(probe, obj, corner, shift, flux):
    """One frame's exit waves and centred far fields, by an explicit Fourier sum over the pixels."""
    (y, x), size = corner, probe.shape[-1]
    k = np.fft.fftfreq(size)
    ramp = np.exp(-2j * np.pi * (shift[0] * k[:, None] + shift[1] * k[None, :]))
    patch = obj[y : y + size, x : x + size]
    index = np.arange(size) - size // 2
    kernel = np.exp(-2j * np.pi * np.outer(index, index) / size) / np.sqrt(size)
    exits = [np.sqrt(flux) * np.fft.ifft2(np.fft.fft2(mode) * ramp) * patch for mode in probe]
    return exits, [kernel @ wave @ kernel.T for wave in exits]


@pytest.mark.parametrize("shape", [(8, 8), (7, 9), (6, 5)])
def test_fft2c_is_the_centred_orthonormal_transform(rng, shape):
    field = complex_(rng, 3, *shape)
    expected = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(field.numpy(), axes=(-2, -1)), norm="ortho"), axes=(-2, -1))
    np.testing.assert_allclose(forward.fft2c(field), expected, atol=1e-12)
    np.testing.assert_allclose(forward.ifft2c(forward.fft2c(field)), field, atol=1e-12)
    assert forward.fft2c(field).abs().square().sum() == pytest.approx(float(field.abs().square().sum()))


def test_fft2c_of_a_constant_is_one_bright_pixel_at_half_the_size():
    spectrum = forward.fft2c(torch.ones(6, 7, dtype=torch.complex128))
    expected = np.zeros((6, 7))
    expected[3, 3] = np.sqrt(42)
    np.testing.assert_allclose(spectrum, expected, atol=1e-12)


def test_ifft2c_is_the_adjoint(rng):
    a, b = complex_(rng, 7, 8), complex_(rng, 7, 8)
    assert inner(forward.fft2c(a), b) == pytest.approx(inner(a, forward.ifft2c(b)))


def test_extract_cuts_known_patches():
    obj = torch.arange(2 * 5 * 6).reshape(2, 5, 6)
    corner, scene = torch.tensor([[0, 0], [2, 3], [1, 2]]), torch.tensor([0, 0, 1])
    found = forward.extract(obj, corner, 3, scene)
    assert found.shape == (3, 3, 3)
    assert torch.equal(found[0], obj[0, :3, :3])
    assert torch.equal(found[1], obj[0, 2:5, 3:6])
    assert torch.equal(found[2], obj[1, 1:4, 2:5])
    assert torch.equal(forward.extract(obj, corner[:2], 3), found[:2])


@pytest.mark.parametrize("real", [False, True])
def test_accumulate_is_the_adjoint_of_extract(rng, real):
    corner, scene = torch.tensor([[0, 0], [2, 3], [1, 2], [1, 2]]), torch.tensor([0, 0, 1, 1])
    obj, patches = complex_(rng, 2, 5, 6), complex_(rng, 4, 3, 3)
    if real:
        obj, patches = obj.real, patches.real
    stitched = forward.accumulate(patches, corner, (2, 5, 6), scene)
    assert stitched.dtype == patches.dtype
    assert inner(forward.extract(obj, corner, 3, scene), patches) == pytest.approx(inner(obj, stitched))


def test_accumulate_counts_the_overlap():
    covered = forward.accumulate(torch.ones(2, 3, 3), torch.tensor([[0, 0], [1, 1]]), (1, 4, 4))[0]
    assert covered.tolist() == [[1, 1, 1, 0], [1, 2, 2, 1], [1, 2, 2, 1], [0, 1, 1, 1]]


def test_shift_by_whole_pixels_is_a_roll(rng):
    fields = complex_(rng, 1, MODES, SIZE, SIZE)
    found = forward.shift_fields(fields, torch.tensor([[2.0, -3.0], [0.0, 1.0]]))
    np.testing.assert_allclose(found[0], fields[0].roll((2, -3), (-2, -1)), atol=1e-12)
    np.testing.assert_allclose(found[1], fields[0].roll(1, -1), atol=1e-12)


def test_shift_moves_a_gaussian_to_higher_indices():
    index = torch.arange(32, dtype=torch.float64)
    at = lambda y, x: torch.exp(-((index[:, None] - y) ** 2 + (index - x) ** 2) / 8).to(torch.complex128)  # noqa: E731
    found = forward.shift_fields(at(16, 16)[None, None], torch.tensor([[0.3, -0.45]]))[0, 0]
    np.testing.assert_allclose(found, at(16.3, 15.55), atol=1e-7)


def test_shift_keeps_energy_and_composes(rng):
    fields = complex_(rng, 3, MODES, SIZE, SIZE)
    first, second = (torch.from_numpy(rng.uniform(-1, 1, (3, 2))) for _ in range(2))
    once = forward.shift_fields(fields, first)
    assert float(once.abs().square().sum()) == pytest.approx(float(fields.abs().square().sum()))
    np.testing.assert_allclose(
        forward.shift_fields(once, second), forward.shift_fields(fields, first + second), atol=1e-12
    )
    np.testing.assert_allclose(forward.shift_fields(once, -first), fields, atol=1e-12)


def test_rate_agrees_with_a_plain_loop(scan):
    probe, obj, data = scan
    found = forward.rate(data.probes(probe), data.patches(obj), data.background)
    for i in range(len(data)):
        _, far = numpy_frame(
            probe[0].numpy(), obj[0].numpy(), data.corner[i].tolist(), data.shift_px[i].tolist(), data.flux[i].item()
        )
        np.testing.assert_allclose(found[i], sum(np.abs(w) ** 2 for w in far) + 0.25, rtol=1e-10)


def test_rate_through_vacuum_holds_the_photons_of_the_probe(scan):
    probe, obj, data = scan
    found = forward.rate(data.probes(probe), data.patches(torch.ones_like(obj)))
    np.testing.assert_allclose(found.sum(dim=(1, 2)), data.flux * probe.abs().square().sum(), rtol=1e-10)


def test_rate_moves_with_a_phase_ramp_of_the_object(scan):
    probe, obj, data = scan
    rows = torch.arange(obj.shape[1], dtype=torch.float64)
    ramp = torch.polar(torch.ones_like(rows), 2 * torch.pi * rows / SIZE)[:, None]
    probes = data.probes(probe)
    plain, tilted = (forward.rate(probes, data.patches(c)) for c in (obj, obj * ramp))
    np.testing.assert_allclose(tilted, plain.roll(1, -2), rtol=1e-9, atol=1e-9)


def test_to_corner_and_back():
    frame = torch.zeros(1, 5, 6)
    frame[0, 2, 3] = 1
    assert forward.to_corner(frame)[0, 0, 0] == 1
    assert torch.equal(forward.to_centre(forward.to_corner(frame)), frame)


def test_modulus_step_projects_on_the_measured_modulus(scan):
    probe, obj, data = scan
    probes, patches = data.probes(probe), data.patches(obj)
    step, rate = forward.modulus_step(probes * patches[:, None], data.counts)
    np.testing.assert_allclose(forward.to_centre(rate), forward.rate(probes, patches), rtol=1e-12)
    after = forward.intensity(torch.fft.fft2(probes * patches[:, None] + step, norm="ortho"))
    np.testing.assert_allclose(after, data.counts * rate / (rate + forward.STEP_FLOOR), rtol=1e-9, atol=1e-12)
    bright = rate > 1
    np.testing.assert_allclose(after[bright], data.counts[bright], rtol=1.01 * forward.STEP_FLOOR, atol=1e-12)


def test_modulus_step_is_the_gradient_of_the_amplitude_loss(scan):
    probe, obj, data = scan
    probes, patches, background = 30 * data.probes(probe), data.patches(obj), 1e4
    exits = (probes * patches[:, None]).requires_grad_()
    rate = forward.intensity(torch.fft.fft2(exits, norm="ortho")) + background
    counts = data.counts * 5e3
    (gradient,) = torch.autograd.grad(amplitude_loss(rate, counts).sum(), exits)
    step, _ = forward.modulus_step(probes * patches[:, None], counts, background)
    # PyTorch's gradient of a real loss is twice the Wirtinger derivative.
    np.testing.assert_allclose(-gradient / 2, step, rtol=1e-5, atol=1e-6 * float(step.abs().max()))


def test_steps_and_rates_have_the_gradients_of_finite_differences(scan):
    probe, obj, data = scan
    data = data[:2]

    def loss(obj, probe):
        numerator, illumination = illuminated_frames.object_step(obj, probe, data)
        rate = forward.rate(data.probes(probe), data.patches(obj), data.background)
        return torch.view_as_real(numerator).sum() + illumination.sum() + rate.sqrt().sum()

    inputs = obj.clone().requires_grad_(), probe.clone().requires_grad_()
    assert torch.autograd.gradcheck(loss, inputs, fast_mode=True)


def test_object_step_agrees_with_a_plain_loop(scan, rng):
    probe, _, data = scan
    probes, step = data.probes(probe), complex_(rng, len(data), MODES, SIZE, SIZE)
    numerator, illumination = forward.object_step(probes, step, data.corner, data.object_shape)
    expected, expected_illumination = np.zeros(OBJECT_SHAPE[1:], complex), np.zeros(OBJECT_SHAPE[1:])
    for frame, mode, i, j in itertools.product(range(len(data)), range(MODES), range(SIZE), range(SIZE)):
        y, x = int(data.corner[frame, 0]) + i, int(data.corner[frame, 1]) + j
        value = complex(probes[frame, mode, i, j])
        expected[y, x] += value.conjugate() * complex(step[frame, mode, i, j])
        expected_illumination[y, x] += abs(value) ** 2
    np.testing.assert_allclose(numerator[0], expected, atol=1e-10)
    np.testing.assert_allclose(illumination[0], expected_illumination, atol=1e-10)


@pytest.mark.parametrize("chunk", [1, 2, 256])
def test_grid_step_is_the_same_in_chunks(scan, chunk):
    probe, obj, data = scan
    for found, whole in zip(
        illuminated_frames.object_step(obj, probe, data, chunk),
        illuminated_frames.object_step(obj, probe, data),
        strict=True,
    ):
        np.testing.assert_allclose(found, whole, atol=1e-10)


def test_grid_step_vanishes_where_the_model_explains_the_counts(scan):
    probe, obj, data = scan
    probe = 1e3 * probe
    counts = forward.intensity(forward.diffract(data.probes(probe), data.patches(obj)))
    perfect = Diffraction(counts, data.corner, data.shift_px, data.object_shape, data.flux)
    numerator, illumination = illuminated_frames.object_step(obj, probe, perfect)
    assert float(numerator.abs().max() / illumination.max()) < 1e-6


def test_scenes_of_a_batch_are_scenes_one_at_a_time(rng):
    scenes = 3
    probe, obj = complex_(rng, scenes, MODES, SIZE, SIZE), complex_(rng, scenes, 17, 19)
    scene = torch.tensor([0, 2, 1, 2, 0, 2])
    corner, shift = torch.from_numpy(rng.integers(0, 9, (6, 2))), torch.from_numpy(rng.uniform(-0.5, 0.5, (6, 2)))
    counts = torch.from_numpy(rng.poisson(2.0, (6, SIZE, SIZE)).astype(float))
    batch = Diffraction(counts, corner, shift, (scenes, 17, 19), scene=scene)
    together = illuminated_frames.object_step(obj, probe, batch)
    rates = forward.rate(batch.probes(probe), batch.patches(obj))
    peaks = forward.peak_intensity(probe)
    assert peaks.shape == (scenes, 1, 1)
    for b in range(scenes):
        own = scene == b
        single = Diffraction(counts[own], corner[own], shift[own], (1, 17, 19))
        alone = illuminated_frames.object_step(obj[b : b + 1], probe[b : b + 1], single)
        for whole, part in zip(together, alone, strict=True):
            np.testing.assert_allclose(whole[b], part[0], atol=1e-10)
        lone = forward.rate(single.probes(probe[b : b + 1]), single.patches(obj[b : b + 1]))
        np.testing.assert_allclose(rates[own], lone, atol=1e-10)
        assert float(peaks[b]) == pytest.approx(float((probe[b].abs() ** 2).sum(dim=0).max()))


def test_masked_pixels_ask_for_nothing(scan, rng):
    probe, obj, data = scan
    probes, patches = data.probes(probe), data.patches(obj)
    mask = torch.from_numpy(rng.random((SIZE, SIZE)) > 0.4)
    step, _ = forward.modulus_step(probes * patches[:, None], data.counts, 0.0, mask)
    change = torch.fft.fft2(step, norm="ortho")
    assert float(change[..., ~mask].abs().max()) < 1e-12
    assert float(change[..., mask].abs().max()) > 0.1
    wild = torch.where(mask, data.counts, float("nan"))
    again, _ = forward.modulus_step(probes * patches[:, None], wild, 0.0, mask)
    np.testing.assert_allclose(again, step, atol=1e-12)
    nothing, _ = forward.modulus_step(probes * patches[:, None], data.counts, 0.0, torch.zeros_like(mask))
    assert not nothing.any()


def test_dark_pixels_ask_for_finite_changes(scan):
    probe, obj, data = scan
    zero = torch.zeros_like(data.patches(obj))
    step, rate = forward.modulus_step(data.probes(probe) * zero[:, None], data.counts)
    assert torch.isfinite(torch.view_as_real(step)).all()
    assert not rate.any()


def test_selecting_frames_selects_everything_of_them(scan):
    _, _, data = scan
    pick = torch.tensor([3, 0])
    part = data[pick]
    assert len(part) == 2
    for name in ("counts", "corner", "shift_px", "flux"):
        assert torch.equal(getattr(part, name), getattr(data, name)[pick])
    assert (part.object_shape, part.background) == (data.object_shape, data.background)
    assert [len(c) for c in data.chunks(2)] == [2, 2, 1]
    assert torch.equal(torch.cat([c.corner for c in data.chunks(2)]), data.corner)


def test_all_pixels_count_unless_told_otherwise(scan, rng):
    data = scan[2]
    assert data.valid is None
    mask = torch.from_numpy(rng.random((SIZE, SIZE)) > 0.4)
    assert replace(data, mask=mask).valid is mask


@pytest.mark.parametrize("masked", [False, True])
def test_saturated_pixels_ask_for_nothing_in_their_own_frame(scan, rng, masked):
    probe, obj, data = scan
    mask = torch.from_numpy(rng.random((SIZE, SIZE)) > 0.4) if masked else None
    data = replace(data, saturation=5.0, mask=mask)
    below = data.counts < 5
    expected = below if mask is None else below & mask
    assert torch.equal(data.valid, expected)
    assert 0 < int((~below).sum()) < below.numel() and not torch.equal(below[0], below[1])
    assert torch.equal(data[1:3].valid, expected[1:3])
    step, rate = data.exit_wave_step(data.probes(probe), data.patches(obj))
    change = torch.fft.fft2(step, norm="ortho")
    off = ~data.valid[:, None].expand_as(change)
    assert float(change[off].abs().max()) < 1e-12
    assert float(change[~off].abs().max()) > 0.1
    # A saturated value says only that it was reached: any other above it gives the same step.
    brighter = replace(data, counts=torch.where(below, data.counts, 1e7))
    torch.testing.assert_close(brighter.exit_wave_step(brighter.probes(probe), brighter.patches(obj))[0], step)
    torch.testing.assert_close(rate, data.rate(data.probes(probe), data.patches(obj)))


def test_a_pixel_at_the_saturation_is_not_valid(scan):
    data = scan[2]
    counts = torch.tensor([4.0, 5.0, 6.0]).repeat(1, 3, 1)
    assert replace(data, counts=counts, saturation=5.0).valid[0, 0].tolist() == [True, False, False]


def test_rate_in_the_near_field_is_that_of_a_sample_moved_in_the_laboratory(rng):
    """The beam stands still and the sample moves by a fraction of a pixel: explicit numpy.

    Band-limited to a quarter, beam and sample make an exit wave below the Nyquist frequency, and a
    shift of the one against the other is the same shift whichever moves.
    """
    size, pixel, wavelength, distance = 16, 0.5e-6, 1.24e-10, 0.025
    k = np.fft.fftfreq(size)
    low = (np.abs(k) < 0.24)[:, None] & (np.abs(k) < 0.24)
    beam, sample = (np.fft.ifft2(np.fft.fft2(complex_(rng, size, size).numpy()) * low) for _ in range(2))
    obj = np.tile(sample, (2, 2))
    corner, shift = np.array([[0, 0], [3, 7], [11, 2]]), np.array([[0.3, -0.45], [-0.2, 0.1], [0.5, 0.25]])
    data = Diffraction(
        counts=torch.zeros(3, size, size, dtype=torch.float64),
        corner=torch.from_numpy(corner),
        shift_px=torch.from_numpy(shift),
        object_shape=(1, 2 * size, 2 * size),
        flux=torch.tensor([1.0, 0.5, 2.0], dtype=torch.float64),
        background=0.25,
        propagator=AngularSpectrum(size, pixel, wavelength, distance),
    )
    found = data.rate(data.probes(torch.from_numpy(beam)[None, None]), data.patches(torch.from_numpy(obj)[None]))
    q2 = (2 * np.pi * k[:, None] / pixel) ** 2 + (2 * np.pi * k / pixel) ** 2
    wave_number = 2 * np.pi / wavelength
    transfer = np.exp(1j * distance * (np.sqrt(wave_number**2 - q2) - wave_number))
    for frame, (y, x), s, flux in zip(found, corner, shift, data.flux, strict=True):
        moved = np.roll(sample, (-y, -x), (0, 1))
        moved = np.fft.ifft2(np.fft.fft2(moved) * np.exp(2j * np.pi * (k[:, None] * s[0] + k * s[1])))
        wave = np.fft.ifft2(np.fft.fft2(beam * moved) * transfer)
        np.testing.assert_allclose(frame, float(flux) * np.abs(wave) ** 2 + 0.25, rtol=1e-5, atol=1e-9)


def test_steps_in_the_near_field_go_down_the_amplitude_loss(scan, rng):
    probe, obj, data = scan
    data = replace(data, propagator=AngularSpectrum(SIZE, 0.5e-6, 1.24e-10, 0.012), background=0.0)
    probes = data.probes(probe)
    patches = data.patches(obj).requires_grad_()
    loss = amplitude_loss(data.rate(probes, patches), data.counts).sum()
    (gradient,) = torch.autograd.grad(loss, patches)
    step, _ = data.exit_wave_step(probes, patches.detach())
    a, b = torch.view_as_real((probes.conj() * step).sum(dim=1)).flatten(), -torch.view_as_real(gradient).flatten()
    # Of the loss's gradient, twice the Wirtinger one; and dark pixels are damped by the step's floor.
    assert float(2 * a @ b / (b @ b)) == pytest.approx(1, abs=0.01)
    assert float(a @ b / (a.norm() * b.norm())) > 0.999


def test_poisson_step_is_proximal():
    """Beside a numerical minimiser, pixel by pixel, from no count to many."""
    from scipy.optimize import minimize_scalar

    values = torch.tensor([0.3, 1.0, 40.0]), torch.tensor([0.0, 1.0, 60.0])
    rate, counts = (a.flatten() for a in torch.meshgrid(*values, indexing="ij"))
    waves = torch.fft.ifft2(rate.double().sqrt().reshape(1, 1, 3, 3).to(torch.complex128), norm="ortho")
    step, _ = forward.modulus_step(waves, counts.double().reshape(1, 3, 3), likelihood="poisson")
    found = torch.fft.fft2(waves + step, norm="ortho").abs().flatten()
    for r, k, a in zip(rate.tolist(), counts.tolist(), found.tolist(), strict=True):

        def cost(x, r=r, k=k):
            return x * x - k * math.log(x * x) + (x - math.sqrt(r)) ** 2

        best = minimize_scalar(cost, bounds=(1e-6, 20.0), method="bounded", options={"xatol": 1e-9}).x
        # The floor under the rate is a thousandth of a photon.
        assert a == pytest.approx(best, rel=2e-3)


@pytest.mark.parametrize("likelihood", ["amplitude", "poisson"])
def test_steps_go_down_their_likelihood(scan, likelihood):
    probe, obj, data = scan
    probes, patches = data.probes(probe), data.patches(torch.ones_like(obj))
    step, rate = data.exit_wave_step(probes, patches, likelihood)
    moved = data.propagator.forward(probes * patches[:, None] + step, data.shift_px)
    after = forward.intensity(moved) + data.background
    measure = {"amplitude": amplitude_loss, "poisson": poisson_deviance}[likelihood]
    assert float(measure(after, data.counts).sum()) < float(measure(rate, data.counts).sum())


def test_cut_patches_have_the_gradient_of_plain_indexing(scan, rng):
    """To second order: what is cut twice gets both gradients."""
    _, obj, data = scan
    index = forward.patch_index(data.corner, SIZE, OBJECT_SHAPE)
    asked = complex_(rng, *index.shape)

    def derivatives(cut):
        image = obj.clone().requires_grad_()
        patches = cut(image)
        (first,) = torch.autograd.grad((patches.abs() ** 3 * asked.real).sum(), image, create_graph=True)
        (second,) = torch.autograd.grad((first.conj() * obj).real.sum(), image)
        return first.detach(), second

    found = derivatives(lambda image: forward.extract(image, data.corner, SIZE))
    expected = derivatives(lambda image: image.reshape(-1)[index])
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_frames_keep_their_own_probes_for_the_probe_that_they_are_of():
    rng = np.random.default_rng(5)
    probe, other = (torch.from_numpy(rng.normal(size=(1, 2, 8, 8)) + 0j).to(torch.complex64) for _ in range(2))
    corner, shift = torch.zeros(5, 2, dtype=torch.int64), torch.from_numpy(rng.uniform(-0.5, 0.5, (5, 2)))
    data = Diffraction(torch.ones(5, 8, 8), corner, shift, (1, 8, 8), flux=torch.linspace(0.5, 1.5, 5))
    kept = data.with_probes(probe)
    assert kept.probes(probe) is kept.own_probes
    for part in (slice(1, 4), torch.tensor([4, 0])):
        torch.testing.assert_close(kept[part].probes(probe), data[part].probes(probe))
    torch.testing.assert_close(kept.probes(other), data.probes(other))
    # As a refinement replaces them.
    for changed in ({"shift_px": shift + 0.25}, {"flux": torch.full((5,), 2.0)}):
        moved = replace(kept, **changed)
        for part in (slice(None), slice(1, 4)):
            torch.testing.assert_close(moved[part].probes(probe), replace(data, **changed)[part].probes(probe))
