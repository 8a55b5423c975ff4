"""The latents of a final estimate as they are stored."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bluesky_cdi.errors import WeightsError
from bluesky_cdi.latents.frames import Latents, latents_of
from bluesky_cdi.latents.painting import paint_frames
from bluesky_cdi.latents.projection import COLOURS, COMPONENTS
from bluesky_cdi.protocols import Estimate, FloatArray

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class LatentColumns:
    """Arrays of the frames by name, the map, and whose projection it was.

    Attributes
    ----------
    of_frames : Mapping
        ``latents`` (n, k), ``colour`` (n, 3), ``cluster`` (n,), ``novelty_p`` (n,).
    map : ndarray, shape (Y, X, 3), float32
        The colours where the light of the frames fell; NaN elsewhere.
    projection_sha256 : str or None
        File of the weights' projection; None: it was that of the run.
    """

    of_frames: Mapping[str, npt.NDArray[Any]]
    map: FloatArray
    projection_sha256: str | None


def latent_columns(estimate: Estimate) -> LatentColumns:
    """Compute the latents of a final estimate for its file; all is missing where there are none.

    What goes wrong is logged, and does not keep a result from being written.

    Parameters
    ----------
    estimate : Estimate
        The final one, with the embeddings of its frames.
    """
    if estimate.embedding.size:
        try:
            return _columns_of(latents_of(estimate), estimate)
        except WeightsError as err:
            logger.warning("the result is written without latents: %s", err)
        except Exception as err:
            logger.exception("the result is written without latents: %s", err)
    n, k = len(estimate.embedding), min(COMPONENTS, estimate.embedding.shape[1])
    missing = {"latents": np.full((n, k), np.nan), "colour": np.full((n, COLOURS), np.nan)}
    columns = {**missing, "cluster": np.full(n, -1), "novelty_p": np.full(n, np.nan)}
    return LatentColumns(columns, np.full((*estimate.object.shape, COLOURS), np.nan, np.float32), None)


def _columns_of(found: Latents, estimate: Estimate) -> LatentColumns:
    columns = {
        "latents": found.values, "colour": found.colours, "cluster": found.clusters, "novelty_p": found.p_values,
    }  # fmt: skip
    return LatentColumns(columns, paint_frames(estimate, found.colours), found.projection.sha256)
