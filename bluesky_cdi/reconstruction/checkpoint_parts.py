"""The parts of a reconstruction that a checkpoint holds."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy.typing as npt

from bluesky_cdi.protocols import Frame
from bluesky_cdi.reconstruction.checkpoint import restorable
from bluesky_cdi.reconstruction.frame_metrics import FrameMetrics
from bluesky_cdi.reconstruction.frames import MeasuredFrames
from bluesky_cdi.reconstruction.region_work import RegionWork
from bluesky_cdi.reconstruction.shared_probe import SharedProbe
from bluesky_cdi.reconstruction.tiled_object import TiledObject

logger = logging.getLogger(__name__)

State = Mapping[str, npt.NDArray[Any]]


class Part(Protocol):
    """Something that a checkpoint holds whole, whatever the frames."""

    def checkpoint(self) -> State:
        """Give it as arrays."""

    def restore(self, state: State, /) -> None:
        """Go on from arrays; from none of them where an older checkpoint lacks the part."""


class CheckpointParts:
    """Gives the parts of a reconstruction as arrays named ``part/name``, and restores them.

    Parameters
    ----------
    frames : MeasuredFrames
    metrics : FrameMetrics
    probe : SharedProbe
    tiled : callable
        Gives the object with its scheduler: another one once the grid has grown.
    work : RegionWork
        With the judge.
    others : Mapping of Part
        Further parts, by their names.
    """

    def __init__(
        self,
        frames: MeasuredFrames,
        metrics: FrameMetrics,
        probe: SharedProbe,
        tiled: Callable[[], TiledObject],
        work: RegionWork,
        others: Mapping[str, Part],
    ) -> None:
        self._frames, self._metrics, self._probe = frames, metrics, probe
        self._tiled, self._work, self._others = tiled, work, others

    def checkpoint(self) -> dict[str, npt.NDArray[Any]]:
        """Give all parts; the counts of the frames are not among them."""
        parts = {
            "frames": self._frames.checkpoint(),
            "metrics": self._metrics.checkpoint(self._frames.table.rows),
            "judge": self._work.judge.checkpoint(),
            **{name: part.checkpoint() for name, part in self._whole.items()},
        }
        return {f"{part}/{name}": array for part, state in parts.items() for name, array in state.items()}

    def restore(self, state: State, frames: Sequence[Frame]) -> list[Frame]:
        """Go on from a checkpoint; a part that it lacks begins anew.

        Parameters
        ----------
        state : Mapping
            What `checkpoint` gave.
        frames : sequence of Frame
            The run's. Those that only the checkpoint knows are forgotten, and the whole object is worked on again.

        Returns
        -------
        list of Frame
            Those that the checkpoint does not know.

        Raises
        ------
        WorkerError
            If the checkpoint's grid or probe has another shape, or its grid other tiles, or there are frames already.
        """
        tiled = self._tiled()
        shapes = tiled.grid.shape, tuple(self._probe.modes.shape[1:])
        parts = restorable(state, *shapes, len(tiled.tiling), len(self._frames))
        is_here = self._frames.restore(parts["frames"], frames)
        self._metrics.restore({name: values[is_here] for name, values in parts["metrics"].items()})
        for name, part in self._whole.items():
            part.restore(parts.get(name, {}))
        self._work.judge = self._work.judge.restored(parts.get("judge", {}))
        if not is_here.all():
            logger.warning("%d frames of the checkpoint are not there any more: they are left out", (~is_here).sum())
            tiled.scheduler.touch(range(len(tiled.tiling)))
        known = set(parts["frames"]["seq_num"].tolist())
        return [frame for frame in frames if frame.seq_num not in known]

    @property
    def _whole(self) -> dict[str, Part]:
        tiled = self._tiled()
        return {"scheduler": tiled.scheduler, "object": tiled.map, "probe": self._probe, **self._others}
