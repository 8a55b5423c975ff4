"""Which of what was found explains why the newest frames fit worse than those before, and what is left of it."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from scipy.spatial.distance import cdist

from bluesky_cdi.protocols import FloatArray
from bluesky_cdi.reconstruction.causes.finding import CAUSES, Finding, is_beyond_doubt
from bluesky_cdi.reconstruction.scores import Scores

# Deviance beyond photon noise, over that noise: so many times that of frames before, and so much more.
TIMES, LEAST_MISFIT = 3.0, 0.3
# A change of the model that isn't beyond doubt by itself explains at least this share of what the newest frames fit
# worse, if it is told of.
MOST = 0.5
# Frames that ask for other places gain at least this share of the misfit by them: an unknown object asks for them too.
LEAST_OF_PLACES = 0.1
# How many times farther from frames before their features lie than those of one another, and which share of them is
# farther than nearly all of those are.
TIMES_AS_FAR, FAR = 4.0, 0.6
NEARLY_ALL = 0.95


def misfit_of(before: Scores, lately: Scores) -> tuple[float, float, float]:
    """Compare how badly frames fit beyond photon noise, over that noise: before, lately, and how sure that is."""
    early, late = before.excess / before.noise.mean(), lately.excess / lately.noise.mean()
    error = math.sqrt(early.var(ddof=1) / len(early) + late.var(ddof=1) / len(late))
    return float(early.mean()), float(late.mean()), float(late.mean() - early.mean()) / max(error, 1e-30)


def explained(
    found: Iterable[Finding], before: Scores, lately: Scores, pixels: int, features: tuple[FloatArray, FloatArray]
) -> list[Finding]:
    """Choose among findings, and say honestly what none of them explains.

    What needs no model to be seen (the detector, the beam) is told always, and so are changes of the model that are
    beyond doubt: an object can hide their misfit. Where frames fit worse beyond doubt and neither is there, the change
    that gains most is told if that is most of the misfit; otherwise it is something else. Of another flux the model
    knows already: it must have gained more than is left.

    Parameters
    ----------
    found : iterable of Finding
        Of one look.
    before, lately : Scores
        Of frames before, and of the newest.
    pixels : int
        Valid ones of a frame.
    features : tuple of ndarray, shapes (n, d) and (m, d)
        Embeddings of frames before, and of the newest.
    """
    found = list(found)
    early, late, in_errors = misfit_of(before, lately)
    is_worse = late > TIMES * max(early, 0.0) + LEAST_MISFIT and is_beyond_doubt(in_errors, len(lately))
    misfit = max(late - early, 0.0) * float(before.noise.mean()) * len(lately) * pixels
    by_sight = [each for each in found if math.isinf(each.gain)]
    models = [each for each in found if not math.isinf(each.gain)]
    least = {"flux": misfit, "positions": LEAST_OF_PLACES * misfit}
    named = [each for each in models if each.is_sure and each.gain >= least.get(each.cause, 0.0)]
    if by_sight:
        # A broken detector asks for many things: what goes wrong besides must explain most of the misfit.
        named = [each for each in named if is_worse and each.gain > MOST * misfit]
    elif is_worse and not named:
        best = max(models, key=lambda each: each.gain)
        named = [best if best.gain > MOST * misfit else _left(early, late, features)]
    return sorted([*by_sight, *named], key=lambda each: CAUSES.index(each.cause))


def _left(early: float, late: float, features: tuple[FloatArray, FloatArray]) -> Finding:
    figures = (
        f"frames fit worse than before, by {late:.2g} times what photon noise explains (those before: {early:.2g}), "
        "and neither probe, places, light nor detector account for it"
    )
    if are_far(*features):
        return Finding(
            "object",
            f"{figures}; they look like none of those before. Is this part of the sample too thick, or moving?",
        )
    return Finding("unexplained", f"{figures}. Look at the frames")


def are_far(before: FloatArray, lately: FloatArray) -> bool:
    """Tell whether the features (m, d) of the newest frames lie apart from those (n, d) before."""
    scale = before.std(axis=0) + 1e-9
    before, lately = before / scale, lately / scale
    among = cdist(before, before)
    np.fill_diagonal(among, np.inf)
    usual = among.min(axis=1)
    far = cdist(lately, before).min(axis=1)
    is_far = float(np.mean(far > np.quantile(usual, NEARLY_ALL)))
    return bool(np.median(far) > TIMES_AS_FAR * np.median(usual) and is_far > FAR)
