import math

import numpy as np
import pytest
import torch
from scipy import special

from bluesky_cdi.errors import GeometryError
from bluesky_cdi.physics.forward import fft2c
from bluesky_cdi.physics.geometry import Geometry
from bluesky_cdi.physics.probes import focused_probe, orthogonal_modes, resampled, scale_modes, scaled_to, width_px

GEOMETRY = Geometry(8000.0, 2.0, 172e-6, 64)
APERTURE = 0.86e-3


def gram(modes):
    flat = modes.reshape(len(modes), -1).to(torch.complex128)
    return (flat @ flat.mH).numpy()


def gaussian(size=64, sigma=5.0):
    index = torch.arange(size, dtype=torch.float64) - size // 2
    return torch.exp(-(index[:, None] ** 2 + index**2) / (2 * sigma**2)).to(torch.complex128), index / sigma


@pytest.mark.parametrize("modes", [1, 2, 4, 8])
def test_modes_are_orthogonal_and_share_the_photons(modes):
    probe = focused_probe(
        GEOMETRY,
        numerical_aperture=APERTURE,
        central_stop=0.25,
        defocus_m=0.25e-3,
        modes=modes,
        coherent_share=0.8,
        photons=3e4,
    )
    assert probe.shape == (modes, 64, 64) and probe.dtype == torch.complex64
    found = gram(probe)
    assert found.trace().real == pytest.approx(3e4, rel=1e-5)
    share = found.diagonal().real / 3e4
    if modes > 1:
        rest = 0.5 ** np.arange(modes - 1)
        np.testing.assert_allclose(share, [0.8, *(0.2 * rest / rest.sum())], rtol=1e-5)
    assert np.abs(found - np.diag(found.diagonal())).max() < 1e-5 * 3e4


def test_the_first_mode_is_the_coherent_probe():
    one, several = (
        focused_probe(GEOMETRY, numerical_aperture=APERTURE, defocus_m=1e-4, modes=m, coherent_share=0.64)
        for m in (1, 3)
    )
    np.testing.assert_allclose(several[0], 0.8 * one[0], atol=1e-6)


def test_far_field_of_the_focus_is_the_aperture():
    probe = focused_probe(GEOMETRY, numerical_aperture=APERTURE, central_stop=0.4)
    far = fft2c(probe[0].to(torch.complex128)).numpy()
    pixel_rad = 172e-6 / 2.0
    index = np.arange(64) - 32
    radius = np.hypot(index[:, None], index) * pixel_rad
    bright = np.abs(far) / np.abs(far).max()
    clear = (radius < APERTURE - pixel_rad) & (radius > 0.4 * APERTURE + pixel_rad)
    np.testing.assert_allclose(bright[clear], 1, atol=1e-5)
    np.testing.assert_allclose(bright[radius > APERTURE + pixel_rad], 0, atol=1e-5)
    np.testing.assert_allclose(bright[radius < 0.4 * APERTURE - pixel_rad], 0, atol=1e-5)
    np.testing.assert_allclose(np.angle(far)[clear], 0, atol=1e-5)
    spectrum = np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(far), norm="ortho"))
    assert np.unravel_index(np.abs(spectrum).argmax(), spectrum.shape) == (32, 32)


def test_focus_without_stop_is_the_airy_disc():
    """First zero at 0.61 wavelength / NA."""
    geometry = Geometry(8000.0, 2.0, 172e-6, 256)
    probe = focused_probe(geometry, numerical_aperture=2.4e-3)[0]
    radius = np.abs(np.arange(256) - 128) * geometry.pixel_m
    u = 2 * np.pi * radius / geometry.wavelength_m * 2.4e-3
    airy = np.where(u > 0, 2 * special.j1(u) / np.where(u > 0, u, 1), 1.0)
    row = probe[128].real.numpy()
    np.testing.assert_allclose(row / row.max(), airy, atol=0.02)


@pytest.mark.parametrize("defocus_m", [0.6e-3, -0.6e-3])
def test_defocused_spot_has_the_geometric_size(defocus_m):
    geometry = Geometry(8000.0, 2.0, 172e-6, 256)
    probe = focused_probe(geometry, numerical_aperture=APERTURE, defocus_m=defocus_m)
    geometric_m = 2 * APERTURE * abs(defocus_m)
    assert width_px(probe) * geometry.pixel_m == pytest.approx(geometric_m, rel=0.1)


def test_defocus_is_fresnel_propagation_from_the_focus():
    """Angular-spectrum propagation of the focus, written in sample coordinates."""
    focus, defocused = (
        focused_probe(GEOMETRY, numerical_aperture=APERTURE, defocus_m=z)[0].numpy().astype(complex)
        for z in (0.0, 0.3e-3)
    )
    k = np.fft.fftfreq(64, GEOMETRY.pixel_m)
    transfer = np.exp(-1j * np.pi * GEOMETRY.wavelength_m * 0.3e-3 * (k[:, None] ** 2 + k**2))
    np.testing.assert_allclose(defocused, np.fft.ifft2(np.fft.fft2(focus) * transfer), atol=1e-5)


def test_a_longer_defocus_makes_a_wider_probe():
    widths = [
        width_px(focused_probe(GEOMETRY, numerical_aperture=APERTURE, defocus_m=z)) for z in (0.0, 1e-4, 2e-4, 3e-4)
    ]
    assert widths == sorted(widths) and widths[-1] > 1.5 * widths[0]


def hermite(order, u):
    return torch.from_numpy(special.eval_hermite(order, u.numpy()))


def test_modes_of_a_gaussian_beam_are_hermite_gaussian():
    first, u = gaussian()
    found = orthogonal_modes(first, 6)
    orders = [(0, 0), (1, 0), (0, 1), (2, 0), (1, 1), (0, 2)]
    for mode, (i, j) in zip(found, orders, strict=True):
        expected = first * hermite(i, u)[:, None] * hermite(j, u)
        expected = expected / expected.abs().square().sum().sqrt()
        np.testing.assert_allclose(mode, expected, atol=1e-6)


def test_all_nine_modes_are_orthonormal():
    first, _ = gaussian()
    np.testing.assert_allclose(gram(orthogonal_modes(first, 9)), np.eye(9), atol=1e-9)


def test_a_single_mode_takes_all_photons():
    first, _ = gaussian()
    basis = orthogonal_modes(first, 1)
    assert float(scale_modes(basis, 0.3, 12.0).abs().square().sum()) == pytest.approx(12)


def test_scaled_to_changes_only_the_photons():
    first, _ = gaussian()
    probe = scale_modes(orthogonal_modes(first, 2), 0.75, 10.0)
    scaled = scaled_to(probe, 1e5)
    np.testing.assert_allclose(scaled, 100 * probe, rtol=1e-9)


@pytest.mark.parametrize("radius", [6.0, 13.5, 25.0])
def test_width_of_a_disc_is_its_diameter(radius):
    index = torch.arange(96) - 40.0
    disc = (torch.hypot(index[:, None], index) <= radius).to(torch.complex64)[None]
    assert width_px(disc) == pytest.approx(2 * radius, rel=0.01)
    assert width_px(3 * disc.roll((5, -7), (-2, -1))) == pytest.approx(width_px(disc), rel=1e-4)


def test_width_of_a_gaussian():
    first, _ = gaussian(sigma=5.0)
    # The intensity has the standard deviation sigma / sqrt(2) along each axis.
    assert width_px(first[None]) == pytest.approx(2 * math.sqrt(2 * 5.0**2), rel=1e-6)


def test_an_aperture_larger_than_the_detector_is_refused():
    with pytest.raises(GeometryError, match="larger than the detector"):
        focused_probe(GEOMETRY, numerical_aperture=3e-3)


def test_an_aperture_of_no_pixel_is_refused():
    with pytest.raises(GeometryError, match="covers no detector pixel"):
        focused_probe(GEOMETRY, numerical_aperture=-1e-3)


def test_a_probe_on_another_grid_is_the_same_wave():
    """A Gaussian with curvature, off the middle, is known everywhere."""

    def wave(size, pixel_m):
        x = (torch.arange(size, dtype=torch.float64) - size // 2) * pixel_m
        y, x = x[:, None] - 0.3e-6, x[None, :] + 0.2e-6
        square = y.square() + x.square()
        amplitude = torch.exp(-square / (2 * 0.4e-6**2)) * pixel_m
        return torch.polar(amplitude, 2e12 * square)[None].to(torch.complex64)

    probe = wave(64, 80e-9)
    for size, pixel_m in [(64, 80e-9), (96, 80e-9), (63, 60e-9), (48, 107e-9), (128, 41e-9)]:
        found = resampled(probe, 80e-9, pixel_m, size)
        torch.testing.assert_close(found, wave(size, pixel_m), rtol=0, atol=2e-5 * float(probe.abs().max()))
    # Outside its window a probe is dark.
    wide = resampled(probe, 80e-9, 160e-9, 64)
    assert not wide[:, :15].any() and not wide[:, :, 50:].any()
