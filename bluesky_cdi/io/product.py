"""Reconstructions as Ptychodus product files (the HDF5 form of Ptychodus 1.7).

The near field stands in the attributes `far_field` and `focus_object_distance_m`, as Ptychodus names them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from bluesky_cdi.errors import GeometryError, ScanFileError
from bluesky_cdi.io._files import array, naming, number, open_hdf5, real, stated, written_whole
from bluesky_cdi.io._writing import fixed_text
from bluesky_cdi.io.positions import check_unit
from bluesky_cdi.physics.geometry import HC_EV_M, Geometry
from bluesky_cdi.plain import to_json
from bluesky_cdi.protocols import ComplexArray, Estimate, FloatArray

_KEYS = {
    "positions": "`probe_position_y_m`, `probe_position_x_m`",
    "index": "`probe_position_indexes`",
    "object": "`object`",
    "probe": "`probe`",
}
# Ptychodus wants `name` as a text of variable length; a damaged one can make the HDF5 library loop for ever. So the
# reader takes this one where it is.
OWN_NAME = "bluesky_cdi_name"


@dataclass(frozen=True, eq=False)
class Product:
    """A reconstruction in a file, a Ptychodus product or CXI.

    Attributes
    ----------
    name : str
        What the product calls itself.
    geometry : Geometry
        In a Ptychodus product the detector pixel is not stated: it follows from the object's pixel.
    indexes : ndarray, shape (n,), int
        Number of each position's frame.
    positions_m : ndarray, shape (n, 2), float64
        (y, x), metres.
    probe : ndarray, shape (modes, N, N), complex64
        Incoherent modes, square root of photons.
    object : ndarray, shape (Y, X), complex64
        Transmission function; vacuum is 1.
    origin_m : tuple of float
        Sample position (y, x) of the object's pixel [0, 0], metres.
    comments : str
        What is to be said of it; written, not read.
    """

    name: str
    geometry: Geometry
    indexes: npt.NDArray[np.integer[Any]]
    positions_m: FloatArray
    probe: ComplexArray
    object: ComplexArray
    origin_m: tuple[float, float]
    comments: str = ""


def write_product(path: Path | str, estimate: Estimate, geometry: Geometry, name: str = "bluesky_cdi") -> None:
    """Write an estimate as a product file: all of it, or nothing.

    Parameters
    ----------
    path : path
        The file to write.
    estimate : Estimate
        What was reconstructed.
    geometry : Geometry
        Of the scan; its sample pixel is the estimate's.
    name : str
        The product's name.

    Raises
    ------
    ScanFileError, GeometryError
        If the file can't be written, or the estimate's pixel is not the geometry's.
    """
    product = product_of(estimate, geometry, name)
    with written_whole(Path(path)) as partial, h5py.File(partial, "w") as file:
        write_contents(file, product)


def product_of(estimate: Estimate, geometry: Geometry, name: str) -> Product:
    """Gather what of an estimate goes into a file.

    Parameters
    ----------
    estimate : Estimate
        What was reconstructed.
    geometry : Geometry
        Of the scan.
    name : str
        The product's name.

    Raises
    ------
    ScanFileError, GeometryError
        If object or probe are not finite, or the estimate's pixel is not the geometry's.
    """
    for part in ("object", "probe"):
        if bad := int((~np.isfinite(getattr(estimate, part))).sum()):
            raise ScanFileError(f"the {part} of a result must be finite; {bad} pixels are not: nothing is written")
    if not abs(estimate.pixel_m - geometry.pixel_m) <= 1e-6 * geometry.pixel_m:
        raise GeometryError(
            f"the estimate's pixel must be the geometry's, {geometry.pixel_m} m; it is {estimate.pixel_m} m. "
            "Give the geometry of the scan that was reconstructed."
        )
    return Product(
        name=name,
        geometry=geometry,
        indexes=np.asarray(estimate.frame_seq_nums),
        positions_m=np.asarray(estimate.positions_m, np.float64),
        probe=estimate.probe,
        object=estimate.object,
        origin_m=estimate.origin_m,
        comments=_comments(estimate.source),
    )


def _comments(source: Mapping[str, Any]) -> str:
    """Say of an estimate what was found of its probe, what was done to the detector's frames, and the verdict."""
    says = str(source.get("probe_check_in", {}).get("says", ""))
    verdict = f"verdict: {to_json(source['verdict'])}" if "verdict" in source else ""
    notes = f"preprocessing: {to_json(source['preprocessing'])}" if "preprocessing" in source else ""
    return "; ".join(filter(None, (says, notes, verdict)))


def write_contents(file: h5py.File, product: Product) -> None:
    """Write what a product holds into an open, empty file.

    Parameters
    ----------
    file : h5py.File
        Open for writing, empty.
    product : Product
        What it shall hold.
    """
    geometry, pixel_m = product.geometry, product.geometry.pixel_m
    attributes = file.attrs
    attributes["name"], attributes["comments"] = product.name, product.comments
    attributes[OWN_NAME] = fixed_text(product.name)
    attributes["detector_object_distance_m"] = geometry.distance_m
    # The second name is that of later versions.
    attributes["probe_energy_eV"] = attributes["photon_energy_eV"] = geometry.energy_ev
    attributes["probe_photon_count"] = float((np.abs(product.probe.astype(np.complex128)) ** 2).sum())
    attributes["exposure_time_s"] = attributes["mass_attenuation_m2_kg"] = attributes["tomography_angle_deg"] = 0.0
    if geometry.propagation == "near":
        attributes["far_field"] = False
        attributes["focus_object_distance_m"] = geometry.focus_to_sample_m or 0.0  # 0: a parallel beam
    file["probe_position_indexes"] = product.indexes
    file["probe_position_y_m"] = np.asarray(product.positions_m[:, 0], np.float64)
    file["probe_position_x_m"] = np.asarray(product.positions_m[:, 1], np.float64)
    probe = file.create_dataset("probe", data=product.probe[np.newaxis])  # (C = 1, I = modes, H, W)
    image = file.create_dataset("object", data=product.object[np.newaxis])  # (L = 1, H, W)
    for dataset in (probe, image):
        dataset.attrs["pixel_height_m"] = dataset.attrs["pixel_width_m"] = pixel_m
    centre_y, centre_x = _centre_m(product.origin_m, product.object.shape, pixel_m)
    image.attrs["center_y_m"], image.attrs["center_x_m"] = centre_y, centre_x
    file["object_layer_spacing_m"] = np.empty(0)
    file["loss_epochs"], file["loss_values"] = np.empty(0, int), np.empty(0)


def read_product(path: Path | str) -> Product:
    """Read a product file of one object layer and one coherent probe, with any number of incoherent modes.

    Parameters
    ----------
    path : path
        The HDF5 file of Ptychodus.

    Raises
    ------
    ScanFileError, GeometryError
        If the file can't be read, or holds several layers or coherent (orthogonal probe relaxation) modes.
    """
    path = Path(path)
    with open_hdf5(path, "a Ptychodus product") as file, naming(path, **_KEYS):
        probe, image = _one(array(file, "probe"), 4, path), _one(array(file, "object"), 3, path)
        attributes = file["object"].attrs
        pixel_m = number(attributes, "pixel_height_m", path)
        width_m = number(attributes, "pixel_width_m", path)
        if not abs(width_m - pixel_m) <= 1e-3 * abs(pixel_m):
            raise GeometryError(
                f"{path}: the object's pixels must be square; they are {pixel_m} x {width_m} m. Resample the object."
            )
        offset_y, offset_x = _centre_m((0.0, 0.0), image.shape, pixel_m)
        centre_y, centre_x = number(attributes, "center_y_m", path), number(attributes, "center_x_m", path)
        y, x = (real(array(file, name), name) for name in ("probe_position_y_m", "probe_position_x_m"))
        if x.shape != y.shape:
            raise ScanFileError(
                f"{path} must hold as many probe_position_x_m as probe_position_y_m; they have {x.shape} and {y.shape}"
            )
        return checked_product(
            Product(
                name=stated(file.attrs, OWN_NAME if OWN_NAME in file.attrs else "name", path.stem),
                geometry=_geometry(file.attrs, pixel_m, int(probe.shape[-1]), path),
                indexes=array(file, "probe_position_indexes"),
                positions_m=np.stack([y, x], axis=1),
                probe=probe,
                object=image,
                origin_m=(centre_y - offset_y, centre_x - offset_x),
            )
        )


def checked_product(product: Product) -> Product:
    """Check a product, and give it with its arrays as complex64.

    Raises
    ------
    ScanFileError, GeometryError
        If shapes or values can't be a reconstruction's.
    """
    probe, image, indexes = product.probe, product.object, product.indexes
    if image.ndim != 2 or probe.ndim != 3 or probe.shape[1] != probe.shape[2] or not image.size or not probe.size:
        raise ScanFileError(
            "a reconstruction must hold an object (Y, X) and a probe (modes, N, N); "
            f"they have {image.shape} and {probe.shape}"
        )
    for name, values in (("object", image), ("probe", probe)):
        if values.dtype.kind not in "fc" or not np.isfinite(values).all():
            raise ScanFileError(f"the {name} must hold finite complex numbers; it holds {values.dtype}")
    if indexes.dtype.kind not in "iu" or indexes.ndim != 1 or product.positions_m.shape != (len(indexes), 2):
        raise ScanFileError(
            f"there must be one position for each index; indexes are {indexes.dtype} {indexes.shape}, "
            f"positions {product.positions_m.shape}"
        )
    if not (np.isfinite(product.positions_m).all() and np.isfinite(product.origin_m).all()):
        raise GeometryError("positions and the object's centre must be finite; some are not")
    check_unit(product.positions_m, product.geometry)
    return replace(product, probe=probe.astype(np.complex64), object=image.astype(np.complex64))


def _one(values: npt.NDArray[Any], axes: int, path: Path) -> npt.NDArray[Any]:
    """Take the only coherent probe or object layer; older files lack that axis."""
    if values.ndim == axes - 1:
        return values
    if values.ndim != axes or len(values) != 1:
        raise ScanFileError(
            f"{path} must hold a probe (1, modes, N, N) and an object (1, Y, X); one has the shape {values.shape}. "
            "Several object layers or coherent probe modes are not supported."
        )
    return np.asarray(values[0])


def _geometry(attributes: h5py.AttributeManager, pixel_m: float, frame_px: int, path: Path) -> Geometry:
    energy_name = "probe_energy_eV" if "probe_energy_eV" in attributes else "photon_energy_eV"
    energy_ev = number(attributes, energy_name, path)
    distance_m = number(attributes, "detector_object_distance_m", path)
    if not (energy_ev > 0 and distance_m > 0 and pixel_m > 0 and frame_px > 0):
        raise GeometryError(
            f"{path}: energy, distance and pixel must be positive; they are {energy_ev} eV, {distance_m} m, {pixel_m} m"
        )
    if "far_field" not in attributes or number(attributes, "far_field", path):
        return Geometry(energy_ev, distance_m, HC_EV_M / energy_ev * distance_m / (frame_px * pixel_m), frame_px)
    focus = number(attributes, "focus_object_distance_m", path) or None
    magnification = 1.0 if focus is None else (focus + distance_m) / focus
    return Geometry(energy_ev, distance_m, pixel_m * magnification, frame_px, "near", focus)


def _centre_m(origin_m: tuple[float, float], shape: tuple[int, ...], pixel_m: float) -> tuple[float, float]:
    """Sample position (y, x) of the middle of an image, metres: Ptychodus has pixel i at (i - (n - 1) / 2) from it."""
    return origin_m[0] + (shape[0] - 1) / 2 * pixel_m, origin_m[1] + (shape[1] - 1) / 2 * pixel_m
