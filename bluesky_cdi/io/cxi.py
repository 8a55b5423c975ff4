"""Ptychography scans in the Coherent X-ray Imaging format (CXI 1.6, Maia 2012, Nat. Methods 9, 854).

Orientation. CXI states translations of the *sample* in the laboratory, and the laboratory
directions of a detector's rows and columns (`basis_vectors`; without them rows run along -y and
columns along -x, as in cdtools). A probe's position on the sample is minus the translation, seen
along those two directions. For the default directions both signs cancel: (y, x) is (translation
y, translation x), which is also what Ptychodus takes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from bluesky_cdi.errors import GeometryError, ScanFileError
from bluesky_cdi.io._files import open_hdf5, written_whole
from bluesky_cdi.io.scan import Scan, in_photons
from bluesky_cdi.physics.geometry import Geometry
from bluesky_cdi.protocols import FloatArray

# Elementary charge, coulombs, exact since the 2019 SI: joules in one electronvolt.
JOULES_PER_EV = 1.602176634e-19
# CXI's only mask bit that doesn't make a pixel invalid: the pixel holds signal above the background.
HAS_SIGNAL = 0x1000

DETECTOR = "entry_1/instrument_1/detector_1"
SOURCE = "entry_1/instrument_1/source_1"
DATA = ("entry_1/data_1/data", f"{DETECTOR}/data")
TRANSLATION = (
    "entry_1/data_1/translation",
    "entry_1/sample_1/geometry_1/translation",
    f"{DETECTOR}/translation",
)
ILLUMINATION = (f"{SOURCE}/illumination", f"{DETECTOR}/illumination")
DEFAULT_BASIS = np.array([[0.0, -1.0], [-1.0, 0.0], [0.0, 0.0]])


def read_cxi(path: Path | str, *, focus_to_sample_m: float | None = None) -> Scan:
    """Read a CXI file.

    A CXI file doesn't tell how its frames arose. The geometry is that of the far field, and
    `source["propagation"]` says ``far field (assumed)``.

    A near-field scan (the sample behind a focus, the detector in the magnified shadow) needs
    `focus_to_sample_m`, which the format has no place for. Then `source["propagation"]` is
    ``near field``, and `source` holds the parameters of the equivalent parallel beam: magnification,
    effective pixel and effective distance. The scan's `geometry` still states energy, distance
    and pixel as recorded, and its sample pixel doesn't hold in the near field.

    Parameters
    ----------
    path : path
    focus_to_sample_m : float, optional
        Distance from the focus to the sample, metres, for a near-field scan.

    Raises
    ------
    ScanFileError, FrameError, GeometryError
        If the file can't be read, or holds no usable scan.
    """
    path = Path(path)
    with open_hdf5(path, "a CXI file") as file:
        counts = _first(file, DATA)
        counts = counts.reshape(-1, *counts.shape[-2:])  # (n, 1, H, W) -> (n, H, W)
        mask = _mask(file)
        geometry = _geometry(file, counts.shape[-1])
        illumination = next((file[p][()] for p in ILLUMINATION if p in file), None)
        probe, scale = (None, None) if illumination is None else in_photons(illumination, counts, mask)
        return Scan(
            counts=counts,
            positions_m=_positions_m(file),
            geometry=geometry,
            probe=probe,
            mask=mask,
            name=path.stem,
            source={
                "propagation": "far field (assumed)",
                **json.loads(file["entry_1"].attrs.get("bluesky_cdi_source", "{}")),
                **near_field(geometry, focus_to_sample_m),
                "file": path.name,
                "format": "cxi",
                "probe_scale": scale,
            },
        )


def write_cxi(path: Path | str, scan: Scan) -> None:
    """Write a scan as a CXI file: all of it, or nothing.

    What `scan.source` says goes along as an attribute of ``entry_1``, so that a nominal geometry
    is not taken for a measured one.

    Raises
    ------
    ScanFileError
        If the file can't be written.
    """
    path = Path(path)
    with written_whole(path) as partial, h5py.File(partial, "w") as file:
        file["cxi_version"], file["number_of_entries"] = 160, 1
        data = file.create_dataset(
            f"{DETECTOR}/data", data=scan.counts, chunks=(1, *scan.counts.shape[1:]), compression="gzip", shuffle=True
        )
        data.attrs["axes"] = "translation:y:x"
        file["entry_1"].attrs["bluesky_cdi_source"] = json.dumps(dict(scan.source), default=str)
        _write_geometry(file, scan.geometry)
        file[TRANSLATION[1]] = np.column_stack([scan.positions_m[:, ::-1], np.zeros(len(scan))])
        if scan.mask is not None:
            file[f"{DETECTOR}/mask"] = np.where(scan.mask, 0, 1).astype(np.uint32)
        if scan.probe is not None:
            file[ILLUMINATION[0]] = scan.probe
        file[DATA[0]] = h5py.SoftLink(f"/{DATA[1]}")
        for place in (TRANSLATION[0], TRANSLATION[2]):
            file[place] = h5py.SoftLink(f"/{TRANSLATION[1]}")


def near_field(geometry: Geometry, focus_to_sample_m: float | None) -> Mapping[str, Any]:
    """Parameters of the parallel beam that is equivalent to a magnifying near-field geometry.

    Magnification ``M = (z1 + z2) / z1``, effective pixel ``p / M`` and effective distance
    ``z2 / M`` by the Fresnel scaling theorem (Paganin 2006, Coherent X-Ray Optics, appendix B).

    Parameters
    ----------
    geometry : Geometry
        As recorded: ``z2`` is its distance, ``p`` its detector pixel.
    focus_to_sample_m : float or None
        ``z1``, metres; None: no near field, and an empty mapping.

    Raises
    ------
    GeometryError
        If the distance is not positive.
    """
    if focus_to_sample_m is None:
        return {}
    if not focus_to_sample_m > 0:
        raise GeometryError(
            f"focus_to_sample_m must be positive, for a sample behind the focus; it is {focus_to_sample_m}"
        )
    magnification = (focus_to_sample_m + geometry.distance_m) / focus_to_sample_m
    return {
        "propagation": "near field",
        "focus_to_sample_m": focus_to_sample_m,
        "magnification": magnification,
        "effective_pixel_m": geometry.detector_pixel_m / magnification,
        "effective_distance_m": geometry.distance_m / magnification,
    }


def _first(file: h5py.File, places: tuple[str, ...]) -> npt.NDArray[Any]:
    for place in places:
        # `get`, for a link may lead nowhere.
        if (dataset := file.get(place)) is not None:
            return np.asarray(dataset[()])
    raise ScanFileError(f"{file.filename} must hold one of {', '.join(places)}; it holds none of them")


def _number(file: h5py.File, place: str) -> float:
    return float(_first(file, (place,)).reshape(-1)[0])


def _geometry(file: h5py.File, frame_px: int) -> Geometry:
    pixel_x, pixel_y = _number(file, f"{DETECTOR}/x_pixel_size"), _number(file, f"{DETECTOR}/y_pixel_size")
    if abs(pixel_x - pixel_y) > 1e-3 * abs(pixel_x):
        raise GeometryError(f"detector pixels must be square; they are {pixel_y} x {pixel_x} m. Rebin the frames.")
    return Geometry(
        energy_ev=_number(file, f"{SOURCE}/energy") / JOULES_PER_EV,
        distance_m=_number(file, f"{DETECTOR}/distance"),
        detector_pixel_m=pixel_x,
        frame_px=frame_px,
    )


def _positions_m(file: h5py.File) -> FloatArray:
    translation = _first(file, TRANSLATION).astype(np.float64)  # (n, 3): x, y, z of the sample
    place = f"{DETECTOR}/basis_vectors"
    basis = np.asarray(file[place][()], np.float64) if place in file else DEFAULT_BASIS
    if basis.shape == (2, 3):
        basis = basis.T
    if translation.ndim != 2 or translation.shape[1] != 3 or basis.shape != (3, 2):
        raise ScanFileError(
            "translation must have the shape (n, 3) and basis_vectors (3, 2); "
            f"they have {translation.shape} and {basis.shape}"
        )
    return np.asarray(-translation @ (basis / np.linalg.norm(basis, axis=0)))


def _mask(file: h5py.File) -> npt.NDArray[np.bool_] | None:
    place = f"{DETECTOR}/mask"
    if place not in file:
        return None
    flags = np.asarray(file[place][()]).astype(np.uint32)
    return np.asarray((flags == 0) | (flags == HAS_SIGNAL))


def _write_geometry(file: h5py.File, geometry: Geometry) -> None:
    file[f"{DETECTOR}/distance"] = geometry.distance_m
    file[f"{DETECTOR}/x_pixel_size"] = geometry.detector_pixel_m
    file[f"{DETECTOR}/y_pixel_size"] = geometry.detector_pixel_m
    file[f"{DETECTOR}/basis_vectors"] = DEFAULT_BASIS * geometry.detector_pixel_m
    file[f"{SOURCE}/energy"] = geometry.energy_ev * JOULES_PER_EV
    file[f"{SOURCE}/wavelength"] = geometry.wavelength_m
