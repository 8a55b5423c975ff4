"""Reconstructions for programs that know nothing of ptychography: NPZ, and TIFF of one image."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bluesky_cdi import __version__
from bluesky_cdi.io._files import open_npz, written_whole
from bluesky_cdi.io._writing import write_npz
from bluesky_cdi.io.product import product_of
from bluesky_cdi.physics.geometry import Geometry
from bluesky_cdi.plain import to_json
from bluesky_cdi.protocols import Estimate, FloatArray

# TIFF's number for centimetres, in which it has its resolution: it knows no metres.
_CENTIMETRES = 3
_OF_THE_ESTIMATE = (
    "object", "probe", "std_amplitude", "std_phase_rad", "coverage", "positions_m", "frame_seq_nums",
    "frame_uncertainty", "residual", "embedding", "novelty",
)  # fmt: skip


def notes_of(estimate: Estimate, geometry: Geometry, name: str) -> dict[str, Any]:
    """Gather in plain values what is to be said of a result: optics, what made it, and its verdict.

    Parameters
    ----------
    estimate : Estimate
        The result.
    geometry : Geometry
        Of its frames.
    name : str
        What it is called.
    """
    return {
        "name": name,
        "program": f"bluesky_cdi {__version__}",
        "pixel_m": estimate.pixel_m,
        "origin_m": list(estimate.origin_m),
        "frames": estimate.n_frames,
        "geometry": geometry.as_metadata(),
        "verdict": estimate.source.get("verdict"),
        "source": {key: value for key, value in estimate.source.items() if key != "verdict"},
    }


def write_npz_result(
    path: Path | str, estimate: Estimate, geometry: Geometry, name: str = "bluesky_cdi", *, phase_rad: FloatArray
) -> None:
    """Write an estimate as an NPZ file: all of it, or nothing.

    Its keys are the attributes of `Estimate` of the same name, ``amplitude`` and ``phase_rad``, float32 (Y, X), the
    scalars ``pixel_m`` and ``origin_m`` (y, x), metres, and, as JSON, ``notes``.

    Parameters
    ----------
    path : path
        The file to write.
    estimate : Estimate
        What was reconstructed.
    geometry : Geometry
        Of the scan; its sample pixel is the estimate's.
    name : str
        What it is called.
    phase_rad : ndarray, shape (Y, X)
        The object's phase in the gauge in which it is shown, radians.

    Raises
    ------
    ScanFileError, GeometryError
        If the file can't be written, the object is not finite, or the estimate's pixel is not the geometry's.
    """
    product_of(estimate, geometry, name)
    write_npz(
        Path(path),
        {
            **{key: np.asarray(getattr(estimate, key)) for key in _OF_THE_ESTIMATE},
            "amplitude": np.abs(estimate.object).astype(np.float32),
            "phase_rad": np.asarray(phase_rad, np.float32),
            "pixel_m": np.asarray(estimate.pixel_m),
            "origin_m": np.asarray(estimate.origin_m),
            "notes": np.asarray(to_json(notes_of(estimate, geometry, name))),
        },
    )


def read_npz_result(path: Path | str) -> Estimate:
    """Read an estimate that `write_npz_result` wrote.

    Parameters
    ----------
    path : path
        The NPZ file.

    Raises
    ------
    ScanFileError
        If the file is none of these.
    """
    with open_npz(Path(path), "a result that `bluesky-cdi export RUN FILE.npz` wrote") as file:
        notes = json.loads(str(file["notes"]))
        y, x = map(float, file["origin_m"])
        verdict = {} if notes["verdict"] is None else {"verdict": notes["verdict"]}
        arrays: dict[str, Any] = {key: file[key] for key in _OF_THE_ESTIMATE}
        return Estimate(
            n_frames=int(notes["frames"]),
            origin_m=(y, x),
            pixel_m=float(file["pixel_m"]),
            source={**notes["source"], **verdict},
            **arrays,
        )


def write_tiff(path: Path | str, image: npt.NDArray[Any], pixel_m: float, notes: Mapping[str, Any]) -> None:
    """Write one image as a TIFF file of float32, row 0 above: all of it, or nothing.

    Parameters
    ----------
    path : path
        The file to write.
    image : ndarray, shape (Y, X), real
        Its values.
    pixel_m : float
        Side of a pixel, metres: the file's resolution, in pixels per centimetre.
    notes : Mapping
        What is to be said of it; JSON in the file's description.

    Raises
    ------
    ScanFileError
        If the file can't be written.
    """
    from PIL import Image

    per_cm = 1e-2 / pixel_m
    with written_whole(Path(path)) as partial:
        Image.fromarray(np.ascontiguousarray(image, np.float32)).save(
            partial, format="TIFF", x_resolution=per_cm, y_resolution=per_cm, resolution_unit=_CENTIMETRES,
            description=to_json(notes), software=f"bluesky_cdi {__version__}",
        )  # fmt: skip
