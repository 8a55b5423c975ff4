"""From errors on simulated scans to a calibration: a model of deviations, then what it leaves, by groups.

The model is fitted by the likelihood of Student's t, in which the few scans that failed don't rule; slopes along the
prediction, the photon noise and the misfit are never negative, so that it stays monotone. Each scene then has a model
of the other scenes, which gives the factors of the groups: what makes the root mean square of a typical scan right, and
the half widths of the central intervals, as cross-conformal prediction has them (Vovk, Ann. Math. Artif. Intell. 74, 9
(2015); with scaled errors as of Romano, Patterson and Candès, Adv. Neural Inf. Process. Syst. 32 (2019)). A scan's
pixels depend on each other, so a group rests on its number of scenes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import optimize

from bluesky_cdi.protocols import FloatArray
from bluesky_cdi.reconstruction.calibration.conditions import features_of
from bluesky_cdi.reconstruction.calibration.record import (
    LEVELS,
    PARTS,
    Calibration,
    Group,
    Size,
    Telling,
    group_name,
)
from bluesky_cdi.reconstruction.calibration.samples import Sample

Floats = npt.NDArray[np.float64]
Model = Mapping[str, Sequence[float]]

# Slopes that may not be negative: along the prediction, the photon noise, the misfit and a second opinion.
RISING = (1, 2, 3, 6)
# What the slopes are drawn to where the scenes tell nothing: half of the prediction, half of the photon noise.
EXPECTED, PULL = (0.0, 0.5, 0.5, 0.5, 0.0, 0.0, 0.0), 0.02
# Parts of the scenes, of which each is left out of the model that it is tested on.
FOLDS = 4
# Fewest scenes of a group, and as how many scenes of its own its parent's scale counts.
LEAST_SCENES, PARENT_SCENES = 5, 10
# Fewest pixels of a scene that count as one of a group's.
LEAST_PIXELS = 100
SMALLEST_ERROR = 1e-5
# Degrees of freedom of the likelihood: tails as heavy as errors of phases have.
FREEDOM = 4.0


def fitted(
    samples: Sequence[Sample], estimator: str, weights_sha256: str | None, made: Mapping[str, Any] | None = None
) -> Calibration:
    """Fit a calibration.

    Parameters
    ----------
    samples : sequence of Sample
        Of `FOLDS` scenes or more.
    estimator : str
        What predicts the errors.
    weights_sha256 : str or None
        Of the network.
    made : Mapping, optional
        What else the record says.

    Raises
    ------
    ValueError
        If there are too few scenes.
    """
    kinds = [kind for kind in ("predicted", "refined") if any(_kind(each) == kind for each in samples)]
    models: dict[str, dict[str, list[float]]] = {}
    groups: dict[str, Group] = {}
    telling: dict[str, dict[str, Telling]] = {}
    for kind in kinds:
        ours = [each for each in samples if _kind(each) == kind]
        if len({each.scene % FOLDS for each in ours}) < FOLDS:
            raise ValueError(f"{kind}: {FOLDS} scenes or more are needed; there are {len(ours)}: draw more")
        folds = [[each for each in ours if each.scene % FOLDS != left_out] for left_out in range(FOLDS)]
        of_fold = [{part: _model(fold, part) for part in PARTS} for fold in folds]
        theirs = [of_fold[each.scene % FOLDS] for each in ours]
        models[kind] = {part: _model(ours, part) for part in PARTS}
        groups |= _groups(ours, kind, theirs)
        telling[kind] = {part: _telling(ours, part, theirs, groups[kind].of(part)) for part in PARTS}
    most = max((each.iterations for each in samples), default=0)
    return Calibration(estimator, weights_sha256, models, groups, telling, most, dict(made or {}))


def _kind(sample: Sample) -> str:
    return "refined" if sample.iterations else "predicted"


def _features(sample: Sample, part: str) -> Floats:
    """Stack what the logarithm of a deviation is linear in, (n, 6); (n, 7) with a second opinion."""
    shape = None if sample.shapes is None else sample.shapes[part]
    return features_of(sample.predicted[part], sample.covariates, shape).T.astype(np.float64)


def _model(samples: Sequence[Sample], part: str) -> list[float]:
    """Fit the coefficients of one part; each object weighs the same."""
    x = np.concatenate([_features(each, part) for each in samples])
    squares = np.concatenate([np.square(each.errors[part]) for each in samples]).clip(SMALLEST_ERROR**2)
    weight = np.concatenate([np.full(each.errors[part].size, 1 / each.errors[part].size) for each in samples])
    weight /= weight.sum()
    expected = np.array(EXPECTED[: x.shape[1]])

    def loss(coefficients: Floats) -> tuple[float, Floats]:
        log_std = x @ coefficients
        surprise = squares * np.exp(-2 * log_std)
        pull = coefficients - expected
        pull[0] = 0.0
        value = weight * (log_std + (FREEDOM + 1) / 2 * np.log1p(surprise / FREEDOM))
        slope = weight * (1 - (FREEDOM + 1) * surprise / (FREEDOM + surprise))
        return float(value.sum() + PULL * (pull**2).sum()), x.T @ slope + 2 * PULL * pull

    # A column that does not vary, as that of the iterations of predictions, has no slope.
    fixed = np.ptp(x, axis=0) == 0
    bounds = [(0.0, 0.0) if fixed[k] and k else (0.0, None) if k in RISING else (None, None) for k in range(x.shape[1])]
    found = optimize.minimize(loss, expected, jac=True, bounds=bounds, method="L-BFGS-B")
    return [round(float(each), 5) for each in found.x]


def _groups(samples: Sequence[Sample], kind: str, models: Sequence[Model]) -> dict[str, Group]:
    """Find the sizes of a kind and of its decades of photons, each sample with its own model."""
    std = [
        {part: np.exp(_features(each, part) @ np.array(model[part])) for part in PARTS}
        for each, model in zip(samples, models, strict=True)
    ]
    decades = [np.floor(np.log10(np.exp(-2 * each.covariates[0]) / 4) + 1e-9).astype(np.int64) for each in samples]
    everything = _group(samples, std, [np.ones(len(each), dtype=bool) for each in decades], None, kind)
    groups = {kind: everything}
    for decade in np.unique(np.concatenate(decades)):
        inside = [each == decade for each in decades]
        groups[group_name(kind, int(decade))] = _group(samples, std, inside, everything, kind)
    return groups


def _group(
    samples: Sequence[Sample],
    std: Sequence[Mapping[str, FloatArray]],
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
        part: size_of(
            [samples[k].errors[part][inside[k]] for k in counted],
            [std[k][part][inside[k]] for k in counted],
            None if parent is None else parent.of(part).scale,
        )
        for part in PARTS
    }
    return Group(scenes, pixels, "", sizes["amplitude"], sizes["phase"])


def _telling(samples: Sequence[Sample], part: str, models: Sequence[Model], size: Size) -> Telling:
    """Find what the differences of halves tell of the errors of a scan; nothing where too few have halves."""
    rows, sizes = [], []
    for each, model in zip(samples, models, strict=True):
        if each.halves is None:
            continue
        scores = each.halves.scores(part, model[part]) / size.scale
        rows.append((each.halves.width(scores, size.intervals[1]), each.halves.misfit))
        std = size.scale * np.exp(_features(each, part) @ np.array(model[part]))
        sizes.append(math.log(max(_rms(each.errors[part]), SMALLEST_ERROR) / _rms(std)))
    if len(rows) < LEAST_SCENES:
        return Telling()
    x, y = np.array(rows), np.array(sizes)
    mean = x.mean(axis=0)
    centred = x - mean
    # A ridge as heavy as one scan whose halves differ by e times more than usual.
    slopes = np.linalg.solve(centred.T @ centred + np.eye(2), centred.T @ (y - y.mean()))
    left = float((y - y.mean() - centred @ slopes).std())
    rounded = [tuple(round(float(value), 4) for value in each) for each in (mean, slopes)]
    return Telling((rounded[0][0], rounded[0][1]), (rounded[1][0], rounded[1][1]), round(left, 4))


def size_of(errors: Sequence[FloatArray], std: Sequence[FloatArray], towards: float | None = None) -> Size:
    """Find by how much errors differ from their modelled deviations.

    Parameters
    ----------
    errors, std : sequence of ndarray, shape (n,)
        Of each object; each weighs the same.
    towards : float, optional
        The scale of a larger group, which counts as `PARENT_SCENES` objects.

    Returns
    -------
    Size
    """
    ratios = [_rms(each) / _rms(its_std) for each, its_std in zip(errors, std, strict=True)]
    logs = np.log(np.maximum(ratios, 1e-3))
    pulled = logs.sum() + (0.0 if towards is None else PARENT_SCENES * math.log(towards))
    scale = math.exp(pulled / (len(logs) + (0 if towards is None else PARENT_SCENES)))
    scores = [np.abs(each) / (scale * its_std) for each, its_std in zip(errors, std, strict=True)]
    weights = [np.full(each.size, 1 / each.size) for each in scores]
    pooled = np.concatenate(scores)
    widths = weighted_quantiles(pooled, np.concatenate(weights), [min(1.0, p * (1 + 1 / pooled.size)) for p in LEVELS])
    return Size(round(scale, 4), tuple(round(float(width), 4) for width in widths))


def weighted_quantiles(values: FloatArray, weights: FloatArray, levels: Sequence[float]) -> FloatArray:
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


def _rms(values: FloatArray) -> float:
    return float(np.sqrt(np.mean(np.square(values)).clip(SMALLEST_ERROR**2)))
