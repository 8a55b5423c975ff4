"""Diffraction frames without positions: what single-shot imaging has, and what a plain array of counts is."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from bluesky_cdi.errors import FrameError, GeometryError, ScanFileError
from bluesky_cdi.io._files import array, flags, json_object, load_npy, naming, open_hdf5, open_npz, reading, text
from bluesky_cdi.io.cxi import DATA, DETECTOR, ENERGY, ILLUMINATION, KEYS, WAVELENGTH, read_geometry, read_mask
from bluesky_cdi.io.formats import read_scan
from bluesky_cdi.io.frame_dataset import FrameDataset
from bluesky_cdi.io.frames import Frames, LazyFrames
from bluesky_cdi.io.images import NPY_SIGNATURE, ZIP_SIGNATURE, datasets, only
from bluesky_cdi.physics.geometry import Geometry
from bluesky_cdi.protocols import ComplexArray

logger = logging.getLogger(__name__)

# CXI files of single particles keep their frames in an image.
_CXI_IMAGE = "entry_1/image_1"
# Arrays beside the frames in our own NPZ files.
_NO_FRAMES = {"mask", "support", "positions_px", "positions_m", "probe_guess"}


@dataclass(frozen=True, eq=False)
class FrameStack:
    """Frames as a detector gave them, and what their file says about them.

    Attributes
    ----------
    counts : Frames, shape (n, H, W)
        Real numbers; pixels that the detector flagged may be negative or NaN.
    mask : ndarray, shape (H, W), bool, or None
        True where a pixel is valid; None: the file has no mask.
    geometry : Geometry or None
        None where the file doesn't state it. Its `frame_px` is W.
    probe : ndarray, shape (modes, N, N), complex64, or None
        Illumination at the sample, in the file's own units.
    name : str
        What the frames are called, after their file.
    source : Mapping
        The file's name, its form, and the dataset of the frames.

    Raises
    ------
    FrameError, ScanFileError
        If the frames are no stack of real numbers, or the mask has not their shape.
    """

    counts: Frames
    mask: npt.NDArray[np.bool_] | None = None
    geometry: Geometry | None = None
    probe: ComplexArray | None = None
    name: str = ""
    source: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.counts.ndim != 3 or 0 in self.counts.shape:
            raise ScanFileError(f"frames must have the shape (H, W) or (n, H, W); they have {self.counts.shape}")
        if self.counts.dtype.kind not in "iuf":
            raise FrameError(f"frames must hold counts, real numbers; their type is {self.counts.dtype}")
        if self.mask is not None and self.mask.shape != self.counts.shape[1:]:
            raise ScanFileError(
                f"a mask must have the frames' shape {self.counts.shape[1:]}; it has {self.mask.shape}. "
                "Give one mask for all frames."
            )

    def __len__(self) -> int:
        return len(self.counts)


def read_frames(path: Path | str, *, dataset: str | None = None, focus_to_sample_m: float | None = None) -> FrameStack:
    """Read frames from a recorded scan, a file like it without positions, or a plain array.

    Known are CXI, canonical NPZ, Ptychodus' patterns, PtychoPINN's NPZ, and arrays (H, W) or (n, H, W) of
    counts in NPY, NPZ or HDF5. Counts are not looked at: a detector's flags stay what they are.

    Parameters
    ----------
    path : path
        The file to read.
    dataset : str, optional
        Key of an NPZ file, or path in an HDF5 file, of the frames; needed where several arrays could be they.
    focus_to_sample_m : float, optional
        Distance from the focus to the sample, metres: declares near-field frames in a CXI file.

    Raises
    ------
    ScanFileError
        If the file is absent, can't be read, or doesn't say which of its arrays are the frames.
    FrameError, GeometryError
        If the frames are no real numbers, or the file's geometry is impossible.
    """
    path = Path(path).expanduser()
    with reading(path, "frames"), path.open("rb") as file:
        signature = file.read(8)
    with naming(path):
        if signature.startswith(NPY_SIGNATURE):
            read = _read_npy(path, dataset)
        elif signature.startswith(ZIP_SIGNATURE):
            read = _read_npz(path, dataset)
        else:
            read = _read_hdf5(path, dataset, focus_to_sample_m)
    near = read.geometry is not None and read.geometry.propagation == "near"
    if focus_to_sample_m is not None and not near:
        raise GeometryError(
            f"focus_to_sample_m declares the frames of a CXI file near-field ones; {path} is none, or has no geometry. "
            "Leave it out."
        )
    return read


def _read_npy(path: Path, dataset: str | None) -> FrameStack:
    if dataset is not None:
        raise ScanFileError(f"{path} is one array; it has no dataset {dataset!r}. Leave it out.")
    return FrameStack(_stacked(load_npy(path)), name=path.stem, source={"file": path.name, "format": "npy"})


def _read_npz(path: Path, dataset: str | None) -> FrameStack:
    with open_npz(path, "an NPZ file") as file:
        if {"xcoords", "ycoords"} <= set(file):
            return _of_scan(path, dataset)
        shapes = {name: file.shape(name) for name in file if name not in _NO_FRAMES}
        name = "frames" if dataset is None and "frames" in shapes else only(shapes, (3, 2), path, dataset)
        counts = _stacked(file[name])
        with naming(path, frames=f"`{name}`", frame_px=f"`{name}`", mask="`mask`", probe="`probe_guess`"):
            return FrameStack(
                counts=counts,
                mask=flags(file["mask"], "mask") if "mask" in file else None,
                geometry=_stated_geometry(file, counts.shape[-1] if counts.ndim else 0),
                probe=_modes(file["probe_guess"]) if "probe_guess" in file else None,
                name=text(file["name"], "name") if "name" in file else path.stem,
                source={"file": path.name, "format": "npz", "dataset": name},
            )


def _stated_geometry(file: Mapping[str, Any], frame_px: int) -> Geometry | None:
    if "geometry" not in file:
        return None
    return Geometry.from_metadata({"geometry": json_object(file["geometry"], "geometry")}, (frame_px, frame_px))


def _read_hdf5(path: Path, dataset: str | None, focus_to_sample_m: float | None) -> FrameStack:
    with open_hdf5(path, "an NPY, NPZ or HDF5 file of frames") as file:
        if "entry_1" in file:
            return _read_cxi(path, file, dataset, focus_to_sample_m)
        if dataset is None and {"patterns", "dp"} & set(file):
            return _of_scan(path, dataset)
        place = only(datasets(file, "iuf"), (3, 2), path, dataset)
    with naming(path, frames=f"`{place}`"):
        return FrameStack(
            LazyFrames(FrameDataset(path, place)),
            name=path.stem,
            source={"file": path.name, "format": "hdf5", "dataset": place},
        )


def _read_cxi(path: Path, file: h5py.File, dataset: str | None, focus_to_sample_m: float | None) -> FrameStack:
    places = (*DATA, f"{_CXI_IMAGE}/data")
    place = dataset or next((p for p in places if isinstance(file.get(p), h5py.Dataset)), None)
    if place is None:
        place = only(datasets(file, "iuf"), (3, 2), path, None)
    counts = LazyFrames(FrameDataset(path, place))
    illumination = next((p for p in ILLUMINATION if file.get(p) is not None), None)
    mask = f"{_CXI_IMAGE}/mask" if place.startswith(_CXI_IMAGE) else f"{DETECTOR}/mask"
    with naming(
        path,
        **KEYS | {"frames": f"`{place}`", "frame_px": f"`{place}`", "mask": f"`{mask}`", "probe": f"`{illumination}`"},
    ):
        return FrameStack(
            counts=counts,
            mask=read_mask(file, mask),
            geometry=_cxi_geometry(path, file, counts.shape[-1], focus_to_sample_m),
            probe=None if illumination is None else _modes(array(file, illumination)),
            name=path.stem,
            source={"file": path.name, "format": "cxi", "dataset": place},
        )


def _cxi_geometry(path: Path, file: h5py.File, frame_px: int, focus_to_sample_m: float | None) -> Geometry | None:
    needed = [(f"{DETECTOR}/{name}",) for name in ("distance", "x_pixel_size", "y_pixel_size")]
    missing = [
        " or ".join(p) for p in (*needed, ENERGY + WAVELENGTH) if not any(file.get(one) is not None for one in p)
    ]
    if missing and focus_to_sample_m is None:
        logger.warning("%s states no geometry (%s): lengths are given in pixels", path.name, "; ".join(missing))
        return None
    return read_geometry(file, frame_px, focus_to_sample_m)


def _of_scan(path: Path, dataset: str | None) -> FrameStack:
    if dataset is not None:
        raise ScanFileError(f"{path} is a recorded scan, whose form says where its frames are; leave out {dataset!r}.")
    scan = read_scan(path)
    geometry = None if scan.source.get("nominal_geometry") else scan.geometry
    return FrameStack(scan.counts, scan.mask, geometry, scan.probe, scan.name, {**scan.source, "file": path.name})


def _stacked(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return values[np.newaxis] if values.ndim == 2 else values


def _modes(probe: npt.NDArray[Any]) -> ComplexArray:
    if (
        probe.ndim < 2
        or not probe.size
        or probe.dtype.kind not in "biufc"
        or not np.isfinite(probe).all()
        or not probe.any()
    ):
        raise ScanFileError(
            f"a probe must hold finite numbers (modes, N, N), not all of them 0; it holds {probe.dtype} {probe.shape}"
        )
    return probe.reshape(-1, *probe.shape[-2:]).astype(np.complex64)
