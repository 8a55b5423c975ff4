"""Relaxed averaged alternating reflections: feedback that stays near the measured modulus."""

from __future__ import annotations

from torch import Tensor

from bluesky_cdi.single_shot.constraints import MeasuredModulus, SampleConstraint


def raar(waves: Tensor, modulus: MeasuredModulus, sample: SampleConstraint, beta: float = 0.87) -> Tensor:
    """Make one iteration, ``beta / 2 (R_S R_M + 1) x + (1 - beta) P_M x`` with ``R = 2 P - 1``.

    Luke, Inverse Problems 21, 37 (2005), eq. 13. At beta = 1 it is `hybrid_input_output` at beta = 1.

    Parameters
    ----------
    waves : Tensor, shape (s, N, N), complex
        Exit waves x, one a start.
    modulus : MeasuredModulus
        P_M.
    sample : SampleConstraint
        P_S.
    beta : float
        Relaxation.

    Returns
    -------
    Tensor, same shape
    """
    measured = modulus.project(waves)
    reflected = 2 * measured - waves
    twice = 2 * sample.project(reflected) - reflected
    return beta / 2 * (twice + waves) + (1 - beta) * measured
