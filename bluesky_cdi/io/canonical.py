"""Scans as ``canonical.npz``: frames in counts, positions in pixels of the sample plane."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bluesky_cdi.errors import ScanFileError
from bluesky_cdi.io._files import flags, json_object, naming, open_npz, real, text
from bluesky_cdi.io._writing import write_npz
from bluesky_cdi.io.frames import Frames
from bluesky_cdi.io.preprocessing import Preprocessing
from bluesky_cdi.io.scan import Scan, nominal_geometry, recorded
from bluesky_cdi.physics.geometry import Geometry
from bluesky_cdi.plain import to_json

NOMINAL_PIXEL_M = 10e-9
FORM = "a canonical NPZ file"
_KEYS = {
    "frames": "`frames`",
    "frame_px": "`frames`",
    "positions": "`positions_m` or `positions_px`",
    "probe": "`probe_guess`",
    "mask": "`mask`",
}


def read_canonical(
    path: Path | str, pixel_m: float = NOMINAL_PIXEL_M, *, preprocessing: Preprocessing | None = None
) -> Scan:
    """Read a ``canonical.npz``.

    Its keys: `frames` (n, H, W), counts; `positions_px` (n, 2), (row, column); optionally
    `probe_guess` (modes, N, N) and `mask` (H, W), True where valid. Rows and columns stay as they are.
    `write_canonical` adds `positions_m`, `flux` where it was monitored and, as JSON, `geometry` and `source`.
    With a `geometry` (`energy_ev`, `distance_m`, `detector_pixel_m`) `positions_m` are enough.

    Parameters
    ----------
    path : path
        The file to read.
    pixel_m : float
        Sample pixel, metres, for a file without `geometry`: then the geometry is nominal, and
        the scan's `source` says so.

    preprocessing : Preprocessing, optional
        What is done to the frames first.

    Raises
    ------
    ScanFileError, FrameError, GeometryError
        If the file can't be read, or holds no usable scan.
    """
    path = Path(path)
    with open_npz(path, FORM) as file, naming(path, **_KEYS):
        counts = file["frames"]
        frame_px = counts.shape[-1] if counts.ndim else 0
        stated = json_object(file["geometry"], "geometry") if "geometry" in file else None
        geometry = (
            nominal_geometry(pixel_m, frame_px)
            if stated is None
            else Geometry.from_metadata({"geometry": stated}, (frame_px, frame_px))
        )
        return recorded(
            counts,
            file.get("probe_guess"),
            positions_m=_positions_m(file, geometry),
            geometry=geometry,
            mask=flags(file["mask"], "mask") if "mask" in file else None,
            name=text(file["name"], "name") if "name" in file else _name(path),
            source={
                "propagation": "far field",
                **_source(file, nominal=stated is None),
                **({"propagation": "near field"} if geometry.propagation == "near" else {}),
                "file": path.name,
                "format": "canonical",
            },
            preprocessing=preprocessing,
            flux=real(file["flux"], "flux") if "flux" in file else None,
        )


def write_canonical(path: Path | str, scan: Scan) -> None:
    """Write a scan as ``canonical.npz``: all of it, bit by bit, or nothing.

    Parameters
    ----------
    path : path
        The file to write.
    scan : Scan
        What it holds; frames may lie in a file of their own.

    Raises
    ------
    ScanFileError
        If the file can't be written.
    """
    positions = np.asarray(scan.positions_m, np.float64)
    arrays: dict[str, Frames | npt.NDArray[Any]] = {
        "frames": scan.counts,
        "positions_px": positions / scan.geometry.pixel_m,
        "positions_m": positions,
        "geometry": np.array(json.dumps(scan.geometry.as_metadata())),
        "source": np.array(to_json(scan.source)),
        "name": np.array(scan.name),
    }
    if scan.probe is not None:
        arrays["probe_guess"] = scan.probe
    if scan.mask is not None:
        arrays["mask"] = scan.mask
    if scan.flux is not None:
        arrays["flux"] = scan.flux
    write_npz(Path(path), arrays)


def _positions_m(file: Mapping[str, Any], geometry: Geometry) -> npt.NDArray[np.float64]:
    if "positions_m" in file and "geometry" in file:
        return real(file["positions_m"], "positions_m")
    if "positions_m" in file and "positions_px" not in file:
        raise ScanFileError(
            "`positions_m` need a `geometry`, without which the sample pixel is not known: a JSON text with energy_ev, "
            "distance_m and detector_pixel_m. Give one, or `positions_px`, in sample pixels."
        )
    return real(file["positions_px"], "positions_px") * geometry.pixel_m


def _name(path: Path) -> str:
    """Name a scan after its file, or after its folder where all such files are called the same."""
    return path.resolve().parent.name if path.stem == "canonical" else path.stem


def _source(file: Mapping[str, Any], nominal: bool) -> dict[str, Any]:
    if nominal:
        return {"nominal_geometry": True}
    return json_object(file["source"], "source") if "source" in file else {}
