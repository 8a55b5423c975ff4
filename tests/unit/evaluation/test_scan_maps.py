"""What frames say by themselves, against what is known of wedges, steps and gratings."""

import numpy as np
import pytest
from scipy.special import j0

from bluesky_cdi.evaluation.scan_maps import FIRST_FRAMES, LOOKS, ScanMapper, direct_beam, integrated_phase
from bluesky_cdi.physics.geometry import Geometry
from bluesky_cdi.protocols import Frame
from bluesky_cdi.reconstruction.bad_pixels import valid_pixels

N = 64
GEOMETRY = Geometry(8000.0, 2.0, 1e-4, N)
PIXEL_M = GEOMETRY.pixel_m
# Metres (y, x) of the pixels of a frame's patch from its middle.
Y_M, X_M = (np.indices((N, N)) - N // 2) * PIXEL_M


def pattern(waves):
    waves = np.fft.fft2(np.fft.ifftshift(waves), norm="ortho")
    return np.square(np.abs(np.fft.fftshift(waves)))


def lens_probe(radius_px=5.0):
    """A probe whose pupil is a full disc, so that its cone has an edge."""
    row, column = np.indices((N, N)) - N // 2
    pupil = (np.hypot(row, column) <= radius_px).astype(complex)
    return 100 * np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(pupil), norm="ortho"))


def soft_probe(width_px=5.0):
    return 100 * np.exp(-(Y_M**2 + X_M**2) / (2 * (width_px * PIXEL_M) ** 2)).astype(complex)


def frames_of(objects, positions_m=None, flux=1.0, probe=None):
    probe = soft_probe() if probe is None else probe
    places = np.zeros((len(objects), 2)) if positions_m is None else positions_m
    return [Frame(k + 1, places[k], flux * pattern(probe * each), flux=flux) for k, each in enumerate(objects)]


def maps_of(frames, **options):
    mapper = ScanMapper(GEOMETRY, **options)
    for frame in frames:
        mapper.add(frame)
    return mapper.maps()


def test_a_wedge_has_the_same_known_slope_everywhere():
    slope = np.array([1.5e6, -0.6e6])
    wedge = np.exp(1j * (slope[0] * Y_M + slope[1] * X_M))
    frames = frames_of([wedge * np.exp(1j * phase) for phase in range(7)])
    found = maps_of(frames)
    np.testing.assert_allclose(found.gradient_rad_per_m, np.tile(slope, (7, 1)), rtol=1e-4)
    np.testing.assert_allclose(found.photons, found.photons[0], rtol=1e-5)
    np.testing.assert_array_equal(found.seq_nums, range(1, 8))


def test_an_absorbing_step_has_the_known_transmission():
    """Far on either side of the edge, and half way between on it: the probe is even."""
    dense, clear = 0.5 * np.ones((N, N)), np.ones((N, N))
    edge = np.where(X_M < -PIXEL_M / 2, 0.5, np.where(X_M > PIXEL_M / 2, 1.0, np.sqrt((1 + 0.25) / 2)))
    photons = maps_of(frames_of([clear, dense, edge])).photons
    assert photons[1] / photons[0] == pytest.approx(0.25, rel=1e-5)
    assert photons[2] / photons[0] == pytest.approx((1 + 0.25) / 2, rel=1e-3)


def test_the_incident_flux_is_taken_out():
    frames = [*frames_of([np.ones((N, N))] * 2), *frames_of([np.ones((N, N))], flux=3.0)]
    frames[2] = Frame(3, frames[2].position_m, frames[2].counts, flux=3.0)
    photons = maps_of(frames).photons
    np.testing.assert_allclose(photons, photons[0], rtol=1e-5)


def test_a_fine_grating_scatters_the_known_share_beside_the_direct_beam():
    """A phase grating of depth a leaves J0(a)^2 in the direct beam."""
    grating = np.exp(0.5j * np.sin(2 * np.pi * 12 * X_M / (N * PIXEL_M)))
    found = maps_of(frames_of([np.ones((N, N))] * 3 + [grating], probe=lens_probe()))
    share = found.dark_photons / found.photons
    np.testing.assert_allclose(share[:3], 0, atol=1e-5)
    assert share[3] == pytest.approx(1 - j0(0.5) ** 2, rel=1e-3)


def test_the_cone_reaches_as_far_as_the_pupil():
    row, column = np.indices((N, N)) - N // 2
    np.testing.assert_array_equal(direct_beam(pattern(lens_probe())), np.rint(np.hypot(row, column)) <= 5)


@pytest.mark.parametrize("frames", [LOOKS[0], FIRST_FRAMES + 3])
def test_pixels_that_are_bad_count_nowhere(frames):
    """A hot one is found by the frames themselves; one with a flag is known."""
    good = frames_of([np.exp(1j * k * 1e5 * Y_M) for k in range(frames)])
    known = np.ones((N, N), bool)
    known[9, 30] = False
    bad = []
    for frame in good:
        counts = frame.counts.copy()
        counts[20, 50], counts[9, 30] = 1e7, np.nan
        bad.append(Frame(frame.seq_num, frame.position_m, counts))
    both = known.copy()
    both[20, 50] = False
    found, expected = maps_of(bad, valid=known, find_valid=valid_pixels), maps_of(good, valid=both)
    np.testing.assert_allclose(found.photons, expected.photons, rtol=1e-5)
    np.testing.assert_allclose(found.gradient_rad_per_m, expected.gradient_rad_per_m, atol=20)
    assert found.photons.max() < 1e6


def test_a_frame_that_comes_again_replaces_the_first():
    one, other = frames_of([np.ones((N, N)), 0.5 * np.ones((N, N))])
    found = maps_of([one, Frame(1, np.array([1e-6, 2e-6]), other.counts)])
    assert len(found) == 1
    np.testing.assert_array_equal(found.positions_m, [[1e-6, 2e-6]])
    assert found.photons[0] == pytest.approx(0.25 * maps_of([one]).photons[0])


def test_frames_that_come_again_later_do_not_decide_anew_what_counts():
    """As after a pause, in which the first flight is flown again: these four are not the first of a scan."""
    looks = []
    frames = frames_of([np.exp(1j * k * 1e4 * Y_M) for k in range(FIRST_FRAMES + 3)], probe=lens_probe())
    mapper = ScanMapper(GEOMETRY, find_valid=lambda some: looks.append(len(some)) or np.ones((N, N), bool))
    for frame in frames:
        mapper.add(frame)
    before = mapper.maps()
    for frame in frames[: LOOKS[0]]:
        mapper.add(Frame(frame.seq_num, frame.position_m, pattern(soft_probe())))
    after, rest = mapper.maps(), slice(LOOKS[0], None)
    assert looks == list(LOOKS)
    np.testing.assert_array_equal(after.dark_photons[rest], before.dark_photons[rest])
    again = maps_of([*frames, Frame(99, np.zeros(2), pattern(soft_probe()))])
    np.testing.assert_allclose(after.dark_photons[: LOOKS[0]], again.dark_photons[-1], rtol=1e-5)


def test_a_shadow_has_no_slope_and_no_direct_beam():
    mapper = ScanMapper(Geometry(8000.0, 2.0, 1e-6, N, "near"))
    mapper.add(Frame(1, np.zeros(2), np.ones((N, N), np.uint16)))
    found = mapper.maps()
    assert found.photons[0] == N * N
    assert np.isnan(found.dark_photons).all() and np.isnan(found.gradient_rad_per_m).all()


def test_a_frame_without_light_has_no_slope():
    found = maps_of([Frame(1, np.zeros(2), np.zeros((N, N)))])
    assert found.photons[0] == 0 and np.isnan(found.gradient_rad_per_m).all()


def test_slopes_that_change_evenly_integrate_to_the_phase_on_scattered_places():
    places = np.random.default_rng(3).uniform(-1e-6, 1e-6, (60, 2))
    y, x = places.T
    phase = 2e12 * y**2 - 1e12 * x * y + 3e5 * x
    slopes = np.stack([4e12 * y - 1e12 * x, -1e12 * y + 3e5], axis=1)
    np.testing.assert_allclose(integrated_phase(places, slopes), phase - phase.mean(), atol=1e-4)


def test_nothing_is_integrated_across_a_gap():
    raster = 1e-7 * np.argwhere(np.ones((4, 4)))
    places = np.concatenate([raster, raster + np.array([0, 1e-5])])
    slopes = np.tile([0.0, 1e6], (32, 1))
    found = integrated_phase(places, slopes)
    for part in (slice(16), slice(16, 32)):
        x = places[part, 1]
        np.testing.assert_allclose(found[part], 1e6 * (x - x.mean()), atol=1e-4)
    np.testing.assert_allclose(integrated_phase(raster[:4], slopes[:4]), [-0.15, -0.05, 0.05, 0.15], atol=1e-6)
    for too_few in (raster[:3], np.zeros((5, 2))):
        assert np.isnan(integrated_phase(too_few, slopes[: len(too_few)])).all()
    slopes[5] = np.nan
    assert np.isnan(integrated_phase(places, slopes)).sum() == 1
