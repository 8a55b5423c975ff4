"""Probes that runs of an instrument have found, in a folder: the first guess of the next run.

There is a file for each energy, distance and place of the sample along the beam; a newer run's replaces it. A session
begins with the nearest one that is compatible, brought to its own grid and its own place, and its check-in judges it as
any guess.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bluesky_cdi.config import Config
from bluesky_cdi.errors import BlueskyCDIError, GeometryError
from bluesky_cdi.io import ProbeFile, read_probe, write_probe
from bluesky_cdi.physics.geometry import Geometry
from bluesky_cdi.protocols import ComplexArray, Estimate

logger = logging.getLogger(__name__)

# Frames of a run from which on its probe is worth keeping: enough for a second check-in.
LEAST_FRAMES = 64
# In the near field the sample's place sets the magnification: one that differs by more than this share is another.
SAME_PLACE = 1e-2
# The key of a file's source that says where the sample stood: metres downstream of the focus (far field).
DEFOCUS = "defocus_m"


@dataclass(frozen=True, eq=False)
class Offer:
    """A probe of the library for a scan.

    Attributes
    ----------
    probe : ndarray, shape (modes, N, N), complex64
        On the scan's grid, where its sample stands.
    path : Path
        File that it comes from.
    moved_m : float
        How far it was propagated, metres downstream.
    """

    probe: ComplexArray
    path: Path
    moved_m: float

    def __str__(self) -> str:
        moved = f", propagated by {1e6 * self.moved_m:+.3g} um" if self.moved_m else ""
        return f"{self.path.name} of the probe library{moved}"


def offered(geometry: Geometry, config: Config) -> Offer | None:
    """Choose the probe of the configured library that is nearest to a scan: sample's place, then pixel, then newest.

    Parameters
    ----------
    geometry : Geometry
        Of the scan.
    config : Config
        Its section `probe`: library, where the sample stands, number of modes.

    Returns
    -------
    Offer or None
        None where there is no library, or no probe in it of this energy and field that can be brought to the scan. A
        file that can't be read is told, and left out.
    """
    if config.probe.library is None:
        return None
    found = []
    for path in sorted(config.probe.library.expanduser().glob("*.npz")):
        try:
            content, age = read_probe(path), -path.stat().st_mtime
        except (BlueskyCDIError, OSError) as err:
            # An error of the geometry knows no file.
            named = f"{path}: {err}" if isinstance(err, GeometryError) else str(err)
            logger.warning("a probe of the library can't be used: %s", named)
            continue
        try:
            found.append((_distance(content, geometry, config), age, _offer(path, content, geometry, config)))
        except GeometryError as err:
            logger.debug("%s is for other scans: %s", path, err)
    return min(found, key=lambda each: each[:2])[2] if found else None


def keep(directory: Path, content: ProbeFile) -> Path:
    """Put a probe into a library, in place of an earlier one of the same setting.

    Parameters
    ----------
    directory : Path
        Folder of the library; it is made if need be.
    content : ProbeFile
        Its source says under ``defocus_m`` where the sample stood (far field).

    Returns
    -------
    Path
        The file.

    Raises
    ------
    ScanFileError, OSError
        If it can't be written.
    """
    geometry = content.geometry
    place = content.source.get(DEFOCUS) if geometry.propagation == "far" else geometry.focus_to_sample_m
    # So many digits that settings which the library tells apart have names of their own, and read-back noise has none.
    parts = [
        f"{geometry.energy_ev:.5g}eV",
        f"{1e3 * geometry.distance_m:.4g}mm",
        f"{geometry.propagation}",
        *([] if place is None else [f"{1e6 * place:.4g}um"]),
        f"{geometry.frame_px}px-of-{1e6 * geometry.detector_pixel_m:.4g}um",
    ]
    directory = directory.expanduser()
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{'-'.join(parts)}.npz"
    write_probe(path, content)
    return path


def is_sure(estimate: Estimate) -> bool:
    """Tell whether the probe of a run's last estimate is worth beginning with.

    The result is a good one (`evaluation.verdict`); the probe was checked by the run's own frames; a beam that changed
    since was followed; and there are enough frames.

    Parameters
    ----------
    estimate : Estimate
        With the verdict in its `source`.
    """
    check, verdict = (estimate.source.get(name) or {} for name in ("probe_check_in", "verdict"))
    if estimate.n_frames < LEAST_FRAMES or "changed" not in check or verdict.get("word") != "good":
        return False
    return all(again["taken"] for again in check.get("again", []))


def _distance(content: ProbeFile, geometry: Geometry, config: Config) -> tuple[float, float]:
    moved = _moved_m(content, geometry, config)
    return math.inf if moved is None else abs(moved), abs(np.log(content.geometry.pixel_m / geometry.pixel_m))


def _moved_m(content: ProbeFile, geometry: Geometry, config: Config) -> float | None:
    """Compute how much further downstream the sample stands than it did; None where that is not known."""
    if geometry.propagation == "near":
        return 0.0
    before = content.source.get(DEFOCUS)
    return config.probe.defocus_m - float(before) if isinstance(before, int | float) else None


def _offer(path: Path, content: ProbeFile, geometry: Geometry, config: Config) -> Offer:
    import torch

    from bluesky_cdi.physics.optics import check_aperture
    from bluesky_cdi.physics.probes import aperture_of, propagated
    from bluesky_cdi.reconstruction.probe_guess import fitted

    # In a parallel beam the focus is at infinity.
    focus, its_focus = (
        math.inf if each.focus_to_sample_m is None else each.focus_to_sample_m for each in (geometry, content.geometry)
    )
    if focus != its_focus and not abs(its_focus / focus - 1) <= SAME_PLACE:
        raise GeometryError(f"the sample stands {focus:g} m from the focus; in {path} it stood {its_focus:g} m from it")
    moved = _moved_m(content, geometry, config) or 0.0
    if moved:
        there, given = content.geometry, torch.from_numpy(np.asarray(content.probe))
        # The way there is periodic in the window: a beam that leaves it would come in on the other side.
        check_aperture(there, aperture_of(given, there.pixel_m, there.wavelength_m), config.probe.defocus_m)
        probe = propagated(given, there.pixel_m, there.wavelength_m, moved)
        content = ProbeFile(np.asarray(probe.numpy()), there, content.name, content.source)
    modes = strongest(fitted(content, geometry), config.probe.modes)
    return Offer(modes, path, moved)


def strongest(probe: ComplexArray, most: int) -> ComplexArray:
    """Take at most so many modes of a probe (M, N, N), those with most photons, in their order.

    Parameters
    ----------
    probe : ndarray, shape (M, N, N), complex
        Incoherent modes.
    most : int
        How many of them.
    """
    powers: Sequence[float] = (np.abs(probe) ** 2).sum(axis=(1, 2))
    return probe[np.sort(np.argsort(powers)[::-1][:most])]
