"""Heads on disk: safetensors with the configuration inside and the training record beside, as networks are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from bluesky_cdi.errors import WeightsError
from bluesky_cdi.models.heads import ErrorHeads, HeadsConfig
from bluesky_cdi.models.weights import HEADS, Trained, save_tensors, verified

ARCHITECTURE = "heads"


def save_heads(heads: ErrorHeads, network_sha256: str, path: Path, record: Mapping[str, Any]) -> str:
    """Write heads in half precision and their record; both appear whole or not at all.

    Parameters
    ----------
    heads : ErrorHeads
        The heads.
    network_sha256 : str
        Checksum of the network's weights that they belong to.
    path : Path
        Ends in ``.safetensors``; the record goes beside it with ``.json``.
    record : Mapping
        What made them, as plain JSON values.

    Returns
    -------
    str
        SHA-256 of the file.
    """
    about = {"architecture": ARCHITECTURE, "network_sha256": network_sha256, **heads.config.as_dict()}
    return save_tensors(heads.state_dict(), about, path, record)


def load_heads(trained: Trained, path: Path | None = None, device: torch.device | str = "cpu") -> ErrorHeads:
    """Load the heads of a network.

    Parameters
    ----------
    trained : Trained
        The network.
    path : Path, optional
        Their file; by default that beside the network's weights, ``NAME.heads.safetensors``.
    device : torch.device or str
        Where to compute.

    Raises
    ------
    WeightsError
        If the file is absent, damaged, holds no heads, or those of another network.
    """
    from safetensors import SafetensorError, safe_open

    path = path or trained.path.with_name(f"{trained.path.stem}{HEADS}.safetensors")
    if not path.is_file():
        raise WeightsError(
            f"no heads at {path}, which predict the errors of {trained.name}. Train them: bluesky-cdi train-heads "
            f"{trained.name}{HEADS}.safetensors --weights {trained.name}, and name the file in "
            "reconstructor.uncertainty_weights"
        )
    verified(path)
    try:
        with safe_open(str(path), "pt") as file:
            about = json.loads((file.metadata() or {})["config"])
            if about.pop("architecture", None) != ARCHITECTURE:
                raise ValueError("they are weights of a network")
            belongs_to = about.pop("network_sha256")
            state = {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118 (not a mapping)
        heads = ErrorHeads(HeadsConfig.from_dict(about))
        heads.load_state_dict(state)
    except (SafetensorError, LookupError, TypeError, ValueError, RuntimeError) as err:
        raise WeightsError(f"{path} holds no heads of this package's network: {err}") from err
    if belongs_to != trained.sha256:
        raise WeightsError(
            f"{path} holds heads of the network with SHA-256 {belongs_to}, not of {trained.name} ({trained.sha256}): "
            "train some for it with bluesky-cdi train-heads"
        )
    heads.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stubs
    return heads.eval().requires_grad_(False)
