"""Ways to hold frames in fewer bytes that no HDF5 filter knows, and the bounds of what any coder reaches."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import gammaln

from bluesky_cdi.protocols import FloatArray

Integers = npt.NDArray[np.integer]
# Levels of the prediction, a quarter of a power of two wide, within which an adaptive coder keeps its own statistics.
LEVELS_A_POWER = 4
# From this rate on residuals of a level are taken for normally distributed: there are too many values to count.
NORMAL_FROM = 30.0
ANSCOMBE = 3 / 8


@dataclass(frozen=True, eq=False)
class SquareRoot:
    """Quantisation in equal steps of the square root: as codes, and decoded without bias.

    Bins have odd widths, the largest up to ``step * sqrt(n)``, so that the middle of each is a count.

    Parameters
    ----------
    step : float
        Standard deviations of photon noise.
    codes, values : ndarray, shape (k,), int
        By count the code, and what it decodes to.
    """

    step: float
    codes: Integers
    values: Integers

    @classmethod
    def up_to(cls, most: int, step: float) -> SquareRoot:
        """Make the tables for counts of up to `most`."""
        codes, values = np.zeros(most + 1, np.int64), np.zeros(most + 1, np.int64)
        low, code = 0, 0
        while low <= most:
            width = max(1, int(step * math.sqrt(low + ANSCOMBE)))
            width -= 1 - width % 2
            codes[low : low + width], values[low : low + width] = code, low + width // 2
            low, code = low + width, code + 1
        return cls(step, codes, values)

    def encode(self, counts: Integers) -> Integers:
        """Give the codes, in the smallest unsigned type."""
        return smallest(self.codes)[counts]

    def decode(self, codes: Integers) -> Integers:
        """Give the counts that codes stand for."""
        number = int(self.codes[-1]) + 1
        table = np.zeros(number, np.int64)
        table[self.codes] = self.values
        return smallest(table)[codes]


@dataclass(frozen=True)
class PredictedRoot:
    """Quantisation of how far the square root of a count is from that of its prediction.

    Parameters
    ----------
    step : float
        Standard deviations of photon noise.
    """

    step: float

    def encode(self, counts: Integers, rate: FloatArray) -> Integers:
        """Quantise the residual of each pixel, int16."""
        root = 2 * (np.sqrt(counts + ANSCOMBE) - np.sqrt(rate + ANSCOMBE))
        return np.asarray(np.rint(root / self.step).astype(np.int16))

    def decode(self, codes: Integers, rate: FloatArray) -> FloatArray:
        """Give expected counts; half a step's variance is added, as squaring would lose it."""
        half = np.maximum(np.sqrt(rate + ANSCOMBE) + codes * (self.step / 2), 0)
        return np.asarray(np.maximum(np.square(half) - ANSCOMBE + self.step**2 / 48, 1e-3))


def smallest(counts: npt.NDArray[np.integer]) -> Integers:
    """Give non-negative integers in the smallest unsigned type that holds them."""
    return np.asarray(counts.astype(np.min_scalar_type(int(counts.max()))))


def folded(residual: Integers) -> Integers:
    """Give signed integers as unsigned ones, small where they are near zero: 0, -1, 1, -2 become 0, 1, 2, 3."""
    return smallest(np.where(residual < 0, -2 * residual - 1, 2 * residual))


def poisson_bits(counts: Integers, rate: FloatArray) -> float:
    """Sum the information of counts that follow Poisson's distribution around a prediction, bits."""
    expected = np.maximum(rate, 1e-8)
    nats = expected - counts * np.log(expected) + gammaln(counts + 1.0)
    return float(nats.sum(dtype=np.float64) / math.log(2))


def adaptive_bits(residual: Integers, rate: FloatArray, normal_from: float = NORMAL_FROM) -> float:
    """Sum the information of residuals whose distribution a coder learns for each level of the prediction, bits.

    It needs no assumption about noise or misfit: it is the entropy within each level, or from a rate on that of a
    normal distribution of the residuals' variance.

    Parameters
    ----------
    residual : ndarray, int
        What is coded.
    rate : ndarray, same shape
        The prediction, known to the decoder.
    normal_from : float
        Rate of the first normal level; infinite where residuals have few values everywhere.
    """
    level = np.rint(LEVELS_A_POWER * np.log2(np.maximum(rate, 2.0**-12))).astype(np.int64).ravel()
    order = np.argsort(level, kind="stable")
    parts = np.split(residual.ravel()[order], np.flatnonzero(np.diff(level[order])) + 1)
    levels = np.unique(level)
    normal = LEVELS_A_POWER * math.log2(normal_from)
    return float(sum(_bits(part, bool(each >= normal)) for part, each in zip(parts, levels, strict=True)))


def _bits(values: Integers, normal: bool) -> float:
    if normal:
        spread = float(np.square(values.astype(np.float64)).mean())
        # A twelfth: the values are whole numbers.
        return len(values) * max(0.0, 0.5 * math.log2(2 * math.pi * math.e * (spread + 1 / 12)))
    _, number = np.unique(values, return_counts=True)
    return float(-(number * np.log2(number / len(values))).sum())
