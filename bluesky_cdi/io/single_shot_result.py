"""Single-shot reconstructions in the CXI format.

Each reconstructed frame is an ``image_N`` of CXI 1.6, its mask marking the support. What CXI has no place for
(R-factors, status of the starts, transfer function) stands beside it in the group ``single_shot_1``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from bluesky_cdi import __version__
from bluesky_cdi.errors import ScanFileError
from bluesky_cdi.io._files import array, json_object, number, one, open_hdf5, real, written_whole
from bluesky_cdi.io._writing import fixed_text
from bluesky_cdi.io.cxi import write_geometry
from bluesky_cdi.physics.geometry import Geometry
from bluesky_cdi.plain import to_json
from bluesky_cdi.protocols import ComplexArray, FloatArray

# CXI's bit of an image's mask for pixels inside the support.
INSIDE_SUPPORT = 0x10000
STATUS = ("converged", "stagnated", "diverged")
_FORM = "bluesky_cdi_single_shot"


@dataclass(frozen=True, eq=False)
class SingleShotImage:
    """A reconstruction of one frame (or of the sum of several) as a file holds it.

    Attributes
    ----------
    frames : tuple of int
        Numbers of the frames in their file, from 0.
    object : ndarray, shape (N, N), complex64
        Mean of the converged starts; of the best alone where none has.
    support : ndarray, shape (N, N), bool
        Of the best start.
    r_factor : ndarray, shape (s,)
        Of each start; NaN where it diverged.
    noise_r_factor : float
        That expected of photon noise alone.
    status : tuple of str
        'converged', 'stagnated' or 'diverged', each start.
    best : int
        The start with the lowest R-factor.
    transfer : ndarray, shape (N // 2 + 1,)
        Phase retrieval transfer function; NaN where nothing was measured.
    unmeasured_share : float
        Share of the object's photons on pixels of the frame that are not valid.
    history : ndarray, shape (cycles + 1, s)
        R-factor of each start before the first cycle and after each.
    iterations : int
        How many were made from each start.
    pixel_m : float or None
        Object pixel, metres; None where the geometry is not known.
    provenance : Mapping
        What made it, from which file, and with which settings; plain values.
    """

    frames: tuple[int, ...]
    object: ComplexArray
    support: npt.NDArray[np.bool_]
    r_factor: FloatArray
    noise_r_factor: float
    status: tuple[str, ...]
    best: int
    transfer: FloatArray
    unmeasured_share: float
    history: FloatArray
    iterations: int
    pixel_m: float | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        """Status of the best start: 'converged', 'stagnated' or 'diverged'."""
        return self.status[self.best]


def write_single_shot(
    path: Path | str, images: Sequence[SingleShotImage], geometry: Geometry | None = None, name: str = "bluesky_cdi"
) -> None:
    """Write single-shot reconstructions as one CXI file: all of it, or nothing.

    Parameters
    ----------
    path : path
        The file to write.
    images : sequence of SingleShotImage
        One for each frame, or sum of frames.
    geometry : Geometry, optional
        Of the frames, where it is known.
    name : str
        The entry's title.

    Raises
    ------
    ScanFileError
        If the file can't be written.
    """
    path = Path(path)
    with written_whole(path) as partial, h5py.File(partial, "w") as file:
        file["cxi_version"], file["number_of_entries"] = 160, 1
        entry = file.create_group("entry_1")
        entry["title"], entry["program_name"] = fixed_text(name), fixed_text(f"bluesky_cdi {__version__}")
        entry.attrs[_FORM] = len(images)
        if geometry is not None:
            write_geometry(file, geometry)
        for i, image in enumerate(images, 1):
            _write_image(entry.create_group(f"image_{i}"), image)
        entry["data_1/data"] = h5py.SoftLink("/entry_1/image_1/data")


def read_single_shot(path: Path | str) -> tuple[SingleShotImage, ...]:
    """Read reconstructions that `write_single_shot` wrote.

    Parameters
    ----------
    path : path
        The CXI file.

    Raises
    ------
    ScanFileError
        If the file can't be read, or holds no such reconstructions.
    """
    path = Path(path).expanduser()
    with open_hdf5(path, "a single-shot reconstruction") as file:
        if not is_single_shot(file):
            raise ScanFileError(
                f"{path} must be a single-shot reconstruction, as write_single_shot makes it; it is none. "
                "(Reconstructed scans are read by read_reconstruction.)"
            )
        count = int(number(file["entry_1"].attrs, _FORM, path))
        return tuple(_read_image(_group(file["entry_1"], f"image_{i}")) for i in range(1, count + 1))


def is_single_shot(file: h5py.File) -> bool:
    """Tell whether an open HDF5 file is one that `write_single_shot` wrote."""
    return "entry_1" in file and _FORM in file["entry_1"].attrs


def _write_image(group: h5py.Group, image: SingleShotImage) -> None:
    group["data"] = np.asarray(image.object, np.complex64)
    group["data_space"], group["data_type"] = fixed_text("real"), fixed_text("electron density")
    group["dimensionality"] = 2
    group["mask"] = np.where(image.support, INSIDE_SUPPORT, 0).astype(np.uint32)
    if image.pixel_m is not None:
        rows, columns = image.object.shape
        group["image_size"] = np.array([columns * image.pixel_m, rows * image.pixel_m, 0.0])
        for name in ("x_pixel_size", "y_pixel_size"):
            group[name] = image.pixel_m
            group[name].attrs["units"] = fixed_text("m")
    values = group.create_group("single_shot_1")
    values["frames"] = np.array(image.frames, np.int64)
    for name in ("r_factor", "transfer", "history"):
        values[name] = np.asarray(getattr(image, name), np.float64)
    for name in ("noise_r_factor", "unmeasured_share", "best", "iterations"):
        values[name] = getattr(image, name)
    values["status"] = np.array([STATUS.index(word) for word in image.status], np.uint8)
    values["status"].attrs["meaning"] = fixed_text(", ".join(f"{i}: {word}" for i, word in enumerate(STATUS)))
    process = group.create_group("process_1")
    process["program"], process["version"] = fixed_text("bluesky_cdi"), fixed_text(__version__)
    note = process.create_group("note_1")
    note["description"] = fixed_text("what made it, and with which settings")
    note["type"], note["data"] = fixed_text("application/json"), fixed_text(to_json(image.provenance))


def _read_image(group: h5py.Group) -> SingleShotImage:
    values = _group(group, "single_shot_1")
    image, mask = array(group, "data"), array(group, "mask")
    if image.ndim != 2 or image.dtype.kind != "c" or mask.shape != image.shape or mask.dtype.kind not in "iu":
        raise ScanFileError(
            f"`{group.name}/data` must be complex (N, N) and `mask` hold integers of its shape; "
            f"they are {image.dtype} {image.shape} and {mask.dtype} {mask.shape}"
        )
    frames, status = array(values, "frames"), array(values, "status")
    if {frames.ndim, status.ndim} != {1} or {frames.dtype.kind, status.dtype.kind} - set("iu"):
        raise ScanFileError(
            f"`{values.name}/frames` and `status` must be lists of integers; "
            f"they are {frames.dtype} {frames.shape} and {status.dtype} {status.shape}"
        )
    lists = {name: real(array(values, name), f"{values.name}/{name}") for name in ("r_factor", "transfer", "history")}
    best = one(array(values, "best"), f"{values.name}/best")
    if not (np.isin(status, range(len(STATUS))).all() and best in range(len(status))):
        raise ScanFileError(
            f"`{values.name}/status` must hold a number below {len(STATUS)} for each start, and `best` be one of the "
            f"starts; they are {status.tolist()} and {best:g}"
        )
    if lists["r_factor"].shape != status.shape or lists["history"].shape[1:] != status.shape:
        raise ScanFileError(
            f"`{values.name}/r_factor` and `history` must have a column for each of {len(status)} starts in `status`; "
            f"they have the shapes {lists['r_factor'].shape} and {lists['history'].shape}"
        )
    pixel_m = one(array(group, "x_pixel_size"), f"{group.name}/x_pixel_size") if "x_pixel_size" in group else None
    return SingleShotImage(
        frames=tuple(int(i) for i in frames),
        object=image,
        support=(mask.astype(np.int64) & INSIDE_SUPPORT) != 0,
        status=tuple(STATUS[i] for i in status),
        best=int(best),
        **lists,
        noise_r_factor=one(array(values, "noise_r_factor"), f"{values.name}/noise_r_factor"),
        unmeasured_share=one(array(values, "unmeasured_share"), f"{values.name}/unmeasured_share"),
        iterations=int(one(array(values, "iterations"), f"{values.name}/iterations")),
        pixel_m=pixel_m,
        provenance=json_object(array(group, "process_1/note_1/data"), f"{group.name}/process_1/note_1/data"),
    )


def _group(parent: h5py.Group, name: str) -> h5py.Group:
    group = parent.get(name)
    if not isinstance(group, h5py.Group):
        raise ScanFileError(f"{parent.file.filename} must hold the group {name!r} in {parent.name}; it holds none")
    return group
