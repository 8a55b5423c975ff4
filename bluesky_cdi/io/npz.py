"""Scans in PtychoPINN's NPZ form: amplitudes, and positions in pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bluesky_cdi.errors import ScanFileError
from bluesky_cdi.io._files import open_npz
from bluesky_cdi.io.canonical import NOMINAL_PIXEL_M
from bluesky_cdi.io.scan import Scan, in_photons, nominal_geometry


def read_ptychopinn(path: Path | str, pixel_m: float = NOMINAL_PIXEL_M) -> Scan:
    """Read a PtychoPINN data set.

    Its keys: `diffraction` (or `diff3d`, its older name), amplitudes, that is square roots of
    counts, (n, H, W) or in older files (H, W, n); `xcoords` and `ycoords` (n,), pixels of the
    sample plane; optionally `probeGuess` (N, N) or (modes, N, N). Counts are the squared
    amplitudes, float32; where a file was normalised, they are counts up to a factor that nothing tells.

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
    with open_npz(path, "a PtychoPINN NPZ file") as file:
        key = "diffraction" if "diffraction" in file else "diff3d"
        positions_px = np.stack([file["ycoords"].ravel(), file["xcoords"].ravel()], axis=1).astype(np.float64)
        amplitude = _frames_first(file[key], len(positions_px))
        counts = np.square(amplitude, dtype=np.float32)
        probe, scale = in_photons(file["probeGuess"], counts, None) if "probeGuess" in file else (None, None)
        return Scan(
            counts=counts,
            positions_m=positions_px * pixel_m,
            geometry=nominal_geometry(pixel_m, counts.shape[-1]),
            probe=probe,
            name=path.stem,
            source={
                "file": path.name,
                "format": "ptychopinn",
                "propagation": "far field",
                "nominal_geometry": True,
                "counts": f"square of {key!r}",
                "probe_scale": scale,
            },
        )


def _frames_first(amplitude: npt.NDArray[Any], n: int) -> npt.NDArray[Any]:
    """Bring the older (H, W, n) to (n, H, W)."""
    if amplitude.ndim != 3 or n not in (amplitude.shape[0], amplitude.shape[2]):
        raise ScanFileError(f"{n} positions need amplitudes of shape ({n}, H, W); they have {amplitude.shape}")
    return amplitude if amplitude.shape[0] == n else np.moveaxis(amplitude, 2, 0)
