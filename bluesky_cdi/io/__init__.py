"""Recorded scans and reconstructions in files: every reader of scans returns one `Scan`."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from bluesky_cdi.errors import ScanFileError
from bluesky_cdi.io._files import open_hdf5, open_npz, reading
from bluesky_cdi.io.canonical import read_canonical
from bluesky_cdi.io.cxi import read_cxi, write_cxi
from bluesky_cdi.io.npz import read_ptychopinn
from bluesky_cdi.io.product import Product, read_product, write_product
from bluesky_cdi.io.reference import Reference, read_reference
from bluesky_cdi.io.scan import Scan

__all__ = [
    "Product",
    "Reference",
    "Scan",
    "read_canonical",
    "read_cxi",
    "read_product",
    "read_ptychopinn",
    "read_reference",
    "read_scan",
    "write_cxi",
    "write_product",
]

logger = logging.getLogger(__name__)

_ZIP_SIGNATURE = b"PK\x03\x04"
_HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"


def read_scan(path: Path | str) -> Scan:
    """Read a recorded scan; the file's content, not its name, tells the form.

    Known are CXI, ``canonical.npz`` and PtychoPINN's NPZ.

    Parameters
    ----------
    path : path

    Raises
    ------
    ScanFileError
        If the file is absent, can't be read, is cut short, or has none of the known forms.
    FrameError, GeometryError
        If what it holds can't be a scan.
    """
    path = Path(path).expanduser()
    with reading(path, "a scan"), path.open("rb") as file:
        signature = file.read(8)
    if signature == _HDF5_SIGNATURE:
        scan = _hdf5_reader(path)(path)
    elif signature.startswith(_ZIP_SIGNATURE):
        scan = _npz_reader(path)(path)
    else:
        raise ScanFileError(
            f"{path} must be a CXI (HDF5) or NPZ file; it begins with {signature!r}. Convert it to one of these."
        )
    if scan.source["propagation"] != "far field":
        logger.warning("%s does not say that it is a far-field scan; it is taken for one", path.name)
    return scan


def _hdf5_reader(path: Path) -> Callable[[Path], Scan]:
    with open_hdf5(path, "an HDF5 file") as file:
        if "entry_1" in file:
            return read_cxi
        raise ScanFileError(
            f"{path} must be a CXI file, with the group entry_1; it holds {', '.join(file) or 'nothing'}. "
            "(A Ptychodus product holds no frames; read_product reads it.)"
        )


def _npz_reader(path: Path) -> Callable[[Path], Scan]:
    with open_npz(path, "an NPZ file") as file:
        keys = set(file.files)
    if {"frames", "positions_px"} <= keys:
        return read_canonical
    if {"xcoords", "ycoords"} <= keys and keys & {"diffraction", "diff3d"}:
        return read_ptychopinn
    raise ScanFileError(
        f"{path} must hold `frames` and `positions_px`, or `diffraction`, `xcoords` and `ycoords`; "
        f"it holds {', '.join(sorted(keys)) or 'nothing'}."
    )
