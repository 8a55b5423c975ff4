"""Every iterative engine on scans whose truth is known, and the loop that runs them."""

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch

from bluesky_cdi.config import ReconstructorConfig
from bluesky_cdi.engines import PTYCHOGRAPHY, make_engine
from bluesky_cdi.engines.lsqml import OWN_MOMENTUM, OWN_STEP, Lsqml, LsqmlSettings, moved, with_flux
from bluesky_cdi.engines.ptychography import Refine, Schedule, Solution, deviance_of, iterate
from bluesky_cdi.engines.raar import Raar
from bluesky_cdi.errors import ConfigError
from bluesky_cdi.evaluation import compare, complex_nrmse
from bluesky_cdi.physics.forward import Diffraction, accumulate, intensity
from bluesky_cdi.physics.geometry import Geometry, ObjectGrid
from bluesky_cdi.physics.likelihood import poisson_deviance
from bluesky_cdi.physics.objects import make_sample
from bluesky_cdi.physics.probes import focused_probe, scaled_to
from bluesky_cdi.physics.propagators import propagator_of

FAR = Geometry(8000.0, 2.0, 172e-6, 32)
# A shadow that is magnified 21 times; its Fresnel number is 5.
NEAR = Geometry(8000.0, 2e-3, 1.05e-6, 32, "near", 1e-4)
FIXED = Schedule(30, probe_from=-1)
# What 30 epochs come to; ePIE is as slow as published.
LARGEST_ERROR = {"epie": 0.2, "rpie": 0.04, "dm": 0.06, "raar": 0.02, "lsqml": 0.02}


def lens(defocus_m=0.45e-3, modes=1, photons=1e6):
    return focused_probe(
        FAR, numerical_aperture=0.6e-3, defocus_m=defocus_m, modes=modes, coherent_share=0.8, photons=photons
    )[None]


def diffuser(photons=1e6):
    """A broad beam behind a diffuser: what a near-field scan needs, (1, 1, 32, 32)."""
    generator = torch.Generator().manual_seed(8)
    spectrum = torch.randn(2, 32, 32, generator=generator, dtype=torch.float64)
    frequency = torch.fft.fftfreq(32).square()
    low = torch.exp(-(frequency[:, None] + frequency) / (2 * 0.12**2))
    field = torch.fft.ifft2(torch.complex(spectrum[0], spectrum[1]) * low)
    axis = torch.arange(32) - 16.0
    field = field * torch.exp(-(axis[:, None] ** 2 + axis**2) / (2 * 7.0**2))
    return scaled_to(field.to(torch.complex64)[None], photons)[None]


class Scan:
    """9 x 9 jittered positions, or fewer, 2.5 px apart, over dense texture; noise-free unless asked."""

    def __init__(self, probe, geometry=FAR, noise_seed=None, flux=None, whole=False, side=9):
        rng = np.random.default_rng(12)
        pixel = geometry.pixel_m
        positions = np.stack(np.meshgrid(*(np.arange(side) * 2.5,) * 2, indexing="ij"), axis=-1).reshape(-1, 2)
        positions = positions + rng.uniform(-0.8, 0.8, positions.shape)
        positions = (np.rint(positions) if whole else positions) * pixel
        grid = ObjectGrid.covering(positions.min(axis=0), positions.max(axis=0), pixel, 32)
        corner, shift = (torch.from_numpy(a) for a in grid.place(positions))
        self.probe = probe
        self.truth = torch.from_numpy(make_sample("cells", grid.shape, seed=3))[None]
        self.vacuum = torch.ones_like(self.truth)
        data = Diffraction(
            torch.zeros(len(positions), 32, 32),
            corner,
            shift.float(),
            (1, *grid.shape),
            flux=flux,
            propagator=propagator_of(geometry),
        )
        rate = data.rate(data.probes(probe), data.patches(self.truth))
        if noise_seed is not None:
            rate = torch.poisson(rate, generator=torch.Generator().manual_seed(noise_seed))
        self.data = replace(data, counts=rate)
        self.illumination = accumulate(intensity(data.probes(probe)), corner, data.object_shape)[0].numpy()

    def start(self, obj=None, probe=None, data=None):
        guess = self.vacuum if obj is None else obj
        return Solution.start(guess, self.probe if probe is None else probe, self.data if data is None else data)

    def error(self, obj):
        """With the ambiguities that a free probe leaves removed."""
        return compare(obj[0].numpy(), self.truth[0].numpy(), self.illumination).numbers["complex_nrmse"]


@pytest.fixture(scope="module")
def scan():
    return Scan(lens())


def test_the_configuration_offers_every_engine():
    assert get_args(ReconstructorConfig.model_fields["name"].annotation) == ("pinn", *PTYCHOGRAPHY)


def test_an_unknown_engine_is_refused():
    with pytest.raises(ConfigError, match=r"one of epie, .*; got 'hio'"):
        make_engine("hio")


@pytest.mark.parametrize("name", PTYCHOGRAPHY)
def test_engines_have_their_names(name):
    assert make_engine(name).name == name


@pytest.mark.parametrize("name", PTYCHOGRAPHY)
def test_every_engine_finds_the_object(scan, name):
    found = iterate(make_engine(name), scan.start(), FIXED).solution
    assert scan.error(scan.vacuum) > 0.6
    assert scan.error(found.object) < LARGEST_ERROR[name]
    assert torch.equal(found.probe, scan.probe)


@pytest.mark.parametrize("name", PTYCHOGRAPHY)
def test_every_engine_refines_a_wrong_probe(scan, name):
    # ePIE takes one frame at a time, and so by far the longest.
    scan = Scan(lens(), side=5) if name == "epie" else scan
    wrong = lens(defocus_m=0.4e-3)
    epochs = 30 if name == "lsqml" else 60
    refined, kept = (
        iterate(make_engine(name), scan.start(probe=wrong), Schedule(epochs, probe_from=p)).solution.judged()
        for p in (0, -1)
    )
    assert refined.mean_deviance < (0.95 if name == "epie" else 0.3) * kept.mean_deviance
    assert scan.error(refined.object) < (0.8 if name == "epie" else 0.4) * scan.error(kept.object)


@pytest.mark.parametrize("geometry", [FAR, NEAR], ids=["far", "near"])
@pytest.mark.parametrize("name", PTYCHOGRAPHY)
def test_the_truth_is_a_fixed_point(name, geometry):
    scan = Scan(lens() if geometry is FAR else diffuser(), geometry)
    found = iterate(make_engine(name), scan.start(scan.truth), Schedule(3)).solution
    illuminated = torch.from_numpy(scan.illumination > 0.02 * scan.illumination.max())
    # The floor under the square root's divisor (a thousandth of a photon) moves dark pixels a little.
    assert float((found.object - scan.truth)[0][illuminated].abs().max()) < 5e-3
    assert float((found.probe - scan.probe).abs().max()) < 5e-3 * float(scan.probe.abs().max())


@pytest.mark.parametrize("name", PTYCHOGRAPHY)
def test_inputs_stay_and_a_seed_names_the_result(scan, name):
    obj, probe = scan.vacuum.clone(), scan.probe.clone()
    once, again = (iterate(make_engine(name, seed=3), scan.start(obj, probe), Schedule(3)) for _ in range(2))
    assert torch.equal(obj, scan.vacuum) and torch.equal(probe, scan.probe)
    assert torch.equal(once.solution.object, again.solution.object)
    assert once.solution.epochs == 3 and len(once.history) == 3


@pytest.fixture(scope="module")
def near():
    return Scan(diffuser(), NEAR, side=7)


@pytest.mark.parametrize("name", PTYCHOGRAPHY)
def test_every_engine_works_in_the_near_field(near, name):
    assert near.error(iterate(make_engine(name), near.start(), FIXED).solution.object) < 0.45


def test_a_near_field_is_not_explained_as_a_far_field(near):
    """With the engine that comes nearest otherwise: the scan of the near field tells which propagator an engine has."""
    wrong_model = replace(near.data, propagator=propagator_of(FAR))
    assert near.error(iterate(make_engine("lsqml"), near.start(data=wrong_model), FIXED).solution.object) > 1


@pytest.mark.parametrize("name", ["rpie", "dm", "raar", "lsqml"])
def test_engines_take_incoherent_modes(name):
    partly = Scan(lens(modes=2))
    found, coherent = (
        iterate(make_engine(name), partly.start(probe=p), FIXED).solution for p in (partly.probe, partly.probe[:, :1])
    )
    assert partly.error(found.object) < 0.1
    assert found.judged().mean_deviance < 0.05 * coherent.judged().mean_deviance


@pytest.mark.parametrize("name", ["rpie", "dm", "raar", "lsqml"])
def test_saturated_pixels_are_not_believed(scan, name):
    level = float(scan.data.counts.quantile(0.995))
    clipped = replace(scan.data, counts=scan.data.counts.clamp_max(level))
    believed, masked = (
        iterate(make_engine(name), scan.start(data=d), FIXED).solution
        for d in (clipped, replace(clipped, saturation=level))
    )
    assert scan.error(masked.object) < 0.8 * scan.error(believed.object)


@pytest.mark.parametrize("name", PTYCHOGRAPHY)
def test_a_run_goes_on_after_its_modes_were_rotated(name):
    """The result's modes are not those of the epochs before, and nothing of these may be left."""
    partly = Scan(lens(modes=2), side=6)
    engine, mixed = make_engine(name), torch.tensor([[0.6, 0.8], [-0.8, 0.6]], dtype=torch.complex64)
    # Modes that overlap, so that ordering them turns them.
    start = partly.start(probe=torch.einsum("ij,bjyx->biyx", mixed, partly.probe))
    first = iterate(engine, start, Schedule(15)).solution.judged()
    second = iterate(engine, first, Schedule(15))
    assert second.history[0] < 1.5 * first.mean_deviance
    assert second.solution.judged().mean_deviance < first.mean_deviance


def test_lsqml_takes_the_best_lengths_of_its_two_steps():
    """What is left of the change asked for is orthogonal to both changes made (normal equations)."""
    whole = Scan(lens(defocus_m=0.3e-3), whole=True)
    start = whole.start(probe=lens())
    found = Lsqml(LsqmlSettings(batch=1000, together_from=-1, step=1.0)).epoch(start, Refine())
    data, patches = whole.data, whole.data.patches(whole.vacuum)
    asked, _ = data.exit_wave_step(data.probes(start.probe), patches, "poisson")
    by_object = data.probes(start.probe) * data.patches(found.object - start.object)[:, None]
    by_probe = (found.probe - start.probe) * patches[:, None]
    left = asked - by_object - by_probe

    def cosine(a, b):
        return abs(float((a.conj() * b).real.sum() / (a.norm() * b.norm())))

    assert cosine(asked, by_object) > 0.1 and cosine(asked, by_probe) > 0.1
    assert cosine(left, by_object) < 1e-4 and cosine(left, by_probe) < 1e-4


def test_poisson_is_nearer_to_the_truth_than_amplitudes_where_photons_are_few():
    dim = Scan(lens(photons=3e3), noise_seed=4)
    poisson, amplitude = (
        iterate(Lsqml(LsqmlSettings(likelihood=k)), dim.start(), FIXED).solution.judged()
        for k in ("poisson", "amplitude")
    )
    assert poisson.mean_deviance < 0.98 * amplitude.mean_deviance
    assert dim.error(poisson.object) < 0.98 * dim.error(amplitude.object)


def test_lsqml_does_not_depend_on_how_many_frames_are_computed_at_a_time(scan, monkeypatch):
    found = []
    for size in (7, 1000):
        monkeypatch.setattr("bluesky_cdi.physics.illuminated_frames.CPU_WAVE_BYTES", size * scan.probe.nbytes)
        refined = Schedule(6, positions_from=2, flux_from=2)
        found.append(iterate(Lsqml(LsqmlSettings(together_from=3)), scan.start(), refined).solution)
    torch.testing.assert_close(found[0].object, found[1].object, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(found[0].deviance, found[1].deviance, atol=1e-2, rtol=1e-2)


def test_stepping_together_with_momentum_converges_further():
    noisy = Scan(lens(photons=1e5), noise_seed=4)
    apart, together = (
        iterate(Lsqml(LsqmlSettings(together_from=t)), noisy.start(), Schedule(30)).solution.judged() for t in (-1, 10)
    )
    assert together.mean_deviance < 0.95 * apart.mean_deviance


def test_small_batches_repeat_a_share_of_their_last_step(scan):
    """Eight frames are one mini-batch: the steps without momentum tell what two epochs with it come to."""
    few = scan.data[torch.arange(0, 81, 11)]
    plain, own = Lsqml(LsqmlSettings(batch=8, together_from=-1, step=OWN_STEP)), Lsqml(LsqmlSettings(together_from=-1))
    first = plain.epoch(scan.start(data=few, probe=lens(defocus_m=0.4e-3)), Refine())
    second = plain.epoch(first, Refine())
    start = scan.start(data=few, probe=lens(defocus_m=0.4e-3))
    found = own.epoch(own.epoch(start, Refine()), Refine())
    for name in ("object", "probe"):
        begun, once, twice = (getattr(s, name) for s in (start, first, second))
        assert float((once - begun).abs().max()) > 1e-2
        torch.testing.assert_close(getattr(found, name), twice + OWN_MOMENTUM * (once - begun), atol=1e-3, rtol=1e-3)


def test_a_run_that_ends_in_small_batches_is_averaged():
    noisy = Scan(lens(photons=1e4), noise_seed=4)
    engine, solution = Lsqml(), noisy.start()
    for _ in range(6):
        solution = engine.epoch(solution, Refine())
    assert engine.finish(solution, Refine()).judged().mean_deviance < 0.97 * solution.judged().mean_deviance


def test_momentum_comes_sooner_to_a_wrong_probe():
    noisy = Scan(lens(photons=1e5), noise_seed=4)
    plain, own = (
        iterate(Lsqml(LsqmlSettings(batch=b, together_from=8)), noisy.start(probe=lens(0.4e-3)), Schedule(14))
        for b in (32, None)
    )
    assert own.solution.judged().mean_deviance < 0.93 * plain.solution.judged().mean_deviance


def test_small_batches_keep_a_probe_that_is_no_longer_refined(scan):
    engine = Lsqml()
    refined = engine.epoch(scan.start(probe=lens(defocus_m=0.4e-3)), Refine())
    kept = engine.epoch(refined, Refine(probe=False))
    assert torch.equal(kept.probe, refined.probe)
    assert torch.equal(engine.finish(kept, Refine(probe=False)).probe, refined.probe)


def test_what_masked_pixels_hold_changes_nothing(scan):
    mask = torch.rand(32, 32, generator=torch.Generator().manual_seed(1)) > 0.1
    found = [
        iterate(
            Lsqml(),
            scan.start(data=replace(scan.data, counts=torch.where(mask, scan.data.counts, v), mask=mask)),
            Schedule(10),
        ).solution
        for v in (0.0, float("nan"))
    ]
    assert found[1].finite
    assert torch.equal(found[0].object, found[1].object) and torch.equal(found[0].probe, found[1].probe)


def test_lsqml_refines_positions(scan):
    rng = np.random.default_rng(5)
    off = torch.from_numpy(rng.normal(0, 0.5, (len(scan.data), 2))).float()
    off -= off.mean(dim=0)
    wrong = moved(scan.data, off, 2.0)
    schedule = Schedule(50, positions_from=15)
    found = iterate(Lsqml(), scan.start(data=wrong), schedule).solution
    before, after = ((d.corner + d.shift_px - scan.data.corner - scan.data.shift_px) for d in (wrong, found.data))
    error = (after - after.mean(dim=0)).square().mean().sqrt()
    assert float(before.square().mean().sqrt()) > 0.4
    assert float(error) < 0.1
    believed = iterate(Lsqml(), scan.start(data=wrong), Schedule(50)).solution
    assert scan.error(found.object) < 0.3 * scan.error(believed.object)


def test_a_move_keeps_the_place_of_the_patch_on_the_grid(scan):
    moves = torch.full((len(scan.data), 2), 0.0)
    moves[0] = torch.tensor([3.0, -3.0])
    found = moved(scan.data, moves, 10.0)
    place = found.corner + found.shift_px - (scan.data.corner + scan.data.shift_px)
    torch.testing.assert_close(place[0] - place[1], torch.tensor([3.0, -3.0]), atol=1e-4, rtol=0)
    assert float(place.mean(dim=0).abs().max()) < 1e-4
    room = torch.tensor(scan.data.object_shape[1:]) - 32
    far = moved(scan.data, moves * 50, 1000.0)
    assert bool(((far.corner >= 0) & (far.corner <= room)).all())
    assert float(far.shift_px.abs().max()) <= 0.5


def test_lsqml_refines_the_flux():
    flux = torch.from_numpy(np.random.default_rng(6).uniform(0.6, 1.4, 81)).float()
    flickering = Scan(lens(), flux=flux / flux.mean())
    unknown = replace(flickering.data, flux=None)
    found = iterate(Lsqml(), flickering.start(data=unknown), Schedule(60, probe_from=-1, flux_from=5)).solution
    assert found.data.flux is not None
    error = found.data.flux / flickering.data.flux - 1
    assert float((error - error.mean()).std()) < 0.02


def test_flux_has_mean_one(scan):
    found = with_flux(with_flux(scan.data, torch.rand(81) + 0.5), torch.rand(81) + 0.5)
    assert float(found.flux.mean()) == pytest.approx(1, abs=1e-6)


def test_raar_refuses_a_relaxation_out_of_range():
    with pytest.raises(ConfigError, match=r"above 0 and at most 1; it is 1\.5"):
        Raar(1.5)


class Scripted:
    """An engine whose deviances are given."""

    name = "scripted"

    def __init__(self, deviances, warm_up=0):
        self.deviances, self.warm_up = list(deviances), warm_up

    def epoch(self, solution, refine):
        value = self.deviances[solution.epochs]
        obj = torch.full_like(solution.object, value)
        return Solution(obj, solution.probe, solution.data, torch.full((81,), value), solution.epochs + 1)

    def finish(self, solution, refine):
        return solution


def test_all_epochs_are_made_without_a_criterion(scan):
    outcome = iterate(Scripted([3.0] * 20), scan.start(), Schedule(20))
    assert outcome.ended == "epochs" and len(outcome.history) == 20


def test_a_run_stops_when_the_deviance_stands_still(scan):
    falling = [10 * 0.9**k for k in range(10)]
    outcome = iterate(Scripted(falling + [falling[-1]] * 50), scan.start(), Schedule(60, tolerance=1e-3, patience=4))
    assert outcome.ended == "converged" and len(outcome.history) == 14


@pytest.mark.parametrize(("warm_up", "schedule"), [(12, {}), (0, {"positions_from": 12})])
def test_standing_still_counts_from_when_all_is_refined(scan, warm_up, schedule):
    engine = Scripted([5.0] * 60, warm_up)
    outcome = iterate(engine, scan.start(), Schedule(60, tolerance=1e-3, patience=4, **schedule))
    assert outcome.ended == "converged" and len(outcome.history) == 12 + 5


@pytest.mark.parametrize("bad", [1e3, float("nan"), float("inf")])
def test_divergence_is_reported_and_the_best_kept(scan, bad, caplog):
    outcome = iterate(Scripted([4.0, 2.0, 3.0, bad, 1.0]), scan.start(), Schedule(5))
    assert outcome.ended == "diverged" and len(outcome.history) == 4
    assert float(outcome.solution.deviance[0]) == 2.0
    assert "scripted diverged in epoch 4" in caplog.text


def test_the_caller_can_end_a_run(scan):
    outcome = iterate(Scripted([3.0] * 9), scan.start(), Schedule(9), lambda epochs, solution: epochs < 2)
    assert len(outcome.history) == 2


def test_no_epochs_change_nothing(scan):
    outcome = iterate(make_engine("lsqml"), scan.start(), Schedule(0))
    assert torch.equal(outcome.solution.object, scan.vacuum) and outcome.history == ()


def test_deviance_of_is_that_of_the_model(scan):
    data = scan.data
    expected = poisson_deviance(data.rate(data.probes(scan.probe), data.patches(scan.vacuum)), data.counts)
    torch.testing.assert_close(deviance_of(scan.vacuum, scan.probe, data), expected.mean(dim=(-2, -1)))
    assert complex_nrmse(scan.vacuum[0].numpy(), scan.truth[0].numpy(), scan.illumination) > 0.8
