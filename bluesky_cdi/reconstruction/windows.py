"""Windows of a scan: neighbouring frames on an object of their own, whose cost doesn't grow with the scan."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bluesky_cdi.physics.forward import Diffraction

# Every tenth frame is held out; of fewer frames than ten none can be spared.
HELD_OUT_EVERY = 10


@dataclass(frozen=True, eq=False)
class HeldOutWindow:
    """Frames that a network is given, and held-out frames in their midst, on one object."""

    given: Diffraction
    judged: Diffraction


class ScanWindows:
    """The frames of one scan, split into those to train with and those held out.

    The split goes by a frame's number in `data`: frames that are added behind the others change nothing of it.

    Parameters
    ----------
    data : Diffraction
        One scene.

    Attributes
    ----------
    training, held_out : Tensor, shape (n,), int64
        Numbers of the frames, on the CPU; with fewer than ten frames, both are all of them.
    independent : bool
        Whether they differ.
    """

    def __init__(self, data: Diffraction) -> None:
        self._data = data
        self._place = (data.corner + data.shift_px).cpu()  # (n, 2)
        index = torch.arange(len(data))
        spared = index % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
        self.independent = bool(spared.any())
        self.training = index[~spared] if self.independent else index
        self.held_out = index[spared] if self.independent else index

    def around(self, frame: int, count: int) -> Diffraction:
        """Give training frames on an object of their own, the nearest first.

        Parameters
        ----------
        frame : int
            Number of the frame that they lie around.
        count : int
            Most frames.
        """
        return self._on_own_grid(self._nearest(frame, self.training, count))

    def random(self, count: int, generator: torch.Generator) -> Diffraction:
        """Give the training frames `around` one of them that is taken at random.

        Parameters
        ----------
        count : int
            Most frames.
        generator : torch.Generator
            Takes the frame.
        """
        picked = int(torch.randint(len(self.training), (1,), generator=generator))
        return self.around(int(self.training[picked]), count)

    def judging(self, windows: int, count: int, judged: int) -> list[HeldOutWindow]:
        """Make at most `windows` windows, spread over the held-out frames; so are the first of them.

        Parameters
        ----------
        windows : int
            Most windows.
        count : int
            Most training frames of a window.
        judged : int
            Most held-out frames of a window.
        """
        chosen = torch.linspace(0, len(self.held_out) - 1, min(windows, len(self.held_out))).round().long()
        mixed = chosen[torch.randperm(len(chosen), generator=torch.Generator().manual_seed(0))]
        return [self._judging(int(frame), count, judged) for frame in self.held_out[mixed]]

    def _judging(self, frame: int, count: int, judged: int) -> HeldOutWindow:
        given = self._nearest(frame, self.training, count)
        asked = self._nearest(frame, self.held_out, judged)
        both = self._on_own_grid(torch.cat([given, asked]))
        return HeldOutWindow(both[: len(given)], both[len(given) :])

    def _nearest(self, frame: int, among: Tensor, count: int) -> Tensor:
        distance = (self._place[among] - self._place[frame]).square().sum(dim=1)
        return among[distance.topk(min(count, len(among)), largest=False).indices]

    def _on_own_grid(self, frames: Tensor) -> Diffraction:
        part = self._data[frames.to(self._data.counts.device)]
        corner = part.corner - part.corner.amin(dim=0)
        rows, columns = (corner.amax(dim=0) + part.counts.shape[-1]).tolist()
        return replace(part, corner=corner, object_shape=(1, int(rows), int(columns)))
