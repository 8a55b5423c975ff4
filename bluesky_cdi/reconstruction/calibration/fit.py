"""From errors on simulated scans to a calibration: a model of deviations, then what it leaves, by groups.

The model is fitted by the Gaussian likelihood, whose best deviation is the root mean square of the errors whatever their
distribution is; slopes along the prediction, the photon noise and the misfit are never negative, so that it stays
monotone. Other scenes give the factors of the groups: what makes the root mean square of a typical scan right, and the
half widths of the central intervals as split conformal prediction has them (Vovk, Gammerman and Shafer, Algorithmic
Learning in a Random World (2005); Romano, Patterson and Candès, Adv. Neural Inf. Process. Syst. 32 (2019)). A scan's
pixels depend on each other, so a group rests on its number of scenes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import optimize

from bluesky_cdi.reconstruction.calibration.record import (
    LEVELS,
    PARTS,
    Calibration,
    Group,
    Size,
    group_name,
)
from bluesky_cdi.reconstruction.calibration.samples import Sample

Floats = npt.NDArray[np.float64]

# Slopes that may not be negative: along the prediction, the photon noise and the misfit.
RISING = (1, 2, 3)
# What the slopes are drawn to where the scenes tell nothing: half of the prediction, half of the photon noise.
EXPECTED, PULL = (0.0, 0.5, 0.5, 0.5, 0.0, 0.0), 0.02
# Fewest scenes of a group.
LEAST_SCENES = 5
# Fewest pixels of a scene that count as one of a group's.
LEAST_PIXELS = 100
SMALLEST_ERROR = 1e-5


def fitted(
    samples: Sequence[Sample], estimator: str, weights_sha256: str | None, made: Mapping[str, Any] | None = None
) -> Calibration:
    """Fit a calibration.

    Parameters
    ----------
    samples : sequence of Sample
        The models are fitted to scenes of even numbers, the groups to those of odd ones.
    estimator : str
        What predicts the errors.
    weights_sha256 : str or None
        Of the network.
    made : Mapping, optional
        What else the record says.

    Raises
    ------
    ValueError
        If one half has no scene.
    """
    kinds = [kind for kind in ("predicted", "refined") if any(_kind(each) == kind for each in samples)]
    of_kind = {kind: [each for each in samples if _kind(each) == kind] for kind in kinds}
    models, groups = {}, {}
    for kind, ours in of_kind.items():
        first, second = ([each for each in ours if each.scene % 2 == rest] for rest in (0, 1))
        if not first or not second:
            raise ValueError(f"{kind}: scenes of even and of odd numbers are needed; there are {len(ours)} objects")
        models[kind] = {part: _model(first, part) for part in PARTS}
        groups |= _groups(second, kind, models[kind])
    most = max((each.iterations for each in samples), default=0)
    return Calibration(estimator, weights_sha256, models, groups, most, dict(made or {}))


def _kind(sample: Sample) -> str:
    return "refined" if sample.iterations else "predicted"


def _features(sample: Sample, part: str) -> Floats:
    """Stack what the logarithm of a deviation is linear in, (n, 6)."""
    raw = np.log(np.maximum(sample.predicted[part], 1e-6))
    return np.stack([np.ones_like(raw), raw, *sample.covariates], axis=1)


def _model(samples: Sequence[Sample], part: str) -> list[float]:
    """Fit the coefficients of one part; each object weighs the same."""
    x = np.concatenate([_features(each, part) for each in samples])
    squares = np.concatenate([np.square(each.errors[part]) for each in samples]).clip(SMALLEST_ERROR**2)
    weight = np.concatenate([np.full(each.errors[part].size, 1 / each.errors[part].size) for each in samples])
    weight /= weight.sum()
    expected = np.array(EXPECTED)

    def loss(coefficients: Floats) -> tuple[float, Floats]:
        log_std = x @ coefficients
        surprise = squares * np.exp(-2 * log_std)
        pull = coefficients - expected
        pull[0] = 0.0
        value = float((weight * (log_std + surprise / 2)).sum() + PULL * (pull**2).sum())
        return value, x.T @ (weight * (1 - surprise)) + 2 * PULL * pull

    # A column that does not vary, as that of the iterations of predictions, has no slope.
    fixed = np.ptp(x, axis=0) == 0
    bounds = [(0.0, 0.0) if fixed[k] and k else (0.0, None) if k in RISING else (None, None) for k in range(x.shape[1])]
    found = optimize.minimize(
        loss, np.array([0.0, *EXPECTED[1:4], 0.0, 0.0]), jac=True, bounds=bounds, method="L-BFGS-B"
    )
    return [round(float(each), 5) for each in found.x]


def _groups(samples: Sequence[Sample], kind: str, model: Mapping[str, Sequence[float]]) -> dict[str, Group]:
    """Find the sizes of a kind and of its decades of photons."""
    std = [{part: np.exp(_features(each, part) @ np.array(model[part])) for part in PARTS} for each in samples]
    decades = [np.floor(np.log10(np.exp(-2 * each.covariates[0]) / 4) + 1e-9).astype(np.int64) for each in samples]
    everything = _group(samples, std, [np.ones(len(each), dtype=bool) for each in decades], None, kind)
    groups = {kind: everything}
    for decade in np.unique(np.concatenate(decades)):
        inside = [each == decade for each in decades]
        groups[group_name(kind, int(decade))] = _group(samples, std, inside, everything, kind)
    return groups


def _group(
    samples: Sequence[Sample],
    std: Sequence[Mapping[str, Floats]],
    inside: Sequence[npt.NDArray[np.bool_]],
    parent: Group | None,
    parent_name: str,
) -> Group:
    """Find the sizes of a group; its parent's where it has too few scenes."""
    counted = [k for k, each in enumerate(inside) if each.sum() >= LEAST_PIXELS]
    scenes, pixels = len({samples[k].scene for k in counted}), int(sum(inside[k].sum() for k in counted))
    if scenes < LEAST_SCENES:
        if parent is None:
            return Group(scenes, pixels, "", Size(), Size())
        return Group(scenes, pixels, parent.like or parent_name, parent.amplitude, parent.phase)
    sizes = {
        part: size_of([samples[k].errors[part][inside[k]] for k in counted], [std[k][part][inside[k]] for k in counted])
        for part in PARTS
    }
    return Group(scenes, pixels, "", sizes["amplitude"], sizes["phase"])


def size_of(errors: Sequence[Floats], std: Sequence[Floats]) -> Size:
    """Find by how much errors differ from their modelled deviations.

    Parameters
    ----------
    errors, std : sequence of ndarray, shape (n,)
        Of each object; each weighs the same.

    Returns
    -------
    Size
    """
    ratios = [_rms(each) / _rms(its_std) for each, its_std in zip(errors, std, strict=True)]
    scale = math.exp(float(np.mean(np.log(np.maximum(ratios, 1e-3)))))
    scores = [np.abs(each) / (scale * its_std) for each, its_std in zip(errors, std, strict=True)]
    weights = [np.full(each.size, 1 / each.size) for each in scores]
    pooled = np.concatenate(scores)
    widths = weighted_quantiles(pooled, np.concatenate(weights), [min(1.0, p * (1 + 1 / pooled.size)) for p in LEVELS])
    return Size(round(scale, 4), tuple(round(float(width), 4) for width in widths))


def weighted_quantiles(values: Floats, weights: Floats, levels: Sequence[float]) -> Floats:
    """Find the smallest values that have at least these shares of the weight at or below them.

    Parameters
    ----------
    values, weights : ndarray, shape (n,)
        Numbers, and how much each counts.
    levels : sequence of float
        Shares, from 0 to 1.

    Returns
    -------
    ndarray, shape (levels,)
    """
    order = np.argsort(values)
    share = np.cumsum(weights[order]) / weights.sum()
    index = np.searchsorted(share, np.asarray(levels) - 1e-12)
    return np.asarray(values[order][np.minimum(index, len(values) - 1)])


def _rms(values: Floats) -> float:
    return float(np.sqrt(np.mean(np.square(values)).clip(SMALLEST_ERROR**2)))
