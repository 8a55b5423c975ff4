"""Whether the detector counts as it did: parts that die, grow noisy or change their gain, and pixels that saturate."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from scipy.ndimage import median_filter
from scipy.stats import binom

from bluesky_cdi.protocols import FloatArray
from bluesky_cdi.reconstruction.causes.finding import Finding

# How sure a part of the detector must be unlike the others, in their own scatter: a false alarm in a million parts.
SIGMAS = 5.0
# Counts below and above this share of what is expected, over that of the parts around it, are no object's that is badly
# known.
DEAD, HOT, NEIGHBOURS = 0.2, 5.0, 5
# Times the parts around it that one counts, if it counts far too much, and photons that are too many: a strong object
# has speckles of a few where the model has none.
STANDS_OUT, LEAST_EXCESS = 2.0, 32.0
# Parts of the detector along a side that have a gain of their own, and by how much and how surely it must change: the
# median of sixteen parts knows their scatter badly.
MODULES, GAIN, GAIN_SIGMAS = 4, 0.05, 7.0
# Share of the mean part's light below which a part counts little but what the object scatters, which the model knows
# worst: its gain can't be told from that.
LIT = 0.05
# Photons that a part must have counted in all, to be looked at.
LEAST_COUNTS = 10.0
# Chance that so many pixels reach the same highest count; and the share of frames that must have one there.
CHANCE, IN_FRAMES = 1e-6, 0.25
# Brightest pixels of the frames that are looked at: far more than lie at a ceiling if nothing saturates.
TOP = 4096


def detector_findings(
    counted: FloatArray,
    expected: FloatArray,
    counted_before: FloatArray,
    expected_before: FloatArray,
    *,
    is_steady: bool = True,
) -> Iterator[Finding]:
    """Find pixels, rows, columns and modules that count unlike the rest does since.

    What is expected of a part now is its share of the model's light now and before: a part of the pattern that the
    model gets wrong all along is not the detector's.

    Parameters
    ----------
    counted, expected : ndarray, shape (N, N)
        Photons of the newest frames on valid pixels, and what the model expects, as the detector has them.
    counted_before, expected_before : ndarray, shape (N, N)
        The same of frames before.
    is_steady : bool
        Whether the beam is: otherwise what is expected is not sure enough to tell of a gain.
    """
    sums = (counted, expected, counted_before, expected_before)
    said, reported = [], np.zeros(len(counted), bool)
    for name, axis in (("row", 1), ("column", 0)):
        parts = [each.sum(axis=axis) for each in sums]
        which = _unlike(*parts)
        reported |= which
        said += [f"{name} {k} {_counts(*(part[k] for part in parts))}" for k in np.flatnonzero(which)[:4]]
    if not reported.any():
        pixels = _unlike(*sums)
        said += [
            f"pixel ({y}, {x}) {_counts(*(each[y, x] for each in sums))}" for y, x in np.argwhere(pixels)[:4].tolist()
        ]
        if (more := int(pixels.sum()) - 4) > 0:
            said.append(f"{more} more pixels like that")
    if not said and is_steady:
        said += list(_modules(sums))
    if said:
        yield Finding("detector", f"{'; '.join(said)}. Mask what is broken, and have the detector looked at")


def saturation_findings(brightest: FloatArray, frames_at_top: int, frames: int) -> Iterator[Finding]:
    """Find a ceiling that many pixels stop at.

    Where nothing saturates, counts become rarer towards the highest one: of `n` counts in the last `w` values no more
    than about n / w are the highest (a binomial bound, whatever the sample).

    Parameters
    ----------
    brightest : ndarray, shape (m,)
        The highest counts of the frames on valid pixels.
    frames_at_top : int
        Frames that have a pixel at the highest of all.
    frames : int
        How many frames there are.
    """
    if not len(brightest) or not brightest.max() > 0:
        return
    top = float(brightest.max())
    near = brightest[brightest > top - 3 * math.sqrt(top)]
    # Counts may come in steps of their own: in units of gain, or divided by something.
    steps = np.diff(np.unique(near))
    step = float(np.min(steps, initial=1.0))
    places = max(1.0, math.ceil(3 * math.sqrt(top) / max(step, 1e-12)))
    at_top = int((near == top).sum())
    # One is the highest in any case.
    chance = float(binom.sf(at_top - 2, max(len(near) - 1, 0), 1 / places))
    if chance < CHANCE and frames_at_top >= max(2, IN_FRAMES * frames):
        yield Finding(
            "saturation",
            f"in {frames_at_top} of {frames} frames pixels stop at {top:g} counts, {at_top} of them. Attenuate the "
            f"beam, or state detector.saturation: {top:g}",
        )


def _unlike(counted: FloatArray, expected: FloatArray, before: FloatArray, model: FloatArray) -> npt.NDArray[np.bool_]:
    """Find parts that count far less or far more than expected, beyond the scatter of all."""
    wanted, size = _surprise(counted, expected, before, model)
    enough = (before + counted > LEAST_COUNTS) & (wanted + counted > LEAST_COUNTS)
    # Half a photon more on both sides: where nothing was counted before, a few photons are no multiple.
    ratio = (counted + 0.5) / (_usual(expected, before, model) + 0.5)
    # What neighbours do as well is the pattern's, and so is light that fills a dark place up to them.
    ratio = ratio / median_filter(ratio, size=NEIGHBOURS, mode="nearest")
    stands_out = counted - wanted > LEAST_EXCESS
    stands_out &= counted + 0.5 > STANDS_OUT * (median_filter(counted, size=NEIGHBOURS, mode="nearest") + 0.5)
    beyond = enough & (np.abs(size) > SIGMAS * _scatter(size[enough]))
    return np.asarray(beyond & ((ratio < DEAD) | ((ratio > HOT) & stands_out)))


def _modules(sums: tuple[FloatArray, ...]) -> Iterator[str]:
    side = len(sums[0]) // MODULES
    whole = slice(0, side * MODULES)
    parts = [each[whole, whole].reshape(MODULES, side, MODULES, side).sum(axis=(1, 3)) for each in sums]
    wanted, size = _surprise(*parts)
    enough = wanted > LEAST_COUNTS
    ratio = parts[0] / np.maximum(wanted, 1e-12)
    unlike = enough & (wanted > LIT * wanted.mean())
    unlike &= (np.abs(size) > GAIN_SIGMAS * _scatter(size[enough])) & (np.abs(ratio - 1) > GAIN)
    for y, x in np.argwhere(unlike)[:4].tolist():
        yield (
            f"rows {y * side} to {(y + 1) * side - 1}, columns {x * side} to {(x + 1) * side - 1} count "
            f"{100 * ratio[y, x]:.0f} % of what they did"
        )


def _surprise(
    counted: FloatArray, expected: FloatArray, before: FloatArray, model: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Compute what parts should count, given what they counted in all, and how far they are off in binomial errors."""
    share = expected / np.maximum(expected + model, 1e-12)
    wanted = (counted + before) * share
    return wanted, (counted - wanted) / np.sqrt(wanted * (1 - share) + 1.0)


def _usual(expected: FloatArray, before: FloatArray, model: FloatArray) -> FloatArray:
    """Compute what parts would count if they counted as before."""
    return np.asarray(expected * before / np.maximum(model, 1e-12))


def _scatter(size: FloatArray) -> float:
    """Estimate the standard deviation of most of the values, at least 1."""
    return max(1.0, float(np.median(np.abs(size))) / 0.6745) if len(size) > 7 else 1.0


def _counts(counted: float, expected: float, before: float, model: float) -> str:
    usual = float(_usual(np.asarray(expected), np.asarray(before), np.asarray(model)))
    return f"counts {counted:.3g} photons where {usual:.3g} are expected"
