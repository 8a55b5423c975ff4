import math

import numpy as np
import pytest
import torch
from scipy import special

from bluesky_cdi.errors import GeometryError
from bluesky_cdi.physics.geometry import Geometry
from bluesky_cdi.physics.optics import aberration_phase, lens_field, mirror_pair_field, zernike
from bluesky_cdi.physics.probes import focused_probe, mirror_pair_probe, width_px, zone_plate_probe
from bluesky_cdi.physics.zone_plate import (
    OrderSortingAperture,
    ZonePlate,
    fresnel_radial,
    radial_nodes,
    zone_plate_field,
)

SMALL = Geometry(8000.0, 2.0, 172e-6, 64)
FINE = Geometry(8000.0, 2.0, 172e-6, 256)
APERTURE = 2.4e-3
WAVELENGTH = FINE.wavelength_m

# A zone plate so small that all of its light fits into the window of a frame: 80 nm pixels, 20.48 um.
WIDE = Geometry(8000.0, 80e-9 * 256 * 75e-6 / WAVELENGTH, 75e-6, 256)
TINY = {"outermost_zone_m": 100e-9, "diameter_m": 8e-6, "stop_diameter_m": 3e-6}


def grid_m(geometry):
    return (np.arange(geometry.frame_px) - geometry.frame_px // 2) * geometry.pixel_m


def radius_m(geometry):
    return np.hypot(grid_m(geometry)[:, None], grid_m(geometry))


def overlap(a, b):
    return float((a.conj() * b).sum().abs() / (a.norm() * b.norm()))


def first_minimum(curve):
    return int(np.flatnonzero(np.diff(curve) > 0)[0])


def centroid_m(field, geometry):
    weight = field.abs().square().numpy()
    return [float((weight.sum(1 - axis) * grid_m(geometry)).sum() / weight.sum()) for axis in (0, 1)]


def disc(size=601):
    """Points of the unit disc, (n,) radius and angle, evenly spread."""
    line = (np.arange(size) + 0.5) / size * 2 - 1
    y, x = np.meshgrid(line, line, indexing="ij")
    inside = np.hypot(y, x) <= 1
    return torch.from_numpy(np.hypot(y, x)[inside]), torch.from_numpy(np.arctan2(y, x)[inside])


def test_focus_of_a_lens_is_the_airy_pattern():
    field = lens_field(FINE, numerical_aperture=APERTURE).real.numpy()
    u = 2 * np.pi / WAVELENGTH * APERTURE * radius_m(FINE)
    airy = np.where(u > 0, 2 * special.j1(u) / np.where(u > 0, u, 1), 1.0)
    near = radius_m(FINE) < 4 * WAVELENGTH / APERTURE
    np.testing.assert_allclose((field / field.max())[near], airy[near], atol=0.01)
    # Between pixels: the field is band-limited, so a longer FFT of the same pupil reads it there.
    zoom = Geometry(8000.0, 2.0, 172e-6, 1024)
    row = np.abs(lens_field(zoom, numerical_aperture=APERTURE)[512, 512:].numpy())
    assert first_minimum(row) * zoom.pixel_m == pytest.approx(0.61 * WAVELENGTH / APERTURE, abs=zoom.pixel_m)


def test_focus_of_mirrors_is_a_product_of_sincs():
    apertures = (2.0e-3, 1.2e-3)
    field = mirror_pair_field(FINE, numerical_aperture=apertures).real.numpy()
    y, x = (np.sinc(2 * a * grid_m(FINE) / WAVELENGTH) for a in apertures)
    # Near the border the discrete focus meets its own periodic images.
    near = slice(64, 192)
    np.testing.assert_allclose((field / field.max())[near, near], (y[:, None] * x)[near, near], atol=0.01)


def test_mirrors_focus_each_direction_at_its_own_distance():
    """The fan of each direction is its own aperture times its own distance."""
    pair = mirror_pair_field(FINE, numerical_aperture=(2.0e-3, 1.5e-3), defocus_m=(0.25e-3, -0.4e-3))
    weight = pair.abs().square().numpy()
    for axis, reach in ((0, 2.0e-3 * 0.25e-3), (1, 1.5e-3 * 0.4e-3)):
        edge = np.interp([0.05, 0.95], np.cumsum(weight.sum(1 - axis)) / weight.sum(), grid_m(FINE))
        assert np.diff(edge)[0] == pytest.approx(0.9 * 2 * reach, rel=0.1)


@pytest.mark.parametrize("stop", [0.0, 0.5])
def test_width_grows_as_aperture_times_defocus(stop):
    widths = [
        width_px(focused_probe(FINE, numerical_aperture=APERTURE, central_stop=stop, defocus_m=z)) * FINE.pixel_m
        for z in (2e-4, 3e-4)
    ]
    # An annulus has the mean square radius of a disc times 1 + stop^2.
    expected = 2 * APERTURE * 1e-4 * math.sqrt(1 + stop**2)
    assert widths[1] - widths[0] == pytest.approx(expected, rel=0.05)


def test_a_near_field_has_the_same_beam_on_its_own_pixel():
    """The field depends on the window and its pixel, not on what the detector makes of it."""
    near = Geometry(8000.0, 0.5, FINE.pixel_m, 256, "near")
    fields = [lens_field(g, numerical_aperture=APERTURE, central_stop=0.3, defocus_m=1e-4) for g in (FINE, near)]
    np.testing.assert_allclose(fields[0], fields[1], atol=1e-6)
    with pytest.raises(GeometryError, match="larger than the angle that the sample pixel can hold"):
        lens_field(near, numerical_aperture=0.02)


def test_zernike_polynomials_are_orthonormal_on_the_disc():
    rho, theta = disc()
    basis = torch.stack([zernike(j, rho, theta) for j in range(1, 23)])
    np.testing.assert_allclose(basis @ basis.T / len(rho), np.eye(22), atol=0.01)


@pytest.mark.parametrize(
    ("index", "polynomial"),
    [
        (1, lambda y, x, r: 1 + 0 * r),
        (2, lambda y, x, r: 2 * x),
        (3, lambda y, x, r: 2 * y),
        (4, lambda y, x, r: 3**0.5 * (2 * r**2 - 1)),
        (5, lambda y, x, r: 6**0.5 * 2 * x * y),
        (6, lambda y, x, r: 6**0.5 * (x**2 - y**2)),
        (7, lambda y, x, r: 8**0.5 * (3 * r**2 - 2) * y),
        (8, lambda y, x, r: 8**0.5 * (3 * r**2 - 2) * x),
        (9, lambda y, x, r: 8**0.5 * (3 * x**2 * y - y**3)),
        (10, lambda y, x, r: 8**0.5 * (x**3 - 3 * x * y**2)),
        (11, lambda y, x, r: 5**0.5 * (6 * r**4 - 6 * r**2 + 1)),
        (22, lambda y, x, r: 7**0.5 * (20 * r**6 - 30 * r**4 + 12 * r**2 - 1)),
    ],
)
def test_zernike_polynomials_have_nolls_numbers(index, polynomial):
    """Table I of Noll (1976), in Cartesian form."""
    rho, theta = disc(101)
    y, x = rho * theta.sin(), rho * theta.cos()
    np.testing.assert_allclose(zernike(index, rho, theta), polynomial(y, x, rho), atol=1e-9)


@pytest.mark.parametrize(("index", "axis"), [(3, 0), (2, 1)])
def test_tilt_moves_the_focus(index, axis):
    """A tilt of ``2 a theta / NA`` is a shift of ``-a wavelength / (pi NA)``."""
    coefficient = 4.0
    still = centroid_m(lens_field(FINE, numerical_aperture=APERTURE), FINE)
    moved = centroid_m(lens_field(FINE, numerical_aperture=APERTURE, aberrations={index: coefficient}), FINE)
    shift = np.subtract(moved, still)
    assert shift[axis] == pytest.approx(-coefficient * WAVELENGTH / (math.pi * APERTURE), rel=0.02)
    assert abs(shift[1 - axis]) < 0.01 * abs(shift[axis])


def test_zernike_defocus_is_defocus():
    """``sqrt(3) a (2 rho^2 - 1) = -pi z theta^2 / wavelength`` up to a constant phase."""
    z = 1.5e-4
    coefficient = -math.pi * z * APERTURE**2 / (WAVELENGTH * 2 * math.sqrt(3))
    fields = (
        lens_field(FINE, numerical_aperture=APERTURE, defocus_m=z),
        lens_field(FINE, numerical_aperture=APERTURE, aberrations={4: coefficient}),
    )
    assert overlap(*fields) == pytest.approx(1, abs=1e-9)


def test_small_aberrations_cost_the_peak_their_variance():
    """Strehl ratio ``exp(-variance)`` (Mahajan, J. Opt. Soc. Am. 73, 860 (1983))."""
    clean = lens_field(FINE, numerical_aperture=APERTURE).abs().square().max()
    aberrated = lens_field(FINE, numerical_aperture=APERTURE, aberrations={5: 0.3, 8: 0.2, 11: -0.2})
    assert float(aberrated.abs().square().max() / clean) == pytest.approx(math.exp(-0.17), rel=0.02)


def test_aberrations_stay_finite_outside_the_pupil():
    phase = aberration_phase(FINE, 1e-3, {11: 1.0})
    assert float(phase.abs().max()) < 10


def test_focal_length_and_aperture_of_a_zone_plate():
    plate = ZonePlate(outermost_zone_m=50e-9, diameter_m=160e-6)
    assert plate.focal_length_m(1.24e-10) == pytest.approx(64.516e-3, rel=1e-4)
    # The rim at the focal length sees the focus under the numerical aperture.
    assert plate.diameter_m / 2 / plate.focal_length_m(1.24e-10) == pytest.approx(plate.numerical_aperture(1.24e-10))


def test_radial_quadrature_integrates_fringes():
    radius, weight = radial_nodes(1e-6, 9e-6, 2e7)
    k = 2 * np.pi * 2e7
    exact = (np.exp(1j * k * 9e-6) - np.exp(1j * k * 1e-6)) / (1j * k) + 8e-6
    assert complex(((torch.exp(1j * k * radius) + 1) * weight).sum()) == pytest.approx(exact, abs=1e-15)


def test_radial_propagation_of_a_gaussian_beam():
    waist, distance = 1e-6, 0.03
    radius, weight = radial_nodes(0, 6 * waist, 2 * waist / (WAVELENGTH * distance) * 6 + 1e7)
    target = torch.linspace(0, 8e-6, 50, dtype=torch.float64)
    beam = torch.exp(-((radius / waist) ** 2)).to(torch.complex128)
    found = fresnel_radial(beam, radius, weight, target, WAVELENGTH, distance)
    q = 1 + 1j * WAVELENGTH * distance / (np.pi * waist**2)  # 1 + i z / z_R
    np.testing.assert_allclose(found, np.exp(-((target.numpy() / waist) ** 2) / q) / q, atol=1e-6)


@pytest.mark.parametrize("defocus_m", [0.0, 0.2e-3, -0.2e-3])
def test_first_order_of_a_zone_plate_is_a_lens(defocus_m):
    geometry = Geometry(8000.0, 2.0, 172e-6, 128)
    plate = ZonePlate(60e-9, 40e-6, 16e-6, orders={1: 1.0})
    found = zone_plate_field(geometry, plate, defocus_m=defocus_m)
    lens = lens_field(
        geometry, numerical_aperture=plate.numerical_aperture(WAVELENGTH), central_stop=0.4, defocus_m=defocus_m
    )
    assert overlap(found, lens) > 0.99
    # Its light is all there, but for the tails beyond the window.
    illumination = float(found.abs().square().sum()) * geometry.pixel_m**2
    assert illumination == pytest.approx(math.pi / 4 * (40e-6**2 - 16e-6**2), rel=0.03)


def fresnel(field, pixel_m, distance):
    k = np.fft.fftfreq(len(field), pixel_m)
    transfer = np.exp(-1j * np.pi * WAVELENGTH * distance * (k[:, None] ** 2 + k**2))
    return np.fft.ifft2(np.fft.fft2(field) * transfer)


def test_zone_plate_with_all_parts_agrees_with_two_dimensional_propagation():
    fine, defocus = 20e-9, 0.1e-3
    plate = ZonePlate(**TINY, sorting=OrderSortingAperture(3e-6, 1.2e-3))
    focal = plate.focal_length_m(WAVELENGTH)
    line = (np.arange(2048) - 1024) * fine
    r = np.hypot(line[:, None], line)
    opening = np.clip((4e-6 - r) / fine + 0.5, 0, 1) * np.clip((r - 1.5e-6) / fine + 0.5, 0, 1)
    orders = sum(a * np.exp(-1j * np.pi * m * r**2 / (WAVELENGTH * focal)) for m, a in plate.orders.items())
    cut = fresnel(opening * orders, fine, focal + defocus - 1.2e-3) * np.clip((1.5e-6 - r) / fine + 0.5, 0, 1)
    expected = torch.from_numpy(fresnel(cut, fine, 1.2e-3)[512:1536:4, 512:1536:4].copy())
    found = zone_plate_field(WIDE, plate, defocus_m=defocus)
    # Also in scale and phase: the difference, not only the overlap.
    assert float((found - expected).norm() / expected.norm()) < 0.03


def test_sorting_aperture_blocks_the_light_around_the_stops_shadow():
    ring = (radius_m(WIDE) > 1.5e-6) & (radius_m(WIDE) < 4e-6)
    illumination = {}
    for name, sorting in {"open": None, "sorted": OrderSortingAperture(2.4e-6, 1e-3)}.items():
        power = zone_plate_field(WIDE, ZonePlate(**TINY, sorting=sorting)).abs().square().numpy() * WIDE.pixel_m**2
        illumination[name] = power[ring].sum(), power[radius_m(WIDE) < 0.5e-6].sum()
    opening = math.pi / 4 * (8e-6**2 - 3e-6**2)
    # Open: the zeroth order's quarter goes straight on.
    assert illumination["open"][0] == pytest.approx(0.25 * opening, rel=0.15)
    assert illumination["sorted"][0] < 0.02 * illumination["open"][0]
    # The focus keeps the first order's share.
    assert illumination["sorted"][1] == pytest.approx(opening / math.pi**2, rel=0.08)
    assert illumination["sorted"][1] == pytest.approx(illumination["open"][1], rel=0.05)


def test_without_a_stop_the_sorting_aperture_lets_the_zeroth_order_through():
    sorting = OrderSortingAperture(2.4e-6, 1e-3)
    halo = (radius_m(WIDE) > 0.4e-6) & (radius_m(WIDE) < 1e-6)
    nearly_undiffracted = {0: 0.5, 1: 1e-3}
    with_stop, without = (
        zone_plate_field(WIDE, ZonePlate(100e-9, 8e-6, stop, sorting, nearly_undiffracted)).abs().square()[halo].mean()
        for stop in (3e-6, 0.0)
    )
    assert float(without) == pytest.approx(0.25, rel=0.2) and with_stop < 0.1 * without


def test_a_large_sorting_aperture_changes_nothing():
    opened = zone_plate_field(WIDE, ZonePlate(**TINY))
    wide = zone_plate_field(WIDE, ZonePlate(**TINY, sorting=OrderSortingAperture(40e-6, 1e-3)))
    assert float((wide - opened).norm() / opened.norm()) < 0.03


def test_a_small_sorting_aperture_makes_the_focus_wider():
    cone = 2 * ZonePlate(**TINY).numerical_aperture(WAVELENGTH) * 1e-3
    far = [
        np.abs(np.fft.fft2(zone_plate_field(WIDE, ZonePlate(100e-9, 8e-6, 0.0, OrderSortingAperture(d, 1e-3)))))
        for d in (1.5 * cone, 0.5 * cone)
    ]
    angle = np.hypot(*np.meshgrid(*2 * [np.fft.fftfreq(256, WIDE.pixel_m) * WAVELENGTH]))
    outer = (angle > 0.7 * cone / 2e-3) & (angle < cone / 2e-3)
    assert (far[1][outer] ** 2).sum() < 0.1 * (far[0][outer] ** 2).sum()


def test_aberrations_of_a_zone_plate_are_those_of_a_lens():
    aberrations = {3: 3.0, 5: 0.5, 8: 0.4}
    plate = ZonePlate(60e-9, 40e-6, 16e-6, OrderSortingAperture(12e-6, 2e-3))
    geometry = Geometry(8000.0, 2.0, 172e-6, 128)
    found = zone_plate_field(geometry, plate, aberrations=aberrations)
    lens = lens_field(
        geometry,
        numerical_aperture=plate.numerical_aperture(WAVELENGTH),
        central_stop=0.4,
        aberrations=aberrations,
    )
    assert overlap(found, lens) > 0.98


@pytest.mark.parametrize(
    "make",
    [
        lambda **k: focused_probe(SMALL, numerical_aperture=1e-3, aberrations={7: 0.5}, **k),
        lambda **k: mirror_pair_probe(SMALL, numerical_aperture=(1e-3, 0.7e-3), **k),
        lambda **k: zone_plate_probe(
            SMALL, ZonePlate(100e-9, 40e-6, 16e-6, OrderSortingAperture(12e-6, 3e-3)), defocus_m=1e-4, **k
        ),
    ],
)
def test_every_probe_is_in_the_gauge(make):
    probe = make(modes=3, coherent_share=0.7, photons=2e4)
    assert probe.shape == (3, 64, 64) and probe.dtype == torch.complex64
    energy = probe.abs().square().sum(dim=(1, 2))
    np.testing.assert_allclose(energy, 2e4 * np.array([0.7, 0.2, 0.1]), rtol=1e-4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: mirror_pair_field(SMALL, numerical_aperture=(1e-3, 3e-3)), "larger than the detector"),
        (lambda: mirror_pair_field(SMALL, numerical_aperture=(-1e-3, 1e-3)), "mirror's aperture covers no detector"),
        (lambda: lens_field(SMALL, numerical_aperture=1e-3, defocus_m=1e-3), "wider than the frame's window"),
        (lambda: lens_field(SMALL, numerical_aperture=1e-3, aberrations={0: 1.0}), "numbered from 1"),
        (lambda: zone_plate_field(SMALL, ZonePlate(25e-9, 40e-6)), "larger than the detector"),
        (lambda: ZonePlate(25e-6, 40e-6), "far below its diameter"),
        (lambda: ZonePlate(60e-9, 40e-6, 50e-6), "central stop .* must be smaller"),
        (lambda: ZonePlate(60e-9, 40e-6, orders={0: 1.0}), "amplitude for its first order"),
        (lambda: OrderSortingAperture(-1e-6, 1e-3), "diameter above 0 m"),
        (lambda: OrderSortingAperture(1e-5, -1e-3), "on the wrong side"),
        (
            lambda: zone_plate_field(SMALL, ZonePlate(60e-9, 40e-6, 0.0, OrderSortingAperture(1e-5, 0.02))),
            "wrong side of the zone plate",
        ),
        (
            lambda: zone_plate_field(SMALL, ZonePlate(60e-9, 40e-6, 30e-6, OrderSortingAperture(5e-6, 5e-3))),
            "blocks the focus",
        ),
        (lambda: zone_plate_field(WIDE, ZonePlate(100e-9, 2e-6), defocus_m=-2e-3), "downstream of the zone plate"),
    ],
)
def test_impossible_optics_are_refused(make, message):
    with pytest.raises(GeometryError, match=message):
        make()
