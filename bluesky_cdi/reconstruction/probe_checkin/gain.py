"""Whether one explanation of frames is better than another beyond doubt."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import norm, t
from torch import Tensor

# How sure a change must be: as sure as three standard errors of many frames are.
SIGMAS = 3.0


@dataclass(frozen=True)
class Gain:
    """By how much frames are explained better, paired frame by frame.

    Attributes
    ----------
    before, after : float
        Mean deviance per valid pixel.
    mean, standard_error : float
        Of the differences of the frames' deviances.
    frames : int
        How many they are.
    """

    before: float
    after: float
    mean: float
    standard_error: float
    frames: int

    @classmethod
    def of(cls, before: Tensor, after: Tensor) -> Gain:
        """Compare the deviances (n,) of the same frames.

        Parameters
        ----------
        before, after : Tensor, shape (n,)
            Without and with a change.
        """
        old, new = (np.asarray(each.cpu(), np.float64) for each in (before, after))
        difference = old - new
        error = float(difference.std(ddof=1) / np.sqrt(len(old))) if len(old) > 1 else float("inf")
        return cls(float(old.mean()), float(new.mean()), float(difference.mean()), error, len(old))

    @property
    def in_errors(self) -> float:
        """Mean gain in standard errors."""
        return self.mean / max(self.standard_error, 1e-30)

    @property
    def factor(self) -> float:
        """How many times smaller the deviance is."""
        return self.before / max(self.after, 1e-30)

    def exceeds(self, share: float, sigmas: float = SIGMAS) -> bool:
        """Tell whether the gain is beyond doubt, and more than a share of the deviance.

        Few frames know their own scatter badly: they need more standard errors (Student's t).

        Parameters
        ----------
        share : float
            Least gain as a share of the deviance before.
        sigmas : float
            How sure, in standard errors of many frames.
        """
        if self.frames < 2 or not self.mean > share * self.before:
            return False
        return self.in_errors > float(t.isf(norm.sf(sigmas), self.frames - 1))
