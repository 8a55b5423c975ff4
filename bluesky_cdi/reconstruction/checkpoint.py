"""What a checkpoint belongs to, and whether a reconstruction can go on from it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt
from pydantic import ValidationError

from bluesky_cdi.config import RENAMED_KEYS, Config, DetectorConfig, DocumentsConfig, Section
from bluesky_cdi.errors import ConfigError, WorkerError
from bluesky_cdi.io import CheckpointFile, CheckpointHeader
from bluesky_cdi.protocols import RunInfo

# Sections of the configuration that make a reconstruction.
SECTIONS = ("reconstructor", "probe", "detector", "documents")
# What decides which object and probe are found; budgets, iterations, device and threads may be others later.
MUST_MATCH = ("name", "background", "refine_probe", "refine_positions", "refine_flux", "window_px")
AGAIN = "Give the same settings, or reconstruct from the start (--anew)."


def checkpoint_file(info: RunInfo, uid: str, config: Config, folder: Path) -> CheckpointFile:
    """Make the file that a run's checkpoints go to.

    Parameters
    ----------
    info : RunInfo
        The raw run.
    uid : str
        The derived run that is its reconstruction.
    config : Config
        What it is made with.
    folder : Path
        Where checkpoints lie.

    Raises
    ------
    WeightsError
        If the network's weights can't be read.
    """
    sections = config.model_dump(mode="json", include=set(SECTIONS))
    return CheckpointFile(folder, CheckpointHeader(info.uid, uid, info.frame_shape, sections, fingerprint(config)))


def fingerprint(config: Config) -> dict[str, Any]:
    """Give what must be the same for a reconstruction to go on, by the names of the keys.

    Raises
    ------
    WeightsError
        If the network's weights can't be read.
    """
    from bluesky_cdi.models.weights import weights_checksum

    settings = config.reconstructor
    return {
        **{f"reconstructor.{key}": getattr(settings, key) for key in MUST_MATCH},
        "probe.modes": config.probe.modes,
        "detector": config.detector.model_dump(mode="json") if config.detector != DetectorConfig() else None,
        "documents": config.documents.model_dump(mode="json") if config.documents != DocumentsConfig() else None,
        "SHA-256 of reconstructor.weights": weights_checksum(settings.weights) if settings.name == "pinn" else None,
    }


def going_on(header: CheckpointHeader, config: Config, frame_shape: tuple[int, int]) -> Config:
    """Give the configuration with which a reconstruction goes on.

    Parameters
    ----------
    header : CheckpointHeader
        It holds the settings with which the reconstruction was begun.
    config : Config
        What is set in it, and is no default, comes on top.
    frame_shape : tuple of int
        (H, W) of the run's frames.

    Raises
    ------
    ConfigError
        If that would be another reconstruction than the checkpoint's.
    WeightsError
        If the network's weights can't be read.
    """
    merged = with_settings_of(header, config)
    found = {**header.fingerprint, "shape of the frames": header.frame_shape}
    wanted = {**fingerprint(merged), "shape of the frames": frame_shape}
    if wrong := [
        f"{key}: {found.get(key)} then, {value} now" for key, value in wanted.items() if found.get(key) != value
    ]:
        raise ConfigError(f"the checkpoint is of another reconstruction: {'; '.join(wrong)}. {AGAIN}")
    return merged


def with_settings_of(header: CheckpointHeader, config: Config) -> Config:
    """Give a configuration with the settings of a checkpoint wherever it sets none itself.

    Parameters
    ----------
    header : CheckpointHeader
        Of the checkpoint.
    config : Config
        What is set in it, and is no default, comes on top.

    Raises
    ------
    ConfigError
        If the settings are those of another version.
    """
    chosen = config.model_dump(include=set(SECTIONS), exclude_unset=True)
    saved = _renamed(header.settings)
    return config.model_copy(
        update={
            name: _section(type(getattr(config, name)), {**saved.get(name, {}), **chosen.get(name, {})})
            for name in SECTIONS
        }
    )


def parts_of(state: Mapping[str, npt.NDArray[Any]]) -> dict[str, dict[str, npt.NDArray[Any]]]:
    """Sort a checkpoint's arrays, named ``part/name``, by their parts."""
    parts: dict[str, dict[str, npt.NDArray[Any]]] = {}
    for name, array in state.items():
        part, _, key = name.partition("/")
        parts.setdefault(part, {})[key] = array
    return parts


def restorable(
    state: Mapping[str, npt.NDArray[Any]],
    grid_shape: tuple[int, int],
    modes_shape: tuple[int, ...],
    tiles: int,
    frames: int,
) -> dict[str, dict[str, npt.NDArray[Any]]]:
    """Give the parts of a checkpoint that was made on the same grid, for a reconstructor without frames.

    Parameters
    ----------
    state : Mapping
        The checkpoint's arrays, named ``part/name``.
    grid_shape : tuple of int
        (Y, X) of the object's grid.
    modes_shape : tuple of int
        (modes, N, N) of the probe.
    tiles : int
        Number of the grid's tiles.
    frames : int
        That the reconstructor has.

    Raises
    ------
    WorkerError
        If grid, probe or tiles are others, or there are frames.
    """
    parts = parts_of(state)
    found = parts["object"]["object"].shape[1:]
    if found != grid_shape or parts["probe"]["modes"].shape != modes_shape:
        raise WorkerError(
            f"the checkpoint's object is {found}, this grid is {grid_shape}: "
            "restore into the same scan window and probe"
        )
    if (n := len(parts["scheduler"]["settled"])) != tiles:
        raise WorkerError(
            f"the checkpoint's grid has {n} tiles, this one {tiles}: restore with the same reconstructor.window_px"
        )
    if frames:
        raise WorkerError(f"a checkpoint goes into a reconstructor without frames; {frames} are here already")
    return parts


def _renamed(settings: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Give the settings of a checkpoint with today's names of the keys."""
    found = {section: dict(values) for section, values in settings.items()}
    for old, new in RENAMED_KEYS.items():
        (section, key), (new_section, new_key) = old.split("."), new.split(".")
        if key in found.get(section, {}):
            found.setdefault(new_section, {})[new_key] = found[section].pop(key)
    return found


def _section(kind: type[Section], values: Mapping[str, Any]) -> Section:
    try:
        return kind.model_validate(values)
    except ValidationError as err:
        lines = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in err.errors())
        raise ConfigError(f"the checkpoint's settings are not those of this version: {lines}. {AGAIN}") from err
