"""Scans in the form in which programs are compared: the arrays of an NPZ file that `with_ptychi` describes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bluesky_cdi.bench.recorded import RecordedScan
from bluesky_cdi.io import open_npz
from bluesky_cdi.physics.forward import Diffraction
from bluesky_cdi.physics.geometry import ObjectGrid
from bluesky_cdi.physics.propagators import FAR_FIELD, AngularSpectrum, Propagator
from bluesky_cdi.protocols import FloatArray

Arrays = dict[str, Any]


def read_arrays(path: Path) -> Arrays:
    """Read an NPZ file; what has no dimension comes as a plain number or string."""
    with open_npz(path, "an NPZ file") as file:
        return {key: value.item() if value.ndim == 0 else value for key, value in file.items()}


def place_on(grid: ObjectGrid, positions_px: FloatArray) -> Arrays:
    """State where frames and object lie, in pixels.

    Parameters
    ----------
    grid : ObjectGrid
        Of the object.
    positions_px : ndarray, shape (n, 2)
        (y, x) of the probe's centres, sample pixels.
    """
    return {
        "positions_px": positions_px,
        "origin_px": np.array(grid.origin_m) / grid.pixel_m,
        "object_shape": np.array(grid.shape),
    }


def recorded_arrays(recorded: RecordedScan) -> Arrays:
    """State a recorded scan; its mask is the file's own."""
    scan, grid = recorded.scan, recorded.grid
    geometry = scan.geometry
    problem = {
        "counts": np.asarray(scan.counts, np.float32),
        "probe": recorded.first_probe().numpy().astype(np.complex64),
        "propagation": geometry.propagation,
        **place_on(grid, scan.positions_m / grid.pixel_m),
    }
    if scan.mask is not None:
        problem["mask"] = scan.mask
    if geometry.propagation == "near":
        problem |= {"wavelength_m": geometry.wavelength_m, "pixel_m": geometry.pixel_m}
        problem["distance_m"] = geometry.effective_distance_m
    return problem


def diffraction(
    problem: Mapping[str, Any], device: str | torch.device, positions_px: FloatArray | None = None
) -> Diffraction:
    """Lay the frames on their object.

    Parameters
    ----------
    problem : Mapping
        Arrays by name.
    device : str or torch.device
        Device that computes.
    positions_px : ndarray, shape (n, 2), optional
        Other positions than the problem's.

    Returns
    -------
    Diffraction
    """
    placed = problem["positions_px"] if positions_px is None else positions_px
    centre = placed - np.asarray(problem.get("origin_px", (0.0, 0.0)))
    nearest = np.rint(centre)
    propagator = _propagator(problem, device)
    counts = propagator.to_working(torch.from_numpy(np.asarray(problem["counts"], np.float32)).to(device))
    mask = torch.from_numpy(problem["mask"]) if "mask" in problem else None
    rows, columns = (int(side) for side in problem["object_shape"])
    return Diffraction(
        counts,
        torch.from_numpy(nearest.astype(np.int64) - counts.shape[-1] // 2).to(device),
        torch.from_numpy(centre - nearest).to(device, torch.float32),
        (1, rows, columns),
        mask=None if mask is None or bool(mask.all()) else propagator.to_working(mask).to(device),
        propagator=propagator,
    )


def _propagator(problem: Mapping[str, Any], device: str | torch.device) -> Propagator:
    if problem.get("propagation", "far") == "far":
        return FAR_FIELD
    size = problem["counts"].shape[-1]
    return AngularSpectrum(size, problem["pixel_m"], problem["wavelength_m"], problem["distance_m"], device=device)
