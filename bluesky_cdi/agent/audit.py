"""Comparison of what was expected of frames with what they brought."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from bluesky_cdi.agent.patterns import MaskArray
from bluesky_cdi.protocols import FloatArray

logger = logging.getLogger(__name__)

# Fewer frames than this make a ratio that chance alone can move out of bounds.
FRAMES_MIN = 8
RATIO_BOUNDS = (0.2, 5.0)
FAILURES_MAX = 2
NOT_VACUUM_FLOOR = 0.03


class GainAudit:
    """Judges groups of at least 8 adaptively chosen frames; two bad groups in a row fail the audit.

    A frame's gain has two factors, and each is compared with its expectation: how much it
    matters (not vacuum) and how much it taught (squared standardised residual, expected 1).
    """

    def __init__(self) -> None:
        self._failures = 0
        self._expected: dict[int, float] = {}
        self._n_reviewed = 0

    @property
    def failed(self) -> bool:
        """Whether the predictions are not to be trusted any more."""
        return self._failures >= FAILURES_MAX

    def expect(self, ids: Sequence[int], not_vacuum: FloatArray) -> None:
        """Keep what is expected of proposed frames.

        Parameters
        ----------
        ids : sequence of int
            Of the proposals.
        not_vacuum : ndarray, shape (n,)
            How surely each shows something else than vacuum.
        """
        self._expected.update(zip(ids, not_vacuum.tolist(), strict=True))

    def review(
        self, ids: Sequence[int | None], not_vacuum: FloatArray, valid: MaskArray, residuals: FloatArray
    ) -> None:
        """Compare the frames chosen adaptively since the last review, once there are enough of them.

        Parameters
        ----------
        ids : sequence of int or None
            Of the proposal that each measured frame settled, for all frames in their order.
        not_vacuum : ndarray, shape (n,)
            As measured.
        valid : ndarray, shape (n,), bool
            Whether a frame's outcome is usable.
        residuals : ndarray, shape (n, k)
            Standardised residuals of the surrogate's outputs.
        """
        new = enumerate(ids[self._n_reviewed :], start=self._n_reviewed)
        found = {row: self._expected[key] for row, key in new if key in self._expected and valid[row]}
        rows = list(found)
        if self.compare(np.array(list(found.values())), not_vacuum[rows], residuals[rows]):
            self._n_reviewed = len(ids)

    def compare(self, predicted_not_vacuum: FloatArray, not_vacuum: FloatArray, residuals: FloatArray) -> bool:
        """Compare a group of frames; False asks for more frames first.

        Parameters
        ----------
        predicted_not_vacuum, not_vacuum : ndarray, shape (n,)
            When chosen, and as measured.
        residuals : ndarray, shape (n, k)
            Standardised residuals of the surrogate's outputs.
        """
        if self.failed or len(not_vacuum) < FRAMES_MIN:
            return False
        expected, realised = (float(np.maximum(p, NOT_VACUUM_FLOOR).sum()) for p in (predicted_not_vacuum, not_vacuum))
        ratios = (realised / expected, float(np.mean(residuals**2)))
        low, high = RATIO_BOUNDS
        good = all(low <= ratio <= high for ratio in ratios)
        self._failures = 0 if good else self._failures + 1
        if not good:
            logger.warning(
                "realised over predicted gain of %d frames: %.2g (structure), %.2g (surprise), expected within %s%s",
                len(not_vacuum),
                *ratios,
                RATIO_BOUNDS,
                "; the scan goes on with uniform coverage" if self.failed else "",
            )
        return True
