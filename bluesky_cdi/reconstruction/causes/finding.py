"""What a test has found."""

from __future__ import annotations

from dataclasses import dataclass

from scipy.stats import norm, t

# In the order in which they are named where several are found.
CAUSES = (
    "beam",
    "flux",
    "saturation",
    "detector",
    "probe",
    "positions",
    "background",
    "coherence",
    "object",
    "unexplained",
)
# How sure a test of frames against frames must be, in standard errors of many frames: `bench faults` counts how often
# one of them all is wrong. What bounds their sizes below is there for the same reason: an object that isn't converged
# yet asks for a little of everything.
SIGMAS = 4.0


@dataclass(frozen=True)
class Finding:
    """A cause, and what it explains.

    Attributes
    ----------
    cause : str
        Of `CAUSES`.
    says : str
        A sentence with its figure, and what to do.
    gain : float
        By how much the deviance of the compared frames is less with it, in all; infinite where no model is needed to
        see it.
    from_start : bool
        Whether all frames show it, not only the newest.
    is_sure : bool
        Whether it is beyond doubt by itself. If not, it is told where the frames fit worse beyond doubt and it explains
        that.
    """

    cause: str
    says: str
    gain: float = float("inf")
    from_start: bool = False
    is_sure: bool = True


def is_beyond_doubt(in_errors: float, frames: int, sigmas: float = SIGMAS) -> bool:
    """Tell whether a mean is as far from zero as `sigmas` standard errors of many frames (Student's t).

    Parameters
    ----------
    in_errors : float
        Mean over its standard error, which was found from the frames' own scatter.
    frames : int
        How many they are.
    sigmas : float
        How sure.
    """
    return frames > 1 and in_errors > float(t.isf(norm.sf(sigmas), frames - 1))
