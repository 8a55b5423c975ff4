"""The object as it is known by now, region by region, with its illumination and its predicted errors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bluesky_cdi.physics.forward import peak_intensity
from bluesky_cdi.physics.illumination_shares import KNOWN_SHARE
from bluesky_cdi.reconstruction.tiles import Box, Region
from bluesky_cdi.reconstruction.uncertainty import UNKNOWN_STD_RAD, UncertaintyEstimate

# A region goes over into its surroundings within this part of a frame's width.
BLENDED = 4
KEPT = ("object", "illumination", "std_amplitude", "std_phase_rad")


@dataclass(frozen=True, eq=False)
class RegionView:
    """What is known on a region's outer box.

    Attributes
    ----------
    region : Region
    object : Tensor, shape (1, Y, X), complex64
    known : Tensor, shape (1, Y, X), bool
        Where enough light has fallen for the object to be kept.
    width_px : int
        Pixels within which the region goes over into its surroundings; 0: it has none.
    """

    region: Region
    object: Tensor
    known: Tensor
    width_px: int

    def embedded(self, obj: Tensor) -> Tensor:
        """Put an object into its surroundings: its core, in phase with them.

        Where these are not known yet, the phase is that of the core as it was. Towards them the core goes over into
        what was known: predictions of two windows differ in their lowest frequencies, and would meet in a seam.

        Parameters
        ----------
        obj : Tensor, shape (1, Y, X), complex64
            The object.

        Returns
        -------
        Tensor, shape (1, Y, X), complex64
        """
        if not self.width_px:
            return obj
        core = self.region.core_pixels
        around = self.known.clone()
        around[core] = False
        out = self.object.clone()
        turned = obj * phase_towards(out, obj, around if around.any() else self.known)
        share = torch.from_numpy(share_of_new(self.region, self.width_px)).to(out.device)
        out[core] = torch.lerp(out[core], turned[core], torch.where(self.known[core], share, 1.0).to(out.dtype))
        return out


class ObjectMap:
    """Hold the object on its grid, the light that fell on it, and the predicted errors.

    Parameters
    ----------
    shape : tuple of int
        (Y, X) of the grid.
    frame_px : int
        Pixels along one side of a frame.
    whole : bool
        Whether the grid is one region.
    device : torch.device

    Attributes
    ----------
    object : Tensor, shape (1, Y, X), complex64
    illumination : Tensor, shape (1, Y, X)
        Photons per pixel.
    std_amplitude, std_phase_rad : Tensor, shape (Y, X)
    earlier : Tensor, shape (1, Y, X), or None
        Photons per pixel of the frames of earlier epochs; None before the beam has become another.
    """

    def __init__(self, shape: tuple[int, int], frame_px: int, whole: bool, device: torch.device) -> None:
        self._width_px = 0 if whole else frame_px // BLENDED
        self.object = torch.ones((1, *shape), dtype=torch.complex64, device=device)
        self.illumination = torch.zeros((1, *shape), device=device)
        self.std_amplitude = torch.ones(shape, device=device)
        self.std_phase_rad = torch.full(shape, UNKNOWN_STD_RAD, device=device)
        self.earlier: Tensor | None = None

    def take_over(self, other: ObjectMap, corner: tuple[int, int]) -> None:
        """Take over all that a smaller map knows.

        Parameters
        ----------
        other : ObjectMap
            The map.
        corner : tuple of int
            Where its first pixel (y, x) lies on this one.
        """
        y, x = corner
        if other.earlier is not None:
            self.earlier = torch.zeros_like(self.illumination)
        for name in other._kept:
            known = getattr(other, name)
            getattr(self, name)[..., y : y + known.shape[-2], x : x + known.shape[-1]] = known

    def keep(self, light: Tensor) -> None:
        """Let what is found stay where frames have thrown more light than those from now on.

        Parameters
        ----------
        light : Tensor, shape (1, Y, X)
            Of some frames of the epoch that is over, photons per pixel.
        """
        self.earlier = light if self.earlier is None else self.earlier + light

    def view(self, region: Region, probe: Tensor) -> RegionView:
        """Give what is known on a region's outer box.

        Parameters
        ----------
        region : Region
            Which.
        probe : Tensor, shape (1, M, N, N)
            Its peak says how much light makes a pixel known.
        """
        outer = region.outer.pixels
        known = self.illumination[outer] > KNOWN_SHARE * peak_intensity(probe)
        return RegionView(region, self.object[outer], known, self._width_px)

    def write(self, view: RegionView, obj: Tensor, illumination: Tensor) -> Tensor:
        """Take over the core of a region's object, where no earlier epoch has thrown more light.

        Parameters
        ----------
        view : RegionView
            What is known there.
        obj : Tensor, shape (1, Y, X), complex64
            On the outer box.
        illumination : Tensor, shape (1, Y, X)
            Of the frames in the outer box.

        Returns
        -------
        Tensor, shape (1, Y, X), complex64
            The object on the outer box as it is now.
        """
        region = view.region
        core = region.core_pixels
        if self._width_px:
            obj = torch.where(illumination > 0, view.embedded(obj), 1)
        self._put_light(region, illumination[core])
        self._put(region, "object", obj[core])
        return self.object[region.outer.pixels]

    def write_errors(self, region: Region, found: UncertaintyEstimate) -> Tensor:
        """Take over the predicted errors of a region's core.

        Parameters
        ----------
        region : Region
            The region.
        found : UncertaintyEstimate
            Predicted errors on its outer box.

        Returns
        -------
        Tensor, shape (Y, X)
            Those of the phase on the outer box as they are now, radians.
        """
        core = region.core_pixels
        self._put(region, "std_amplitude", found.std_amplitude[core])
        self._put(region, "std_phase_rad", found.std_phase_rad[core])
        return self.std_phase_rad[region.outer.pixels]

    def scale_errors(self, amplitude: float, phase: float) -> None:
        """Make all predicted errors so many times as large; those that stand for what is not known stay.

        Parameters
        ----------
        amplitude, phase : float
            Factors.
        """
        both = UncertaintyEstimate(self.std_amplitude, self.std_phase_rad, self.std_phase_rad[:0])
        scaled = both.times(amplitude, phase)
        self.std_amplitude, self.std_phase_rad = scaled.std_amplitude, scaled.std_phase_rad

    def stitch(self, box: Box, obj: Tensor, light: Tensor) -> tuple[Tensor, Tensor]:
        """Add what further frames alone have shown: by its share of the light, in phase with what was known.

        Parameters
        ----------
        box : Box
            A part of the grid.
        obj : Tensor, shape (1, Y, X), complex64
            What they show there.
        light : Tensor, shape (1, Y, X)
            Theirs, photons per pixel.

        Returns
        -------
        object : Tensor, shape (1, Y, X), complex64
            As it is now.
        share : Tensor, shape (1, Y, X)
            That the further frames have in it.
        """
        known, before = self.object[box.pixels], self.illumination[box.pixels]
        share = torch.where(light > 0, light / (light + before), 0.0)
        turned = obj * phase_towards(known, obj, (before > 0) & (light > 0))
        self.object[box.pixels] = torch.lerp(known, turned, share.to(known.dtype))
        self.illumination[box.pixels] += light
        return self.object[box.pixels], share

    def stitch_errors(self, box: Box, found: UncertaintyEstimate, share: Tensor) -> Tensor:
        """Take over predicted errors where further frames have most of the light.

        Parameters
        ----------
        box : Box
            A part of the grid.
        found : UncertaintyEstimate
            Predicted errors there.
        share : Tensor, shape (1, Y, X)
            Of the light.

        Returns
        -------
        Tensor, shape (Y, X)
            Those of the phase as they are now, radians.
        """
        most = share[0] > 0.5
        for name in ("std_amplitude", "std_phase_rad"):
            kept = getattr(self, name)[box.pixels]
            kept.copy_(torch.where(most, getattr(found, name), kept))
        return self.std_phase_rad[box.pixels]

    def clear(self, region: Region, but: Region | None = None) -> None:
        """Forget a region that its last frames have left; what is of earlier epochs stays.

        Parameters
        ----------
        region : Region
            Its core is forgotten.
        but : Region, optional
            A part of it, whose core stays.
        """
        if but is not None:
            for box in region.core.around(but.core):
                if min(box.shape) > 0:
                    self.clear(Region(box, box, ()))
            return
        nothing = torch.zeros_like(self.illumination[region.core.pixels])
        self._put_light(region, nothing)
        self._put(region, "object", (nothing + 1).to(self.object.dtype))
        self._put(region, "std_amplitude", nothing[0] + 1)
        self._put(region, "std_phase_rad", nothing[0] + UNKNOWN_STD_RAD)

    def checkpoint(self) -> dict[str, npt.NDArray[Any]]:
        """Give copies of all."""
        return {name: getattr(self, name).cpu().numpy().copy() for name in self._kept}

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take what `checkpoint` of a map of the same grid gave."""
        for name, values in state.items():
            setattr(self, name, torch.from_numpy(np.array(values)).to(self.object.device))

    @property
    def _kept(self) -> tuple[str, ...]:
        return KEPT if self.earlier is None else (*KEPT, "earlier")

    def _put_light(self, region: Region, light: Tensor) -> None:
        """Note the light of the newest frames on a region's core, (1, y, x)."""
        core = region.core.pixels
        self.illumination[core] = light if self.earlier is None else light + self.earlier[core]

    def _put(self, region: Region, name: str, values: Tensor) -> None:
        """Write a region's core, (..., y, x), where the frames of earlier epochs have not thrown more light."""
        core, kept = region.core.pixels, getattr(self, name)
        if self.earlier is not None:
            is_newest = (self.illumination[core] >= 2 * self.earlier[core])[0]
            values = torch.where(is_newest, values, kept[core])
        kept[core] = values


def share_of_new(region: Region, width_px: int) -> npt.NDArray[np.float32]:
    """Weigh what is found in a region's core against what was known there.

    Parameters
    ----------
    region : Region
        Which.
    width_px : int
        Pixels over which the weight rises from 0 to 1 from each side behind which the grid goes on.

    Returns
    -------
    ndarray, shape (Y, X)
        On the core.
    """
    core, outer = region.core, region.outer
    away = []
    for side, low, high, outer_low, outer_high in zip(
        core.shape, core.low, core.high, outer.low, outer.high, strict=True
    ):
        middle = np.arange(side) + 0.5
        from_low = middle if low > outer_low else np.inf
        from_high = side - middle if high < outer_high else np.inf
        away.append(np.minimum(from_low, from_high) * np.ones(side))
    distance = np.minimum(away[0][:, None], away[1][None, :])
    return np.clip(distance / width_px, 0, 1).astype(np.float32)


def phase_towards(wanted: Tensor, obj: Tensor, where: Tensor) -> Tensor:
    """Find the phase factor that brings an object closest to another.

    Parameters
    ----------
    wanted, obj : Tensor, shape (1, Y, X), complex
        What to come close to, and the object to be turned.
    where : Tensor, shape (1, Y, X), bool
        Pixels that count.

    Returns
    -------
    Tensor, shape (), complex
        1 where no pixel counts.
    """
    # Neither picked out nor asked about: a GPU would be waited for.
    overlap = torch.where(where, obj.conj() * wanted, 0).sum()
    return torch.where(where.any(), torch.sgn(overlap), 1)
