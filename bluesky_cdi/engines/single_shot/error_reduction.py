"""Error reduction: modulus and sample in turn. It never raises the error, and stops in the nearest minimum."""

from __future__ import annotations

from torch import Tensor

from bluesky_cdi.engines.single_shot.constraints import MeasuredModulus, SampleConstraint


def error_reduction(waves: Tensor, modulus: MeasuredModulus, sample: SampleConstraint) -> Tensor:
    """One iteration, ``P_S P_M x`` (Fienup, Appl. Opt. 21, 2758 (1982), section III).

    Parameters
    ----------
    waves : Tensor, shape (s, N, N), complex
    modulus : MeasuredModulus
    sample : SampleConstraint

    Returns
    -------
    Tensor, same shape
    """
    return sample.project(modulus.project(waves))
