"""Hybrid input-output: feedback where the sample's constraint is broken."""

from __future__ import annotations

from torch import Tensor

from bluesky_cdi.single_shot.constraints import MeasuredModulus, SampleConstraint


def hybrid_input_output(waves: Tensor, modulus: MeasuredModulus, sample: SampleConstraint, beta: float = 0.9) -> Tensor:
    """Make one iteration, ``x - beta P_M x + P_S((1 + beta) P_M x - x)``, of waves without what surrounds the sample.

    With a support alone this is ``P_M x`` inside and ``x - beta P_M x`` outside (Fienup, Appl. Opt. 21,
    2758 (1982), eq. 44). With a bounded phase it is the hybrid projection-reflection of Bauschke,
    Combettes and Luke, J. Opt. Soc. Am. A 20, 1025 (2003), which suits any convex constraint.

    Parameters
    ----------
    waves : Tensor, shape (s, N, N), complex
        Exit waves x, one a start.
    modulus : MeasuredModulus
        P_M.
    sample : SampleConstraint
        P_S.
    beta : float
        Strength of the feedback.

    Returns
    -------
    Tensor, same shape
    """
    measured = modulus.project(waves)
    around = 0.0 if sample.surround is None else sample.surround
    # Feedback acts on the difference from the surround: (1 + beta) (P_M x - a) - (x - a) + a is what is projected.
    kept = sample.project((1 + beta) * measured - waves + (1 - beta) * around)
    return waves - beta * (measured - around) + kept - around
