"""Ptychography scans in the Coherent X-ray Imaging format (CXI 1.6, Maia 2012, Nat. Methods 9, 854).

What is written is at once CXI and NeXus' application definition NXcxi_ptycho (`cxi_nexus`); either is read.

Orientation. CXI states translations of the *sample* in the laboratory, and the laboratory
directions of a detector's rows and columns (`basis_vectors`; without them rows run along -y and
columns along -x, as in cdtools). A probe's position on the sample is minus the translation, seen
along those two directions. For the default directions both signs cancel: (y, x) is (translation
y, translation x), which is also what Ptychodus takes.

Energy. CXI's ``source_1/energy`` is that of the photons, and every program reads it so; in
NXcxi_ptycho it is the storage ring's, and the photons' stands in ``beam_1``. So ``beam_1`` comes
first when reading, and both places get the photons' energy when writing.

Near field. CXI has no place for how frames arose. `write_cxi` puts it into attributes of
``entry_1`` (``bluesky_cdi_propagation``, ``bluesky_cdi_focus_to_sample_m``).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
import numpy.typing as npt

from bluesky_cdi.errors import GeometryError, ScanFileError
from bluesky_cdi.io._files import (
    array,
    json_object,
    naming,
    number,
    one,
    open_hdf5,
    real,
    stated,
    written_whole,
)
from bluesky_cdi.io._writing import fixed_text, write_frames
from bluesky_cdi.io.cxi_nexus import add_nexus, declare_beam
from bluesky_cdi.io.frame_dataset import FrameDataset
from bluesky_cdi.io.frames import LazyFrames
from bluesky_cdi.io.preprocessing import Preprocessing
from bluesky_cdi.io.scan import Scan, recorded
from bluesky_cdi.physics.geometry import HC_EV_M, Geometry
from bluesky_cdi.plain import to_json
from bluesky_cdi.protocols import FloatArray

# Elementary charge, coulombs, exact since the 2019 SI: joules in one electronvolt.
JOULES_PER_EV = 1.602176634e-19
# CXI's only mask bit that doesn't make a pixel invalid: the pixel holds signal above the background.
HAS_SIGNAL = 0x1000
# Photons of more energy diffract from nothing: such a value is the storage ring's (GeV). Those of less are infrared
# light: such a wavelength is in angstroms or nanometres.
LEAST_PHOTON_EV, MOST_PHOTON_EV = 1.0, 1e6

INSTRUMENT = "entry_1/instrument_1"
DETECTOR = f"{INSTRUMENT}/detector_1"
SOURCE = f"{INSTRUMENT}/source_1"
BEAM = f"{INSTRUMENT}/beam_1"
DATA = ("entry_1/data_1/data", f"{DETECTOR}/data")
TRANSLATION = (
    "entry_1/data_1/translation",
    "entry_1/sample_1/geometry_1/translation",
    f"{DETECTOR}/translation",
)
MOTORS = ("entry_1/sample_1/transformations/x", "entry_1/sample_1/transformations/y")
ILLUMINATION = (f"{SOURCE}/illumination", f"{DETECTOR}/illumination")
ENERGY = (
    f"{BEAM}/incident_energy",
    f"{BEAM}/incident_beam_energy",
    f"{BEAM}/energy",
    f"{SOURCE}/energy",
)
WAVELENGTH = (f"{BEAM}/incident_wavelength", f"{SOURCE}/wavelength")
# Where the parts are that a message may speak of.
KEYS = {
    "frames": f"`{DATA[1]}`",
    "positions": f"`{TRANSLATION[1]}`",
    "pixels": f"`{DETECTOR}/x_pixel_size`, `y_pixel_size`",
    "frame_px": f"`{DATA[1]}`",
    "energy_ev": f"`{ENERGY[0]}` or `{ENERGY[3]}`",
    "distance_m": f"`{DETECTOR}/distance`",
    "detector_pixel_m": f"`{DETECTOR}/x_pixel_size`",
    "probe": f"`{ILLUMINATION[0]}`",
    "mask": f"`{DETECTOR}/mask`",
}
# Laboratory directions (x, y, z) of a detector's rows and columns where the file states none.
DEFAULT_BASIS = np.array([[0.0, -1.0, 0.0], [-1.0, 0.0, 0.0]])
# CXI is in SI units; NeXus states them in an attribute, which need not be SI.
SI = {
    "m": 1.0, "metre": 1.0, "meter": 1.0, "mm": 1e-3, "um": 1e-6, "µm": 1e-6, "micron": 1e-6, "nm": 1e-9,
    "pm": 1e-12, "angstrom": 1e-10, "j": 1.0, "joule": 1.0, "ev": JOULES_PER_EV, "kev": 1e3 * JOULES_PER_EV,
}  # fmt: skip


def read_cxi(
    path: Path | str, *, focus_to_sample_m: float | None = None, preprocessing: Preprocessing | None = None
) -> Scan:
    """Read a CXI or NXcxi_ptycho file.

    Such a file doesn't tell how its frames arose, unless this package wrote it: the geometry is
    then that of the far field, and `source["propagation"]` says ``far field (assumed)``. The
    frames stay in the file (`LazyFrames`).

    Parameters
    ----------
    path : path
        The file to read.
    focus_to_sample_m : float, optional
        Distance from the focus to the sample, metres: declares a near-field scan (the sample
        behind a focus, the detector in its magnified shadow).

    preprocessing : Preprocessing, optional
        What is done to the frames first.

    Raises
    ------
    ScanFileError, FrameError, GeometryError
        If the file can't be read, or holds no usable scan.
    """
    path = Path(path)
    with open_hdf5(path, "a CXI file") as file, naming(path, **KEYS):
        counts = LazyFrames(FrameDataset(path, present(file, DATA)))
        geometry = read_geometry(file, counts.shape[-1], focus_to_sample_m)
        place = next((place for place in ILLUMINATION if file.get(place) is not None), None)
        return recorded(
            counts,
            None if place is None else array(file, place),
            positions_m=read_positions_m(file, len(counts)),
            geometry=geometry,
            mask=read_mask(file),
            name=path.stem,
            source={**_source(file, geometry), "file": path.name, "format": "cxi"},
            preprocessing=preprocessing,
        )


def write_cxi(path: Path | str, scan: Scan, *, compression: str | None = None) -> None:
    """Write a scan as a CXI file that is NXcxi_ptycho as well: all of it, or nothing.

    What `scan.source` says goes along as an attribute of ``entry_1``, so that a nominal geometry
    is not taken for a measured one.

    Parameters
    ----------
    path : path
        The file to write.
    scan : Scan
        What it holds; frames may lie in a file of their own.
    compression : str, optional
        Of the frames, without loss: one of `COMPRESSIONS`; the first if absent.

    Raises
    ------
    ScanFileError
        If the file can't be written, or there is no such compression.
    """
    path = Path(path)
    with written_whole(path) as partial, h5py.File(partial, "w") as file:
        file["cxi_version"], file["number_of_entries"] = 160, 1
        data = write_frames(file, f"{DETECTOR}/data", scan.counts, compression)
        data.attrs["axes"] = fixed_text("translation:y:x")
        file["entry_1"].attrs["bluesky_cdi_source"] = fixed_text(to_json(scan.source))
        write_geometry(file, scan.geometry)
        write_translation(file, scan.positions_m)
        if scan.mask is not None:
            file[f"{DETECTOR}/mask"] = np.where(scan.mask, 0, 1).astype(np.uint32)
        if scan.probe is not None:
            file[ILLUMINATION[0]] = scan.probe
        file[DATA[0]] = h5py.SoftLink(f"/{DATA[1]}")
        for place in (TRANSLATION[0], TRANSLATION[2]):
            file[place] = h5py.SoftLink(f"/{TRANSLATION[1]}")
        add_nexus(file, scan)


def read_geometry(file: h5py.File, frame_px: int, focus_to_sample_m: float | None = None) -> Geometry:
    """Read the geometry that a CXI file states.

    Parameters
    ----------
    file : h5py.File
        The open file.
    frame_px : int
        Pixels along a side of its frames.
    focus_to_sample_m : float, optional
        Distance from the focus to the sample, metres: declares the near field; wins over what the file states.

    Raises
    ------
    ScanFileError, GeometryError
        If a part is missing, or the parts are none of a scan.
    """
    pixel_x, pixel_y = _number(file, f"{DETECTOR}/x_pixel_size"), _number(file, f"{DETECTOR}/y_pixel_size")
    if not abs(pixel_x - pixel_y) <= 1e-3 * abs(pixel_x):
        raise GeometryError(f"detector pixels must be square; they are {pixel_y} x {pixel_x} m. Rebin the frames.")
    attributes = file["entry_1"].attrs
    stated_form = stated(attributes, "bluesky_cdi_propagation", "far")
    if focus_to_sample_m is None and (name := "bluesky_cdi_focus_to_sample_m") in attributes:
        focus_to_sample_m = number(attributes, name, Path(file.filename))
    propagation: Literal["far", "near"] = "near" if stated_form == "near" or focus_to_sample_m is not None else "far"
    return Geometry(
        energy_ev=_energy_ev(file),
        distance_m=_number(file, f"{DETECTOR}/distance"),
        detector_pixel_m=pixel_x,
        frame_px=frame_px,
        propagation=propagation,
        focus_to_sample_m=focus_to_sample_m,
    )


def write_geometry(file: h5py.File, geometry: Geometry) -> None:
    """State a geometry in a CXI file, in SI units, the detector in the default orientation.

    Parameters
    ----------
    file : h5py.File
        Open for writing; it states none yet.
    geometry : Geometry
        What to state.
    """
    pixel, half = geometry.detector_pixel_m, geometry.frame_px // 2
    detector = file.require_group(DETECTOR)
    for name, value in (("distance", geometry.distance_m), ("x_pixel_size", pixel), ("y_pixel_size", pixel)):
        detector[name] = value
        detector[name].attrs["units"] = fixed_text("m")
    detector["basis_vectors"] = DEFAULT_BASIS * pixel
    # The outer corner of pixel [0, 0], with the beam on the centre of pixel [N // 2, N // 2].
    detector["corner_position"] = np.array([(half + 0.5) * pixel, (half + 0.5) * pixel, geometry.distance_m])
    source = file.require_group(SOURCE)
    source["energy"] = geometry.energy_ev * JOULES_PER_EV
    source["energy"].attrs["units"] = fixed_text("J")
    source["energy"].attrs["note"] = fixed_text("energy of the photons, as CXI has it")
    source["wavelength"] = geometry.wavelength_m
    declare_beam(file.require_group(BEAM), geometry.energy_ev * JOULES_PER_EV, geometry.wavelength_m)
    attributes = file["entry_1"].attrs
    attributes["bluesky_cdi_propagation"] = fixed_text(geometry.propagation)
    if geometry.focus_to_sample_m is not None:
        attributes["bluesky_cdi_focus_to_sample_m"] = geometry.focus_to_sample_m


def read_positions_m(file: h5py.File, n: int) -> FloatArray:
    """Read the positions of a CXI file's frames.

    Parameters
    ----------
    file : h5py.File
        The open file.
    n : int
        Number of frames.

    Returns
    -------
    ndarray, shape (n, 2), float64
        (y, x) of the probe on the sample, metres.

    Raises
    ------
    ScanFileError
        If translations or detector directions are absent or of another shape.
    GeometryError
        If some are not finite, or a direction has no length.
    """
    translation = _translation(file)
    if translation.shape == (3, n) and n != 3:  # PyNX writes x, y and z as rows
        translation = translation.T
    place = f"{DETECTOR}/basis_vectors"
    basis = real(array(file, place), place) if place in file else DEFAULT_BASIS
    if basis.shape == (3, 2):  # cdtools writes the vectors as columns
        basis = basis.T
    if translation.ndim != 2 or translation.shape[1] != 3 or basis.shape != (2, 3):
        raise ScanFileError(
            f"{file.filename}: translation must have the shape (n, 3) and basis_vectors (2, 3); "
            f"they have {translation.shape} and {basis.shape}"
        )
    if not np.isfinite(translation).all():
        raise GeometryError(f"{file.filename}: positions must be finite; some translations are not. Leave them out.")
    # `hypot` of one length and zeros is that length exactly, so that a written scan comes back bit by bit.
    length = np.hypot(np.hypot(basis[:, 0], basis[:, 1]), basis[:, 2])
    if not (np.isfinite(basis).all() and (length > 0).all()):
        raise GeometryError(f"{file.filename}: basis_vectors must be finite and not 0; they are {basis.tolist()}")
    return np.asarray(-translation @ (basis / length[:, np.newaxis]).T)


def write_translation(file: h5py.File, positions_m: FloatArray) -> None:
    """State positions (y, x), metres, as translations (x, y, z) of the sample.

    Parameters
    ----------
    file : h5py.File
        Open for writing; it states none yet.
    positions_m : ndarray, shape (n, 2)
        (y, x), metres.
    """
    x, y = np.asarray(positions_m, np.float64).T[::-1]
    file[TRANSLATION[1]] = np.column_stack([x, y, np.zeros(len(x))])


def _source(file: h5py.File, geometry: Geometry) -> dict[str, Any]:
    source = json_object(stated(file["entry_1"].attrs, "bluesky_cdi_source", "{}"), "bluesky_cdi_source")
    stated_form = str(source.get("propagation", "far field (assumed)"))
    far = stated_form if stated_form.startswith("far field") else "far field (assumed)"
    return {**source, "propagation": "near field" if geometry.propagation == "near" else far}


def present(file: h5py.File, places: tuple[str, ...]) -> str:
    """Find the first of several places where a file has a dataset.

    Parameters
    ----------
    file : h5py.File
        The open file.
    places : tuple of str
        Paths in it, the preferred first.

    Raises
    ------
    ScanFileError
        If there is none.
    """
    for place in places:
        # `get`, for a link may lead nowhere.
        if isinstance(file.get(place), h5py.Dataset):
            return place
    raise ScanFileError(f"{file.filename} must hold one of {', '.join(places)}; it holds none of them")


def _si(file: h5py.File, place: str) -> npt.NDArray[np.float64]:
    """Read a quantity and convert it to SI units."""
    values = real(array(file, place), place)
    unit = stated(file[place].attrs, "units", "").strip()
    if not unit:
        return values
    if unit.lower() not in SI:
        raise ScanFileError(f"{file.filename}: {place} is in {unit!r}; known are {', '.join(SI)}")
    return values * SI[unit.lower()]


def _number(file: h5py.File, *places: str) -> float:
    place = present(file, places)
    return one(_si(file, place), place)


def _energy_ev(file: h5py.File) -> float:
    if not any(file.get(energy) is not None for energy in ENERGY) and any(file.get(w) is not None for w in WAVELENGTH):
        wavelength = _number(file, *WAVELENGTH)
        if not HC_EV_M / MOST_PHOTON_EV <= wavelength <= HC_EV_M / LEAST_PHOTON_EV:
            raise GeometryError(
                f"{file.filename}: the wavelength, {present(file, WAVELENGTH)}, must be in metres, or state its unit "
                f"(attribute `units`); it is {wavelength:.6g} m."
            )
        return HC_EV_M / wavelength
    place = present(file, (*ENERGY, *WAVELENGTH))
    energy = _number(file, place) / JOULES_PER_EV
    if energy < LEAST_PHOTON_EV:
        raise GeometryError(
            f"{file.filename}: the photon energy, {place}, must be in joules, or state its unit (attribute `units`); "
            f"it would be {energy:.3g} eV."
        )
    if energy > MOST_PHOTON_EV:
        raise GeometryError(
            f"{file.filename}: the photon energy would be {energy:.3g} eV. It looks like the storage ring's, or is not "
            f"in joules; state the photons' in {BEAM}/incident_energy."
        )
    return energy


def _translation(file: h5py.File) -> npt.NDArray[np.float64]:
    if not any(file.get(place) is not None for place in TRANSLATION) and all(
        file.get(motor) is not None for motor in MOTORS
    ):
        x, y = (_si(file, motor).reshape(-1) for motor in MOTORS)
        if len(x) != len(y):
            raise ScanFileError(f"{' and '.join(MOTORS)} must be equally long; they hold {len(x)} and {len(y)} numbers")
        return np.column_stack([x, y, np.zeros(len(x))])
    return _si(file, present(file, TRANSLATION))


def read_mask(file: h5py.File, place: str = f"{DETECTOR}/mask") -> npt.NDArray[np.bool_] | None:
    """Read the pixels that a CXI mask calls valid.

    Parameters
    ----------
    file : h5py.File
        The open file.
    place : str
        Dataset of CXI's mask bits.

    Returns
    -------
    ndarray, shape (H, W), bool, or None
        True where a pixel is valid; None if the file has no mask.

    Raises
    ------
    ScanFileError
        If the mask holds no integers.
    """
    if place not in file:
        return None
    flags = array(file, place)
    if flags.dtype.kind not in "biu":
        raise ScanFileError(f"{place}, a mask, must hold bits, integers; it holds {flags.dtype}")
    flags = flags.astype(np.uint32)
    return np.asarray((flags == 0) | (flags == HAS_SIGNAL))
