"""Which frequencies of an object a detector measures, beside what the forward model does with single frequencies."""

import math

import pytest
import torch

from bluesky_cdi.physics.forward import diffract, intensity, to_corner
from bluesky_cdi.physics.measured_aperture import (
    TELLING_PHOTONS,
    beyond,
    data_support,
    inner_pixels,
    inner_side,
    measured_share,
    supported,
)


def lens_probe(size, radius, modes=1):
    """Give a probe whose spectrum is a disc of a radius in pixels, off the axis and out of focus."""
    axis = torch.fft.fftfreq(size) * size - 1.2
    square = axis[:, None] ** 2 + axis[None] ** 2
    pupils = [(square < radius**2) * torch.exp(1j * (0.02 + 0.01 * m) * square) for m in range(modes)]
    return torch.fft.ifft2(torch.stack(pupils)).to(torch.complex64)[None]


@pytest.mark.parametrize(("rows", "columns"), [(0, 0), (3, 0), (9, -2), (-11, 4), (16, 0), (13, 13)])
@pytest.mark.parametrize("modes", [1, 2])
def test_the_share_is_what_the_forward_model_scatters_onto_valid_pixels(rows, columns, modes):
    size, probe = 32, lens_probe(32, 4.5, modes)
    valid = to_corner(inner_pixels(size, 0.6))
    valid[2, 5] = False
    axis = torch.arange(size)
    wave = torch.exp(2j * math.pi * (rows * axis[:, None] + columns * axis[None]) / size)
    light = intensity(diffract(probe, wave[None]))[0]
    share = measured_share(probe, valid, (size, size))
    assert share[0, rows % size, columns % size].item() == pytest.approx(
        (light * valid).sum().item() / light.sum().item(), abs=1e-5
    )


def test_larger_objects_have_the_same_shares_at_the_same_frequencies():
    probe, valid = lens_probe(32, 4.5), to_corner(inner_pixels(32, 0.6))
    small, large = measured_share(probe, valid, (32, 32)), measured_share(probe, valid, (64, 96))
    torch.testing.assert_close(large[:, ::2, ::3], small)
    assert large.min() >= 0 and large.max() <= 1


def test_support_is_the_share_in_the_dark_and_whole_in_bright_light():
    share = torch.linspace(0, 1, 64).view(1, 8, 8)
    dark, bright = (data_support(share, torch.full((1, 8, 8), photons)) for photons in (1e-4, 1e12))
    torch.testing.assert_close(dark, share, atol=1e-4, rtol=1e-4)
    assert bright[share > 0].min() > 0.999 and bright[share == 0].max() == 0
    # Where as many photons fall as are needed, the share of a quarter is found to two fifths.
    there = torch.zeros(1, 8, 8)
    there[0, 2:4] = TELLING_PHOTONS
    quarter = data_support(torch.full((1, 8, 8), 0.25), there)
    torch.testing.assert_close(quarter, torch.full((1, 8, 8), 0.4))


def test_an_object_is_its_supported_part_and_the_rest():
    torch.manual_seed(1)
    obj, support = torch.randn(2, 12, 16, dtype=torch.complex64), torch.rand(2, 12, 16)
    torch.testing.assert_close(supported(obj, support) + beyond(obj - 1, support), obj)
    vacuum = torch.ones_like(obj)
    torch.testing.assert_close(supported(vacuum, support), vacuum)
    torch.testing.assert_close(supported(obj, torch.ones_like(support)), obj)


def test_the_inner_square_is_even_and_about_the_zero_frequency():
    assert inner_side(64, 2 / 3) == 42
    marked = torch.nonzero(inner_pixels(64, 2 / 3))
    assert marked.min() == 32 - 21 and marked.max() == 32 + 20 and len(marked) == 42**2


@pytest.mark.parametrize("share", [0.0, 0.01, 1.0, 1.2, -0.5])
def test_a_share_that_hides_nothing_or_all_is_refused(share):
    with pytest.raises(ValueError, match="above 0 and below 1"):
        inner_pixels(64, share)
