"""All that one drawing of the live view shows, and how it is sent to who draws."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from bluesky_cdi.live_view.sight import Sight
from bluesky_cdi.protocols import Estimate, FloatArray

# What nobody draws of an estimate: it is not sent.
UNSEEN = ("std_amplitude", "embedding", "frame_uncertainty", "novelty")


_NOWHERE = np.zeros((0, 2))


@dataclass(frozen=True, eq=False)
class Scene:
    """A run at one moment.

    Attributes
    ----------
    sight : Sight or None
        What frames say by themselves; None for an estimate that is shown alone.
    estimate : Estimate or None
        The newest image; None before there is one.
    proposed_m : ndarray, shape (k, 2)
        Where the agent wants to measure next (y, x), metres.
    reason : str
        Why there.
    imaged_hz : float
        Frames that came into the image a second, lately; NaN where it isn't known.
    """

    sight: Sight | None = None
    estimate: Estimate | None = None
    proposed_m: FloatArray = field(default_factory=lambda: _NOWHERE)
    reason: str = ""
    imaged_hz: float = math.nan


def pack_scene(scene: Scene, before: Scene) -> dict[str, Any]:
    """Give what `unpack_scene` makes a scene from, without the parts that the one before has.

    Parameters
    ----------
    scene : Scene
        What is to be drawn.
    before : Scene
        What was sent last.
    """
    fields = dict(vars(scene))
    fields["sight"] = "same" if scene.sight is before.sight else scene.sight and vars(scene.sight)
    fields["estimate"] = "same" if scene.estimate is before.estimate else scene.estimate and _seen(scene.estimate)
    return fields


def unpack_scene(fields: Mapping[str, Any], before: Scene) -> Scene:
    """Make a scene of what came, and of the one before."""
    made: dict[str, Any] = dict(fields)
    for name, kind in (("sight", Sight), ("estimate", Estimate)):
        if made[name] == "same":
            made[name] = getattr(before, name)
        elif made[name] is not None:
            made[name] = kind(**made[name])
    if made["estimate"] is not None:
        made["estimate"] = replace(made["estimate"], origin_m=tuple(made["estimate"].origin_m))
    return Scene(**made)


def _seen(estimate: Estimate) -> dict[str, Any]:
    return {**vars(estimate), **dict.fromkeys(UNSEEN, np.zeros(0, np.float32))}
