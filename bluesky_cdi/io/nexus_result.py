"""Reconstructions as NeXus files: the CXI form with NeXus' classes, and images that any NeXus viewer plots by itself.

Groups have the names of NXcxi_ptycho. That definition is one of measured scans, with their frames, so a reconstruction
doesn't claim to follow it.
"""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

from bluesky_cdi.io._files import written_whole
from bluesky_cdi.io._writing import fixed_text
from bluesky_cdi.io.cxi_result import write_result_contents
from bluesky_cdi.io.product import product_of
from bluesky_cdi.physics.geometry import Geometry
from bluesky_cdi.protocols import Estimate, FloatArray

_CLASSES = {
    "/": "NXroot",
    "entry_1": "NXentry",
    "entry_1/instrument_1": "NXinstrument",
    "entry_1/instrument_1/source_1": "NXsource",
    "entry_1/instrument_1/beam_1": "NXbeam",
    "entry_1/instrument_1/detector_1": "NXdetector",
    "entry_1/sample_1": "NXsample",
    "entry_1/sample_1/geometry_1": "NXcollection",
    "entry_1/data_1": "NXcollection",
    "entry_1/image_1": "NXcollection",
    "entry_1/image_1/process_1": "NXprocess",
    "entry_1/image_1/process_1/note_1": "NXnote",
    "entry_1/image_2": "NXcollection",
}
# What is plotted where nothing else is chosen.
DEFAULT = "phase"


def write_nexus_result(
    path: Path | str, estimate: Estimate, geometry: Geometry, name: str = "bluesky_cdi", *, phase_rad: FloatArray
) -> None:
    """Write an estimate as a NeXus file, which `read_cxi_result` reads too: all of it, or nothing.

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
    phase_rad : ndarray, shape (Y, X)
        The object's phase in the gauge in which it is shown, radians: the default plot.

    Raises
    ------
    ScanFileError, GeometryError
        If the file can't be written, the object is not finite, or the estimate's pixel is not the geometry's.
    """
    product = product_of(estimate, geometry, name)
    images = {
        DEFAULT: (phase_rad, "rad"),
        "amplitude": (np.abs(estimate.object), ""),
        "predicted_phase_error": (estimate.std_phase_rad, "rad"),
        "coverage": (estimate.coverage, "photons"),
    }
    with written_whole(Path(path)) as partial, h5py.File(partial, "w") as file:
        write_result_contents(file, estimate, product)
        for place, name_of_class in _CLASSES.items():
            _state(file[place], NX_class=name_of_class)
        _state(file, default="entry_1")
        _state(file["entry_1"], default=DEFAULT)
        for key, (image, unit) in images.items():
            _write_plot(file["entry_1"].create_group(key), image, unit, estimate)


def _write_plot(plot: h5py.Group, image: FloatArray, unit: str, estimate: Estimate) -> None:
    """Write an image (Y, X) with its axes on the sample, metres."""
    _state(plot, NX_class="NXdata", signal="data")
    plot.attrs["axes"] = np.array([b"y", b"x"])
    plot.create_dataset("data", data=np.asarray(image, np.float32), compression="gzip")
    _state(plot["data"], interpretation="image", **({"units": unit} if unit else {}))
    for k, axis in enumerate(("y", "x")):
        plot[axis] = estimate.origin_m[k] + np.arange(image.shape[k]) * estimate.pixel_m
        plot.attrs[f"{axis}_indices"] = k
        _state(plot[axis], units="m")


def _state(place: h5py.Group | h5py.Dataset, **texts: str) -> None:
    for name, value in texts.items():
        place.attrs[name] = fixed_text(value)
