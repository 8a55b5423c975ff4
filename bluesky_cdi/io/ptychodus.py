"""Scans in the HDF5 files of Ptychodus: diffraction patterns in one file, where they were taken in another.

Three pairs are known, told apart by their keys:

- assembled patterns (`patterns`, `indexes`, `bad_pixels`) with a product; what `write_ptychodus` writes;
- `dp` with positions, probe and object named as in a product (``*_dp.hdf5``, ``*_para.hdf5`` of PtychoViT and pty-chi);
- `dp` with `ppX` and `ppY` in metres, `dx` and `lambda` (fold_slice, PtychoShelves).

Ptychodus' raw readers of single instruments, and PtychoShelves' MATLAB files, are not read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from bluesky_cdi.errors import GeometryError, ScanFileError
from bluesky_cdi.io._files import array, flags, naming, number, one, open_hdf5, real, written_whole
from bluesky_cdi.io._writing import write_frames
from bluesky_cdi.io.frame_dataset import FrameDataset
from bluesky_cdi.io.frames import LazyFrames
from bluesky_cdi.io.preprocessing import Preprocessing
from bluesky_cdi.io.product import Product, read_product, write_contents
from bluesky_cdi.io.scan import Scan, nominal_geometry, recorded
from bluesky_cdi.physics.geometry import HC_EV_M, Geometry, ObjectGrid

FORM = "Ptychodus diffraction patterns"
WORKFLOW = ("product-in.h5", "product-out.h5")
# Distance, energy and detector pixel against the product's sample pixel: more is another experiment.
MOST_MISFIT = 0.01


def read_ptychodus(
    diffraction_path: Path | str,
    product_path: Path | str | None = None,
    *,
    preprocessing: Preprocessing | None = None,
) -> Scan:
    """Read a pair of Ptychodus files.

    Patterns and positions belong together by their indexes; patterns without a position, and
    positions without a pattern, are left out. The frames stay in the file (`LazyFrames`).

    Parameters
    ----------
    diffraction_path : path
        The file of the patterns.
    product_path : path, optional
        By default the first that exists beside the patterns: ``NAME-product.h5`` for ``NAME.h5``,
        ``NAME_para.hdf5`` for ``NAME_dp.hdf5``, ``product-in.h5``, ``product-out.h5``.

    preprocessing : Preprocessing, optional
        What is done to the frames first.

    Raises
    ------
    ScanFileError, FrameError, GeometryError
        If a file can't be read, or the two hold no usable scan.
    """
    path = Path(diffraction_path)
    with open_hdf5(path, FORM) as file:
        assembled = "patterns" in file
    companion = _found(path) if product_path is None else Path(product_path)
    return (_read_assembled if assembled else _read_dp)(path, companion, preprocessing)


def write_ptychodus(
    diffraction_path: Path | str,
    scan: Scan,
    product_path: Path | str | None = None,
    *,
    compression: str | None = None,
) -> None:
    """Write a scan as assembled patterns and a product, whose object is vacuum.

    Parameters
    ----------
    diffraction_path : path
        The file of the patterns to write.
    scan : Scan
        With a probe.
    product_path : path, optional
        By default ``NAME-product.h5`` for ``NAME.h5``, and ``product-in.h5`` for ``diffraction.h5``.
    compression : str, optional
        Of the frames, without loss: one of `COMPRESSIONS`; the first if absent.

    Raises
    ------
    ScanFileError
        If a file can't be written, the scan has no probe, which a product must have, its counts are rounded, which the
        form can't say, or there is no such compression.
    """
    scan.refuse_rounded("Ptychodus")
    path = Path(diffraction_path)
    product_path = companion_path(path) if product_path is None else Path(product_path)
    if product_path == path:
        raise ScanFileError(f"patterns and product need two files; both are {path}. Give product_path another name.")
    product = _product(scan)
    with written_whole(path) as partial, written_whole(product_path) as partial_product:
        with h5py.File(partial, "w") as file:
            patterns = write_frames(file, "patterns", scan.counts, compression)
            for side in ("height", "width"):
                patterns.attrs[f"detector_pixel_{side}_m"] = scan.geometry.detector_pixel_m
            file["indexes"] = np.arange(len(scan))
            size = scan.geometry.frame_px
            file["bad_pixels"] = np.zeros((size, size), bool) if scan.mask is None else ~scan.mask
        with h5py.File(partial_product, "w") as file:
            write_contents(file, product)


def companion_path(path: Path) -> Path:
    """Tell where `write_ptychodus` puts the product of the patterns in `path`."""
    return path.with_name(WORKFLOW[0] if path.name == "diffraction.h5" else f"{path.stem}-product{path.suffix}")


def _found(path: Path) -> Path:
    candidates = [companion_path(path), *(path.with_name(name) for name in WORKFLOW)]
    if path.stem.endswith("_dp"):
        candidates.insert(0, path.with_name(f"{path.stem.removesuffix('_dp')}_para{path.suffix}"))
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise ScanFileError(
        f"{path} holds patterns only, no positions; none of {', '.join(c.name for c in candidates)} is beside it. "
        "Name the file that holds them: read_ptychodus(patterns, product), or bluesky-cdi convert --product FILE."
    )


def _read_assembled(path: Path, product_path: Path, preprocessing: Preprocessing | None) -> Scan:
    product = read_product(product_path)
    with open_hdf5(path, FORM) as file:
        frames, indexes, bad = (
            LazyFrames(FrameDataset(path, "patterns")),
            array(file, "indexes"),
            array(file, "bad_pixels"),
        )
        attributes = file["patterns"].attrs
        height, width = (number(attributes, f"detector_pixel_{side}_m", path) for side in ("height", "width"))
    if indexes.shape != (len(frames),) or indexes.dtype.kind not in "iu":
        raise ScanFileError(
            f"{path} must hold an integer for each of its {len(frames)} patterns in `indexes`; "
            f"it holds {indexes.dtype} {indexes.shape}"
        )
    if not abs(height - width) <= 1e-3 * abs(height):
        raise GeometryError(f"{path}: detector pixels must be square; they are {height} x {width} m. Rebin the frames.")
    row_of = {int(index): row for row, index in enumerate(indexes)}
    pairs = [(row_of[int(k)], position) for position, k in enumerate(product.indexes) if int(k) in row_of]
    if not pairs:
        raise ScanFileError(f"{path} and {product_path} have no index in common: they belong to different scans")
    rows, positions = (np.array(side) for side in zip(*pairs, strict=True))
    with naming(path, **_keys("patterns", product_path)):
        return recorded(
            frames.select(rows),
            product.probe,
            positions_m=product.positions_m[positions],
            geometry=_geometry(product, height, frames.shape[-1], path),
            mask=~flags(bad, "bad_pixels"),
            name=product.name,
            source={
                "propagation": "near field" if product.geometry.propagation == "near" else "far field",
                "file": path.name,
                "product": product_path.name,
                "format": "ptychodus",
            },
            preprocessing=preprocessing,
        )


def _geometry(product: Product, detector_pixel_m: float, frame_px: int, path: Path) -> Geometry:
    of = product.geometry
    geometry = Geometry(of.energy_ev, of.distance_m, detector_pixel_m, frame_px, of.propagation, of.focus_to_sample_m)
    if abs(geometry.pixel_m / of.pixel_m - 1) > MOST_MISFIT:
        raise GeometryError(
            f"{path}: the patterns' detector pixel gives a sample pixel of {geometry.pixel_m:.6g} m, the product "
            f"states {of.pixel_m:.6g} m. One of them belongs to another scan, or to binned patterns."
        )
    return geometry


def _read_dp(path: Path, companion: Path, preprocessing: Preprocessing | None) -> Scan:
    frames = LazyFrames(FrameDataset(path, "dp"))
    with open_hdf5(companion, "positions for diffraction patterns") as file:
        geometry, probe = _nominal(file, frames.shape[-1])
        positions_m = _positions_m(file)
    with naming(path, **_keys("dp", companion)):
        return recorded(
            frames,
            probe,
            positions_m=positions_m,
            geometry=geometry,
            name=path.stem.removesuffix("_dp"),
            source={
                "propagation": "far field",
                "nominal_geometry": True,
                "file": path.name,
                "product": companion.name,
                "format": "ptychodus",
            },
            preprocessing=preprocessing,
        )


def _keys(frames: str, companion: Path) -> dict[str, str]:
    """Where the parts are of which a message about a scan may speak."""
    return {
        "frames": f"`{frames}`",
        "frame_px": f"`{frames}`",
        "mask": "`bad_pixels`",
        "positions": f"`probe_position_x_m`, `probe_position_y_m` or `ppX`, `ppY` of {companion}",
        "probe": f"`probe` of {companion}",
    }


def _positions_m(file: h5py.File) -> npt.NDArray[np.float64]:
    names = ("probe_position_y_m", "probe_position_x_m") if "probe_position_x_m" in file else ("ppY", "ppX")
    y, x = (real(array(file, name), name).reshape(-1) for name in names)
    if len(x) != len(y):
        raise ScanFileError(
            f"{file.filename} must hold as many {names[0]} as {names[1]}; it holds {len(y)} and {len(x)}"
        )
    return np.stack([y, x], axis=1)


def _nominal(file: h5py.File, frame_px: int) -> tuple[Geometry, npt.NDArray[Any] | None]:
    """Read geometry and probe of a file of positions, which states the sample pixel and at most the wavelength too."""
    if "object" in file:
        pixel_m = number(file["object"].attrs, "pixel_height_m", Path(file.filename))
        return nominal_geometry(pixel_m, frame_px), array(file, "probe") if "probe" in file else None
    pixel_m = one(array(file, "dx"), "dx")
    if "lambda" not in file:
        return nominal_geometry(pixel_m, frame_px), None
    wavelength_m = one(array(file, "lambda"), "lambda")
    if not wavelength_m > 0:
        raise GeometryError(f"{file.filename}: `lambda` must be a wavelength in metres; it is {wavelength_m}")
    return nominal_geometry(pixel_m, frame_px, HC_EV_M / wavelength_m), None


def _product(scan: Scan) -> Product:
    if scan.probe is None:
        raise ScanFileError(
            "a Ptychodus product must hold a probe; the scan has none. "
            "Give it one: dataclasses.replace(scan, probe=...)."
        )
    low, high = scan.positions_m.min(axis=0), scan.positions_m.max(axis=0)
    grid = ObjectGrid.covering(low, high, scan.geometry.pixel_m, scan.geometry.frame_px)
    return Product(
        name=scan.name,
        geometry=scan.geometry,
        indexes=np.arange(len(scan)),
        positions_m=scan.positions_m,
        probe=np.asarray(scan.probe, np.complex64),
        object=np.ones(grid.shape, np.complex64),
        origin_m=grid.origin_m,
    )
