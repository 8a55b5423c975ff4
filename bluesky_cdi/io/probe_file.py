"""Probes in files of their own: what a run found, for the next one at the same instrument."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bluesky_cdi.errors import ScanFileError
from bluesky_cdi.io._files import json_object, open_npz, text
from bluesky_cdi.io._writing import write_npz
from bluesky_cdi.physics.geometry import Geometry
from bluesky_cdi.plain import to_json
from bluesky_cdi.protocols import ComplexArray


@dataclass(frozen=True, eq=False)
class ProbeFile:
    """A probe, where it belongs, and how it was found.

    Attributes
    ----------
    probe : ndarray, shape (modes, N, N), complex64
        Incoherent modes; the sum of ``abs(probe)**2`` is the mean photons of a frame.
    geometry : Geometry
        Of the scan that it was found with.
    name : str
        Of that scan.
    source : Mapping
        How it was found, as plain JSON values.
    """

    probe: ComplexArray
    geometry: Geometry
    name: str = ""
    source: Mapping[str, Any] = field(default_factory=dict)


def write_probe(path: Path | str, content: ProbeFile) -> None:
    """Write a probe as NPZ: all of it, or nothing.

    Its keys: `probe` (modes, N, N), `geometry` and `source` (JSON), `name`.

    Parameters
    ----------
    path : path
        The file to write.
    content : ProbeFile
        What it holds.

    Raises
    ------
    ScanFileError
        If the file can't be written.
    """
    arrays = {
        "probe": np.asarray(content.probe, np.complex64),
        "geometry": np.array(json.dumps(content.geometry.as_metadata())),
        "name": np.array(content.name),
        "source": np.array(to_json(content.source)),
    }
    write_npz(Path(path), arrays)


def read_probe(path: Path | str) -> ProbeFile:
    """Read what `write_probe` wrote.

    Parameters
    ----------
    path : path
        The NPZ file.

    Raises
    ------
    ScanFileError, GeometryError
        If the file can't be read, or holds no such probe.
    """
    path = Path(path)
    with open_npz(path, "a probe file") as file:
        probe = file["probe"]
        if probe.ndim != 3 or probe.shape[1] != probe.shape[2] or probe.dtype.kind not in "fc" or not probe.size:
            raise ScanFileError(f"{path} must hold a probe (modes, N, N); it holds {probe.dtype} {probe.shape}")
        if not (np.isfinite(probe).all() and probe.any()):
            raise ScanFileError(f"{path} must hold a probe that is finite and not 0 everywhere; it does not")
        side = int(probe.shape[-1])
        geometry = Geometry.from_metadata({"geometry": json_object(file["geometry"], "geometry")}, (side, side))
        name, source = text(file["name"], "name"), json_object(file["source"], "source")
    return ProbeFile(probe.astype(np.complex64), geometry, name, source)
