"""What a reconstruction says of each measured frame, as outputs of the surrogate, and what they are worth."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bluesky_cdi.agent.patterns import MaskArray
from bluesky_cdi.protocols import FloatArray

COMPONENTS_MAX = 3
# A component that explains less than this share of the variance is mostly noise.
COMPONENT_SHARE_MIN = 0.1
# A standard deviation of 2 % of the transmission is about what a careful experiment still calls sample.
STRUCTURE_MIN = 0.02
# A frame counts as vacuum when its structure is well below a quarter of the strongest frames'.
STRUCTURE_SHARE = 0.25
# Odds grow with the square of the signal's variance: half the reference is vacuum by 16 to 1.
STEEPNESS = 4.0
LOGIT_MAX = 6.0
WEIGHT_FLOOR = 0.03
TILT_MAX = 2.0
LOG_UNCERTAINTY, NOT_VACUUM = 0, 1
# Outcomes that vary less than this over the whole field are noise for the purpose, and are not
# blown up to unit variance: a quarter in the uncertainty, a factor of e in the odds.
LOG_UNCERTAINTY_SCALE_MIN, LOGIT_SCALE_MIN = 0.25, 1.0


@dataclass(frozen=True, eq=False)
class Targets:
    """Outcomes of all measured frames, standardised.

    Attributes
    ----------
    values : ndarray, shape (n, k)
        Log uncertainty, logit of not-vacuum, principal components of the embedding; zero mean and
        a variance of 1 or less over the valid frames.
    valid : ndarray, shape (n,), bool
        Frames whose outcomes are all finite.
    not_vacuum : ndarray, shape (n,)
        How surely each frame shows something else than vacuum, 0 to 1; 0 where not valid.
    offset, scale : ndarray, shape (k,)
        Give back the outcomes: ``values * scale + offset``.
    """

    values: FloatArray
    valid: MaskArray
    not_vacuum: FloatArray
    offset: FloatArray
    scale: FloatArray


def make_targets(uncertainty: FloatArray, structure: FloatArray, embedding: FloatArray) -> Targets:
    """Turn outcomes into outputs of the surrogate.

    Parameters
    ----------
    uncertainty : ndarray, shape (n,)
        Predicted phase error under each frame, radians.
    structure : ndarray, shape (n,)
        Standard deviation of the object under each frame.
    embedding : ndarray, shape (n, d)
        Latents; d may be 0.

    Returns
    -------
    Targets
    """
    valid = np.isfinite(uncertainty) & np.isfinite(structure) & np.isfinite(embedding).all(axis=1)
    u, s = np.maximum(uncertainty[valid], 1e-6), np.maximum(structure[valid], 0.0)
    logit = not_vacuum_logit(s, u)
    raw = np.column_stack([np.log(u), logit, principal_components(embedding[valid])])
    offset, scale = _standard(raw)
    values = np.zeros((len(valid), raw.shape[1]))
    values[valid] = (raw - offset) / scale
    probability = np.zeros(len(valid))
    probability[valid] = _sigmoid(logit)
    return Targets(values, valid, probability, offset, scale)


def not_vacuum_logit(structure: FloatArray, uncertainty: FloatArray) -> FloatArray:
    """Judge from its structure whether a frame shows more than vacuum and noise.

    Noise of variance ``u**2`` in phase, and as much in amplitude, adds ``2 u**2`` to the variance
    of the object; up to twice that is no evidence of structure. Uncertainties stated too large
    show in frames with less structure than that: the tenth with the least structure for its
    uncertainty is taken for vacuum and sets the noise of all.

    Parameters
    ----------
    structure : ndarray, shape (n,)
        Standard deviation of the object under each frame.
    uncertainty : ndarray, shape (n,)
        Predicted phase error, radians.

    Returns
    -------
    ndarray, shape (n,)
        Log odds, -6 to 6.
    """
    if len(structure) == 0:
        return np.empty(0)
    noise = min(2.0, np.sqrt(2.0) * float(np.quantile(structure / uncertainty, 0.1))) * uncertainty
    signal = np.sqrt(np.maximum(structure**2 - noise**2, 0.0))
    reference = np.hypot(STRUCTURE_MIN, STRUCTURE_SHARE * float(np.quantile(structure, 0.98)))
    return np.asarray(np.clip(STEEPNESS * np.log(np.maximum(signal, 1e-9) / reference), -LOGIT_MAX, LOGIT_MAX))


def principal_components(embedding: FloatArray) -> FloatArray:
    """Project embeddings on their leading components.

    Parameters
    ----------
    embedding : ndarray, shape (n, d)
        Of n frames.

    Returns
    -------
    ndarray, shape (n, c)
        At most 3, each explaining at least a tenth of the variance.
    """
    n, d = embedding.shape
    if n < 2 or d == 0 or not np.ptp(embedding, axis=0).any():
        return np.empty((n, 0))
    # Loading it takes a second, which a scan that an agent does not choose need not pay.
    from sklearn.decomposition import PCA

    pca = PCA(n_components=min(COMPONENTS_MAX, d, n), svd_solver="covariance_eigh" if n > d else "full")
    projected = pca.fit_transform(embedding)
    return np.asarray(projected[:, pca.explained_variance_ratio_ >= COMPONENT_SHARE_MIN])


def predict_not_vacuum(mean: FloatArray, variance: FloatArray, targets: Targets) -> FloatArray:
    """Predict how surely frames at the candidates would show something else than vacuum.

    Parameters
    ----------
    mean : ndarray, shape (m, k)
        Posterior mean of the standardised outputs.
    variance : ndarray, shape (m,)
        Posterior variance.
    targets : Targets
        Scale and offset of the outputs.

    Returns
    -------
    ndarray, shape (m,)
        Probability; near one half where nothing near is known (MacKay, Neural Comput. 4, 720
        (1992), eq. 10).
    """
    scale = targets.scale[NOT_VACUUM]
    logit = mean[:, NOT_VACUUM] * scale + targets.offset[NOT_VACUUM]
    return _sigmoid(logit / np.sqrt(1.0 + np.pi / 8.0 * variance * scale**2))


def candidate_weights(not_vacuum: FloatArray, log_uncertainty: FloatArray) -> FloatArray:
    """Weigh what will be learned at each candidate.

    Structure decides; the predicted uncertainty tilts by at most a factor of two either way,
    because an empty field with few photons stays uncertain for ever.

    Parameters
    ----------
    not_vacuum : ndarray, shape (m,)
        Predicted probability.
    log_uncertainty : ndarray, shape (m,)
        Predicted log of the phase error.

    Returns
    -------
    ndarray, shape (m,)
        The largest is 1. Less than a 3 % chance of structure counts as 3 %, so that a field without
        any is weighted evenly.
    """
    tilt = np.clip(np.exp(0.5 * (log_uncertainty - np.median(log_uncertainty))), 1.0 / TILT_MAX, TILT_MAX)
    weights = np.maximum(not_vacuum * tilt, WEIGHT_FLOOR)
    return np.asarray(weights / weights.max())


def _standard(raw: FloatArray) -> tuple[FloatArray, FloatArray]:
    k = raw.shape[1]
    if len(raw) == 0:
        return np.zeros(k), np.ones(k)
    scale = np.maximum(raw.std(axis=0), 1e-6)
    scale[LOG_UNCERTAINTY] = max(scale[LOG_UNCERTAINTY], LOG_UNCERTAINTY_SCALE_MIN)
    scale[NOT_VACUUM] = max(scale[NOT_VACUUM], LOGIT_SCALE_MIN)
    # Components keep their proportions, so that the weaker ones, which hold more noise, count for less.
    scale[NOT_VACUUM + 1 :] = scale[NOT_VACUUM + 1 :].max(initial=0.0)
    return raw.mean(axis=0), scale


def _sigmoid(logit: FloatArray) -> FloatArray:
    return np.asarray(1.0 / (1.0 + np.exp(-logit)))
