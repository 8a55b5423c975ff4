"""Objects from which a pass begins in training: what a run may know before the network predicts from its frames.

Only from vacuum a network learns to draw an object anew, whatever it is given. It learns to improve on what is known
where passes begin from all that may be known: nothing, some physics, an engine's object, an own earlier pass (this is
how passes in a row are trained: Brandstetter, Worrall and Welling, ICLR 2022, call it the pushforward trick), the
truth with errors of all sizes and scales.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable
from itertools import accumulate

import torch
from torch import Tensor

from bluesky_cdi.engines.ptychography import Refine, Solution
from bluesky_cdi.engines.rpie import Rpie, RpieSettings
from bluesky_cdi.models.unrolled import STEP_DAMPING, UnrolledNet
from bluesky_cdi.physics.forward import peak_intensity
from bluesky_cdi.physics.illuminated_frames import object_step
from bluesky_cdi.training.draws import Draws
from bluesky_cdi.training.stream import Batch

# Most physics steps, epochs of rPIE and own passes that a start has behind it.
MOST_STEPS, MOST_EPOCHS, MOST_PASSES = 10, 20, 5
# Passes in a row that are worth their time: from vacuum ten had 0.95 of the error of three (decision 0017).
PASSES = 3
# Frames of each scene in a mini-batch of rPIE.
RPIE_FRAMES = 8
# Errors of a start near the truth: their rms, and the exponents of their spectra.
ERROR_SIZES = (10**-2.5, 10**-0.5)
ERROR_EXPONENTS = (0.0, 1.5)
# No start has more than this transmission: engines leave more where hardly any light fell.
MOST_TRANSMISSION = 2.0


@torch.no_grad()
def draw_start(net: UnrolledNet, batch: Batch, draws: Draws, labels: bool = True) -> Tensor:
    """Draw where the pass over a batch begins.

    Parameters
    ----------
    net : UnrolledNet
        Of the passes before.
    batch : Batch
        The scenes that a pass will begin in.
    draws : Draws
        Its decisions choose the kind, so that processes that train together choose the same.
    labels : bool
        Whether the truth may be part of it.

    Returns
    -------
    Tensor, shape (B, Y, X), complex64
    """
    kinds: list[tuple[float, Callable[[], Tensor]]] = [
        (0.4, lambda: torch.ones_like(batch.truth)),
        (0.1, lambda: after_steps(batch, draws.whole(1, MOST_STEPS))),
        (0.08, lambda: after_rpie(batch, draws.whole(1, MOST_EPOCHS))),
        (0.22, lambda: after_passes(net, batch, draws.whole(1, MOST_PASSES))),
    ]
    if labels:
        kinds.append((0.2, lambda: near_truth(batch, draws)))
    shares = list(accumulate(share for share, _ in kinds))
    return _bounded(kinds[bisect_right(shares, draws.between(0, shares[-1]), hi=len(kinds) - 1)][1]())


def _bounded(obj: Tensor) -> Tensor:
    """Limit the transmission; vacuum where an engine or a network has diverged to what is no number."""
    obj = torch.where(torch.isfinite(obj.abs()), obj, torch.ones_like(obj))
    bounded: Tensor = obj * (MOST_TRANSMISSION / obj.abs().clamp_min(MOST_TRANSMISSION))
    return bounded


def after_steps(batch: Batch, steps: int, obj: Tensor | None = None) -> Tensor:
    """Make damped steps of all frames together.

    Parameters
    ----------
    batch : Batch
        The scenes.
    steps : int
        How many.
    obj : Tensor, shape (B, Y, X), complex, optional
        Where they begin; vacuum if absent.

    Returns
    -------
    Tensor, shape (B, Y, X), complex64
    """
    damping = STEP_DAMPING * peak_intensity(batch.probe)
    obj = torch.ones_like(batch.truth) if obj is None else obj
    for _ in range(steps):
        numerator, illumination = object_step(obj, batch.probe, batch.data)
        obj = obj + numerator / (illumination + damping)
    return obj


def after_rpie(batch: Batch, epochs: int, obj: Tensor | None = None, settings: RpieSettings | None = None) -> Tensor:
    """Make epochs of rPIE with the assumed probes.

    Parameters
    ----------
    batch : Batch
        The scenes.
    epochs : int
        How many.
    obj : Tensor, shape (B, Y, X), complex, optional
        Where they begin; vacuum if absent.
    settings : RpieSettings, optional
        Those of training if absent: mini-batches of a few frames of each scene.

    Returns
    -------
    Tensor, shape (B, Y, X), complex64
    """
    engine = Rpie(settings or RpieSettings(batch=RPIE_FRAMES * len(batch.truth)))
    solution = Solution.start(torch.ones_like(batch.truth) if obj is None else obj, batch.probe, batch.data)
    for _ in range(epochs):
        solution = engine.epoch(solution, Refine(probe=False))
    return solution.object


def after_passes(net: UnrolledNet, batch: Batch, passes: int) -> Tensor:
    """Make passes of a network in a row, the first from vacuum.

    Parameters
    ----------
    net : UnrolledNet
        The network.
    batch : Batch
        The scenes.
    passes : int
        How many.

    Returns
    -------
    Tensor, shape (B, Y, X), complex64
    """
    obj = torch.ones_like(batch.truth)
    for _ in range(passes):
        obj = _bounded(net(batch.probe, batch.data, obj)[-1])
    return obj


def near_truth(batch: Batch, draws: Draws) -> Tensor:
    """Disturb the truth, in some scenes partly vacuum, by an error of random size with a 1 / k^exponent spectrum.

    Parameters
    ----------
    batch : Batch
        The scenes.
    draws : Draws
        Draws the errors.

    Returns
    -------
    Tensor, shape (B, Y, X), complex64
    """
    scenes, height, width = batch.truth.shape
    rows, columns = (torch.fft.fftfreq(side, device=batch.truth.device) for side in (height, width))
    k = torch.hypot(rows[:, None], columns[None, :])
    k[0, 0] = 1 / max(height, width)
    white = torch.complex(draws.normal(scenes, height, width), draws.normal(scenes, height, width))
    error = torch.fft.ifft2(torch.fft.fft2(white) * k ** -draws.between(*ERROR_EXPONENTS))
    error = error / error.abs().square().mean(dim=(-2, -1), keepdim=True).sqrt()
    least, most = map(math.log10, ERROR_SIZES)
    size = 10 ** draws.uniform(scenes, 1, 1, low=least, high=most)
    faded = draws.uniform(scenes, 1, 1, low=-1.0, high=0.7).clamp_min(0)
    start: Tensor = (1 - faded) * batch.truth + faded + size * error
    return start
