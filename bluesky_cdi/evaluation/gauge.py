"""The phase of an object that no measurement fixes, taken out the same way in figures, files and the catalog.

The amplitude needs nothing: by the gauge of the probe, whose photons are counted, vacuum has the amplitude 1.
"""

from __future__ import annotations

import numpy as np

from bluesky_cdi.evaluation._checks import BoolArray
from bluesky_cdi.physics.illumination_shares import MEASURED_SHARE
from bluesky_cdi.protocols import ComplexArray, Estimate, FloatArray

# Vacuum: amplitudes within so much of 1, of which so many of the covered pixels have one phase, on so many bins.
CLEAR_MODULUS, CLEAR_SHARE, PHASE_BINS = 0.05, 0.1, 48


def measured_area(coverage: FloatArray) -> BoolArray:
    """Tell which pixels have light enough to show an object, shape (Y, X); none where there is no light at all.

    Parameters
    ----------
    coverage : ndarray, shape (Y, X)
        Summed illumination, photons per pixel.
    """
    enough = MEASURED_SHARE * np.max(coverage, initial=0.0)
    return np.asarray((coverage >= enough) & (coverage > 0))


def gauge(image: ComplexArray, covered: BoolArray) -> complex:
    """Return the factor that takes out the mean phase of the covered area, which no measurement fixes."""
    mean = np.sum(image[covered], dtype=np.complex128)
    return complex(np.conj(mean)) if mean else 1.0


def phase_rad(image: ComplexArray, covered: BoolArray) -> FloatArray:
    """Return the phase without the mean of the covered area."""
    return np.asarray(np.angle(image * gauge(image, covered)))


def vacuum_gauge(image: ComplexArray, covered: BoolArray) -> complex | None:
    """Return the factor that turns vacuum's phase to 0; None where no vacuum is seen.

    Taken for vacuum is the most frequent phase of pixels with an amplitude of about 1, if enough of the covered area
    has it: a substrate that absorbs nothing looks the same.

    Parameters
    ----------
    image : ndarray, shape (Y, X), complex
        The object.
    covered : ndarray, shape (Y, X), bool
        Where it was measured.
    """
    waves = image[covered]
    phases = np.angle(waves[np.abs(np.abs(waves) - 1) < CLEAR_MODULUS])
    number, edges = np.histogram(phases, PHASE_BINS, (-np.pi, np.pi))
    # Over three bins, on the circle: a peak may lie on an edge.
    around = number + np.roll(number, 1) + np.roll(number, -1)
    if not len(waves) or around.max() < CLEAR_SHARE * len(waves):
        return None
    middle = float(edges[int(np.argmax(around))]) + np.pi / PHASE_BINS
    near = np.abs(np.angle(np.exp(1j * (phases - middle)))) < 3 * np.pi / PHASE_BINS
    return complex(np.conj(np.exp(1j * phases[near]).mean()))


def shown_images(estimate: Estimate) -> dict[str, FloatArray]:
    """Give amplitude and phase of object and probe as they are shown.

    The phase that is taken out of the object is put into the probe: exit waves stay what they are.

    Parameters
    ----------
    estimate : Estimate
        What was reconstructed.

    Returns
    -------
    dict of str to ndarray
        ``amplitude`` and ``phase``, shape (Y, X), and ``probe_amplitude`` and ``probe_phase``, shape (modes, N, N);
        phases in radians, the object's amplitude relative to vacuum, the probe's squared in photons.
    """
    turn = gauge(estimate.object, measured_area(estimate.coverage))
    return {
        "amplitude": np.abs(estimate.object),
        "phase": np.angle(estimate.object * turn),
        "probe_amplitude": np.abs(estimate.probe),
        "probe_phase": np.angle(estimate.probe * np.conj(turn)),
    }
