"""Propagators against numpy, Gaussian beams whose fields are known, and their invariants."""

import math

import numpy as np
import pytest
import torch

from bluesky_cdi.errors import GeometryError
from bluesky_cdi.physics.forward import shift_fields
from bluesky_cdi.physics.geometry import Geometry
from bluesky_cdi.physics.propagators import (
    FAR_FIELD,
    AngularSpectrum,
    FarField,
    FresnelField,
    fresnel_number,
    propagator_of,
    shift_ramp,
)

SIZE, PIXEL_M, WAVELENGTH_M = 16, 0.5e-6, 1.24e-10
# The distance at which the sampling of both near-field propagators changes over.
BORDER_M = SIZE * PIXEL_M**2 / WAVELENGTH_M

PROPAGATORS = {
    "far": FAR_FIELD,
    "fresnel": FresnelField(SIZE, PIXEL_M, WAVELENGTH_M, 1.7 * BORDER_M),
    "converging": FresnelField(SIZE, PIXEL_M, WAVELENGTH_M, -1.2 * BORDER_M),
    "spectrum": AngularSpectrum(SIZE, PIXEL_M, WAVELENGTH_M, 0.8 * BORDER_M),
    "upstream": AngularSpectrum(SIZE, PIXEL_M, WAVELENGTH_M, -0.5 * BORDER_M),
    "paraxial": AngularSpectrum(SIZE, PIXEL_M, WAVELENGTH_M, 0.8 * BORDER_M, paraxial=True),
}
every_propagator = pytest.mark.parametrize("propagator", PROPAGATORS.values(), ids=PROPAGATORS)


@pytest.fixture
def rng():
    return np.random.default_rng(31)


def complex_(rng, *shape):
    return torch.from_numpy(rng.normal(size=shape) + 1j * rng.normal(size=shape))


def inner(a, b):
    return complex((a.conj() * b).sum())


def axis_m(size, pixel_m):
    return (torch.arange(size, dtype=torch.float64) - size // 2) * pixel_m


def gaussian_beam(radius2_m2, waist_m, distance_m, wavelength_m=WAVELENGTH_M):
    """Field of a beam of unit amplitude at its waist, without ``exp(i k z)`` (Siegman, Lasers, 1986, ch. 17)."""
    rayleigh = math.pi * waist_m**2 / wavelength_m
    width = waist_m * math.sqrt(1 + (distance_m / rayleigh) ** 2)
    curvature = distance_m / (distance_m**2 + rayleigh**2)
    phase = math.pi * radius2_m2 * curvature / wavelength_m - math.atan(distance_m / rayleigh)
    return waist_m / width * torch.exp(-radius2_m2 / width**2) * torch.polar(torch.ones_like(phase), phase)


def radius2(size, pixel_m):
    axis = axis_m(size, pixel_m)
    return axis[:, None] ** 2 + axis[None, :] ** 2


@pytest.mark.parametrize("size", [7, 8])
def test_far_field_is_numpys_transform(rng, size):
    waves = complex_(rng, 3, 2, size, size)
    np.testing.assert_allclose(FAR_FIELD.forward(waves), np.fft.fft2(waves.numpy(), norm="ortho"), atol=1e-12)
    np.testing.assert_allclose(FAR_FIELD.adjoint(waves), np.fft.ifft2(waves.numpy(), norm="ortho"), atol=1e-12)


@pytest.mark.parametrize("size", [7, 8])
def test_far_field_takes_frames_with_the_direct_beam_in_the_middle(size):
    frames = torch.zeros(2, size, size)
    frames[:, size // 2, size // 2] = 1
    working = FAR_FIELD.to_working(frames)
    assert working[0, 0, 0] == 1 and working.sum() == 2
    assert torch.equal(FAR_FIELD.to_detector(working), frames)


@pytest.mark.parametrize("name", ["spectrum", "paraxial"])
def test_near_field_takes_frames_as_they_are(rng, name):
    frames = complex_(rng, 2, SIZE, SIZE).real
    assert torch.equal(PROPAGATORS[name].to_working(frames), frames)
    assert torch.equal(PROPAGATORS[name].to_detector(frames), frames)


@every_propagator
@pytest.mark.parametrize("displaced", [False, True])
def test_adjoint_inverse_and_energy(rng, propagator, displaced):
    a, b = complex_(rng, 3, 2, SIZE, SIZE), complex_(rng, 3, 2, SIZE, SIZE)
    shift = torch.from_numpy(rng.uniform(-0.5, 0.5, (3, 2))) if displaced else None
    there = propagator.forward(a, shift)
    assert there.shape == a.shape and there.dtype == a.dtype
    assert inner(there, b) == pytest.approx(inner(a, propagator.adjoint(b, shift)), rel=1e-12)
    torch.testing.assert_close(propagator.adjoint(there, shift), a, atol=1e-12, rtol=1e-12)
    energy = a.abs().square().sum(dim=(-2, -1))
    torch.testing.assert_close(there.abs().square().sum(dim=(-2, -1)), energy, atol=0, rtol=1e-12)


@every_propagator
def test_single_precision_follows_double(rng, propagator):
    wave = complex_(rng, 1, 1, SIZE, SIZE)
    single = propagator.forward(wave.to(torch.complex64), torch.tensor([[0.2, -0.4]]))
    assert single.dtype == torch.complex64
    double = propagator.forward(wave, torch.tensor([[0.2, -0.4]], dtype=torch.float64))
    torch.testing.assert_close(single.to(torch.complex128), double, atol=1e-5, rtol=1e-5)


@every_propagator
@pytest.mark.parametrize("displaced", [False, True])
def test_gradcheck(rng, propagator, displaced):
    small = {
        FarField: FAR_FIELD,
        FresnelField: FresnelField(4, PIXEL_M, WAVELENGTH_M, 1.7 * BORDER_M / 4),
        AngularSpectrum: AngularSpectrum(4, PIXEL_M, WAVELENGTH_M, 0.8 * BORDER_M / 4),
    }[type(propagator)]
    waves = complex_(rng, 2, 1, 4, 4).requires_grad_()
    shift = torch.from_numpy(rng.uniform(-0.5, 0.5, (2, 2))).requires_grad_()
    if displaced:
        assert torch.autograd.gradcheck(small.forward, (waves, shift))
        assert torch.autograd.gradcheck(small.adjoint, (waves, shift))
    else:
        assert torch.autograd.gradcheck(small.forward, (waves,))
        assert torch.autograd.gradcheck(small.adjoint, (waves,))


@pytest.mark.parametrize("paraxial", [False, True])
@pytest.mark.parametrize(("share", "waist"), [(0.35, 5e-6), (-0.6, 5e-6), (1.0, 3e-6), (2.0, 3e-6)])
def test_angular_spectrum_carries_a_gaussian_beam(paraxial, share, waist):
    """The complex field: width, curvature and Gouy phase at a share of the Rayleigh length."""
    size = 256
    distance = share * math.pi * waist**2 / WAVELENGTH_M
    propagator = AngularSpectrum(size, PIXEL_M, WAVELENGTH_M, distance, paraxial=paraxial)
    squared = radius2(size, PIXEL_M)
    start = gaussian_beam(squared, waist, 0.0).to(torch.complex128)
    found = propagator.forward(start[None, None])[0, 0]
    torch.testing.assert_close(found, gaussian_beam(squared, waist, distance), atol=1e-6, rtol=0)
    # On the axis only the Gouy phase is left.
    centre = found[size // 2, size // 2]
    assert float(centre.angle()) == pytest.approx(-math.atan(share), abs=1e-6)
    assert float(centre.abs()) == pytest.approx(1 / math.sqrt(1 + share**2), abs=1e-6)


def test_wide_angles_part_from_the_paraxial_ones():
    """A tilted plane wave: the transfer function at one frequency, by the definition of the cosine."""
    size, pixel, wavelength, k = 32, 1e-6, 0.5e-6, 10
    distance = 20e-6
    sine = k * wavelength / (size * pixel)
    tilted = torch.polar(torch.ones(size, dtype=torch.float64), 2 * math.pi * k * axis_m(size, 1 / size))
    waves = tilted.expand(1, 1, size, size)
    phase = 2 * math.pi / wavelength * distance * (math.sqrt(1 - sine**2) - 1)
    parabola = -math.pi / wavelength * distance * sine**2
    assert abs(phase - parabola) > 1e-2
    for paraxial, expected in ((False, phase), (True, parabola)):
        found = AngularSpectrum(size, pixel, wavelength, distance, paraxial=paraxial).forward(waves)
        torch.testing.assert_close(found, waves * complex(math.cos(expected), math.sin(expected)), atol=1e-10, rtol=0)


def test_angular_spectrum_steps_compose(rng):
    waves = complex_(rng, 2, 1, SIZE, SIZE)
    step = lambda share: AngularSpectrum(SIZE, PIXEL_M, WAVELENGTH_M, share * BORDER_M)  # noqa: E731
    torch.testing.assert_close(step(0.3).forward(step(0.6).forward(waves)), step(0.9).forward(waves))
    torch.testing.assert_close(step(0.0).forward(waves), waves)


@pytest.mark.parametrize("direction", [1, -1])
def test_fresnel_field_carries_a_gaussian_beam_to_its_own_pixel(direction):
    """A beam that begins before (or would end behind) the plane of its waist, at the far field's pixel."""
    size, waist, start_m = 256, 4e-6, 0.1
    distance = 1.1 * size * PIXEL_M**2 / WAVELENGTH_M
    detector_pixel = WAVELENGTH_M * distance / (size * PIXEL_M)
    start = gaussian_beam(radius2(size, PIXEL_M), waist, direction * start_m)
    propagator = FresnelField(size, PIXEL_M, WAVELENGTH_M, direction * distance)
    wave = propagator.forward(start[None, None])
    found = FAR_FIELD.to_detector(wave.abs().square())[0, 0]
    field = gaussian_beam(radius2(size, detector_pixel), waist, direction * (start_m + distance))
    expected = field.abs().square() * (detector_pixel / PIXEL_M) ** 2
    torch.testing.assert_close(found, expected, atol=1e-6 * float(expected.max()), rtol=0)
    assert float(found.sum()) == pytest.approx(float(start.abs().square().sum()), rel=1e-12)


def test_both_near_fields_agree_where_their_regimes_meet():
    """At a Fresnel number of 1 the single transform's detector pixel is the sample's own."""
    size, waist = 128, 3e-6
    border = size * PIXEL_M**2 / WAVELENGTH_M
    assert fresnel_number(size, PIXEL_M, WAVELENGTH_M, border) == pytest.approx(1)
    squared = radius2(size, PIXEL_M)
    blobs = gaussian_beam(squared, waist, 0.0) + 0.6j * gaussian_beam(squared, waist, 0.05).roll((9, -6), (0, 1))
    # A hair on the right side of the border for each.
    near = AngularSpectrum(size, PIXEL_M, WAVELENGTH_M, border * (1 - 1e-12)).forward(blobs[None, None])
    single = FresnelField(size, PIXEL_M, WAVELENGTH_M, border * (1 + 1e-12)).forward(blobs[None, None])
    a, b = near.abs().square()[0, 0], FAR_FIELD.to_detector(single.abs().square())[0, 0]
    torch.testing.assert_close(a, b, atol=1e-6 * float(a.max()), rtol=0)


@pytest.mark.parametrize("sign", [1, -1])
def test_each_near_field_refuses_the_others_distances(sign):
    with pytest.raises(GeometryError, match=r"no further than N pixel\^2 / wavelength.*Use the far field or one Fresn"):
        AngularSpectrum(SIZE, PIXEL_M, WAVELENGTH_M, sign * 1.01 * BORDER_M)
    with pytest.raises(GeometryError, match=r"only beyond N pixel\^2 / wavelength.*Use the angular spectrum"):
        FresnelField(SIZE, PIXEL_M, WAVELENGTH_M, sign * 0.99 * BORDER_M)
    AngularSpectrum(SIZE, PIXEL_M, WAVELENGTH_M, sign * 0.99 * BORDER_M)
    FresnelField(SIZE, PIXEL_M, WAVELENGTH_M, sign * 1.01 * BORDER_M)


@pytest.mark.parametrize("distance", [0.0, math.nan])
def test_a_fresnel_transform_needs_a_distance(distance):
    with pytest.raises(GeometryError, match="distance"):
        FresnelField(SIZE, PIXEL_M, WAVELENGTH_M, distance)


def test_a_fresnel_transform_without_curvature_is_the_far_field(rng):
    waves = complex_(rng, 1, 1, SIZE, SIZE)
    flat = FresnelField(SIZE, PIXEL_M, WAVELENGTH_M, math.inf)
    torch.testing.assert_close(flat.forward(waves), FAR_FIELD.forward(waves))


@pytest.mark.parametrize("distance", [math.nan, math.inf])
def test_an_angular_spectrum_needs_a_finite_distance(distance):
    with pytest.raises(GeometryError, match="distance"):
        AngularSpectrum(SIZE, PIXEL_M, WAVELENGTH_M, distance)


def test_pixels_below_the_wavelength_are_refused():
    with pytest.raises(GeometryError, match="too small for a wavelength"):
        AngularSpectrum(SIZE, 0.5e-6, 0.8e-6, 1e-6)


def test_shift_ramp_moves_content_to_higher_indices(rng):
    wave = complex_(rng, 1, 8, 8)
    moved = torch.fft.ifft2(torch.fft.fft2(wave) * shift_ramp(torch.tensor([[2.0, -3.0]], dtype=torch.float64), 8))
    torch.testing.assert_close(moved, wave.roll((2, -3), (-2, -1)), atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", ["far", "spectrum", "upstream", "paraxial"])
def test_a_displaced_wave_gives_the_undisplaced_intensities(rng, name):
    waves = complex_(rng, 3, 2, SIZE, SIZE)
    shift = torch.from_numpy(rng.uniform(-0.5, 0.5, (3, 2)))
    displaced = shift_fields(waves, shift)
    expected = PROPAGATORS[name].forward(waves)
    found = PROPAGATORS[name].forward(displaced, shift)
    torch.testing.assert_close(found.abs(), expected.abs(), atol=1e-12, rtol=0)
    if name != "far":
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
        assert float((PROPAGATORS[name].forward(displaced).abs() - expected.abs()).abs().max()) > 0.1


@pytest.mark.parametrize("distance_share", [1.2, -1.5])
def test_a_displaced_wave_in_the_fresnel_transform(distance_share):
    """The curved phase goes with the wave: against an explicit sum about the displaced axis, and undisplaced."""
    size, waist, shift = 64, 2.5e-6, (0.31, -0.44)
    distance = distance_share * size * PIXEL_M**2 / WAVELENGTH_M
    propagator = FresnelField(size, PIXEL_M, WAVELENGTH_M, distance)
    axis = axis_m(size, PIXEL_M)
    y, x = axis - shift[0] * PIXEL_M, axis - shift[1] * PIXEL_M
    # Narrow enough that wave and curved phase together are band-limited.
    blob = lambda y, x: torch.exp(-(y[:, None] ** 2 + (x[None, :] - 3e-6) ** 2) / waist**2).to(torch.complex128)  # noqa: E731
    found = propagator.forward(blob(y, x)[None, None], torch.tensor([shift], dtype=torch.float64))[0, 0]
    undisplaced = propagator.forward(blob(axis, axis)[None, None])[0, 0]
    scale = float(undisplaced.abs().max())
    torch.testing.assert_close(found.abs(), undisplaced.abs(), atol=1e-6 * scale, rtol=0)
    curved = [np.exp(1j * np.pi * c.numpy() ** 2 / (WAVELENGTH_M * distance)) for c in (y, x)]
    index = np.arange(size)
    kernel = np.exp(-2j * np.pi * np.outer(index, index) / size) / np.sqrt(size)
    explicit = kernel @ (blob(y, x).numpy() * np.outer(*curved)) @ kernel.T
    np.testing.assert_allclose(found, explicit, atol=1e-10 * scale)
    forgotten = propagator.forward(blob(y, x)[None, None])[0, 0]
    assert float((forgotten.abs() - undisplaced.abs()).abs().max()) > 1e-2 * scale


def test_a_point_source_magnifies_like_the_equivalent_parallel_beam():
    """Fresnel scaling theorem: a spherical wave on a fine grid against the scaled geometry."""
    size, pixel, focus, distance = 512, 0.5e-6, 0.5, 0.5
    geometry = Geometry(1.239841984332e-6 / WAVELENGTH_M, distance, pixel, size, "near", focus)
    assert geometry.magnification == 2

    def sample(pixel_m):
        axis = axis_m(size, pixel_m)
        blob = lambda y, x, w: torch.exp(-((axis[:, None] - y) ** 2 + (axis[None, :] - x) ** 2) / w**2)  # noqa: E731
        return blob(8e-6, -5e-6, 4e-6) + (0.4 + 0.7j) * blob(-6e-6, 7e-6, 3e-6)

    spherical = math.pi * radius2(size, pixel) / (WAVELENGTH_M * focus)
    exit_wave = sample(pixel) * torch.polar(torch.ones_like(spherical), spherical)
    direct = AngularSpectrum(size, pixel, WAVELENGTH_M, distance, paraxial=True).forward(exit_wave[None, None])
    scaled = propagator_of(geometry).forward(sample(geometry.pixel_m)[None, None])
    a, b = direct.abs().square()[0, 0], scaled.abs().square()[0, 0] / geometry.magnification**2
    torch.testing.assert_close(a, b, atol=1e-6 * float(a.max()), rtol=0)


def test_the_propagator_of_an_experiment():
    assert propagator_of(Geometry(8000.0, 2.0, 172e-6, 64)) is FAR_FIELD
    near = Geometry(8000.0, 1.0, 1e-4, 64, "near", 0.01)
    found = propagator_of(near)
    assert isinstance(found, AngularSpectrum)
    wave = torch.zeros(1, 1, 64, 64, dtype=torch.complex128)
    wave[0, 0, 32, 32] = 1
    own = AngularSpectrum(64, near.pixel_m, near.wavelength_m, near.effective_distance_m)
    torch.testing.assert_close(found.forward(wave), own.forward(wave))
    with pytest.raises(GeometryError, match="no further than"):
        propagator_of(Geometry(8000.0, 1.0, 1e-6, 64, "near"))
