"""Frames of past runs that show what one frame shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from bluesky_cdi.catalog.browse import find_result
from bluesky_cdi.catalog.connect import Catalog
from bluesky_cdi.catalog.listing import results_of
from bluesky_cdi.catalog.schema import PER_FRAME
from bluesky_cdi.errors import CatalogError, WeightsError
from bluesky_cdi.latents import LatentProjection, find_projection
from bluesky_cdi.latents.store import made_by
from bluesky_cdi.protocols import FloatArray

# Frames of a run from which the typical distance of two is taken.
ENOUGH_FRAMES = 500


@dataclass(frozen=True)
class LikeFrame:
    """A frame that is like another.

    Attributes
    ----------
    uid : str
        Its derived run.
    scan_id : int or None
        Number of the raw run.
    seq_num : int
        Its number there.
    y_m, x_m : float
        Where it was measured, metres.
    distance : float
        Of the two in the fixed projection.
    """

    uid: str
    scan_id: int | None
    seq_num: int
    y_m: float
    x_m: float
    distance: float


@dataclass(frozen=True)
class LikeFrames:
    """The frames that are most like one frame.

    Attributes
    ----------
    frames : tuple of LikeFrame
        The nearest first; the frame itself is not among them.
    typical : float
        Median distance of two frames of its run.
    searched : int
        Derived runs that were searched.
    left_out : Mapping
        How many were not, by the reason.
    """

    frames: tuple[LikeFrame, ...]
    typical: float
    searched: int
    left_out: Mapping[str, int]


def find_like(
    catalog: Catalog, which: str | int, seq_num: int, *, everywhere: bool = True, number: int = 10
) -> LikeFrames:
    """Find the frames that are most like a frame of a result.

    Distances are those of latents in the projection of the weights, so only results of the same weights count.

    Parameters
    ----------
    catalog : Catalog
        Where to look.
    which : str or int
        The result, as `load_result` takes it.
    seq_num : int
        Number of the frame.
    everywhere : bool
        Search all results of the catalog; otherwise this one alone.
    number : int
        How many frames to give.

    Raises
    ------
    CatalogError
        If there is no such result or frame.
    WeightsError
        If the result's weights have no projection.
    """
    with catalog.reaching():
        own = find_result(catalog, which)
        projection = find_projection(own.start["source"])
        if projection is None:
            raise WeightsError(
                f"the result {own.start['uid']} was made {_made_by(own.start['source'])}, for which there is no "
                "projection: frames are compared in that of the weights. Reconstruct it again "
                "(`bluesky-cdi reconstruct --run`), or make one for your own weights: bluesky-cdi fit-latents."
            )
        mine = _frames_of(own, projection)
        if mine is None or seq_num not in mine.seq_num:
            held = "none at all" if mine is None else f"{mine.seq_num.min()} to {mine.seq_num.max()}"
            raise CatalogError(f"the result {own.start['uid']} holds no frame {seq_num}; it holds {held}")
        wanted = mine.latents[mine.seq_num == seq_num][0]
        found, searched, left_out = [], 0, {"other weights": 0, "no embeddings": 0}
        for run in results_of(catalog).values() if everywhere else [own]:
            if made_by(run.start["source"]) != made_by(own.start["source"]):
                left_out["other weights"] += 1
                continue
            frames = mine if run.start["uid"] == own.start["uid"] else _frames_of(run, projection)
            if frames is None:
                left_out["no embeddings"] += 1
                continue
            searched += 1
            found += frames.nearest(wanted, number + 1)
    others = [f for f in found if (f.uid, f.seq_num) != (own.start["uid"], seq_num)]
    nearest = tuple(sorted(others, key=lambda frame: frame.distance)[:number])
    return LikeFrames(nearest, _typical(mine.latents), searched, {k: n for k, n in left_out.items() if n})


@dataclass(frozen=True, eq=False)
class _Frames:
    uid: str
    scan_id: int | None
    seq_num: FloatArray
    positions_m: FloatArray
    latents: FloatArray

    def nearest(self, wanted: FloatArray, number: int) -> list[LikeFrame]:
        distance = np.linalg.norm(self.latents - wanted, axis=1)
        return [
            LikeFrame(
                uid=self.uid,
                scan_id=self.scan_id,
                seq_num=int(self.seq_num[i]),
                y_m=float(self.positions_m[i, 0]),
                x_m=float(self.positions_m[i, 1]),
                distance=float(distance[i]),
            )
            for i in np.argsort(distance, kind="stable")[:number]
        ]


def _frames_of(run: Any, projection: LatentProjection) -> _Frames | None:
    """Read the frames of a derived run; None if it holds none."""
    if PER_FRAME not in run or not (run.metadata.get("stop") or {}).get("n_frames"):
        return None
    columns = dict(run[PER_FRAME].base.items())
    seq_num, y_m, x_m, embedding = (
        np.asarray(columns[name].read()) for name in ("frame_seq_num", "y_m", "x_m", "embedding")
    )
    latents = projection.latents(embedding)
    return _Frames(run.start["uid"], run.start.get("scan_id"), seq_num, np.stack([y_m, x_m], axis=1), latents)


def _made_by(source: Mapping[str, Any]) -> str:
    if (encoder := source.get("encoder")) is not None:
        return f"with the frame encoder {encoder}"
    if source.get("weights_sha256") is None:
        return "without a network"
    kind = source.get("embedding") or "that of an earlier version"
    return f"with the weights {source.get('network')} and an embedding that is {kind!r}"


def _typical(latents: FloatArray) -> float:
    from scipy.spatial.distance import pdist

    some = latents if len(latents) <= ENOUGH_FRAMES else np.random.default_rng(0).permutation(latents)[:ENOUGH_FRAMES]
    return float(np.median(pdist(some))) if len(some) > 1 else float("nan")
