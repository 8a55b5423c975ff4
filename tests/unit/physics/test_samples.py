import hashlib
import math
from itertools import pairwise
from typing import get_args

import numpy as np
import pytest
import xraydb

from bluesky_cdi.config import SimulationConfig
from bluesky_cdi.errors import ConfigError, GeometryError
from bluesky_cdi.physics.geometry import HC_EV_M
from bluesky_cdi.physics.materials import refractive_index, transmission
from bluesky_cdi.physics.objects import COPPER, GOLD, SAMPLES, SILICON, make_sample, material_sample
from bluesky_cdi.physics.patterns import dead_leaves, facets, gratings, labyrinth, natural_scene, wiring

STRUCTURED = sorted(set(SAMPLES) - {"blank"})
ENERGY_EV = 8000.0
K = 2 * math.pi * ENERGY_EV / HC_EV_M


def rng(seed=0):
    return np.random.default_rng(seed)


def ring_slope(image, low, high):
    """Exponent of the radially averaged power spectrum; a Hann window keeps the border's jump out."""
    size = len(image)
    window = np.hanning(size)[:, None] * np.hanning(size)
    power = np.abs(np.fft.fft2((image - image.mean()) * window)) ** 2
    radius = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.fftfreq(size))
    edges = np.geomspace(low, high, 10)
    rings = [power[(radius >= a) & (radius < b)].mean() for a, b in pairwise(edges)]
    return np.polyfit(np.log(np.sqrt(edges[:-1] * edges[1:])), np.log(rings), 1)[0]


def kurtosis_of_gradient(image):
    step = np.diff(image, axis=1)
    return np.mean((step - step.mean()) ** 4) / step.var() ** 2


@pytest.mark.parametrize("kind", sorted(SAMPLES))
@pytest.mark.parametrize("shape", [(96, 128), (65, 64), (24, 20)])
def test_every_kind_is_a_passive_sample(kind, shape):
    sample = make_sample(kind, shape, seed=5)
    assert sample.shape == shape and sample.dtype == np.complex64
    assert np.isfinite(sample).all() and np.abs(sample).max() <= 1 + 1e-6


@pytest.mark.parametrize("kind", sorted(SAMPLES))
def test_thickness_lies_between_nothing_and_full(kind):
    thickness = SAMPLES[kind].thickness((150, 170), rng(2))
    assert thickness.min() >= 0 and thickness.max() <= 1


@pytest.mark.parametrize("kind", STRUCTURED)
def test_a_seed_names_a_sample_of_every_kind(kind):
    a, b, other = (make_sample(kind, (90, 80), seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(a, b)
    assert np.abs(a - other).max() > 0.1


@pytest.mark.parametrize("kind", STRUCTURED)
@pytest.mark.parametrize("seed", [0, 3])
def test_no_orientation_maps_a_sample_on_itself(kind, seed):
    sample = make_sample(kind, (128, 128), seed)
    mean = sample.mean()
    spread = np.linalg.norm(sample - mean)
    twins = [np.rot90(s, turns) for s in (sample, sample.T) for turns in range(4)][1:]
    for twin in twins:
        assert np.linalg.norm(twin - sample) > 0.2 * spread


# Digests of the phase rounded to 0.001 rad: what reconstructions and figures have been made from.
@pytest.mark.parametrize(
    ("kind", "digest"),
    [("star", "85c24cae38ae4d3b"), ("particles", "95117b2f76e3a39c"), ("cells", "3bbf8c360d756fa6")],
)
def test_the_first_kinds_have_not_changed(kind, digest):
    phase = np.rint(1000 * np.angle(make_sample(kind, (48, 56), 3))).astype("<i2")
    assert hashlib.sha256(phase.tobytes()).hexdigest()[:16] == digest


def test_the_configuration_names_every_kind():
    assert list(get_args(SimulationConfig.model_fields["sample"].annotation)) == list(SAMPLES)


def test_phase_sample_absorbs_nothing():
    sample = make_sample("phase", (128, 128), 1)
    np.testing.assert_allclose(np.abs(sample), 1, atol=1e-6)
    assert np.angle(sample).min() == pytest.approx(-1.5, abs=0.05) and np.angle(sample).max() > -0.05


@pytest.mark.parametrize(
    ("exponent", "material", "thickness_m"), [(COPPER, "Cu", 2e-6), (SILICON, "Si", 20e-6), (GOLD, "Au", 4e-6)]
)
def test_constants_of_the_kinds_are_those_of_the_tables(exponent, material, thickness_m):
    assert 1j * K * (refractive_index(material, ENERGY_EV) - 1) * thickness_m == pytest.approx(exponent, rel=1e-4)


def test_gold_absorbs_strongly_and_turns_the_phase_around():
    sample = make_sample("gold", (256, 256), 1)
    assert np.abs(sample).min() == pytest.approx(math.exp(GOLD.real), rel=0.05)
    assert np.abs(sample).max() == 1
    assert -GOLD.imag > 2 * math.pi


def test_circuit_stands_on_its_substrate():
    sample = make_sample("circuit", (128, 128), 1)
    assert np.abs(sample).max() == pytest.approx(math.exp(SILICON.real), rel=1e-5)
    assert np.abs(sample).min() < 0.98 * np.abs(sample).max()


@pytest.mark.parametrize("material", ["Au", "Cu", "Si", "Ta"])
@pytest.mark.parametrize("energy_ev", [6000.0, 8000.0, 15000.0])
def test_absorption_agrees_with_the_tables_of_cross_sections(material, energy_ev):
    """A second route: photoabsorption of Elam, Ravel and Sieber (2002), not Chantler's scattering factors."""
    per_m = 100 * xraydb.material_mu(material, energy_ev, kind="photo")
    thickness = 1 / per_m
    passed = np.abs(transmission(thickness, energy_ev=energy_ev, material=material)) ** 2
    assert float(passed) == pytest.approx(math.exp(-1), rel=0.06)


def test_phase_follows_the_electron_density():
    """Far above every edge ``delta = r_e wavelength^2 n_e / 2 pi``."""
    electrons_m3 = 2.33e6 / 28.0855 * 6.02214076e23 * 14
    wavelength = HC_EV_M / 60e3
    expected = 2.8179403e-15 * wavelength**2 * electrons_m3 / (2 * math.pi)
    assert 1 - refractive_index("Si", 60e3, 2.33).real == pytest.approx(expected, rel=0.005)


def test_matter_retards_and_absorbs():
    """The sign of waves ``exp(+i k z)``: the phase falls with thickness, in proportion."""
    thickness = np.linspace(0, 1.5e-6, 7)
    passed = transmission(thickness, energy_ev=ENERGY_EV, material="gold")
    index = refractive_index("gold", ENERGY_EV)
    np.testing.assert_allclose(np.angle(passed), -K * (1 - index.real) * thickness, atol=1e-5)
    np.testing.assert_allclose(np.log(np.abs(passed)), -K * index.imag * thickness, atol=1e-6)
    assert passed[0] == 1 and passed.dtype == np.complex64


def test_compound_with_its_density_is_the_named_one():
    formula, density = xraydb.get_material("kapton")
    assert refractive_index(formula, 9000.0, density) == refractive_index("kapton", 9000.0)
    dense, loose = (refractive_index("Fe2O3", 9000.0, density) for density in (5.24, 2.62))
    assert dense - 1 == pytest.approx(2 * (loose - 1))


@pytest.mark.parametrize("kind", ["star", "gold", "leaves"])
def test_material_sample_has_the_kinds_structure(kind):
    sample = material_sample(
        kind, (80, 90), pixel_m=20e-9, energy_ev=ENERGY_EV, material="Au", thickness_m=0.6e-6, seed=4
    )
    thickness = SAMPLES[kind].thickness((80, 90), rng(4)) * 0.6e-6
    index = refractive_index("Au", ENERGY_EV)
    np.testing.assert_allclose(np.angle(sample), -K * (1 - index.real) * thickness, atol=1e-5)
    assert np.abs(sample).min() == pytest.approx(math.exp(-K * index.imag * thickness.max()), rel=1e-5)
    # Independently: intensity exp(-mu t), the tables' attenuation length.
    mu = 100 * xraydb.material_mu("Au", ENERGY_EV, kind="photo")
    assert np.log(np.abs(sample).min() ** 2) == pytest.approx(-mu * thickness.max(), rel=0.05)


def test_natural_scene_has_the_spectrum_of_natural_images():
    slopes = [ring_slope(natural_scene((256, 256), rng(s)), 0.02, 0.35) for s in range(4)]
    assert np.mean(slopes) == pytest.approx(-2, abs=0.35)
    # Noise of the same spectrum has Gaussian steps; edges give them tails.
    assert kurtosis_of_gradient(natural_scene((256, 256), rng(1))) > 4


def test_leaves_are_flat_with_edges():
    image = dead_leaves((256, 256), rng(1), (3.0, 50.0))
    # Half of all neighbours are equal, and the steps' tails are far above a Gaussian's 3.
    assert np.mean(np.abs(np.diff(image, axis=1)) < 1e-9) > 0.5
    assert kurtosis_of_gradient(image) > 10
    assert np.mean(image == 0.5) < 0.01  # hardly any plane is bare


def test_leaves_look_alike_at_every_scale():
    """Power of ``k ** -2``: the law of radii ``r ** -3`` (Lee, Mumford and Huang 2001)."""
    slopes = [ring_slope(dead_leaves((256, 256), rng(s), (2.0, 80.0)), 0.02, 0.2) for s in range(4)]
    assert np.mean(slopes) == pytest.approx(-2, abs=0.35)


@pytest.mark.parametrize("pitch", [4.0, 8.0])
def test_gratings_have_the_pitch_that_is_asked_for(pitch):
    image = gratings((160, 160), rng(0), (pitch,))
    side = round(160 / round(160 / (4 * pitch)))
    patch = image[2 : side - 2, 2 : side - 2]
    window = np.hanning(len(patch) + 2)[1:-1]
    power = np.abs(np.fft.fft2((patch - patch.mean()) * window[:, None] * window, (256, 256)))
    row, column = np.unravel_index(power.argmax(), power.shape)
    frequency = np.hypot(np.fft.fftfreq(256)[row], np.fft.fftfreq(256)[column])
    assert 1 / frequency == pytest.approx(pitch, rel=0.05)
    # Half line, half gap.
    assert patch.mean() == pytest.approx(patch.max() / 2, rel=0.1)


def test_wires_run_straight_along_both_axes():
    image = wiring((200, 200), rng(1), (4,))
    # One layer: horizontal wires, each as wide as asked for.
    runs = np.diff(np.flatnonzero(np.diff(np.pad(image[:, 100] > 0, 1).astype(int))))[::2]
    assert set(runs[1:-1] % 4) == {0}
    two = wiring((200, 200), rng(1), (4, 6))
    spectrum = np.abs(np.fft.fft2(two - two.mean())) ** 2
    # Straight lines put their power on the axes: one layer on each.
    assert spectrum[:, :2].sum() > 0.15 * spectrum.sum() and spectrum[:2].sum() > 0.15 * spectrum.sum()
    # Wire, wire and via make the full thickness; a crossing without a via less.
    assert sorted(np.unique(np.round(3 * two))) == [0, 1, 2, 3]


def test_facets_are_flat_with_straight_edges():
    image = facets((128, 128), rng(3), 1, (30.0, 30.0))
    top = image.max()
    assert 0.5 <= top <= 1 and np.mean((image > 0) & (image < top)) < 0.05
    rows, columns = np.nonzero(image == top)
    # Convex: the middle of any two of its points is in it.
    a, b = rng(1).integers(len(rows), size=(2, 500))
    assert (image[(rows[a] + rows[b]) // 2, (columns[a] + columns[b]) // 2] > 0.9 * top).all()


def test_labyrinth_has_one_period():
    power = np.abs(np.fft.fft2(labyrinth((256, 256), rng(1), 16.0) - 0.5)) ** 2
    radius = np.hypot(np.fft.fftfreq(256)[:, None], np.fft.fftfreq(256))
    mean_frequency = (power * radius)[radius < 0.12].sum() / power[radius < 0.12].sum()
    assert mean_frequency == pytest.approx(1 / 16, rel=0.1)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"kind": "moon"}, ValueError, "a sample is one of star"),
        ({"material": "Xy"}, ConfigError, "chemical formula or a name .* got 'Xy'"),
        ({"material": "Fe2O3"}, ConfigError, "density of 'Fe2O3' must be"),
        ({"density_g_cm3": 0.0}, ConfigError, "above 0 g/cm"),
        ({"energy_ev": 1.0, "thickness_m": 0.0}, ConfigError, "tabulated from 30 to 400000 eV"),
        ({"thickness_m": 1e-4}, GeometryError, "thicker than the depth of field"),
        ({"thickness_m": -1e-7}, GeometryError, "finite and not negative"),
    ],
)
def test_impossible_matter_is_refused(change, error, message):
    usual = {"kind": "star", "pixel_m": 2e-8, "energy_ev": ENERGY_EV, "material": "Au", "thickness_m": 1e-6}
    with pytest.raises(error, match=message):
        material_sample(shape=(32, 32), **(usual | change))
