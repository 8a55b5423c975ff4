"""A scene of a live view in words."""

from __future__ import annotations

import math
import textwrap

import numpy as np

from bluesky_cdi.evaluation.causes import causes_of
from bluesky_cdi.evaluation.pipeline import pipeline_said
from bluesky_cdi.evaluation.verdict import judge, verdict_said
from bluesky_cdi.live_view.scene import Scene
from bluesky_cdi.protocols import Estimate

WORDS_CHARACTERS = 46


def title_of(scene: Scene) -> str:
    """Name the run, and say how many frames are in its image."""
    name = "" if scene.sight is None else f"Scan {scene.sight.scan_id} {scene.sight.plan}".rstrip()
    if (estimate := scene.estimate) is None:
        return name
    number = f"image of {estimate.n_frames} frame{'' if estimate.n_frames == 1 else 's'}"
    return ", ".join(filter(None, [name, number, verdict_said(estimate.source).partition(":")[0]]))


def said(scene: Scene) -> list[str]:
    """Say how many frames are where, how fast they come, and what is to be thought of the image.

    Parameters
    ----------
    scene : Scene
        What is to be told.

    Returns
    -------
    list of str
        Short lines.
    """
    told: list[str] = []
    if (sight := scene.sight) is not None:
        rate = "" if sight.ended or math.isnan(sight.rate_hz) else f", {sight.rate_hz:.3g} a second"
        told.append(f"{sight.received} frame{'' if sight.received == 1 else 's'} received{rate}")
        told += [f"the scan has ended: {sight.ended}"] if sight.ended else []
    if len(scene.proposed_m):
        told.append(f"next: {len(scene.proposed_m)} positions ({scene.reason})")
    told += ["no image yet"] if scene.estimate is None else _of_image(scene.estimate, scene.imaged_hz)
    return [part for line in told for part in (textwrap.wrap(line, WORDS_CHARACTERS) or [""])]


def _of_image(estimate: Estimate, imaged_hz: float) -> list[str]:
    told = ["", pipeline_said(estimate.source) or f"{estimate.n_frames} frames in the image"]
    if not math.isnan(imaged_hz):
        told.append(f"{imaged_hz:.3g} frames a second into the image")
    if len(estimate.residual):
        told.append(f"deviance {float(np.mean(estimate.residual)):.3g} per pixel")
    if final := verdict_said(estimate.source):
        return [*told, "", f"Verdict: {final}"]
    return [*told, "", f"Verdict so far: {judge(estimate).says}", *map("Cause: {}".format, causes_of(estimate.source))]
