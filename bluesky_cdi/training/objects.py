"""Objects of training: transmission functions of mixed kinds, and a pool of them that scenes are cut from."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bluesky_cdi.physics.forward import extract
from bluesky_cdi.training.draws import Draws

# Share of the objects that turn the phase by up to 12 rad, as some micrometres of gold do; the others by up to 2.6.
THICK_SHARE = 0.3
# A pool is kept in so many parts, of which one is drawn anew with every so many batches.
PARTS, RENEWED_EVERY = 8, 64


class ObjectPool:
    """Give objects for batches of scenes: cut, turned and mirrored from larger ones, which are drawn anew now and then.

    Parameters
    ----------
    draws : Draws
        Draws all.
    number : int
        Objects that are kept.
    object_px : int
        Their side.

    Attributes
    ----------
    parts : list of Tensor, each of shape (number / 8, object_px, object_px), complex64
        What is kept.
    """

    def __init__(self, draws: Draws, number: int, object_px: int) -> None:
        self._draws, self._object_px, self._cuts = draws, object_px, 0
        self.parts = [draw_objects(draws, max(1, number // PARTS), object_px) for _ in range(PARTS)]

    def cut(self, scenes: int, size: int) -> Tensor:
        """Cut the objects of a batch, all from one part.

        Parameters
        ----------
        scenes : int
            How many.
        size : int
            Pixels along a side.

        Returns
        -------
        Tensor, shape (scenes, size, size), complex64

        Raises
        ------
        ValueError
            If the objects of the pool are smaller.
        """
        if size > self._object_px:
            # On a GPU an index beyond the pool would end the process.
            raise ValueError(f"objects of {self._object_px} pixels can't fill an object of {size}")
        self._cuts += 1
        if self._cuts % RENEWED_EVERY == 0:
            old = self._cuts // RENEWED_EVERY % PARTS
            self.parts[old] = draw_objects(self._draws, len(self.parts[old]), self._object_px)
        draws, part = self._draws, self.parts[self._draws.whole(0, PARTS - 1)]
        which = (draws.uniform(scenes, high=len(part) - 0.001)).long()
        corner = (draws.uniform(scenes, 2) * (self._object_px - size)).long()
        cut = extract(part, corner, size, which)
        if draws.chance(0.5):
            cut = cut.transpose(-1, -2)
        if draws.chance(0.5):
            cut = cut.flip(-1)
        return cut.contiguous()


def draw_objects(draws: Draws, number: int, size: int) -> Tensor:
    """Draw transmission functions of mixed kinds.

    Parameters
    ----------
    draws : Draws
        Draws them.
    number : int
        How many.
    size : int
        Pixels along a side.

    Returns
    -------
    Tensor, shape (number, size, size), complex64
    """
    kinds = (_texture, _leaves, _sparse, _lines)
    pick = draws.uniform(number, 1, 1) * len(kinds)
    fields = [kind(draws, number, size) for kind in kinds]
    thickness = sum(((pick >= i) & (pick < i + 1)) * f for i, f in enumerate(fields))
    blend = draws.uniform(number, 1, 1, low=-1, high=0.6).clamp_min(0)
    thickness = (1 - blend) * thickness + blend * fields[0] * (thickness > 0)
    absorber = torch.where(draws.uniform(number, 1, 1) < 0.6, thickness, fields[1])
    thick = draws.uniform(number, 1, 1) < THICK_SHARE
    least, most = torch.where(thick, 2.6, 0.1), torch.where(thick, 12.0, 2.6)
    phase = (least + (most - least) * draws.uniform(number, 1, 1)) * thickness
    sign = torch.where(draws.uniform(number, 1, 1) < 0.75, -1.0, 1.0)
    loss = draws.uniform(number, 1, 1, low=-0.3, high=0.8).clamp_min(0)
    return torch.polar(torch.exp(-loss * absorber), sign * phase)


def _texture(draws: Draws, number: int, size: int) -> Tensor:
    k = torch.hypot(*torch.meshgrid(*(torch.fft.fftfreq(size, device=draws.device),) * 2, indexing="ij"))
    k[0, 0] = 1
    exponent = draws.uniform(number, 1, 1, low=0.7, high=2.3)
    noise = torch.fft.ifft2(torch.fft.fft2(draws.normal(number, size, size)) * k**-exponent).real
    noise = (noise - noise.mean(dim=(1, 2), keepdim=True)) / noise.std(dim=(1, 2), keepdim=True)
    return torch.sigmoid(1.7 * noise)


def _leaves(draws: Draws, number: int, size: int, leaves: int = 60, ground: float = 1.0) -> Tensor:
    """Draw dead leaves (Lee, Mumford and Huang, Int. J. Comput. Vis. 41, 35 (2001)): shapes that occlude."""
    grid = torch.arange(size, device=draws.device, dtype=torch.float32) - size // 2
    y, x = torch.meshgrid(grid, grid, indexing="ij")
    out = ground * draws.uniform(number, 1, 1).expand(number, size, size)
    for _ in range(leaves):
        cy, cx = (draws.uniform(number, 1, 1) - 0.5) * size, (draws.uniform(number, 1, 1) - 0.5) * size
        radius = 2 + draws.uniform(number, 1, 1) ** 2 * size * 0.16
        other = radius * draws.uniform(number, 1, 1, low=0.15, high=1.6)
        turn = draws.uniform(number, 1, 1) * math.pi
        u = (x - cx) * turn.cos() + (y - cy) * turn.sin()
        v = (y - cy) * turn.cos() - (x - cx) * turn.sin()
        ellipse = (1 - torch.hypot(u / radius, v / other)) * torch.minimum(radius, other)
        box = torch.minimum(radius - u.abs(), other - v.abs())
        edge = torch.where(draws.uniform(number, 1, 1) < 0.5, ellipse, box)
        inside = (edge + 0.5).clamp(0, 1)
        out = out + inside * (draws.uniform(number, 1, 1) - out)
    return out


def _sparse(draws: Draws, number: int, size: int) -> Tensor:
    """Draw few shapes on vacuum."""
    return _leaves(draws, number, size, leaves=12, ground=0.0)


def _lines(draws: Draws, number: int, size: int) -> Tensor:
    """Draw gratings of one period, inside a disc, on vacuum."""
    grid = torch.arange(size, device=draws.device, dtype=torch.float32) - size // 2
    y, x = torch.meshgrid(grid, grid, indexing="ij")
    cy, cx = ((draws.uniform(number, 1, 1) - 0.5) * size for _ in range(2))
    turn, period = draws.uniform(number, 1, 1) * math.pi, draws.uniform(number, 1, 1, low=5, high=40)
    wave = torch.sin(2 * math.pi * (x * turn.cos() + y * turn.sin()) / period)
    disc = draws.uniform(number, 1, 1, low=0.15, high=0.9) * size - torch.hypot(y - cy, x - cx)
    return (wave * period / 6 + 0.5).clamp(0, 1) * (disc + 0.5).clamp(0, 1)
