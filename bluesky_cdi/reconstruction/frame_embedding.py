"""What describes a frame, by name: what predicts errors, its radial profile, or a frame encoder's class token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from bluesky_cdi.config import LatentsConfig
from bluesky_cdi.latents.store import CLASS_TOKENS, RADIAL_PROFILE
from bluesky_cdi.models.frame_encoder import Encoded, FrameEncoder, frame_scenes, nearest
from bluesky_cdi.models.frame_weights import TrainedFrameModel, load_frame_model
from bluesky_cdi.models.weights import path_of
from bluesky_cdi.physics.forward import Diffraction
from bluesky_cdi.reconstruction.uncertainty.photon_noise import radial_profile


class FrameEmbedding(Protocol):
    """Describes frames by themselves, without the object that they show.

    Attributes
    ----------
    source : Mapping
        What results say of their embeddings: ``embedding``, and whose they are.
    """

    source: Mapping[str, str]

    def __call__(self, probe: Tensor, data: Diffraction, wanted: Tensor) -> Tensor:
        """Describe some frames.

        Parameters
        ----------
        probe : Tensor, shape (1, M, N, N), complex64
            The assumed modes.
        data : Diffraction
            All frames that are known there.
        wanted : Tensor, shape (m,), int64
            Which of them to describe.

        Returns
        -------
        Tensor, shape (m, d), float32
        """


class RadialProfile:
    """The radial profile of a frame's counts."""

    def __init__(self) -> None:
        self.source: Mapping[str, str] = {"embedding": RADIAL_PROFILE}

    def __call__(self, probe: Tensor, data: Diffraction, wanted: Tensor) -> Tensor:
        """Describe some frames; see `FrameEmbedding`."""
        return radial_profile(data.counts[wanted])


class ClassTokens:
    """Class tokens of a frame encoder, each from its frame and the nearest others.

    Of frames that are not wanted only the neighbours of wanted ones are encoded. Frames are taken in the order of their
    places, so that neither their order nor where the scan lies changes anything.

    Parameters
    ----------
    trained : TrainedFrameModel
        The encoder; its decoders are not kept.
    stated : str, optional
        Its name or path as it was configured, by which its projection is found; by default that of the package.
    """

    def __init__(self, trained: TrainedFrameModel, stated: str | None = None) -> None:
        self._encoder: FrameEncoder = trained.model.encoder
        encoder = stated or trained.name
        self.source: Mapping[str, str] = {
            "embedding": CLASS_TOKENS, "encoder": encoder, "encoder_sha256": trained.sha256
        }  # fmt: skip

    @torch.no_grad()
    def __call__(self, probe: Tensor, data: Diffraction, wanted: Tensor) -> Tensor:
        """Describe some frames; see `FrameEmbedding`."""
        order = _by_place(data)
        ordered = data[order]
        rank = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
        mine = rank[wanted]
        around, _ = nearest(ordered, frame_scenes(ordered), self._encoder.config.neighbours)
        needed = torch.zeros(len(order), dtype=torch.bool, device=order.device)
        needed[torch.cat([mine, around[mine].flatten()])] = True
        encoded: Encoded = self._encoder(probe, ordered[needed.nonzero()[:, 0]])
        # Rows of the needed among the encoded.
        return encoded.class_tokens.float()[needed.cumsum(0)[mine] - 1]


def frame_embedding(config: LatentsConfig, device: torch.device | str) -> FrameEmbedding | None:
    """Make what describes the frames of a run; None where that is what predicts its errors.

    Parameters
    ----------
    config : LatentsConfig
        What is chosen.
    device : torch.device or str
        Where to compute.

    Raises
    ------
    WeightsError
        If the encoder's file is absent, damaged, or none.
    """
    if config.embedding == CLASS_TOKENS:
        return ClassTokens(load_frame_model(path_of(config.encoder), device), config.encoder)
    return RadialProfile() if config.embedding == RADIAL_PROFILE else None


def _by_place(data: Diffraction) -> Tensor:
    """Sort frames by where they lie, (n,)."""
    places = (data.corner - data.corner.amin(dim=0)).double() + data.shift_px.double()
    order = np.lexsort(places.cpu().numpy().T[::-1])
    return torch.from_numpy(order).to(data.corner.device)
