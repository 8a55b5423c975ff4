"""The one probe of all regions: its photons, its refinement, and when it has become another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bluesky_cdi.engines.ptychography import Solution
from bluesky_cdi.engines.steps import averaged_step, orthogonalise
from bluesky_cdi.io.frame_summaries import DARK_SHARE
from bluesky_cdi.physics.forward import intensity
from bluesky_cdi.physics.probes import scaled_to
from bluesky_cdi.protocols import ComplexArray

# Predictions are outdated when the probe differs by this share (root mean square) from the one that they rest on.
PROBE_CHANGE = 0.1
# Share of a frame's light that may fall on tiles which are not reconstructed for its sake.
STRAY = 0.01


class SharedProbe:
    """Hold the probe that all regions share.

    Parameters
    ----------
    modes : ndarray, shape (M, N, N), complex
        First guess.
    device : torch.device

    Attributes
    ----------
    modes : Tensor, shape (1, M, N, N), complex64
    is_scaled : bool
        Whether frames with light have set its photons.
    """

    def __init__(self, modes: ComplexArray, device: torch.device) -> None:
        self.modes = torch.from_numpy(np.asarray(modes, dtype=np.complex64)).to(device)[None]
        # What the regions' predictions rest on.
        self._published = self.modes
        self.is_scaled = False

    @property
    def photons(self) -> float:
        """Photons of a frame through vacuum."""
        return float(intensity(self.modes).sum())

    def scale(self, photons: float) -> None:
        """Set the photons of a frame; dark frames say nothing of the beam, the first with light will."""
        self.publish(scaled_to(self.modes, max(photons, 1.0)))
        self.is_scaled = photons > 0

    def follow_light(self, photons: float, *, found_dark: bool) -> bool:
        """Set the photons of a frame, unless frames with light have set them.

        Parameters
        ----------
        photons : float
            Mean of the frames with light.
        found_dark : bool
            Whether frames are now known as dark: those that set the photons may have been.

        Returns
        -------
        bool
            Whether they were, which only frames that came later tell: what was predicted with them is outdated.
        """
        were_dark = self.is_scaled and found_dark and self.photons < DARK_SHARE * photons
        if were_dark or not self.is_scaled:
            self.scale(photons)
        return were_dark

    def follow_flux(self, before: float, after: float) -> None:
        """Scale to another mean flux of the frames, so that no frame that is known gets other light than it had.

        Parameters
        ----------
        before, after : float
            Mean incident flux of the frames.
        """
        if self.is_scaled and before > 0 and after > 0 and after != before:
            factor = (after / before) ** 0.5
            self.modes, self._published = self.modes * factor, self._published * factor

    def shared(self, found: Solution, share: float) -> Solution:
        """Mix a region's refined probe into that of all regions.

        A brighter probe with a fainter object explains frames as well: the probe's photons stay.

        Parameters
        ----------
        found : Solution
            Of a region.
        share : float
            How many of all frames the region's are.

        Returns
        -------
        Solution
            With the mixed probe, and the object that goes with it.
        """
        if torch.equal(found.probe, self.modes):
            return found
        phase = torch.sgn((found.probe.conj() * self.modes).sum(dim=(-2, -1), keepdim=True))
        mixed = torch.lerp(self.modes, found.probe * phase, share)
        photons, own, shared = (intensity(probe).sum() for probe in (self.modes, found.probe, mixed))
        probe = orthogonalise(mixed * (photons / shared).sqrt())
        obj = found.object * (own / photons).sqrt()
        # The object went with another probe: one step of all frames brings it to this one.
        return replace(found, object=averaged_step(obj, probe, found.data), probe=probe)

    def publish(self, modes: Tensor) -> None:
        """Take modes that predictions will rest on from now on."""
        self.modes = self._published = modes

    def has_moved(self) -> bool:
        """Tell whether the probe has become another than predictions rest on; if so, they will rest on this one."""
        overlap = (self.modes.conj() * self._published).sum(dim=(-2, -1), keepdim=True)
        change = (self.modes * torch.sgn(overlap) - self._published).norm() / self._published.norm()
        if float(change) <= PROBE_CHANGE:
            return False
        self._published = self.modes
        return True

    def dark_border(self) -> int:
        """Count the pixels along each border of a frame that in all hold no more than `STRAY` of its light."""
        bright = intensity(self.modes)[0]
        size, device = bright.shape[-1], bright.device
        y, x = torch.meshgrid(torch.arange(size, device=device), torch.arange(size, device=device), indexing="ij")
        ring = torch.minimum(torch.minimum(y, size - 1 - y), torch.minimum(x, size - 1 - x))  # 0 along the border
        rings = torch.zeros((size + 1) // 2, device=device).index_add(0, ring.reshape(-1), bright.reshape(-1))
        return int((rings.cumsum(0) <= STRAY * bright.sum()).sum())

    def checkpoint(self) -> dict[str, npt.NDArray[Any]]:
        """Give copies of all."""
        return {
            "modes": self.modes[0].cpu().numpy().copy(),
            "published": self._published[0].cpu().numpy().copy(),
            "is_scaled": np.array(self.is_scaled),
        }

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take what `checkpoint` gave."""
        device = self.modes.device
        self.modes, self._published = (
            torch.from_numpy(np.array(state[name])).to(device)[None] for name in ("modes", "published")
        )
        self.is_scaled = bool(state["is_scaled"])
