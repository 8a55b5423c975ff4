"""Scans as ``canonical.npz``: frames in counts, positions in pixels of the sample plane."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bluesky_cdi.io._files import open_npz
from bluesky_cdi.io.scan import Scan, in_photons, nominal_geometry

NOMINAL_PIXEL_M = 10e-9


def read_canonical(path: Path | str, pixel_m: float = NOMINAL_PIXEL_M) -> Scan:
    """Read a ``canonical.npz``.

    Its keys: `frames` (n, H, W), counts; `positions_px` (n, 2), (row, column); optionally
    `probe_guess` (modes, N, N) and `mask` (H, W), True where valid. Rows and columns stay as they are.

    Parameters
    ----------
    path : path
    pixel_m : float
        Sample pixel, metres. The file doesn't state it: the geometry is nominal, and the scan's
        `source` says so.

    Raises
    ------
    ScanFileError, FrameError, GeometryError
        If the file can't be read, or holds no usable scan.
    """
    path = Path(path)
    with open_npz(path, "a canonical NPZ file") as file:
        counts = file["frames"]
        positions_px = np.asarray(file["positions_px"], np.float64)
        mask = file["mask"].astype(bool) if "mask" in file else None
        probe, scale = in_photons(file["probe_guess"], counts, mask) if "probe_guess" in file else (None, None)
        return Scan(
            counts=counts,
            positions_m=positions_px * pixel_m,
            geometry=nominal_geometry(pixel_m, counts.shape[-1]),
            probe=probe,
            mask=mask,
            name=path.parent.name,
            source={
                "file": path.name,
                "format": "canonical",
                "propagation": "far field",
                "nominal_geometry": True,
                "probe_scale": scale,
            },
        )
