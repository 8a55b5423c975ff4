"""When a scan has done enough."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bluesky_cdi.protocols import FloatArray

PATIENCE_BATCHES = 3


@dataclass(frozen=True)
class StoppingRule:
    """Limits at which to stop, each with its own reason.

    Attributes
    ----------
    budget : int
        Most frames, pending ones included.
    stop_gain : float
        Share of the first adaptive batch's expected gain below which three batches in a row end
        the scan; 0: never.
    target_std_rad : float
        Median predicted phase error of the frames that is good enough, radians; 0: never.
    target_resolution_m : float
        Resolution of the image, as two checks in a row confirm it, that is good enough, metres; 0: never.
    """

    budget: int
    stop_gain: float = 0.0
    target_std_rad: float = 0.0
    target_resolution_m: float = 0.0

    def reason(
        self,
        n_used: int,
        n_open: int,
        batch_gains: Sequence[float] = (),
        uncertainty_rad: FloatArray | None = None,
        resolution_m: float | None = None,
    ) -> str | None:
        """Say why to stop, or None to go on.

        Parameters
        ----------
        n_used : int
            Frames measured or pending.
        n_open : int
            Candidates that may still be chosen.
        batch_gains : sequence of float
            Mean expected gain of each adaptive batch so far.
        uncertainty_rad : ndarray, optional
            Predicted phase error of the frames; None while the field is not covered once.
        resolution_m : float, optional
            Confirmed resolution of the image, full period; None while it is not known, or the field not covered once.
        """
        if n_used >= self.budget:
            return f"budget of {self.budget} frames used"
        if n_open == 0:
            return "every position was visited"
        if self._gain_is_small(batch_gains):
            return f"expected gain below {self.stop_gain:g} of the first batch's for {PATIENCE_BATCHES} batches"
        return self._target_reason(uncertainty_rad) or self._resolution_reason(resolution_m)

    def _gain_is_small(self, batch_gains: Sequence[float]) -> bool:
        if len(batch_gains) <= PATIENCE_BATCHES:
            return False
        return max(batch_gains[-PATIENCE_BATCHES:]) < self.stop_gain * batch_gains[0]

    def _target_reason(self, uncertainty_rad: FloatArray | None) -> str | None:
        if self.target_std_rad <= 0 or uncertainty_rad is None or not np.isfinite(uncertainty_rad).any():
            return None
        median = float(np.nanmedian(np.where(np.isfinite(uncertainty_rad), uncertainty_rad, np.nan)))
        if median > self.target_std_rad:
            return None
        return f"median uncertainty of {median:.3g} rad reached the target of {self.target_std_rad:.3g} rad"

    def _resolution_reason(self, resolution_m: float | None) -> str | None:
        if resolution_m is None or not resolution_m <= self.target_resolution_m:
            return None
        return (
            f"resolution of {1e9 * resolution_m:.3g} nm reached the target of {1e9 * self.target_resolution_m:.3g} nm "
            "(half-bit ring correlation of two halves of the frames, twice in a row)"
        )
