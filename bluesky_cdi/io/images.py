"""Images of a detector in files: masks, supports, dark frames, sensitivities."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from bluesky_cdi.errors import ScanFileError
from bluesky_cdi.io._files import array, load_npy, open_hdf5, open_npz, reading

NPY_SIGNATURE, ZIP_SIGNATURE = b"\x93NUMPY", b"PK\x03\x04"
# Little-endian, big-endian, and both as BigTIFF.
_TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# Between a file and the array in it; neither Windows' drives nor URLs have two colons.
DATASET_MARK = "::"


def read_array(path: Path | str, dataset: str | None = None, *, of: str = "real numbers") -> npt.NDArray[Any]:
    """Read an image of real numbers.

    Parameters
    ----------
    path : path
        NPY, NPZ, HDF5 or TIFF; ``FILE::NAME`` names one of several arrays in a file.
    dataset : str, optional
        Key or path of the image, where the file has several arrays.
    of : str
        What it should hold, for messages.

    Returns
    -------
    ndarray, shape (H, W)

    Raises
    ------
    ScanFileError
        If the file can't be read, or holds anything else.
    """
    name, _, within = str(path).partition(DATASET_MARK)
    path, dataset = Path(name).expanduser(), dataset or within or None
    with reading(path, "an image"), path.open("rb") as file:
        signature = file.read(8)
    if signature.startswith(NPY_SIGNATURE):
        values = load_npy(path)
    elif signature.startswith(ZIP_SIGNATURE):
        with open_npz(path, "an NPZ file") as archive:
            values = archive[only({k: archive.shape(k) for k in archive}, (2,), path, dataset)]
    elif signature.startswith(_TIFF_SIGNATURES):
        values = _read_tiff(path)
    else:
        with open_hdf5(path, "an NPY, NPZ, HDF5 or TIFF file") as opened:
            values = array(opened, only(datasets(opened, "biuf"), (2,), path, dataset))
    if values.ndim != 2 or not values.size or values.dtype.kind not in "biuf":
        raise ScanFileError(f"{path} must hold an image (H, W) of {of}; it holds {values.dtype} {values.shape}")
    return values


def read_image(path: Path | str, dataset: str | None = None) -> npt.NDArray[np.bool_]:
    """Read a mask or a support: an image of zeros and ones.

    Parameters
    ----------
    path : path
        NPY, NPZ, HDF5 or TIFF; ``FILE::NAME`` names one of several arrays in a file.
    dataset : str, optional
        Key or path of the image, where the file has several arrays.

    Returns
    -------
    ndarray, shape (H, W), bool

    Raises
    ------
    ScanFileError
        If the file can't be read, or holds anything else.
    """
    values = read_array(path, dataset, of="zeros and ones")
    if not np.isin(values, (0, 1)).all():
        raise ScanFileError(f"{path} must hold zeros and ones (1: valid, or inside); it holds other values too")
    return np.asarray(values, bool)


def datasets(file: h5py.File, kinds: str) -> dict[str, tuple[int, ...]]:
    """List the datasets of an HDF5 file with their shapes.

    Parameters
    ----------
    file : h5py.File
        The open file.
    kinds : str
        Those of NumPy's kinds of types that count.
    """
    found: dict[str, tuple[int, ...]] = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and item.dtype.kind in kinds:
            found[name] = tuple(item.shape)

    file.visititems(visit)
    return found


def only(shapes: Mapping[str, tuple[int, ...]], ndims: tuple[int, ...], path: Path, wanted: str | None) -> str:
    """Choose an array by its name, or the only one of the first number of axes that any has.

    Parameters
    ----------
    shapes : Mapping
        The arrays of a file, by their names.
    ndims : tuple of int
        Numbers of axes, the preferred one first.
    path : Path
        The file, for the message.
    wanted : str or None
        Its name, where that is known.

    Raises
    ------
    ScanFileError
        If there is none, or several.
    """
    if wanted is not None:
        return wanted
    for ndim in ndims:
        fitting = [name for name, shape in shapes.items() if len(shape) == ndim]
        if len(fitting) == 1:
            return fitting[0]
        if fitting:
            break
    held = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
    raise ScanFileError(
        f"{path} must hold one array of {' or '.join(map(str, sorted(ndims)))} axes, or be told which: name the "
        f"dataset. It holds {held or 'none'}."
    )


def _read_tiff(path: Path) -> npt.NDArray[Any]:
    from PIL import Image

    with reading(path, "a TIFF file"), warnings.catch_warnings():
        # What is odd about a file is told by what it holds, or by an error.
        warnings.simplefilter("ignore")
        try:
            with Image.open(path, formats=["TIFF"]) as image:
                return np.asarray(image)
        except Image.DecompressionBombError as err:
            raise ScanFileError(f"{path} states an image beyond any detector: {err}. Write it as NPY or HDF5.") from err
