"""A frame encoder with its decoders on disk: safetensors with the configuration inside and the record beside."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bluesky_cdi.errors import WeightsError
from bluesky_cdi.models.frame_decoders import MaskedFrameModel
from bluesky_cdi.models.frame_encoder import FrameEncoderConfig
from bluesky_cdi.models.weights import ENCODER, SHIPPED, save_tensors, verified

ARCHITECTURE = "frame encoder"
# What comes with the package.
SHIPPED_ENCODER = SHIPPED / f"frames{ENCODER}.safetensors"


@dataclass(frozen=True, eq=False)
class TrainedFrameModel:
    """A frame encoder with what is known of it.

    Attributes
    ----------
    model : MaskedFrameModel
        In evaluation mode.
    name : str
    sha256 : str
        Checksum of the weights file.
    record : Mapping
        The training record.
    """

    model: MaskedFrameModel
    name: str
    sha256: str
    record: Mapping[str, Any]


def is_encoder(path: Path) -> bool:
    """Tell by its name whether a weights file holds a frame encoder."""
    return path.stem.endswith(ENCODER)


def save_frame_model(model: MaskedFrameModel, path: Path, record: Mapping[str, Any]) -> str:
    """Write weights in half precision and their record; both appear whole or not at all.

    Parameters
    ----------
    model : MaskedFrameModel
        Encoder and decoders.
    path : Path
        Ends in ``.safetensors``; the record goes beside it with ``.json``.
    record : Mapping
        What made them, as plain JSON values.

    Returns
    -------
    str
        SHA-256 of the weights file.
    """
    return save_tensors(model.state_dict(), {"architecture": ARCHITECTURE, **model.config.as_dict()}, path, record)


def load_frame_model(path: Path, device: torch.device | str = "cpu") -> TrainedFrameModel:
    """Load a frame encoder with its decoders.

    Parameters
    ----------
    path : Path
        The weights file.
    device : torch.device or str
        Where to compute.

    Raises
    ------
    WeightsError
        If the file is absent, damaged, or holds something else.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise WeightsError(f"no frame encoder at {path}. Train one: bluesky-cdi pretrain {path}")
    digest, record = verified(path)
    try:
        with safe_open(str(path), "pt") as file:
            about = json.loads((file.metadata() or {})["config"])
            if about.pop("architecture", None) != ARCHITECTURE:
                raise ValueError("they are weights of something else")
            state = {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118 (not a mapping)
        model = MaskedFrameModel(FrameEncoderConfig.from_dict(about))
        model.load_state_dict(state)
    except (SafetensorError, LookupError, TypeError, ValueError, RuntimeError) as err:
        raise WeightsError(f"{path} holds no frame encoder of this package: {err}") from err
    model.to(device).eval().requires_grad_(False)
    return TrainedFrameModel(model, path.stem, digest, record)
