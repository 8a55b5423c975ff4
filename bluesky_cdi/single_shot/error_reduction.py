"""Error reduction: alternating projections, which never raise the error and stop in the nearest minimum."""

from __future__ import annotations

from torch import Tensor

from bluesky_cdi.single_shot.constraints import MeasuredModulus, SampleConstraint


def error_reduction(waves: Tensor, modulus: MeasuredModulus, sample: SampleConstraint) -> Tensor:
    """Make one iteration, ``P_S P_M x`` (Fienup, Appl. Opt. 21, 2758 (1982), section III).

    Parameters
    ----------
    waves : Tensor, shape (s, N, N), complex
        Exit waves x, one a start.
    modulus : MeasuredModulus
        P_M.
    sample : SampleConstraint
        P_S.

    Returns
    -------
    Tensor, same shape
    """
    return sample.project(modulus.project(waves))
