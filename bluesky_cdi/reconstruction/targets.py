"""What a scan wants to reach, and when to look at halves of its frames for that."""

from __future__ import annotations

from dataclasses import dataclass

# A look at halves costs about a pass over the frames: there is one whenever they have become a tenth more.
LEAST_FRAMES, LEAST_NEW, GROWTH = 16, 8, 0.1


@dataclass(frozen=True)
class Targets:
    """At what a scan stops.

    Parameters
    ----------
    resolution_m : float
        Resolution that two halves of the frames agree on, full period, metres; 0: none.
    std_rad : float
        Median predicted phase error of the frames, radians; 0: none.
    """

    resolution_m: float = 0.0
    std_rad: float = 0.0


def are_enough(n_frames: int, looked_at: int) -> bool:
    """Tell whether so many frames are worth a look at their halves.

    Parameters
    ----------
    n_frames : int
        Frames that there are.
    looked_at : int
        How many there were at the last look; 0: there was none. Where there are fewer now, the beam has changed: it
        was a look at others.
    """
    looked_at = looked_at if looked_at <= n_frames else 0
    return n_frames >= LEAST_FRAMES and n_frames - looked_at >= max(LEAST_NEW, GROWTH * looked_at)
