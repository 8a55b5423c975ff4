"""The forward model against pty-chi's and cdtools', on the same probes, objects and positions.

``tests/oracles/make_reference_values.py`` made the values and tells what each case is.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from bluesky_cdi.physics import forward
from bluesky_cdi.physics.forward import Diffraction
from bluesky_cdi.physics.propagators import FAR_FIELD, AngularSpectrum

VALUES = Path(__file__).parents[2] / "oracles" / "forward_model.npz"
# Of the brightest pixel.
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def oracle():
    with np.load(VALUES) as file:
        return dict(file)


def tensor(array):
    return torch.from_numpy(array).to(torch.complex128)


def angular_spectrum(oracle, **changes):
    stated = {key: float(oracle[f"near_{key}"]) for key in ("pixel_m", "wavelength_m", "distance_m")}
    return AngularSpectrum(oracle["noise_probe"].shape[-1], **(stated | changes))


def inputs(oracle, case):
    """Probe (1, M, N, N), object (1, Y, X) and positions (n, 2) of a case."""
    kind = "noise" if case in ("rough", "whole") else "smooth"
    probe, positions = oracle[f"{kind}_probe"], oracle["positions_px"]
    probe = probe[:1] if case == "rough" else probe
    positions = np.rint(positions) if case == "whole" else positions
    return tensor(probe)[None], tensor(oracle[f"{kind}_object"])[None], positions


def placed(probe, obj, positions, propagator=FAR_FIELD, nearest=np.rint):
    """Frames at positions: patches begin at whole pixels, the probe is shifted by the rest."""
    n, size, whole = len(positions), probe.shape[-1], nearest(positions)
    corner = torch.from_numpy(whole.astype(np.int64) - size // 2)
    shift, counts = torch.from_numpy(positions - whole), torch.zeros(n, size, size, dtype=torch.float64)
    return Diffraction(counts, corner, shift, tuple(obj.shape), propagator=propagator)


def predicted(probe, obj, data):
    working = data.rate(data.probes(probe), data.patches(obj))
    return data.propagator.to_detector(working).numpy()


def departure(found, expected):
    """Largest difference, as a part of the brightest pixel."""
    return np.abs(found - expected).max() / expected.max()


@pytest.mark.parametrize("package", ["ptychi", "cdtools"])
@pytest.mark.parametrize("case", ["whole", "smooth"])
def test_far_field_intensities_are_those_of_another_package(oracle, case, package):
    probe, obj, positions = inputs(oracle, case)
    data = placed(probe, obj, positions)
    expected = oracle[f"{case}_{package}"]
    assert departure(predicted(probe, obj, data), expected) < TOLERANCE
    plain = forward.rate(data.probes(probe), data.patches(obj)).numpy()
    assert departure(plain, expected) < TOLERANCE


@pytest.mark.parametrize(("package", "nearest"), [("ptychi", np.rint), ("cdtools", np.floor)])
def test_white_noise_is_shifted_by_parts_of_a_pixel_as_in_another_package(oracle, package, nearest):
    probe, obj, positions = inputs(oracle, "rough")
    expected = oracle[f"rough_{package}"]
    found = predicted(probe, obj, placed(probe, obj, positions, nearest=nearest))
    assert departure(found, expected) < TOLERANCE
    # Noise has all frequencies, so that the case sees an error of a hundredth of a pixel.
    moved = predicted(probe, obj, placed(probe, obj, positions + 0.01, nearest=nearest))
    assert departure(moved, expected) > 100 * TOLERANCE


@pytest.mark.parametrize("package", ["ptychi", "cdtools"])
def test_near_field_intensities_are_those_of_another_package(oracle, package):
    probe, obj, positions = inputs(oracle, "near")
    expected = oracle[f"near_{package}"]
    data = placed(probe, obj, positions, angular_spectrum(oracle))
    assert departure(predicted(probe, obj, data), expected) < TOLERANCE
    # The displacement of the exit wave must be taken back, and the distance matters.
    shifted = data.propagator.forward(data.probes(probe) * data.patches(obj)[:, None])
    assert departure(forward.intensity(shifted).numpy(), expected) > 1000 * TOLERANCE
    further = placed(probe, obj, positions, angular_spectrum(oracle, distance_m=1.01e-3))
    assert departure(predicted(probe, obj, further), expected) > 100 * TOLERANCE


@pytest.mark.parametrize("package", ["ptychi", "cdtools"])
def test_angular_spectrum_carries_a_wave_as_another_package_does(oracle, package):
    wave = tensor(oracle["smooth_probe"]).sum(dim=0)
    expected = oracle[f"wave_{package}"].astype(np.complex128)
    if package == "ptychi":
        # Its waves also turn along the axis.
        expected = expected * np.exp(-2j * np.pi * oracle["near_distance_m"] / oracle["near_wavelength_m"])
    propagator = angular_spectrum(oracle)
    found = propagator.forward(wave[None, None])[0, 0]
    assert np.abs(found.numpy() - expected).max() < TOLERANCE * np.abs(expected).max()
    back = propagator.adjoint(tensor(expected)[None, None])[0, 0]
    assert (back - wave).abs().max() < TOLERANCE * wave.abs().max()


@pytest.mark.parametrize("case", ["rough", "smooth"])
def test_measured_and_predicted_alike_asks_for_no_step(oracle, case):
    """Another package's frames, taken as measured, leave the exit waves as they are."""
    probe, obj, positions = inputs(oracle, case)
    data = placed(probe, obj, positions)
    counts = FAR_FIELD.to_working(torch.from_numpy(oracle[f"{case}_ptychi"].astype(float)))
    probes, patches = data.probes(probe), data.patches(obj)
    step, rate = forward.modulus_step(probes * patches[:, None], counts)
    waves = (probes * patches[:, None]).abs().max()
    # A thousandth of a photon is added to the rate in the step: dark pixels feel it.
    assert departure(rate.numpy(), counts.numpy()) < TOLERANCE
    assert step.abs().max() < 1e-3 * waves
