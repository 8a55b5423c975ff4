"""The record of a calibration, and what it makes of predicted errors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from bluesky_cdi.errors import WeightsError
from bluesky_cdi.reconstruction.calibration.conditions import LEAST_PHOTONS, Conditions, relative_shape
from bluesky_cdi.reconstruction.calibration.halves import HalfPixels
from bluesky_cdi.reconstruction.uncertainty import UNKNOWN_STD_RAD, UncertaintyEstimate

# Probabilities of the central intervals, and their half widths in deviations of a normal distribution.
LEVELS = (0.5, 0.9, 0.95)
NORMAL = (0.6745, 1.6449, 1.96)
PARTS = ("amplitude", "phase")
# Largest deviations: of an amplitude between nothing and twice vacuum, and of a phase that is not known.
MOST = {"amplitude": 1.0, "phase": UNKNOWN_STD_RAD}
VERSION = 1
# Decade of what is without bounds: single precision ends there.
MOST_DECADES = 38.0
# Covariates of `Conditions`, of which a model has slopes.
N_CONDITIONS = 4
# Largest logarithm of a factor that the halves of a scan are trusted to tell.
MOST_CORRECTED = 1.0

Intervals = Mapping[str, Mapping[str, float]]
"""By part (``amplitude``, ``phase``) and per cent (``50``, ``90``, ``95``): half width in predicted deviations."""


@dataclass(frozen=True)
class Size:
    """How large the errors of a group of pixels are.

    Parameters
    ----------
    scale : float
        Root mean square of the errors of a typical scan, over that of the model's deviations.
    intervals : tuple of float
        Half widths of the central intervals of `LEVELS`, over the scaled deviations.
    """

    scale: float = 1.0
    intervals: tuple[float, ...] = NORMAL


@dataclass(frozen=True)
class Group:
    """Pixels that are calibrated together.

    Parameters
    ----------
    scenes, pixels : int
        That it rests on.
    like : str
        The group whose sizes these are, where its own scenes are too few; empty: its own.
    amplitude, phase : Size
    """

    scenes: int
    pixels: int
    like: str
    amplitude: Size
    phase: Size

    def of(self, part: str) -> Size:
        """Give the size of ``amplitude`` or ``phase``."""
        return self.amplitude if part == "amplitude" else self.phase


@dataclass(frozen=True)
class Check:
    """Predicted errors of a run beside the differences of its halves.

    Attributes
    ----------
    inside : Mapping of str to Mapping of str to float
        By part and level: the share of the differences inside the intervals that are predicted of them.
    factors : Mapping of str to float
        By part: what predicted errors are multiplied by.
    """

    inside: Intervals
    factors: Mapping[str, float]


@dataclass(frozen=True)
class Telling:
    """What the halves of a scan, and its misfit, tell of the size of its errors; linear in their logarithms.

    Parameters
    ----------
    mean : tuple of float
        Of the two on the calibration's scans: how wide the differences of halves are, over what is predicted of them,
        and by how much misfit raises photon noise.
    slopes : tuple of float
        Of the size of the errors along both.
    left : float
        Standard deviation of what that leaves of the sizes.
    """

    mean: tuple[float, float] = (0.0, 0.0)
    slopes: tuple[float, float] = (0.0, 0.0)
    left: float = 0.0

    def factor(self, halves: float, misfit: float) -> float:
        """Compute by what predicted errors have to be multiplied.

        Parameters
        ----------
        halves, misfit : float
            The two of a scan.
        """
        log_factor = sum(
            slope * (value - mean) for slope, value, mean in zip(self.slopes, (halves, misfit), self.mean, strict=True)
        )
        return math.exp(min(max(log_factor, -MOST_CORRECTED), MOST_CORRECTED))


class Calibrating(Protocol):
    """Makes predicted errors true to size."""

    def __call__(self, found: UncertaintyEstimate, conditions: Conditions) -> UncertaintyEstimate:
        """Give the errors that are to be expected where an estimator predicts some.

        Parameters
        ----------
        found : UncertaintyEstimate
            As predicted.
        conditions : Conditions
            Under which the object was found.
        """

    def intervals(self, photons: Tensor, iterations: int) -> Intervals:
        """Give the half widths of the central intervals, in deviations: the average over pixels.

        Parameters
        ----------
        photons : Tensor, shape (...)
            On each pixel; those without don't count.
        iterations : int
            Since the prediction.
        """

    def checked(self, pixels: HalfPixels) -> Check | None:
        """Hold predicted errors against the halves of a run; None where nothing can be told.

        Parameters
        ----------
        pixels : HalfPixels
            Of the run.
        """

    @property
    def source(self) -> Mapping[str, Any]:
        """What an estimate says of it."""


@dataclass(frozen=True)
class Uncalibrated:
    """Leaves predicted errors as they are.

    Parameters
    ----------
    estimator : str
        What predicts them.
    why : str
        Why they are not calibrated.
    """

    estimator: str = ""
    why: str = "not asked for"

    def __call__(self, found: UncertaintyEstimate, conditions: Conditions) -> UncertaintyEstimate:
        """Give the same."""
        return found

    def intervals(self, photons: Tensor, iterations: int) -> Intervals:
        """Give those of normal distributions."""
        return {part: _by_level(NORMAL) for part in PARTS}

    def checked(self, pixels: HalfPixels) -> Check | None:
        """Tell nothing: it is not known how the halves' differences go with the errors."""
        return None

    @property
    def source(self) -> Mapping[str, Any]:
        """What an estimate says of it."""
        return {"estimator": self.estimator, "calibrated": False, "why": f"not calibrated: {self.why}"}


@dataclass(frozen=True)
class Calibration:
    """How the errors of simulated scans depended on what was predicted of them, and on their conditions.

    The logarithm of a pixel's deviation is a linear function of the logarithm of the predicted one, of the covariates
    of `Conditions`, and of a second opinion where an estimator has one; factors of groups of pixels make up for what
    that leaves.

    Parameters
    ----------
    estimator : str
        What predicts the errors.
    weights_sha256 : str or None
        Of the network; None: an engine alone.
    models : Mapping of str to Mapping of str to sequence of float
        By kind (``predicted``, ``refined``) and part: constant, and slopes along the logarithm of the prediction,
        along the four covariates, and, of an estimator with a second opinion, along `relative_shape`.
    groups : Mapping of str to Group
        By kind, and by kind and decade of photons on a pixel.
    telling : Mapping of str to Mapping of str to Telling
        By kind and part: what the halves of a scan tell.
    most_iterations : int
        Beyond these, errors are taken as after so many.
    made : Mapping
        What it was made with.
    """

    estimator: str
    weights_sha256: str | None
    models: Mapping[str, Mapping[str, Sequence[float]]]
    groups: Mapping[str, Group]
    telling: Mapping[str, Mapping[str, Telling]] = field(default_factory=dict)
    most_iterations: int = 30
    made: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, found: UncertaintyEstimate, conditions: Conditions) -> UncertaintyEstimate:
        """Make predicted errors true to size; see `Calibrating`."""
        kind, decades = self.kind_of(conditions.iterations), decades_of(conditions.photons)
        std = {}
        for part, raw in (("amplitude", found.std_amplitude), ("phase", found.std_phase_rad)):
            scale = self._by_decade(kind, decades, lambda group, part=part: group.of(part).scale)
            shape = found.shape_amplitude if part == "amplitude" else found.shape_phase_rad
            std[part] = (self.modelled(part, raw, conditions, shape) * scale).clamp_max(MOST[part])
            std[part] = torch.where(conditions.photons > 0, std[part], raw)
        grown = std["amplitude"] / found.std_amplitude, std["phase"] / found.std_phase_rad
        epistemic = found.epistemic_amplitude, found.epistemic_phase_rad
        parts = [None if each is None else each * by for each, by in zip(epistemic, grown, strict=True)]
        return replace(
            found,
            std_amplitude=std["amplitude"],
            std_phase_rad=std["phase"],
            epistemic_amplitude=parts[0],
            epistemic_phase_rad=parts[1],
        )

    def modelled(self, part: str, raw: Tensor, conditions: Conditions, shape: Tensor | None = None) -> Tensor:
        """Compute the model's deviations, without the groups' factors.

        Parameters
        ----------
        part : {'amplitude', 'phase'}
            Of the object.
        raw : Tensor, shape (Y, X)
            As predicted.
        conditions : Conditions
            Of the pixels.
        shape : Tensor, shape (Y, X), optional
            A second opinion of where errors are larger and smaller; without it they are as the prediction has them.
        """
        few = replace(conditions, iterations=min(conditions.iterations, self.most_iterations))
        constant, slope, *slopes = self.models[self.kind_of(conditions.iterations)][part]
        *slopes, along_shape = slopes if len(slopes) > N_CONDITIONS else [*slopes, 0.0]
        log_std = constant + slope * raw.clamp_min(1e-6).log()
        for covariate, its_slope in zip(few.covariates(), slopes, strict=True):
            log_std = log_std + its_slope * covariate
        if shape is not None:
            log_std = log_std + along_shape * relative_shape(shape, conditions.photons)
        return log_std.clamp_max(2.0).exp()

    def intervals(self, photons: Tensor, iterations: int) -> Intervals:
        """Give the half widths of the central intervals; see `Calibrating`."""
        kind, decades = self.kind_of(iterations), decades_of(photons[photons > 0])
        if not decades.numel():
            return {part: _by_level(NORMAL) for part in PARTS}
        lowest = int(decades.min())
        pixels = torch.bincount(decades - lowest).tolist()
        groups = [self.group_of(kind, lowest + k) for k in range(len(pixels))]
        found = {}
        for part in PARTS:
            widths = np.array([group.of(part).intervals for group in groups])  # (decades, levels)
            found[part] = _by_level(np.average(widths, axis=0, weights=pixels).tolist())
        return found

    def checked(self, pixels: HalfPixels) -> Check | None:
        """Hold predicted errors against the halves of a run; see `Calibrating`."""
        kind = self.kind_of(round(math.expm1(float(pixels.covariates[0][3, 0]))))
        group, telling = self.groups[kind], self.telling.get(kind, {})
        inside, factors = {}, {}
        for part in PARTS:
            size = group.of(part)
            scores = pixels.scores(part, self.models[kind][part]) / size.scale
            inside[part] = _by_level([float(np.mean(scores <= width)) for width in size.intervals])
            if part in telling:
                factors[part] = telling[part].factor(pixels.width(scores, size.intervals[1]), pixels.misfit)
        return Check(inside, factors) if factors else None

    @property
    def source(self) -> Mapping[str, Any]:
        """What an estimate says of it."""
        return {"estimator": self.estimator, "calibrated": True, "why": ""}

    def kind_of(self, iterations: int) -> str:
        """Tell of which kind an object is after some iterations since the prediction."""
        kind = "refined" if iterations else "predicted"
        return kind if kind in self.models else next(iter(self.models))

    def group_of(self, kind: str, decade: int) -> Group:
        """Give the group of a kind and a decade of photons; that of the nearest decade, where there is none."""
        known = [int(name.rpartition("1e")[2]) for name in self.groups if name.startswith(f"{kind}, 1e")]
        nearest = min(known, key=lambda each: abs(each - decade), default=None)
        return self.groups[kind if nearest is None else group_name(kind, nearest)]

    def _by_decade(self, kind: str, decades: Tensor, of: Any) -> Tensor:
        """Look a number of the groups up for each pixel."""
        lowest, highest = (int(decade) for decade in torch.aminmax(decades))
        values = [of(self.group_of(kind, decade)) for decade in range(lowest, highest + 1)]
        return torch.tensor(values, device=decades.device)[decades - lowest]

    def as_json(self) -> dict[str, Any]:
        """Give plain values for a file."""
        return {"version": VERSION, **asdict(self)}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Calibration:
        """Read what `as_json` gave.

        Raises
        ------
        WeightsError
            If it is no such record, or of another version of this package.
        """
        try:
            if record["version"] != VERSION:
                raise ValueError(f"version {VERSION} is expected, {record['version']!r} came")
            groups = {name: _group(each) for name, each in record["groups"].items()}
            telling = {
                kind: {part: Telling(tuple(v["mean"]), tuple(v["slopes"]), v["left"]) for part, v in each.items()}
                for kind, each in record["telling"].items()
            }
            values = {key: value for key, value in record.items() if key not in ("version", "groups", "telling")}
            return cls(**values, groups=groups, telling=telling)
        except (KeyError, TypeError, ValueError) as err:
            raise WeightsError(
                f"this is no record of a calibration that can be used: {err}. Make it again: bluesky-cdi calibrate"
            ) from err


def group_name(kind: str, decade: int) -> str:
    """Name the group of a kind of object and a decade of photons on a pixel."""
    return f"{kind}, 1e{decade}"


def decades_of(photons: Tensor) -> Tensor:
    """Compute the decade of photons on each pixel, as int64; of what is no number some decade."""
    return photons.clamp_min(LEAST_PHOTONS).log10().nan_to_num(0.0, posinf=MOST_DECADES).floor().long()


def _by_level(widths: Sequence[float]) -> dict[str, float]:
    return {f"{100 * level:g}": float(width) for level, width in zip(LEVELS, widths, strict=True)}


def _group(values: Mapping[str, Any]) -> Group:
    sizes = {part: Size(values[part]["scale"], tuple(values[part]["intervals"])) for part in PARTS}
    if not all(math.isfinite(size.scale) and np.isfinite(size.intervals).all() for size in sizes.values()):
        raise ValueError("a group's sizes are not finite")
    return Group(values["scenes"], values["pixels"], values["like"], **sizes)
