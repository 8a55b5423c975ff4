"""Reconstructions in the CXI format.

CXI 1.6 stores processed images as ``image_N``. Its list of data types has none for a
transmission function; as PyNX does, the object is called an "electron density". Object and probe
are ``image_1`` and ``image_2``, linked as ``object`` and ``probe``; sizes of pixels and the corner
are PyNX's additions to the format. Row 0 is at the smallest y of the sample's coordinates.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np

from bluesky_cdi import __version__
from bluesky_cdi.errors import GeometryError, ScanFileError
from bluesky_cdi.io._files import array, json_object, naming, one, open_hdf5, real, text, written_whole
from bluesky_cdi.io._writing import fixed_text
from bluesky_cdi.io.cxi import (
    DETECTOR,
    KEYS,
    SOURCE,
    TRANSLATION,
    read_geometry,
    read_positions_m,
    write_geometry,
    write_translation,
)
from bluesky_cdi.io.product import Product, checked_product, product_of
from bluesky_cdi.physics.geometry import Geometry
from bluesky_cdi.plain import to_json
from bluesky_cdi.protocols import Estimate

OBJECT = "entry_1/image_1"
PROBE = "entry_1/image_2"
NOTE = "process_1/note_1/data"
INDEXES = "entry_1/sample_1/geometry_1/frame_indexes"
_KEYS = {**KEYS, "index": f"`{INDEXES}`", "object": f"`{OBJECT}/data`", "probe": f"`{PROBE}/data`"}
# CXI's bit of an image's mask for pixels inside the support, and the part of the largest coverage that makes it so.
INSIDE_SUPPORT = 0x10000
LEAST_COVERAGE = 0.02


def write_cxi_result(path: Path | str, estimate: Estimate, geometry: Geometry, name: str = "bluesky_cdi") -> None:
    """Write an estimate as a CXI file: all of it, or nothing.

    Parameters
    ----------
    path : path
        The file to write.
    estimate : Estimate
        What was reconstructed.
    geometry : Geometry
        Of the scan; its sample pixel is the estimate's.
    name : str
        The entry's title.

    Raises
    ------
    ScanFileError, GeometryError
        If the file can't be written, or the estimate's pixel is not the geometry's.
    """
    path, product = Path(path), product_of(estimate, geometry, name)
    with written_whole(path) as partial, h5py.File(partial, "w") as file:
        write_result_contents(file, estimate, product)


def write_result_contents(file: h5py.File, estimate: Estimate, product: Product) -> None:
    """Write what a CXI reconstruction holds into an open, empty file.

    Parameters
    ----------
    file : h5py.File
        Open for writing, empty.
    estimate : Estimate
        What was reconstructed.
    product : Product
        What of it goes into files, with the geometry.
    """
    pixel_m = product.geometry.pixel_m
    file["cxi_version"], file["number_of_entries"] = 160, 1
    entry = file.create_group("entry_1")
    entry["title"], entry["program_name"] = fixed_text(product.name), fixed_text(f"bluesky_cdi {__version__}")
    _write_image(file, OBJECT, product.object, pixel_m)
    _write_image(file, PROBE, product.probe, pixel_m)
    image = file[OBJECT]
    image["data_type"] = fixed_text("electron density")
    image["corner_positions"] = np.array([product.origin_m[1], product.origin_m[0], 0.0])  # x, y, z
    covered = estimate.coverage >= LEAST_COVERAGE * max(float(estimate.coverage.max(initial=0.0)), 1e-30)
    image["mask"] = np.where(covered, INSIDE_SUPPORT, 0).astype(np.uint32)
    write_geometry(file, product.geometry)
    write_translation(file, product.positions_m)
    file[INDEXES] = product.indexes
    _write_process(image.create_group("process_1"), estimate)
    _link(file)


def read_cxi_result(path: Path | str) -> Product:
    """Read a reconstruction that `write_cxi_result` wrote.

    Parameters
    ----------
    path : path
        The CXI file.

    Raises
    ------
    ScanFileError, GeometryError
        If the file can't be read, or holds no such reconstruction.
    """
    path = Path(path)
    with open_hdf5(path, "a CXI reconstruction") as file, naming(path, **_KEYS):
        if file.get(f"{PROBE}/data") is None:
            raise ScanFileError(
                f"{path} must hold {OBJECT} and {PROBE}, as write_cxi_result makes them; it holds no {PROBE}. "
                "(A scan is read by read_cxi; other programs' reconstructions are not supported.)"
            )
        probe, image = array(file, f"{PROBE}/data"), array(file, f"{OBJECT}/data")
        corner = real(array(file, f"{OBJECT}/corner_positions"), f"{OBJECT}/corner_positions").reshape(-1)
        if len(corner) < 2:
            raise ScanFileError(f"{path}: {OBJECT}/corner_positions must hold x and y; it holds {len(corner)} numbers")
        pixel_m = one(array(file, f"{OBJECT}/x_pixel_size"), f"{OBJECT}/x_pixel_size")
        geometry = read_geometry(file, int(probe.shape[-1]) if probe.ndim else 0)
        if not abs(pixel_m - geometry.pixel_m) <= 1e-6 * geometry.pixel_m:
            raise GeometryError(
                f"the object's {OBJECT}/x_pixel_size is {pixel_m} m; the geometry gives {geometry.pixel_m} m for a "
                f"probe of {geometry.frame_px} pixels a side. Parts of the file belong to different scans."
            )
        indexes = array(file, INDEXES)
        return checked_product(
            Product(
                name=text(array(file, "entry_1/title"), "entry_1/title"),
                geometry=geometry,
                indexes=indexes,
                positions_m=read_positions_m(file, indexes.size),
                probe=probe,
                object=image,
                origin_m=(float(corner[1]), float(corner[0])),
            )
        )


def read_cxi_notes(path: Path | str) -> dict[str, Any]:
    """Read what `write_cxi_result` noted of what made a reconstruction: seconds, frames, and the estimate's source.

    Parameters
    ----------
    path : path
        The file.

    Raises
    ------
    ScanFileError
        If the file can't be read, or holds no such notes.
    """
    path, place = Path(path), f"{OBJECT}/{NOTE}"
    with open_hdf5(path, "a CXI reconstruction") as file, naming(path):
        return json_object(array(file, place), place)


def _write_image(file: h5py.File, place: str, values: Any, pixel_m: float) -> None:
    image = file.create_group(place)
    image["data"] = np.asarray(values, np.complex64)
    image["data_space"], image["dimensionality"] = fixed_text("real"), 2
    rows, columns = values.shape[-2:]
    image["image_size"] = np.array([columns * pixel_m, rows * pixel_m, 0.0])
    for name in ("x_pixel_size", "y_pixel_size"):
        image[name] = pixel_m
        image[name].attrs["units"] = fixed_text("m")
    image["source_1"], image["detector_1"] = h5py.SoftLink(f"/{SOURCE}"), h5py.SoftLink(f"/{DETECTOR}")


def _write_process(process: h5py.Group, estimate: Estimate) -> None:
    process["program"], process["version"] = fixed_text("bluesky_cdi"), fixed_text(__version__)
    settings = {"seconds": estimate.seconds, "frames": estimate.n_frames, **estimate.source}
    note = process.create_group("note_1")
    note["description"] = fixed_text("what made it, and with which settings")
    note["type"], note["data"] = fixed_text("application/json"), fixed_text(to_json(settings))


def _link(file: h5py.File) -> None:
    file["entry_1/object"], file["entry_1/probe"] = h5py.SoftLink(f"/{OBJECT}"), h5py.SoftLink(f"/{PROBE}")
    file["entry_1/process_1"] = h5py.SoftLink(f"/{OBJECT}/process_1")
    data = file.create_group("entry_1/data_1")
    data["data"] = h5py.SoftLink(f"/{OBJECT}/data")
    data["translation"] = h5py.SoftLink(f"/{TRANSLATION[1]}")
