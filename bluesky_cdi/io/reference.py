"""A recorded scan's reference reconstruction, for comparison."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bluesky_cdi.errors import ScanFileError
from bluesky_cdi.io._files import open_npz, real
from bluesky_cdi.io.scan import Scan
from bluesky_cdi.protocols import ComplexArray


@dataclass(frozen=True, eq=False)
class Reference:
    """An object reconstructed elsewhere.

    Attributes
    ----------
    object : ndarray, shape (Y, X), complex64
        Transmission function, as another program reconstructed it.
    origin_m : tuple of float
        Sample position (y, x) of pixel [0, 0] in the scan's coordinates, metres.
    """

    object: ComplexArray
    origin_m: tuple[float, float]


def read_reference(path: Path | str, scan: Scan) -> Reference:
    """Read the ``reference.npz`` of a canonical scan.

    Its keys: `obj` (Y, X), on the scan's sample pixel, and `pos_in` (n, 2), the scan's positions in
    pixels relative to the object's middle.

    Parameters
    ----------
    path : path
        The file to read.
    scan : Scan
        The scan that was reconstructed.

    Raises
    ------
    ScanFileError
        If the file can't be read, or belongs to another scan.
    """
    path = Path(path)
    with open_npz(path, "a reference NPZ file") as file:
        sample, relative_px = file["obj"], real(file["pos_in"], "pos_in")
    if sample.dtype.kind not in "fc" or not np.isfinite(sample).all():
        raise ScanFileError(f"{path} must hold finite complex numbers in obj; it holds {sample.dtype}")
    same_shape = relative_px.shape == scan.positions_m.shape
    offset_px = scan.positions_m / scan.geometry.pixel_m - relative_px if same_shape else None
    if sample.ndim != 2 or offset_px is None or not np.ptp(offset_px, axis=0).max() <= 0.5:
        raise ScanFileError(
            f"{path} must hold obj (Y, X) and pos_in for the {len(scan)} positions of {scan.name or 'the scan'}; "
            f"it holds obj {sample.shape} and pos_in {relative_px.shape}, or positions of another scan"
        )
    origin = (offset_px.mean(axis=0) - np.round(np.array(sample.shape) / 2)) * scan.geometry.pixel_m
    return Reference(sample.astype(np.complex64), (float(origin[0]), float(origin[1])))
