"""The check-in of the assumed probe: known faults come back, and what is right stays."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from bluesky_cdi.config import load_config
from bluesky_cdi.errors import FrameError, GeometryError
from bluesky_cdi.physics.probes import orthogonal_modes, scaled_to
from bluesky_cdi.reconstruction.orientation import AS_STATED, Orientation
from bluesky_cdi.reconstruction.probe_checkin import (
    Gain,
    Trial,
    Wanted,
    applied,
    check_in,
    check_in_scan,
    defocus_m,
    in_words,
)
from tests.unit.reconstruction.star_scans import FAR, LENS, NEAR, lens, measure, overlap, place

PROBE_ALONE = Wanted(centre=False, orientation=False)
FEW = (6, 5)


@pytest.fixture(scope="module")
def scene():
    return measure(lens(), side=FEW)


@pytest.fixture(scope="module")
def more_frames():
    """For what few frames do not prove."""
    return measure(lens())


# Noll's number, its places among the aberrations of a trial, and the sign of that with respect to Noll's.
@pytest.mark.parametrize(
    ("noll", "index", "size"),
    [(4, 0, 0.9), (4, 0, -0.9), (6, 1, 0.8), (5, 2, -0.8), (7, 3, 1.0), (8, 4, -1.0), (11, 5, 1.0)],
)
def test_a_known_aberration_comes_back(scene, noll, index, size):
    assumed = lens(aberrations={noll: size})
    found = check_in(scene.data, assumed, wanted=PROBE_ALONE)
    assert overlap(assumed, scene.probe) < 0.75
    assert overlap(found.probe, scene.probe) > 0.97
    turned = np.array(found.trial.aberrations_rad)
    assert np.abs(turned).argmax() == index
    assert np.sign(turned[index]) == -np.sign(size)
    assert found.gain.exceeds(0.1)


def test_defocus_comes_back_in_metres(scene):
    found = check_in(scene.data, lens(defocus_m=0.35e-3), wanted=PROBE_ALONE)
    assert "defocus moved by" in in_words(found, FAR)
    assert found.gains["defocus"].in_errors > 3
    assert defocus_m(found, FAR) == pytest.approx(-0.1e-3, rel=0.3)


def test_a_perfect_probe_is_left_alone_bit_for_bit():
    """Of fewer photons, and of too few to tell, is proven in test_network_probe, where a network is asked as well."""
    made = measure(lens(1e7), side=FEW)
    assumed = made.probe.clone()
    found = check_in(made.data, assumed)
    assert not found.changed and found.trial == Trial()
    assert found.probe is assumed and torch.equal(assumed, made.probe)
    assert "The assumed probe stays" in in_words(found)


def test_the_amplitude_comes_from_the_frames(scene):
    assumed = lens(numerical_aperture=0.6e-3, central_stop=0.0)
    found = check_in(scene.data, assumed, wanted=PROBE_ALONE)
    assert overlap(assumed, scene.probe) < 0.75
    assert overlap(found.probe, scene.probe) > 0.95


def test_modes_that_are_assumed_equal_get_their_powers():
    made = measure(lens(modes=3, coherent_share=0.85), side=FEW)
    assumed = scaled_to(orthogonal_modes(lens()[0], 3), 1e5)
    found = check_in(made.data, assumed, wanted=PROBE_ALONE)
    assert max(found.trial.powers) == pytest.approx(0.85)
    shares = found.probe.abs().square().sum(dim=(1, 2))
    assert 0.7 < float(shares.max() / shares.sum()) < 0.95
    assert overlap(found.probe, made.probe) > 0.97


def test_a_partially_coherent_beam_is_left_alone_and_found():
    made = measure(lens(modes=2, coherent_share=0.8))
    assert check_in(made.data, made.probe).probe is made.probe
    assumed = lens(modes=2, coherent_share=0.8, aberrations={4: 0.9})
    assert overlap(check_in(made.data, assumed, wanted=PROBE_ALONE).probe, made.probe) > 0.97


def test_the_centre_of_the_beam_is_found(scene):
    moved = np.roll(scene.scan.counts, (2, -3), axis=(1, 2))
    found = check_in(place(scene.scan.positions_m, FAR, moved), scene.probe)
    assert found.trial.centre_px == (2, -3)
    back = applied(replace(scene.scan, counts=moved), found)
    inside = back.mask
    np.testing.assert_array_equal(back.counts[:, inside], scene.scan.counts[:, inside])
    assert inside.sum() == (40 - 2) * (40 - 3)


@pytest.mark.parametrize("wrong", [1.03, 0.97])
def test_a_wrong_scale_is_found(wrong):
    made = measure(lens(), step=6.0, side=(8, 5))
    data = place(made.scan.positions_m * wrong, FAR, made.scan.counts)
    found = check_in(data, made.probe, wanted=Wanted(scale=True))
    assert found.trial.scale == pytest.approx(1 / wrong, abs=0.012)
    assert "distances between positions" in in_words(found)
    spread = np.ptp(applied(replace(made.scan, positions_m=made.scan.positions_m * wrong), found).positions_m, axis=0)
    np.testing.assert_allclose(spread, np.ptp(made.scan.positions_m, axis=0), rtol=0.015)


def test_a_wrong_scale_is_not_looked_for_unasked():
    made = measure(lens(), step=6.0, side=(8, 5))
    data = place(made.scan.positions_m * 1.03, FAR, made.scan.counts)
    assert check_in(data, made.probe).trial.scale == 1


@pytest.mark.parametrize("photons", [1e4, 1e5])
def test_a_right_scale_stays_also_in_noise(photons):
    """At few photons positions that are let go move apart, which is no finding."""
    made = measure(lens(photons), step=6.0, side=(8, 5))
    assert check_in(made.data, made.probe, wanted=Wanted(scale=True)).probe is made.probe


@pytest.mark.parametrize("lies", [Orientation(swap=True), Orientation(flip_y=True)], ids=str)
def test_a_wrong_orientation_is_found(more_frames, lies):
    scan = more_frames.scan
    positions = lies.turn(scan.positions_m)
    found = check_in(place(positions, FAR, scan.counts), more_frames.probe)
    assert found.trial.orientation == lies
    turned = applied(replace(scan, positions_m=positions), found).positions_m
    shift = turned - scan.positions_m
    np.testing.assert_allclose(shift - shift.mean(axis=0), 0, atol=1e-12)


def test_a_wrong_orientation_is_not_looked_for_unasked(more_frames):
    data = place(Orientation(swap=True).turn(more_frames.scan.positions_m), FAR, more_frames.scan.counts)
    assert check_in(data, more_frames.probe, wanted=PROBE_ALONE).trial.orientation == AS_STATED


def test_pixels_behind_a_beam_stop_are_not_looked_at():
    y, x = np.indices((40, 40)) - 20
    mask = np.hypot(y, x) > 3.5
    made = measure(lens(), mask=mask)
    assert check_in(made.data, made.probe).probe is made.probe
    assumed = lens(aberrations={4: 0.9})
    found = check_in(made.data, assumed, wanted=PROBE_ALONE)
    assert overlap(found.probe, made.probe) > 0.97


def test_without_any_guess_the_probe_is_made_from_the_frames():
    made = measure(lens(1e6), side=FEW)
    found = check_in(made.data, None)
    assert not found.known
    assert overlap(found.probe, made.probe) > 0.9
    says = in_words(found, FAR)
    assert says.startswith("No probe was assumed") and "side of the focus" in says


def near_field():
    """Measure with a broad, uneven beam in the near field."""
    generator = torch.Generator().manual_seed(8)
    noise = torch.randn(2, 40, 40, generator=generator, dtype=torch.float64)
    low = torch.exp(-(torch.fft.fftfreq(40)[:, None].square() + torch.fft.fftfreq(40).square()) / 0.03)
    axis = (torch.arange(40) - 20.0).square()
    field = torch.fft.ifft2(torch.complex(*noise) * low) * torch.exp(-(axis[:, None] + axis) / (2 * 9.0**2))
    return measure(scaled_to(field[None], 1e6).to(torch.complex64), NEAR, side=FEW)


def test_a_near_field_keeps_a_perfect_probe_and_gets_rid_of_a_wrong_curvature():
    made = near_field()
    assert check_in(made.data, made.probe).probe is made.probe
    axis = (torch.arange(40) - 20.0).square() / 9.0**2
    assumed = made.probe * torch.polar(torch.ones(40, 40), axis[:, None] + axis)
    found = check_in(made.data, assumed, wanted=PROBE_ALONE)
    assert overlap(assumed, made.probe) < 0.8
    assert overlap(found.probe, made.probe) > 0.95


def config(modes, **probe):
    return load_config(overrides={"probe": {"modes": modes, **probe}, "reconstructor": {"background": 0.0}})


def test_a_scan_gets_what_was_found(scene):
    assumed = replace(scene.scan, probe=lens(aberrations={4: 0.9}).numpy())
    checked = check_in_scan(assumed, config(1))
    assert overlap(torch.from_numpy(checked.scan.probe), scene.probe) > 0.97
    assert np.square(np.abs(checked.scan.probe)).sum() == pytest.approx(scene.scan.mean_photons, rel=1e-4)
    notes = checked.as_notes()
    assert notes["changed"] and notes["says"] == checked.says and not notes["by_network"]
    few = scene.scan.subset(range(12))
    assert check_in_scan(few, config(1)).scan is few


def test_a_lens_that_is_configured_is_checked_and_none_is_looked_for_from_nothing(scene):
    without = replace(scene.scan, probe=None)
    by_lens = check_in_scan(without, config(1, **LENS))
    assert by_lens.check.known and not by_lens.check.changed and by_lens.scan is without
    assert not check_in_scan(without.subset(range(12)), config(1)).check.known


def test_what_does_not_fit_is_refused(scene):
    with pytest.raises(FrameError, match="at least 12 frames"):
        check_in(scene.data[:11], scene.probe)
    with pytest.raises(FrameError, match="made has 5"):
        check_in_scan(scene.scan.subset(range(5)), config(1))
    with pytest.raises(GeometryError, match=r"\(modes, 40, 40\); it is \(1, 32, 32\)"):
        check_in(scene.data, scene.probe[:, :32, :32])


def test_few_frames_need_more_standard_errors():
    sure = Gain(before=2.0, after=1.0, mean=1.0, standard_error=0.25, frames=100)
    assert sure.exceeds(0.1) and not sure.exceeds(0.6)
    assert not replace(sure, frames=4).exceeds(0.1)
    assert not Gain.of(torch.tensor([2.0]), torch.tensor([1.0])).exceeds(0.0)
