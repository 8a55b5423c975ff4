"""Frames that others are compared with, and how often one of the same kinds is as unlike them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bluesky_cdi.errors import FrameError
from bluesky_cdi.protocols import FloatArray

# How far a frame lies from what is known is its distance to so manieth nearest known frame: one that
# happens to lie near says little.
NEIGHBOUR = 5
# Quantiles of usual distances that are kept, and known frames.
QUANTILES, KNOWN = 1000, 2000
# Of fewer runs it is not known how much runs differ.
FEWEST_RUNS = 3


@dataclass(frozen=True, eq=False)
class KnownFrames:
    """Frames of known kinds.

    Attributes
    ----------
    latents : ndarray, shape (m, k)
        Of the known frames.
    usual : ndarray, shape (q,)
        Distances of other frames of the same kinds to them, ascending: quantiles in equal steps.
    """

    latents: FloatArray
    usual: FloatArray

    def p_values(self, latents: FloatArray) -> FloatArray:
        """Compute how often a frame of a known kind lies as far from the known ones as each of these, or farther.

        Parameters
        ----------
        latents : ndarray, shape (n, k)
            Of frames that are not among the known ones.

        Returns
        -------
        ndarray, shape (n,)
            Uniform in (0, 1] for frames of known kinds; the smallest is that of a table of so many distances.
        """
        farther = len(self.usual) - np.searchsorted(self.usual, distances_to(self.latents, latents), side="left")
        return np.asarray((1 + farther) / (1 + len(self.usual)))


def known_of_scenes(known: FloatArray, others: FloatArray) -> KnownFrames:
    """Make known frames of the latents (n, k) of many scenes, and others (m, k) that tell how far such frames lie."""
    kept = known[:: -(-len(known) // KNOWN)]
    return KnownFrames(kept, _quantiles(distances_to(kept, others)))


def known_of_runs(runs: Sequence[FloatArray]) -> KnownFrames:
    """Make known frames of past runs; how far such frames lie is what each run has from all others.

    Parameters
    ----------
    runs : sequence of ndarray, shape (n, k)
        Latents of each run, in the projection of the weights.

    Raises
    ------
    FrameError
        If there are fewer than 3 runs.
    """
    if len(runs) < FEWEST_RUNS:
        raise FrameError(
            f"how much runs differ is learned from {FEWEST_RUNS} or more of them; {len(runs)} came. Measure more of "
            "the same kind, or compare with the simulated scenes of the projection."
        )
    rest = [np.concatenate([other for other in runs if other is not run]) for run in runs]
    found = np.concatenate([distances_to(others, run) for others, run in zip(rest, runs, strict=True)])
    return KnownFrames(np.concatenate(runs), _quantiles(found))


def distances_to(known: FloatArray, latents: FloatArray) -> FloatArray:
    """Compute how far latents (n, k) lie from those of known frames (m, k), (n,)."""
    from scipy.spatial import KDTree

    if not len(latents):
        return np.zeros(0)
    nearest, _ = KDTree(known).query(latents, k=[NEIGHBOUR])
    return np.asarray(nearest[:, 0])


def _quantiles(distances: FloatArray) -> FloatArray:
    return np.asarray(np.quantile(distances, (np.arange(QUANTILES) + 0.5) / QUANTILES))
