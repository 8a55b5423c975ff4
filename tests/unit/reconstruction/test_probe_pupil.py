"""Probes made at the pupil, and frames as they are judged: odd sizes, saturated frames, moved frames, no proof."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from bluesky_cdi.errors import FrameError, GeometryError
from bluesky_cdi.io import Scan
from bluesky_cdi.physics.forward import Diffraction
from bluesky_cdi.physics.geometry import Geometry, ObjectGrid
from bluesky_cdi.physics.probes import focused_probe
from bluesky_cdi.physics.propagators import propagator_of
from bluesky_cdi.reconstruction.probe_checkin import Trial, applied, check_in, in_words
from bluesky_cdi.reconstruction.probe_checkin.judging import Judge
from bluesky_cdi.reconstruction.probe_checkin.pupil import Pupil, mean_amplitude
from bluesky_cdi.reconstruction.probe_checkin.trial import DEFOCUS

PHOTONS = 1e5


def optics(side=40, **changes):
    geometry = Geometry(8000.0, 2.0, 172e-6, side)
    settings = {"numerical_aperture": 0.9e-3, "central_stop": 0.3, "defocus_m": 0.0, **changes}
    return geometry, focused_probe(geometry, photons=PHOTONS, **settings)


def through_vacuum(geometry, probe, n=16, saturation=None):
    """Measure no sample: a scan and its frames."""
    grid = ObjectGrid((0.0, 0.0), (geometry.frame_px + 12,) * 2, geometry.pixel_m, geometry.frame_px)
    positions = (np.stack(np.divmod(np.arange(n), 4), axis=1) * 3 + geometry.frame_px // 2) * geometry.pixel_m
    corner, shift = (torch.from_numpy(each) for each in grid.place(positions))
    blank = Diffraction(
        torch.zeros(n, geometry.frame_px, geometry.frame_px), corner, shift.float(), (1, *grid.shape),
        propagator=propagator_of(geometry), saturation=saturation,
    )  # fmt: skip
    rate = replace(blank, saturation=None).rate(blank.probes(probe[None]), torch.ones(n, *rate_shape(geometry)) + 0j)
    counts = torch.poisson(rate, generator=torch.Generator().manual_seed(0))
    if saturation is not None:
        counts = counts.clamp_max(saturation)
    data = replace(blank, counts=counts)
    return Scan(blank.propagator.to_detector(counts).numpy(), positions, geometry), data


def rate_shape(geometry):
    return geometry.frame_px, geometry.frame_px


@pytest.mark.parametrize("side", [40, 41, 45])
def test_a_flat_phase_is_a_focus_in_the_middle(side):
    geometry, probe = optics(side)
    _, data = through_vacuum(geometry, probe)
    made = Pupil(probe, data).probe(Trial("frames", flat=True))[0]
    assert divmod(int(made.abs().argmax()), side) == (side // 2, side // 2)
    overlap = (made.conj() * probe[0]).sum().abs() / made.norm() / probe[0].norm()
    assert float(overlap) > 0.98


@pytest.mark.parametrize("side", [40, 41])
def test_the_phase_is_carried_on_smoothly(side):
    """Half of the pupil is told: its defocus goes on over the rest."""
    geometry, probe = optics(side, defocus_m=0.3e-3, central_stop=0.0)
    _, data = through_vacuum(geometry, probe)
    narrow = focused_probe(
        geometry, photons=PHOTONS, numerical_aperture=0.6e-3, central_stop=0.0, defocus_m=0.3e-3
    )  # fmt: skip
    made = Pupil(narrow, data).probe(Trial("frames"))[0]
    overlap = (made.conj() * probe[0]).sum().abs() / made.norm() / probe[0].norm()
    assert float(overlap) > 0.95


@pytest.mark.parametrize("share", [None, 0.5, 0.2])
def test_saturated_pixels_make_the_probe_no_dimmer(share):
    geometry, probe = optics()
    _, whole = through_vacuum(geometry, probe)
    saturation = None if share is None else share * float(whole.counts.max())
    _, data = through_vacuum(geometry, probe, saturation=saturation)
    photons = Pupil(probe, data).probe(Trial()).abs().square().sum()
    # The brighter frames set it, which are brighter by chance too where few pixels are left.
    assert float(photons) == pytest.approx(PHOTONS, rel=0.02 if share is None else 0.1)


def test_what_comes_in_from_the_other_side_is_not_looked_at():
    geometry, probe = optics()
    _, data = through_vacuum(geometry, probe)
    side = geometry.frame_px
    row, column = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    places = data.propagator.to_working((row * side + column).float())
    data = replace(data, counts=places.expand(len(data), side, side).clone())
    trial = Trial(centre_px=(2, -3))
    assert trial.border_px == 3 and Trial().border_px == 0
    judge, rows = Judge(data, Pupil(probe, data), 1, border_px=3), torch.arange(4)
    seen = []
    for each in (Trial(), trial):
        scene = judge.scenes([each], rows, (1, 60, 60))
        counts, valid = (data.propagator.to_detector(part) for part in (scene.counts[0], scene.mask))
        y, x = np.nonzero(valid.numpy())
        held = counts.numpy()[y, x]
        # A valid pixel holds what was measured as many pixels away as the centre was.
        np.testing.assert_array_equal(held, (y + each.centre_px[0]) * side + x + each.centre_px[1])
        seen.append(set(held.tolist()))
    assert seen[0] == seen[1] and len(seen[0]) == (side - 6) ** 2


def test_frames_that_tell_no_defocus_leave_the_phase_flat():
    geometry, probe = optics(defocus_m=0.25e-3)
    scan, data = through_vacuum(geometry, probe)
    found = check_in(data, None)
    assert not found.changed and found.other_side is None and not found.gains
    says = in_words(found, geometry)
    assert says.startswith("No probe was assumed, and the frames do not tell its defocus")
    made = applied(scan, found)
    assert scan.probe is None and made.probe.shape == (1, 40, 40)
    assert float(np.square(np.abs(made.probe)).sum()) == pytest.approx(PHOTONS, rel=0.05)
    np.testing.assert_allclose(
        abs(made.probe), abs(Pupil(found.assumed, data).probe(Trial()).numpy()), rtol=0.05, atol=1
    )


def test_modes_that_are_one_stay_one():
    geometry, probe = optics()
    _, data = through_vacuum(geometry, probe)
    twice = torch.cat([probe, probe * (1 + 1e-6)])
    made = Pupil(twice, data).probe(Trial("frames"))
    powers = made.abs().square().sum(dim=(-2, -1))
    assert float(powers.min()) < 1e-6 * float(powers.max())


def test_what_can_not_be_checked_is_refused():
    geometry, probe = optics()
    _, data = through_vacuum(geometry, probe)
    with pytest.raises(FrameError, match="at most 6 are allowed"):
        check_in(data, probe, most_frames=6)
    with pytest.raises(FrameError, match="frames with light"):
        check_in(replace(data, counts=torch.zeros_like(data.counts)), probe)
    with pytest.raises(FrameError, match="finite"):
        check_in(replace(data, counts=data.counts * torch.nan), probe)
    for wrong in (torch.zeros_like(probe), probe * torch.nan):
        with pytest.raises(GeometryError, match="finite and not 0"):
            check_in(data, wrong)


def test_the_mean_frame_and_the_photons_are_those_of_mean_flux():
    """Frames of a beam that fluctuates, without noise; a pixel is dead in the brighter half of them."""
    geometry, probe = optics()
    _, data = through_vacuum(geometry, probe)
    flux = torch.where(torch.arange(len(data)) % 2 == 0, 0.5, 1.5)
    steady = data.rate(data.probes(probe[None]), torch.ones(len(data), 40, 40) + 0j)
    data = replace(data, counts=steady * flux[:, None, None], flux=flux)
    brightest = float(data.counts.max())
    saturated = replace(data, saturation=0.9 * brightest)
    for seen in (data, saturated):
        torch.testing.assert_close(mean_amplitude(seen), mean_amplitude(replace(data, counts=steady, flux=None)))
    assert Pupil(probe, data).probe(Trial()).abs().square().sum() == pytest.approx(PHOTONS, rel=1e-3)


@pytest.mark.parametrize("side", [40, 41])
def test_the_curvature_of_defocus_is_that_of_the_whole_row(side):
    geometry, probe = optics(side)
    _, data = through_vacuum(geometry, probe)
    pupil = Pupil(probe, data)
    row = pupil.basis[DEFOCUS].double()
    row = data.propagator.to_detector(row)[0]
    fit = np.polynomial.polynomial.polyfit(np.arange(side) - side // 2, row.numpy(), 2)
    assert pupil.defocus_curvature == pytest.approx(fit[2], rel=1e-5)


def test_a_phase_that_is_known_along_a_line_only_goes_on_finite():
    """What leaves some shapes open: the line's own phase comes back, and nothing is infinite."""
    geometry, probe = optics(40, defocus_m=0.3e-3, central_stop=0.0)
    _, data = through_vacuum(geometry, probe)
    waves = data.propagator.to_detector(data.propagator.forward(probe[None])[0])
    line = torch.zeros_like(waves)
    line[:, 20] = waves[:, 20]
    told = data.propagator.adjoint(data.propagator.to_working(line)[None])[0]
    made = Pupil(told, data).probe(Trial("frames"))
    assert torch.isfinite(torch.view_as_real(made)).all()
    found = data.propagator.to_detector(data.propagator.forward(made[None])[0])[0, 20]
    overlap = (found.conj() * waves[0, 20]).sum().abs() / found.norm() / waves[0, 20].norm()
    assert float(overlap) > 0.98


@pytest.mark.parametrize("side", [40, 41])
def test_a_probe_that_is_the_same_everywhere_says_nothing_of_a_phase(side):
    """A plane wave, given where no probe is known, is one pixel of the pupil: the frames' amplitude, and no phase."""
    geometry, probe = optics(side)
    _, data = through_vacuum(geometry, probe)
    plane = torch.full_like(probe, PHOTONS**0.5 / side)
    pupil = Pupil(plane, data)
    made = pupil.probe(Trial("frames"), weakest=0.05)
    assert made.shape == plane.shape and torch.isfinite(torch.view_as_real(made)).all()
    seen = data.propagator.forward(made[None])[0, 0]
    assert float((seen.abs() * mean_amplitude(data)).sum() / seen.norm() / mean_amplitude(data).norm()) > 0.999
    flat = pupil.probe(Trial("frames", flat=True))
    assert float((made.conj() * flat).sum().abs() / made.norm() / flat.norm()) > 0.99
