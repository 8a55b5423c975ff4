"""Network weights on disk: safetensors with the configuration inside and the training record beside.

The record (JSON, same stem) holds the SHA-256 of the weights file; loading checks it, so a
truncated or exchanged file never passes for the trained network. Whoever exchanges a file can exchange its record as
well: shipped weights must also have the checksum that stands here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bluesky_cdi.errors import WeightsError
from bluesky_cdi.models.ptychonn import PtychoNN, PtychoNNConfig
from bluesky_cdi.models.unrolled import UnrolledConfig, UnrolledNet
from bluesky_cdi.whole_file import write_whole

Network = UnrolledNet | PtychoNN
NetworkConfig = UnrolledConfig | PtychoNNConfig
# By the name of the architecture in a weights file.
CONFIGS: Mapping[str, type[UnrolledConfig] | type[PtychoNNConfig]]
CONFIGS = {"canvas": UnrolledConfig, "ptychonn": PtychoNNConfig}
SHIPPED = Path(__file__).parent / "weights"
DEFAULT = "canvas-small"
# What the names of files with heads (`models.heads`) end in: ``canvas-small.heads`` belongs to ``canvas-small``.
HEADS = ".heads"
# And those of files with a frame encoder (`models.frame_encoder`), which belongs to no network.
ENCODER = ".encoder"
# SHA-256 of what comes with the package.
SHIPPED_SHA256: Mapping[str, str] = {
    "canvas-large": "e237bdf774abb574a275a4e85da61a9f1ae0874172abd625cce500b54e3b2ef0",
    "canvas-small": "b57dc24204691da90e63d145a8250a6a34ec1fb50dc6f5f17d2c1ee80bd679c1",
    "canvas-small.heads": "b012e7694d5f5a5f8149f9ec11d0b51a76e120dd94a94d2115e74da10619a4e7",
    "frames.encoder": "ec293f673ee474130fcbd57365db0fbf285c739f9a31502753263ca0c4209011",
    "sweep-large": "b411366e7ced789ee045796e53b64defcf1d4635dc7935243f5dd194a4669bd5",
    "sweep-small": "daa43427d47a79e45579e834c4b916c3a894f4549325026994a4f969db9ad026",
}


@dataclass(frozen=True, eq=False)
class Trained:
    """A network with what is known of it.

    Attributes
    ----------
    net : UnrolledNet or PtychoNN
        In evaluation mode.
    name : str
        Name or path by which they were loaded.
    sha256 : str
        Checksum of the weights file.
    record : Mapping
        The training record.
    path : Path
        The weights file.
    """

    net: Network
    name: str
    sha256: str
    record: Mapping[str, Any]
    path: Path

    @property
    def unrolled_net(self) -> UnrolledNet:
        """The network, where it is one with a critic.

        Raises
        ------
        WeightsError
            If it is the baseline.
        """
        if not isinstance(self.net, UnrolledNet):
            raise WeightsError(f"{self.name} holds a {type(self.net).__name__}; give weights of an unrolled network")
        return self.net


def build_network(config: NetworkConfig) -> Network:
    """Make an untrained network of a size.

    Parameters
    ----------
    config : UnrolledConfig or PtychoNNConfig
        The size.
    """
    return UnrolledNet(config) if isinstance(config, UnrolledConfig) else PtychoNN(config)


def save_weights(net: Network, path: Path, record: Mapping[str, Any]) -> str:
    """Write weights in half precision and their record; both appear whole or not at all.

    Parameters
    ----------
    net : UnrolledNet or PtychoNN
        The network.
    path : Path
        Ends in ``.safetensors``; the record goes beside it with ``.json``.
    record : Mapping
        What made the weights, as plain JSON values.

    Returns
    -------
    str
        SHA-256 of the weights file.
    """
    architecture = next(name for name, config in CONFIGS.items() if isinstance(net.config, config))
    return save_tensors(net.state_dict(), {"architecture": architecture, **net.config.as_dict()}, path, record)


def save_tensors(state: Mapping[str, Tensor], about: Mapping[str, Any], path: Path, record: Mapping[str, Any]) -> str:
    """Write tensors in half precision with their configuration, and the record beside them.

    Parameters
    ----------
    state : Mapping
        The tensors, by name.
    about : Mapping
        The configuration, as plain JSON values.
    path : Path
        Ends in ``.safetensors``; the record goes beside it with ``.json``.
    record : Mapping
        What made them, as plain JSON values.

    Returns
    -------
    str
        SHA-256 of the file.
    """
    from safetensors.torch import save

    tensors = {k: v.detach().to("cpu", torch.float16).contiguous() for k, v in state.items()}
    # One entry: several would be written in any order, and the same weights must be the same file.
    blob = save(tensors, metadata={"config": json.dumps(about)})
    digest = hashlib.sha256(blob).hexdigest()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, blob)
    write_whole(path.with_suffix(".json"), json.dumps({**record, "sha256": digest}, indent=1).encode())
    return digest


def load_weights(name_or_path: str | Path = DEFAULT, device: torch.device | str = "cpu") -> Trained:
    """Load shipped weights by name, or any by path.

    Parameters
    ----------
    name_or_path : str or Path
        A name among `shipped_weights`, or a path ending in ``.safetensors``.
    device : torch.device or str
        Where to compute.

    Raises
    ------
    WeightsError
        If the file is absent, damaged, or does not fit its record or its configuration, or is no longer the one that
        came with the package.
    """
    from safetensors import SafetensorError, safe_open

    path = path_of(name_or_path)
    digest, record = verified(path)
    try:
        with safe_open(str(path), "pt") as file:
            about = json.loads((file.metadata() or {})["config"])
            # Early weights don't name their architecture.
            config = CONFIGS[about.pop("architecture", "canvas")](**about)
            state = {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118 (not a mapping)
        net = build_network(config)
        net.load_state_dict(state)
    except (SafetensorError, LookupError, TypeError, ValueError, RuntimeError) as err:
        raise WeightsError(f"{path} holds no weights of this package's network: {err}") from err
    net = net.to(device=device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]  # missing in torch's stubs
    return Trained(net.requires_grad_(False), path.stem, digest, record, path)


def weights_checksum(name_or_path: str | Path = DEFAULT) -> str:
    """Compute the SHA-256 of weights, named as for `load_weights`.

    Parameters
    ----------
    name_or_path : str or Path
        Which weights.

    Raises
    ------
    WeightsError
        As for `load_weights`.
    """
    return verified(path_of(name_or_path))[0]


def shipped_weights() -> list[str]:
    """List the names of the networks whose weights come with the package."""
    return sorted(p.stem for p in SHIPPED.glob("*.safetensors") if not p.stem.endswith((HEADS, ENCODER)))


def is_shipped(path: Path) -> bool:
    """Tell whether a file lies where the weights of the package do.

    Parameters
    ----------
    path : Path
        The file.
    """
    return path.resolve().parent == SHIPPED.resolve()


def path_of(name_or_path: str | Path) -> Path:
    """Find the file of weights, named as for `load_weights`.

    Parameters
    ----------
    name_or_path : str or Path
        Which weights.

    Raises
    ------
    WeightsError
        If it is absent.
    """
    path = Path(name_or_path) if str(name_or_path).endswith(".safetensors") else SHIPPED / f"{name_or_path}.safetensors"
    if not path.is_file():
        raise WeightsError(
            f"no weights at {path}; shipped names: {', '.join(shipped_weights())}. "
            "Or train them: bluesky-cdi train --help"
        )
    return path


def verified(path: Path) -> tuple[str, Mapping[str, Any]]:
    """Check a weights file by its record: its SHA-256, and the record.

    Parameters
    ----------
    path : Path
        The ``.safetensors`` file, with its record beside it.

    Raises
    ------
    WeightsError
        If one of both is damaged, or not what came with the package.
    """
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    beside = path.with_suffix(".json")
    try:
        record = json.loads(beside.read_text(encoding="utf-8"))
        if not isinstance(record, dict):
            raise ValueError(f"a mapping is expected, a {type(record).__name__} came")
    except (OSError, ValueError) as err:
        raise WeightsError(
            f"the training record {beside} is missing or damaged: {err}. Weights and record travel together."
        ) from err
    if record.get("sha256") != digest:
        raise WeightsError(
            f"{path} is damaged or not the trained file: SHA-256 {digest}, "
            f"its record says {record.get('sha256')}. Install it again."
        )
    if is_shipped(path) and digest != SHIPPED_SHA256.get(path.stem):
        raise WeightsError(
            f"{path} is not what came with the package: SHA-256 {digest}, SHIPPED_SHA256 in {__name__} says "
            f"{SHIPPED_SHA256.get(path.stem, 'nothing')}. Install it again; your own weights go elsewhere."
        )
    return digest, record
