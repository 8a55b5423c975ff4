"""Projections on disk: beside the weights whose embeddings they project, and found by their checksum.

``NAME.latents.npz`` holds the arrays, ``NAME.latents.json`` the record of what made them, with the SHA-256 of both the
weights and the arrays.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bluesky_cdi.errors import WeightsError
from bluesky_cdi.latents.known import KnownFrames
from bluesky_cdi.latents.projection import LatentProjection, projection_of_run
from bluesky_cdi.protocols import Estimate
from bluesky_cdi.whole_file import write_whole

SHIPPED = Path(__file__).parents[1] / "models" / "weights"
ARRAYS = ("mean", "axes", "knots", "known", "usual")
# What an embedding is made of, in the source of an estimate; results of before don't say it.
CRITIC, RADIAL_PROFILE, CLASS_TOKENS = "critic, mean phase removed", "radial profile", "class tokens"


def path_beside(weights: Path) -> Path:
    """Name the file of the projection of weights."""
    return weights.with_suffix(".latents.npz")


def save_projection(path: Path, projection: LatentProjection, record: Mapping[str, Any]) -> str:
    """Write a projection of weights and its record.

    Parameters
    ----------
    path : Path
        Ends in ``.latents.npz``; the record goes beside it with ``.json``.
    projection : LatentProjection
        One of weights.
    record : Mapping
        What made it, as plain JSON values.

    Returns
    -------
    str
        SHA-256 of the file.

    Raises
    ------
    WeightsError
        If it is the projection of one run.
    """
    if projection.known is None:
        raise WeightsError("the projection of one run is of no use for others: it is not written")
    arrays = {name: getattr(projection, name).astype("<f4") for name in ("mean", "axes", "knots")}
    # Known frames are compared to a few digits.
    known = {"known": projection.known.latents.astype("<f2"), "usual": projection.known.usual.astype("<f4")}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays, **known)
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()
    about = {**record, "weights_sha256": projection.weights_sha256, "sha256": digest}
    write_whole(path, buffer.getvalue())
    write_whole(path.with_suffix(".json"), json.dumps(about, indent=1).encode())
    return digest


def load_projection(path: Path) -> LatentProjection:
    """Read a projection of weights.

    Parameters
    ----------
    path : Path
        The file, ending in ``.latents.npz``.

    Raises
    ------
    WeightsError
        If it is absent or damaged, or does not fit its record.
    """
    record = _record_of(path)
    try:
        blob = path.read_bytes()
        digest = hashlib.sha256(blob).hexdigest()
        if digest != record.get("sha256"):
            raise ValueError(f"its SHA-256 is {digest}, its record says {record.get('sha256')}")
        with np.load(io.BytesIO(blob), allow_pickle=False) as file:
            arrays = {name: np.asarray(file[name], np.float64) for name in ARRAYS}
    except (OSError, ValueError, KeyError) as err:
        raise WeightsError(
            f"the projection {path} is missing or damaged: {err}. Install it again, or make it: "
            "bluesky-cdi fit-latents."
        ) from err
    mean, axes, knots, known, usual = (arrays[name] for name in ARRAYS)
    return LatentProjection(mean, axes, knots, KnownFrames(known, usual), record["weights_sha256"], digest, record)


def find_projection(source: Mapping[str, Any]) -> LatentProjection | None:
    """Find the projection of the weights that made embeddings.

    Parameters
    ----------
    source : Mapping
        Of the estimate (`Estimate.source`): checksums of weights, and what its embeddings are.

    Returns
    -------
    LatentProjection or None
        None where there are no weights, these have no projection, or the embeddings are of another kind.

    Raises
    ------
    WeightsError
        If the projection is damaged.
    """
    wanted, kind = made_by(source)
    if wanted is None or kind not in (CRITIC, CLASS_TOKENS):
        return None
    stated = str(source.get("encoder") if kind == CLASS_TOKENS else source.get("settings", {}).get("weights"))
    beside = [path_beside(Path(stated))] if stated.endswith(".safetensors") else []
    for path in [*sorted(SHIPPED.glob("*.latents.npz")), *(path for path in beside if path.is_file())]:
        if _record_of(path).get("weights_sha256") == wanted:
            return load_projection(path)
    return None


def made_by(source: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """Give what embeddings are of: the checksum of weights, if any, and what was taken of them.

    Parameters
    ----------
    source : Mapping
        Of the estimate.
    """
    kind = source.get("embedding")
    return source.get("encoder_sha256" if kind == CLASS_TOKENS else "weights_sha256"), kind


def projection_for(estimate: Estimate) -> LatentProjection:
    """Give the projection of an estimate: that of its weights, or its own where they have none.

    Parameters
    ----------
    estimate : Estimate
        Whose embeddings are to be projected.
    """
    return find_projection(estimate.source) or projection_of_run(estimate.embedding)


def _record_of(path: Path) -> Mapping[str, Any]:
    beside = path.with_suffix(".json")
    try:
        record = json.loads(beside.read_text(encoding="utf-8"))
        if not isinstance(record, dict):
            raise ValueError(f"a mapping is expected, a {type(record).__name__} came")
    except (OSError, ValueError) as err:
        raise WeightsError(
            f"the record {beside} is missing or damaged: {err}. A projection and its record travel together."
        ) from err
    return record
