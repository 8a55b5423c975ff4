"""Scans in PtychoPINN's NPZ form: amplitudes, and positions in pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bluesky_cdi.errors import FrameError, GeometryError, ScanFileError
from bluesky_cdi.io._files import flags, naming, one, open_npz, real
from bluesky_cdi.io._writing import write_npz
from bluesky_cdi.io.canonical import NOMINAL_PIXEL_M
from bluesky_cdi.io.frames import Frames
from bluesky_cdi.io.preprocessing import Preprocessing
from bluesky_cdi.io.scan import Scan, nominal_geometry, recorded
from bluesky_cdi.physics.geometry import ObjectGrid
from bluesky_cdi.protocols import ComplexArray

FORM = "a PtychoPINN NPZ file"
_KEYS = {
    "frames": "squares of `diffraction` or `diff3d`",
    "frame_px": "`diffraction` or `diff3d`",
    "positions": "`ycoords` and `xcoords`",
    "pixel": "`pixel_m`",
    "probe": "`probeGuess`",
    "mask": "`mask`",
}


def read_ptychopinn(
    path: Path | str, pixel_m: float | None = None, *, preprocessing: Preprocessing | None = None
) -> Scan:
    """Read a PtychoPINN data set.

    Its keys: `diffraction` or `diff3d`, amplitudes, that is square roots of counts, (n, H, W) or
    in older files (H, W, n); `xcoords` and `ycoords` (n,), pixels of the sample plane; optionally
    `probeGuess` (N, N) or (modes, N, N). Counts are the squared amplitudes, float32; where a
    file was normalised, they are counts up to a factor that nothing tells. Integers are taken for
    counts, as that project's raw files have them. `write_ptychopinn` adds `mask` and `pixel_m`.

    Parameters
    ----------
    path : path
        The file to read.
    pixel_m : float, optional
        Sample pixel, metres. By default the file's `pixel_m`, or a nominal 10 nm. The geometry is
        nominal in any case, and the scan's `source` says so.

    preprocessing : Preprocessing, optional
        What is done to the frames first.

    Raises
    ------
    ScanFileError, FrameError, GeometryError
        If the file can't be read, or holds no usable scan.
    """
    path = Path(path)
    with open_npz(path, FORM) as file, naming(path, **_KEYS):
        key = "diffraction" if "diffraction" in file else "diff3d"
        x, y = (real(file[name], name).ravel() for name in ("xcoords", "ycoords"))
        if len(x) != len(y):
            raise ScanFileError(f"{path} must hold as many xcoords as ycoords; it holds {len(x)} and {len(y)}")
        counts = _counts(_frames_first(file[key], len(x), key), key)
        if pixel_m is None:
            pixel_m = one(file["pixel_m"], "pixel_m") if "pixel_m" in file else NOMINAL_PIXEL_M
        geometry = nominal_geometry(pixel_m, counts.shape[-1])
        return recorded(
            counts,
            file.get("probeGuess"),
            positions_m=np.stack([y, x], axis=1) * pixel_m,
            geometry=geometry,
            mask=flags(file["mask"], "mask") if "mask" in file else None,
            name=path.stem,
            source={
                "file": path.name,
                "format": "ptychopinn",
                "propagation": "far field",
                "nominal_geometry": True,
                "counts": f"square of {key!r}" if counts.dtype.kind == "f" else f"{key!r}, which holds integers",
            },
            preprocessing=preprocessing,
        )


def write_ptychopinn(path: Path | str, scan: Scan, sample: ComplexArray | None = None) -> None:
    """Write a scan as a PtychoPINN data set: all of it, or nothing.

    The square roots are float32: counts come back to about 1e-7 of their value. Beyond that
    project's keys, `mask` and `pixel_m` keep what would be lost; energy and distance are.

    Parameters
    ----------
    path : path
        The file to write.
    scan : Scan
        With one probe mode, which is all that the form holds.
    sample : ndarray, shape (Y, X), complex64, optional
        The key `objectGuess`; by default vacuum, of the size that the scan covers.

    Raises
    ------
    ScanFileError
        If the file can't be written, the scan has no probe or several modes, or its counts are rounded, which the form
        can't say.
    GeometryError
        If the scan is in the near field.
    """
    scan.refuse_rounded("PtychoPINN")
    if scan.geometry.propagation == "near":
        raise GeometryError("PtychoPINN's files hold far-field scans; this one is in the near field. Write CXI.")
    if scan.probe is None or len(scan.probe) != 1:
        modes = 0 if scan.probe is None else len(scan.probe)
        raise ScanFileError(
            f"PtychoPINN's files hold one probe mode; the scan has {modes}. Give it one: "
            "dataclasses.replace(scan, probe=probe[:1])."
        )
    y, x = (np.asarray(scan.positions_m, np.float64) / scan.geometry.pixel_m).T
    arrays: dict[str, Frames | npt.NDArray[Any]] = {
        "diffraction": _Amplitudes(scan.counts, scan.mask),
        "xcoords": x,
        "ycoords": y,
        "xcoords_start": x,
        "ycoords_start": y,
        "probeGuess": np.asarray(scan.probe[0], np.complex64),
        "objectGuess": np.asarray(_vacuum(scan) if sample is None else sample, np.complex64),
        "scan_index": np.zeros(len(scan), np.int64),
        "pixel_m": np.array(scan.geometry.pixel_m),
    }
    if scan.mask is not None:
        arrays["mask"] = scan.mask
    write_npz(Path(path), arrays)


class _Amplitudes:
    """Square roots of frames, float32, made as they are asked for; 0 at masked pixels, which may hold anything."""

    def __init__(self, counts: Frames, mask: npt.NDArray[np.bool_] | None) -> None:
        self._counts = counts
        self._mask = mask

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, H, W)."""
        return self._counts.shape

    @property
    def ndim(self) -> int:
        """3."""
        return 3

    @property
    def dtype(self) -> np.dtype[Any]:
        """float32."""
        return np.dtype(np.float32)

    def __len__(self) -> int:
        return len(self._counts)

    def __getitem__(self, key: Any, /) -> npt.NDArray[Any]:
        # In float64: the nearest float32 to the root of any count.
        frames = np.asarray(self._counts[key], np.float64)
        valid = frames if self._mask is None else np.where(self._mask, frames, 0.0)
        roots: npt.NDArray[Any] = np.sqrt(valid).astype(np.float32)
        return roots

    def __array__(self, dtype: Any = None, /, *, copy: bool | None = None) -> npt.NDArray[Any]:
        frames: npt.NDArray[Any] = np.asarray(self[:], dtype)
        return frames


def _vacuum(scan: Scan) -> ComplexArray:
    positions = scan.positions_m
    grid = ObjectGrid.covering(
        positions.min(axis=0), positions.max(axis=0), scan.geometry.pixel_m, scan.geometry.frame_px
    )
    return np.ones(grid.shape, np.complex64)


def _counts(values: npt.NDArray[Any], key: str) -> npt.NDArray[Any]:
    if values.dtype.kind in "iu":
        return values
    if values.dtype.kind != "f":
        raise FrameError(f"`{key}` must hold amplitudes, real numbers; it holds {values.dtype}. Write their moduli.")
    if (values < 0).any():
        raise FrameError(f"`{key}` must hold amplitudes, which are not negative; some are. Are they logarithms?")
    # A count beyond float32 becomes infinite, which the scan refuses with the frame's number.
    with np.errstate(over="ignore"):
        return np.asarray(np.square(values, dtype=np.float32))


def _frames_first(amplitude: npt.NDArray[Any], n: int, key: str) -> npt.NDArray[Any]:
    """Bring the older (H, W, n) to (n, H, W)."""
    if amplitude.ndim != 3 or n not in (amplitude.shape[0], amplitude.shape[2]):
        raise ScanFileError(f"{n} positions need amplitudes of shape ({n}, H, W); `{key}` has {amplitude.shape}")
    return amplitude if amplitude.shape[0] == n else np.moveaxis(amplitude, 2, 0)
