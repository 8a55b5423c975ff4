"""Results of a catalog as files for other programs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from bluesky_cdi.errors import ScanFileError
from bluesky_cdi.evaluation.gauge import shown_images
from bluesky_cdi.evaluation.verdict import verdict_said
from bluesky_cdi.io import (
    notes_of,
    write_cxi_result,
    write_nexus_result,
    write_npz_result,
    write_product,
    write_tiff,
)
from bluesky_cdi.io.product import product_of
from bluesky_cdi.physics.geometry import Geometry
from bluesky_cdi.plain import to_json
from bluesky_cdi.protocols import Estimate, FloatArray

if TYPE_CHECKING:
    from bluesky_cdi.catalog import Catalog, Result

logger = logging.getLogger(__name__)

# What a suffix stands for.
SUFFIXES: Mapping[str, str] = {
    ".cxi": "cxi",
    ".nxs": "nexus",
    ".npz": "npz",
    ".tif": "tiff",
    ".tiff": "tiff",
    ".png": "png",
    ".h5": "ptychodus",
    ".hdf5": "ptychodus",
}
FORMATS = tuple(dict.fromkeys(SUFFIXES.values()))


class Exported(Protocol):
    """What is written to files; `bluesky_cdi.catalog.Result` is one."""

    @property
    def estimate(self) -> Estimate:
        """What was reconstructed."""

    @property
    def geometry(self) -> Geometry:
        """Optics of the frames that were reconstructed."""

    @property
    def name(self) -> str:
        """What its files are to be called inside."""

    @property
    def phase_rad(self) -> FloatArray:
        """The object's phase as figures show it, (Y, X), radians: its mean over the measured area is 0."""


def load_to_export(catalog: Catalog, which: str | int) -> Result:
    """Read a result from a catalog; a verdict other than good is logged.

    Parameters
    ----------
    catalog : Catalog
        Where to look.
    which : str or int
        As `bluesky_cdi.catalog.load_result` takes it.

    Raises
    ------
    CatalogError
        If there is no such result, or it is not complete.
    GeometryError
        If it doesn't tell its geometry.
    """
    result = catalog[which]
    said = verdict_said(result.estimate.source)
    if not said.startswith("good"):
        logger.warning("the verdict on %s is %s", result.name, said or "not known: it was never judged")
    return result


def format_of(path: Path, form: str | None = None) -> str:
    """Tell in which of `FORMATS` a file is written: in the one that is named, else what its suffix stands for.

    Raises
    ------
    ScanFileError
        If neither is known.
    """
    found = SUFFIXES.get(path.suffix.lower()) if form is None else form
    if found not in FORMATS:
        raise ScanFileError(
            f"a result is written as one of {', '.join(FORMATS)}, which the suffixes {', '.join(SUFFIXES)} stand for; "
            f"{path.name if form is None else form!r} is none of them"
        )
    return found


def exported_files(path: Path, form: str | None = None) -> tuple[Path, ...]:
    """List what `export_result` makes: of TIFF one file for the phase and one for the amplitude.

    Raises
    ------
    ScanFileError
        As `format_of`.
    """
    if format_of(path, form) != "tiff":
        return (path,)
    return tuple(path.with_name(f"{path.stem}_{part}{path.suffix}") for part in ("phase", "amplitude"))


def export_result(path: Path | str, result: Exported, form: str | None = None) -> tuple[Path, ...]:
    """Write a result to a file: all of it, or nothing. A file that exists is replaced.

    Parameters
    ----------
    path : path
        The file to write; of TIFF the name to which ``_phase`` and ``_amplitude`` are added.
    result : Exported
        A result of a catalog.
    form : str, optional
        One of `FORMATS`; by default what the suffix says.

    Returns
    -------
    tuple of Path
        What was written.

    Raises
    ------
    ScanFileError, GeometryError
        If the format is not known, the file can't be written, or the image is not finite.
    """
    path = Path(path).expanduser()
    name_of_form, files = format_of(path, form), exported_files(path, form)
    # What no file may hold is refused alike by all.
    product_of(result.estimate, result.geometry, result.name)
    _WRITERS[name_of_form](path, result)
    return files


def _write_tiffs(path: Path, result: Exported) -> None:
    estimate = result.estimate
    notes = notes_of(estimate, result.geometry, result.name)
    images = shown_images(estimate)
    units = {"phase": "rad", "amplitude": "relative to vacuum"}
    for target, (what, unit) in zip(exported_files(path, "tiff"), units.items(), strict=True):
        write_tiff(target, images[what], estimate.pixel_m, {"image": what, "unit": unit, **notes})


def _write_png(path: Path, result: Exported) -> None:
    from bluesky_cdi import viz

    said = to_json(notes_of(result.estimate, result.geometry, result.name))
    notes = {"Title": result.name, "Description": said}
    try:
        viz.save_figure(viz.show_object(result.estimate, result.name), path, form="png", notes=notes)
    except OSError as err:
        raise ScanFileError(f"can't write {path}: {err}. Check that its folder exists and has room.") from err


def _plain(write: Callable[..., None]) -> Callable[[Path, Exported], None]:
    return lambda path, result: write(path, result.estimate, result.geometry, result.name)


def _with_phase(write: Callable[..., None]) -> Callable[[Path, Exported], None]:
    return lambda path, result: write(path, result.estimate, result.geometry, result.name, phase_rad=result.phase_rad)


_WRITERS: Mapping[str, Callable[[Path, Exported], None]] = {
    "cxi": _plain(write_cxi_result),
    "nexus": _with_phase(write_nexus_result),
    "npz": _with_phase(write_npz_result),
    "tiff": _write_tiffs,
    "png": _write_png,
    "ptychodus": _plain(write_product),
}
