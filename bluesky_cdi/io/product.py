"""Reconstructions as Ptychodus product files (the HDF5 form of Ptychodus 1.7)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from bluesky_cdi.errors import ScanFileError
from bluesky_cdi.io._files import open_hdf5, written_whole
from bluesky_cdi.physics.geometry import HC_EV_M, Geometry
from bluesky_cdi.protocols import ComplexArray, Estimate, FloatArray


@dataclass(frozen=True, eq=False)
class Product:
    """What a product file holds.

    Attributes
    ----------
    name : str
    geometry : Geometry
        The detector pixel is not in the file: it follows from the object's pixel.
    indexes : ndarray, shape (n,), int
        Number of each position's frame.
    positions_m : ndarray, shape (n, 2), float64
        (y, x), metres.
    probe : ndarray, shape (modes, N, N), complex64
    object : ndarray, shape (Y, X), complex64
    origin_m : tuple of float
        Sample position (y, x) of the object's pixel [0, 0], metres.
    """

    name: str
    geometry: Geometry
    indexes: npt.NDArray[np.integer[Any]]
    positions_m: FloatArray
    probe: ComplexArray
    object: ComplexArray
    origin_m: tuple[float, float]


def write_product(path: Path | str, estimate: Estimate, geometry: Geometry, name: str = "bluesky_cdi") -> None:
    """Write an estimate as a product file: all of it, or nothing.

    Raises
    ------
    ScanFileError
        If the file can't be written.
    """
    with written_whole(Path(path)) as partial, h5py.File(partial, "w") as file:
        file.attrs["name"] = name
        file.attrs["comments"] = ""
        file.attrs["detector_object_distance_m"] = geometry.distance_m
        file.attrs["probe_energy_eV"] = geometry.energy_ev
        file.attrs["probe_photon_count"] = float((np.abs(estimate.probe) ** 2).sum())
        file["probe_position_indexes"] = np.asarray(estimate.frame_seq_nums)
        file["probe_position_y_m"] = np.asarray(estimate.positions_m[:, 0], np.float64)
        file["probe_position_x_m"] = np.asarray(estimate.positions_m[:, 1], np.float64)
        probe = file.create_dataset("probe", data=estimate.probe[np.newaxis])  # (C = 1, I = modes, H, W)
        image = file.create_dataset("object", data=estimate.object[np.newaxis])  # (L = 1, H, W)
        for dataset in (probe, image):
            dataset.attrs["pixel_height_m"] = dataset.attrs["pixel_width_m"] = estimate.pixel_m
        centre_y, centre_x = _centre_m(estimate.origin_m, estimate.object.shape, estimate.pixel_m)
        image.attrs["center_y_m"], image.attrs["center_x_m"] = centre_y, centre_x
        file["object_layer_spacing_m"] = np.empty(0)
        file["loss_epochs"], file["loss_values"] = np.empty(0, int), np.empty(0)


def read_product(path: Path | str) -> Product:
    """Read a product file of one object layer and one coherent probe.

    Raises
    ------
    ScanFileError
        If the file can't be read, or holds several layers or coherent probes.
    """
    path = Path(path)
    with open_hdf5(path, "a Ptychodus product") as file:
        probe, image = np.asarray(file["probe"][()]), np.asarray(file["object"][()])
        if probe.ndim != 4 or image.ndim != 3 or len(probe) != 1 or len(image) != 1:
            raise ScanFileError(
                f"{path} must hold a probe (1, modes, N, N) and an object (1, Y, X); they have {probe.shape} and "
                f"{image.shape}. Several object layers or coherent probe modes are not supported."
            )
        attributes = file["object"].attrs
        pixel_m = float(attributes["pixel_height_m"])
        energy_ev, distance_m = float(file.attrs["probe_energy_eV"]), float(file.attrs["detector_object_distance_m"])
        frame_px = probe.shape[-1]
        offset_y, offset_x = _centre_m((0.0, 0.0), image.shape[1:], pixel_m)
        return Product(
            name=str(file.attrs.get("name", path.stem)),
            geometry=Geometry(energy_ev, distance_m, HC_EV_M / energy_ev * distance_m / (frame_px * pixel_m), frame_px),
            indexes=np.asarray(file["probe_position_indexes"][()]),
            positions_m=np.stack([file["probe_position_y_m"][()], file["probe_position_x_m"][()]], axis=1),
            probe=probe[0].astype(np.complex64),
            object=image[0].astype(np.complex64),
            origin_m=(float(attributes["center_y_m"]) - offset_y, float(attributes["center_x_m"]) - offset_x),
        )


def _centre_m(origin_m: tuple[float, float], shape: tuple[int, ...], pixel_m: float) -> tuple[float, float]:
    """Sample position (y, x) of the middle of an image, metres: Ptychodus has pixel i at (i - (n - 1) / 2) from it."""
    return origin_m[0] + (shape[0] - 1) / 2 * pixel_m, origin_m[1] + (shape[1] - 1) / 2 * pixel_m
