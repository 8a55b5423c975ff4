"""Whether light comes, and as much as is said."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from bluesky_cdi.reconstruction.causes.finding import Finding
from bluesky_cdi.reconstruction.frames import MeasuredFrames
from bluesky_cdi.reconstruction.tiles import IndexArray

# By which share a frame's flux must differ from what is stated, and how many of the newest frames must for a beam that
# is not steady: single ones are remarks (`other_flux`).
OTHER, UNSTEADY = 0.2, 3
# Numbers that are named.
NAMED = 8


def lost_beam(frames: MeasuredFrames, rows: IndexArray) -> Iterator[Finding]:
    """Find frames without light.

    Parameters
    ----------
    frames : MeasuredFrames
        Those of the run by now.
    rows : ndarray, shape (n,)
        Rows of the newest ones.
    """
    dark = np.sort(frames.table.seq_nums[rows[np.isin(rows, frames.light.dark)]])
    if len(dark):
        shown = ", ".join(map(str, dark[:NAMED])) + ", ..." * (len(dark) > NAMED)
        yield Finding(
            "beam",
            f"{len(dark)} of the newest {len(rows)} frames hold no light ({shown}) and are left out. Was the shutter "
            "closed, or the beam lost?",
        )


def unsteady_flux(frames: MeasuredFrames, rows: IndexArray) -> Iterator[Finding]:
    """Find a flux that is another from frame to frame, and of which no monitor tells.

    Parameters
    ----------
    frames : MeasuredFrames
        Those of the run by now.
    rows : ndarray, shape (n,)
        Rows of the newest ones with light.
    """
    factor, photons = frames.table.column("flux_factor")[rows], frames.light.photons()[rows]
    others = (np.abs(factor - 1) > OTHER) & (factor > 0)
    if others.sum() >= UNSTEADY:
        # The deviance of each frame's photons, were the flux the stated one.
        found, counted = factor[others], photons[others]
        gain = float((2 * counted * (np.log(found) - 1 + 1 / found)).sum())
        yield Finding(
            "flux",
            f"{others.sum()} of the newest {len(rows)} frames were under another flux than is stated, "
            f"{factor.min():.2g} to {factor.max():.2g} times. Is the beam topped up, or a shutter late? Have a monitor "
            "tell (monitor_key)",
            gain,
        )
