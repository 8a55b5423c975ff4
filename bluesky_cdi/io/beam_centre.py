"""Where the direct beam meets a detector, found from its frames."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from bluesky_cdi.errors import FrameError

# Share of the pattern's power that must lie, with its mirror image, on valid pixels of the frame.
LEAST_SHARE = 0.5
# A pixel with so many times the third highest count of the nine around it is hot.
HOT_RATIO = 10.0


def find_beam_centre(mean: npt.NDArray[Any], valid: npt.NDArray[np.bool_]) -> tuple[float, float]:
    """Find the centre of symmetry of a mean frame.

    The mean of many far-field frames is the image of the probe's pupil, blurred by the sample, and nearly the same
    when it is turned by 180 degrees about the direct beam. The centre is where the roots of the counts agree best with
    themselves so turned, over pairs of valid pixels, with a parabola between pixels. A pupil without that symmetry (a
    beam stop to one side, a cut lens) shifts it.

    Parameters
    ----------
    mean : ndarray, shape (H, W), real
        Mean of frames, counts.
    valid : ndarray, shape (H, W), bool
        True where a pixel holds counts.

    Returns
    -------
    tuple of float
        (row, column), pixels from 0.

    Raises
    ------
    FrameError
        If no valid pixel holds light, or nothing in the frame is symmetric.
    """
    from scipy.ndimage import rank_filter

    counts = np.maximum(np.where(valid, mean, 0), 0).astype(np.float32)
    # Hot pixels would outshine the pattern, of which no detail is that small and bright.
    around = rank_filter(counts, rank=-3, size=3, mode="nearest")
    roots = np.sqrt(np.where(counts > HOT_RATIO * (around + 1), around, counts))
    power = float(np.square(roots).sum(dtype=np.float64))
    if not np.isfinite(power) or power <= 0:
        raise FrameError("the beam's centre can't be found: no valid pixel of the frames holds light")
    # Without its mean level, a plain background agrees with itself about any point.
    level = np.where(valid, roots - np.median(roots[valid]), 0).astype(np.float32)
    pairs, norms, held = _with_itself(level, level), _with_itself(level**2, valid), _with_itself(roots**2, valid)
    enough, least = held >= LEAST_SHARE * power, 1e-6 * norms.max()
    # Of frames that are flat nothing is left.
    defined = enough & (norms > least)
    likeness = np.divide(pairs, norms, out=np.full_like(pairs, -np.inf), where=defined)
    row, column = np.unravel_index(int(likeness.argmax()), likeness.shape)
    if not likeness[row, column] > 0:
        raise FrameError(
            "the beam's centre can't be found: nothing in the frames is symmetric about a point. State beam_centre_px."
        )
    return _between(likeness[:, column], int(row)) / 2, _between(likeness[row], int(column)) / 2


def _with_itself(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Sum ``one[x] * other[s - x]`` over x for each s, shape (2 H - 1, 2 W - 1)."""
    from scipy.fft import irfft2, next_fast_len, rfft2

    shape = [2 * side - 1 for side in one.shape]
    fast = [next_fast_len(side, real=True) for side in shape]
    product = rfft2(one.astype(np.float32), fast) * rfft2(other.astype(np.float32), fast)
    return np.asarray(irfft2(product, fast)[: shape[0], : shape[1]], np.float32)


def _between(values: npt.NDArray[Any], peak: int) -> float:
    """Find the top of the parabola through a highest value and its neighbours."""
    if not 0 < peak < len(values) - 1 or not np.isfinite(values[peak - 1 : peak + 2]).all():
        return float(peak)
    before, top, after = (float(value) for value in values[peak - 1 : peak + 2])
    bend = before - 2 * top + after
    return peak + (0.5 * (before - after) / bend if bend < 0 else 0.0)
