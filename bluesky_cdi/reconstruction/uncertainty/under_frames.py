"""What an image is under each frame's illumination."""

from __future__ import annotations

import torch
from torch import Tensor

from bluesky_cdi.physics.forward import extract, intensity
from bluesky_cdi.physics.illuminated_frames import frames_at_once


def under_frames(image: Tensor, probe: Tensor, corner: Tensor, chunk: int | None = None) -> Tensor:
    """Average an image under each frame's illumination.

    Parameters
    ----------
    image : Tensor, shape (1, Y, X)
        What to average.
    probe : Tensor, shape (1, M, N, N)
        Its modes.
    corner : Tensor, shape (n, 2), int64
        First row and column of each frame's patch.
    chunk : int, optional
        Frames computed at a time, which bounds memory; default: `frames_at_once`.

    Returns
    -------
    Tensor, shape (n,)
    """
    weight, chunk = intensity(probe)[0], chunk or frames_at_once(probe)
    weight = weight / weight.sum()
    parts = [(extract(image, part, weight.shape[-1]) * weight).sum(dim=(-2, -1)) for part in torch.split(corner, chunk)]
    return torch.cat(parts)


def structure_under_frames(obj: Tensor, probe: Tensor, corner: Tensor) -> Tensor:
    """Compute the object's standard deviation under each frame's illumination: near 0 in vacuum.

    It does not depend on the object's free phase.

    Parameters
    ----------
    obj : Tensor, shape (1, Y, X), complex
        The object.
    probe : Tensor, shape (1, M, N, N), complex
        Its modes.
    corner : Tensor, shape (n, 2), int64
        First row and column of each frame's patch.

    Returns
    -------
    Tensor, shape (n,)
    """
    real, imaginary = under_frames(obj.real, probe, corner), under_frames(obj.imag, probe, corner)
    square = under_frames(obj.abs().square(), probe, corner)
    return (square - real.square() - imaginary.square()).clamp_min(0).sqrt()
