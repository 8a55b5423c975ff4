"""The phase of an object that no measurement fixes, taken out the same way in figures, files and the catalog.

The amplitude needs nothing: by the gauge of the probe, whose photons are counted, vacuum has the amplitude 1.
"""

from __future__ import annotations

import numpy as np

from bluesky_cdi.evaluation._checks import BoolArray
from bluesky_cdi.physics.illumination_shares import MEASURED_SHARE
from bluesky_cdi.protocols import ComplexArray, Estimate, FloatArray


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
