"""The simulated stream: reproducible, and its counts are those of its own truth."""

import numpy as np
import pytest
import torch

from bluesky_cdi.physics.forward import intensity
from bluesky_cdi.physics.likelihood import poisson_deviance
from bluesky_cdi.physics.propagators import FAR_FIELD, AngularSpectrum
from bluesky_cdi.training import objects as objects_module
from bluesky_cdi.training import stream as module
from bluesky_cdi.training.draws import Draws
from bluesky_cdi.training.objects import ObjectPool, draw_objects
from bluesky_cdi.training.probes import draw_probes, misjudge
from bluesky_cdi.training.stream import SceneShape, SceneStream, place

CPU = torch.device("cpu")
SHAPE = SceneShape(32, 56, (4, 9), 3, 1.0)


def make(seed=1, photons=(1e3, 1e7), **options):
    return SceneStream(CPU, seed, photons, **{"pool": 8, "object_px": 64, **options})


def tensors(batch):
    data = batch.data
    return [batch.truth, batch.probe, data.counts, data.corner, data.shift_px, data.flux, data.scene]


def test_a_seed_names_a_stream():
    first, same, other = make(3), make(3), make(4)
    for _ in range(4):
        a, b, c = (s.draw(SHAPE) for s in (first, same, other))
        assert all(torch.equal(x, y) for x, y in zip(tensors(a), tensors(b), strict=True))
        assert (a.data.mask is None) == (b.data.mask is None)
        assert not torch.equal(a.truth, c.truth)
    assert not torch.equal(first.draw(SHAPE).truth, a.truth)


def test_streams_of_one_process_group_draw_batches_of_one_size(monkeypatch):
    monkeypatch.setattr(module, "SHAPES", (SHAPE, SceneShape(16, 40, (2, 20), 2, 1.0)))
    one, other = make(3), make(1_000_006, decisions=3)
    for _ in range(12):
        a, b = one.draw(), other.draw()
        assert a.data.counts.shape == b.data.counts.shape and a.probe.shape == b.probe.shape
        assert (a.data.mask is None) == (b.data.mask is None)
        assert not torch.equal(a.truth, b.truth) and not torch.equal(a.data.counts, b.data.counts)


def test_the_global_generator_plays_no_part():
    torch.manual_seed(1)
    a = make(3).draw(SHAPE)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    b = make(3).draw(SHAPE)
    assert torch.equal(a.data.counts, b.data.counts)
    assert torch.equal(torch.get_rng_state(), state)


def test_shapes_and_types():
    stream, modes = make(5), set()
    for _ in range(12):
        batch = stream.draw(SHAPE)
        n, modes_here = len(batch.data), batch.probe.shape[1]
        modes.add(modes_here)
        assert n % 3 == 0 and 4 <= n // 3 <= 9
        assert batch.truth.shape == batch.data.object_shape == (3, 56, 56)
        assert batch.probe.shape == (3, modes_here, 32, 32)
        assert batch.truth.dtype == batch.probe.dtype == torch.complex64
        assert batch.data.counts.shape == (n, 32, 32) and batch.data.counts.dtype == torch.float32
        assert batch.data.scene.tolist() == sorted(list(range(3)) * (n // 3))
        corner = batch.data.corner
        assert int(corner.min()) >= 0 and int(corner.max()) + 32 <= 56
        assert torch.isfinite(torch.view_as_real(batch.probe)).all()
    assert modes == {1, 2, 3}


def test_objects_are_transmissions_of_mixed_kinds():
    objects = draw_objects(Draws(CPU, 6), 40, 64)
    assert objects.shape == (40, 64, 64)
    assert float(objects.abs().max()) <= 1 + 1e-6 and float(objects.abs().min()) > 0.4
    vacuum = (objects - 1).abs() < 1e-6
    share = vacuum.float().mean(dim=(1, 2))
    assert (share > 0.3).any() and (share < 0.01).any()


def test_some_objects_turn_the_phase_more_than_once_around(monkeypatch):
    def all_around(objects):
        phases = torch.angle(objects).flatten(start_dim=1)
        return float(((phases.amin(dim=1) < -3) & (phases.amax(dim=1) > 3)).float().mean())

    draws = Draws(CPU, 6)
    monkeypatch.setattr(objects_module, "THICK_SHARE", 0.0)
    assert all_around(draw_objects(draws, 40, 48)) == 0
    monkeypatch.setattr(objects_module, "THICK_SHARE", 1.0)
    assert all_around(draw_objects(draws, 40, 48)) > 0.5


@pytest.mark.parametrize("modes", [1, 2, 3])
def test_probes_have_unit_energy_and_orthogonal_modes(modes):
    probes = draw_probes(Draws(CPU, 7), 6, 32, modes)
    assert probes.shape == (6, modes, 32, 32)
    for probe in probes:
        flat = probe.reshape(modes, -1).to(torch.complex128)
        gram = (flat @ flat.mH).numpy()
        assert gram.trace().real == pytest.approx(1, rel=1e-5)
        assert np.abs(gram - np.diag(gram.diagonal())).max() < 1e-4
        assert gram[0, 0].real >= 0.7 - 1e-5 or modes == 1


def test_photons_are_those_asked_for():
    for photons in ((1e4, 1.001e4), (1e3, 1e6)):
        stream = make(8, photons)
        reported = torch.cat(
            [stream.draw(SHAPE, exact=True).probe.abs().square().sum(dim=(1, 2, 3)) for _ in range(20)]
        )
        assert float(reported.min()) >= photons[0] * (1 - 1e-4) and float(reported.max()) <= photons[1] * (1 + 1e-4)
    # Log-uniform: as many below as above the geometric mean.
    assert 0.3 < float((reported < 10**4.5).float().mean()) < 0.7


def test_frames_through_vacuum_hold_the_photons():
    stream = make(9, (1e5, 1.001e5))
    stream.pool.parts = [torch.ones(1, 64, 64, dtype=torch.complex64)] * 8
    batch = stream.draw(SHAPE, exact=True)
    totals = batch.data.counts.sum(dim=(1, 2)) / batch.data.flux
    # The background is at most 0.01 photons a pixel; three standard deviations and more of Poisson.
    np.testing.assert_allclose(totals, 1e5, rtol=0.02)


def numpy_rates(batch):
    """Expected counts of every frame in plain numpy, at the positions and with the probe that are assumed."""
    size = batch.probe.shape[-1]
    k = np.fft.fftfreq(size)
    truth, probe, data = batch.truth.numpy(), batch.probe.numpy(), batch.data
    out = []
    for (y, x), (dy, dx), scene, flux in zip(
        data.corner.tolist(), data.shift_px.tolist(), data.scene.tolist(), data.flux.tolist(), strict=True
    ):
        ramp = np.exp(-2j * np.pi * (k[:, None] * dy + k * dx))
        patch = truth[scene, y : y + size, x : x + size]
        waves = [np.fft.fft2(np.fft.ifft2(np.fft.fft2(mode) * ramp) * patch, norm="ortho") for mode in probe[scene]]
        out.append(flux * sum(np.abs(w) ** 2 for w in waves))
    return np.stack(out)


def test_counts_are_poisson_samples_of_the_truth():
    stream = make(10, (1e6, 1.001e6))
    for _ in range(3):
        batch = stream.draw(SHAPE, exact=True)
        expected, counts = numpy_rates(batch), batch.data.counts.numpy()
        assert (counts == np.rint(counts)).all() and (counts >= 0).all()
        bright = expected > 20
        assert bright.sum() > 1000
        pull = (counts - expected)[bright] / np.sqrt(expected[bright])
        assert np.mean(pull**2) == pytest.approx(1, abs=0.1)
        assert np.mean(pull) == pytest.approx(0, abs=0.1)
        deviance = poisson_deviance(torch.from_numpy(expected[bright]), torch.from_numpy(counts[bright].astype(float)))
        assert float(deviance.mean()) == pytest.approx(1, abs=0.1)


def test_what_is_assumed_is_sometimes_wrong():
    """The probe, the positions and the detector have their faults in some batches, and never when exact."""
    stream = make(11, (1e7, 1.001e7))
    worst, masks = [], 0
    for _ in range(25):
        batch = stream.draw(SHAPE)
        expected, counts = numpy_rates(batch), batch.data.counts.numpy()
        bright = expected > 20
        worst.append(np.mean((counts - expected)[bright] ** 2 / expected[bright]))
        masks += batch.data.mask is not None
    assert min(worst) < 1.2 and max(worst) > 20
    assert 1 <= masks <= 15
    assert all(stream.draw(SHAPE, exact=True).data.mask is None for _ in range(10))


def test_a_mask_hides_a_few_pixels():
    stream = make(12)
    drawn = [stream.draw(SceneShape(32, 40, (1, 1), 1, 1.0)).data.mask for _ in range(40)]
    masks = torch.stack([mask for mask in drawn if mask is not None]).reshape(-1, 32, 32)
    hidden = (~masks).float().mean(dim=(1, 2))
    assert masks.dtype == torch.bool and len(masks) >= 4
    # Some lack two of 32 rows, all a few single pixels at most.
    assert 2 / 32 <= float(hidden.max()) < 2 / 32 + 0.02 and float(hidden.min()) < 0.02


def test_shapes_are_drawn_by_their_share(monkeypatch):
    shapes = (SceneShape(16, 32, (1, 2), 1, 0.8), SceneShape(16, 40, (1, 2), 1, 0.2))
    monkeypatch.setattr(module, "SHAPES", shapes)
    stream = make(13)
    sides = [stream.draw().truth.shape[-1] for _ in range(60)]
    assert set(sides) == {32, 40}
    assert 0.6 < sides.count(32) / 60 < 0.95


def test_the_pool_is_renewed():
    pool = ObjectPool(Draws(CPU, 14), 8, 64)
    before = [part.clone() for part in pool.parts]
    for _ in range(63):
        pool.cut(1, 20)
    assert all(torch.equal(a, b) for a, b in zip(before, pool.parts, strict=True))
    pool.cut(1, 20)
    assert sum(torch.equal(a, b) for a, b in zip(before, pool.parts, strict=True)) == 7


def test_place_keeps_the_position_and_stays_on_the_grid():
    centre = torch.tensor([[16.0, 20.4], [15.2, 41.6], [30.5, 16.0]])
    corner, shift = place(centre, 32, 56)
    assert corner.tolist() == [[0, 4], [0, 24], [14, 0]]
    torch.testing.assert_close(corner + 16 + shift, centre)


def test_a_misjudged_probe_keeps_its_far_field_modulus_but_for_the_scale():
    draws = Draws(CPU, 15)
    probe = draw_probes(draws, 4, 32, 2)
    changed = 0
    for _ in range(12):
        bent = misjudge(draws, probe)
        far, before = (intensity(torch.fft.fft2(p)) for p in (bent, probe))
        ratio = (far.sum(dim=(1, 2)) / before.sum(dim=(1, 2)))[:, None, None]
        torch.testing.assert_close(far, before * ratio, atol=1e-4, rtol=1e-3)
        assert float((ratio - 1).abs().max()) < 0.4
        changed += not torch.equal(bent, probe)
    assert 2 <= changed <= 10


def test_near_fields_are_shadows_of_the_truth(monkeypatch):
    """Seen through vacuum and right at the sample, a frame is the probe's intensity; further on, its propagation."""
    monkeypatch.setattr(module, "NEAR_SHARE", 1.0)
    stream = SceneStream(CPU, 33, (1e6, 1.01e6), pool=8, object_px=64)
    batch = stream.draw(SceneShape(32, 64, (6, 6), 3, 1.0))
    data = batch.data
    assert isinstance(data.propagator, AngularSpectrum)
    expected = batch.true_data.rate(batch.true_data.probes(batch.true_probe), batch.true_data.patches(batch.truth))
    there = torch.ones_like(expected) if data.mask is None else data.mask
    # The fluxes and the photons that are assumed may be wrong, but not where the light is.
    close = ((expected.sqrt() - data.counts.sqrt()).square() * there).sum() / (data.counts * there).sum()
    assert float(close) < 0.2
    assert stream.draw(SceneShape(32, 64, (6, 6), 3, 1.0), exact=True).data.propagator is FAR_FIELD


def test_a_grid_larger_than_the_objects_is_refused():
    stream = SceneStream(CPU, 33, pool=8, object_px=48)
    with pytest.raises(ValueError, match="objects of 48 pixels can't fill an object of 64"):
        stream.draw(SceneShape(32, 64, (6, 6), 3, 1.0))
