"""What makes a CXI file NXcxi_ptycho as well (NeXus application definition, contributed, 2022).

The two agree on names and shapes, so links do, with three exceptions. ``source_1/energy`` is the
photons' in CXI and the ring's in NeXus: it stays the photons'. NeXus requires some things that a
scan doesn't know (the source's name, the energy's spread): they are written as "not recorded" and
NaN. And ``data_1`` can't be both CXI's group and NXdata with the axes x and y, so the latter is ``plot_1``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import h5py
import numpy as np

from bluesky_cdi import __version__
from bluesky_cdi.io._writing import fixed_text

if TYPE_CHECKING:
    from bluesky_cdi.io.scan import Scan

DEFINITION = "NXcxi_ptycho"
UNKNOWN = "not recorded"

_CLASSES = {
    "entry_1": "NXentry",
    "entry_1/instrument_1": "NXinstrument",
    "entry_1/instrument_1/source_1": "NXsource",
    "entry_1/instrument_1/beam_1": "NXbeam",
    "entry_1/instrument_1/detector_1": "NXdetector",
    "entry_1/instrument_1/detector_1/transformations": "NXtransformations",
    "entry_1/data_1": "NXcollection",
    "entry_1/plot_1": "NXdata",
    "entry_1/sample_1": "NXsample",
    "entry_1/sample_1/transformations": "NXtransformations",
    "entry_1/sample_1/geometry_1": "NXcollection",
}


def add_nexus(file: h5py.File, scan: Scan) -> None:
    """Complete the open CXI file of a scan to NXcxi_ptycho.

    Parameters
    ----------
    file : h5py.File
        Open for writing, complete as CXI.
    scan : Scan
        What it holds.
    """
    for place, name in _CLASSES.items():
        file.require_group(place).attrs["NX_class"] = fixed_text(name)
    entry, source = file["entry_1"], file["entry_1/instrument_1/source_1"]
    _attributes(file, NX_class="NXroot", default="entry_1")
    _attributes(entry, default="plot_1")
    _texts(entry, definition=DEFINITION, title=scan.name, program_name=f"bluesky_cdi {__version__}")
    _texts(source, name=UNKNOWN, type=UNKNOWN, probe="x-ray")
    _complete_detector(file["entry_1/instrument_1/detector_1"], scan)
    _complete_sample(file["entry_1/sample_1"], scan)
    _complete_plot(file["entry_1/plot_1"])


def declare_beam(beam: h5py.Group, energy_j: float, wavelength_m: float) -> None:
    """State the photons' energy under each of its names.

    Parameters
    ----------
    beam : h5py.Group
        The group ``beam_1``.
    energy_j : float
        Energy of a photon, joules.
    wavelength_m : float
        Its wavelength, metres.
    """
    for name, value, unit in (
        ("incident_energy", energy_j, "J"),
        ("incident_beam_energy", energy_j, "J"),
        ("energy", energy_j, "J"),
        ("incident_energy_spread", np.nan, "J"),
        ("incident_wavelength", wavelength_m, "m"),
    ):
        beam[name] = value
        _attributes(beam[name], units=unit)


def _complete_detector(detector: h5py.Group, scan: Scan) -> None:
    _attributes(detector, signal="data", axes="[, data]")  # the axes word for word as defined
    detector["data_1"] = h5py.SoftLink(f"{detector.name}/data")
    detector["transformations/vector"] = np.array([0.0, 0.0, 1.0])
    half = scan.geometry.frame_px // 2
    for name in ("beam_center_x", "beam_center_y"):
        detector[name] = half * scan.geometry.detector_pixel_m
        _attributes(detector[name], units="m")


def _complete_sample(sample: h5py.Group, scan: Scan) -> None:
    _texts(sample, name=scan.name)
    translation = sample["geometry_1/translation"]
    _attributes(translation, units="m", axes="translation:y:x", interpretation="image")
    transformations = sample["transformations"]
    transformations.attrs["vector"] = np.array([1.0, 0.0, 0.0])
    for column, (axis, vector, depends_on) in enumerate(
        (("x", [1.0, 0.0, 0.0], f"{transformations.name}/y"), ("y", [0.0, 1.0, 0.0], "."))
    ):
        transformations[axis] = translation[:, column]
        transformations[axis].attrs["vector"] = np.array(vector)
        _attributes(transformations[axis], units="m", transformation_type="translation", depends_on=depends_on)


def _complete_plot(plot: h5py.Group) -> None:
    _attributes(plot, signal="data")
    plot.attrs["axes"] = np.array([b"x", b".", b"."])
    plot["data"] = h5py.SoftLink("/entry_1/instrument_1/detector_1/data")
    for axis in ("x", "y"):
        plot[axis] = h5py.SoftLink(f"/entry_1/sample_1/transformations/{axis}")
        plot.attrs[f"{axis}_indices"] = 0
        _texts(plot, **{f"{axis}_indices": "0"})


def _attributes(place: h5py.Group | h5py.Dataset, **texts: str) -> None:
    for name, value in texts.items():
        place.attrs[name] = fixed_text(value)


def _texts(group: h5py.Group, **texts: str) -> None:
    for name, value in texts.items():
        group[name] = fixed_text(value)
