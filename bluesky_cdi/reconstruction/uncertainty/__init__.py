"""How far off an object is, and what each frame saw: uncertainty and embedding, by estimators that have names."""

from bluesky_cdi.reconstruction.uncertainty.choice import ESTIMATORS, configured_estimator, uncertainty_estimator
from bluesky_cdi.reconstruction.uncertainty.critic import NetworkEstimator
from bluesky_cdi.reconstruction.uncertainty.estimate import UNKNOWN_STD_RAD, UncertaintyEstimate, UncertaintyEstimator
from bluesky_cdi.reconstruction.uncertainty.halves import HalfObjects, half_objects, is_second_half, noise_of
from bluesky_cdi.reconstruction.uncertainty.halves_estimator import HalvesEstimator
from bluesky_cdi.reconstruction.uncertainty.members import DeepEnsembleEstimator, HeadsEstimator
from bluesky_cdi.reconstruction.uncertainty.photon_noise import PhotonNoiseEstimator, radial_profile
from bluesky_cdi.reconstruction.uncertainty.under_frames import structure_under_frames, under_frames

__all__ = [
    "ESTIMATORS",
    "UNKNOWN_STD_RAD",
    "DeepEnsembleEstimator",
    "HalfObjects",
    "HalvesEstimator",
    "HeadsEstimator",
    "NetworkEstimator",
    "PhotonNoiseEstimator",
    "UncertaintyEstimate",
    "UncertaintyEstimator",
    "configured_estimator",
    "half_objects",
    "is_second_half",
    "noise_of",
    "radial_profile",
    "structure_under_frames",
    "uncertainty_estimator",
    "under_frames",
]
