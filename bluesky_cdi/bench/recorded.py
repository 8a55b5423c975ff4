"""Recorded scans with the reconstructions that they are held against."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bluesky_cdi.bench.problem import Problem
from bluesky_cdi.config import Config
from bluesky_cdi.evaluation import illuminated_mask
from bluesky_cdi.io import Scan, open_npz, read_cxi, read_reference, read_scan
from bluesky_cdi.physics.forward import Diffraction
from bluesky_cdi.physics.geometry import ObjectGrid
from bluesky_cdi.physics.illumination import photons_through_vacuum, summed_illumination
from bluesky_cdi.physics.illumination_shares import REFERENCE_SHARE
from bluesky_cdi.physics.probes import scaled_to
from bluesky_cdi.physics.propagators import propagator_of
from bluesky_cdi.protocols import ComplexArray
from bluesky_cdi.reconstruction.bad_pixels import valid_pixels
from bluesky_cdi.reconstruction.probe_guess import first_guess, with_modes

STAR, P25 = "siemens_velociprobe", "petra_p25_nearfield"
# Pixels that the object has around the frames: engines that refine positions move them.
MARGIN_PX = 8
# Every eighth frame of a recorded scan is kept from the methods and only judged.
HELD_OUT_EVERY = 8


@dataclass(frozen=True, eq=False)
class RecordedScan:
    """A recorded scan and another reconstruction of it.

    Attributes
    ----------
    name : str
        How tables call it.
    scan : Scan
    reference : ndarray, shape (Y', X'), complex
        On the scan's pixel.
    origin_m : tuple of float
        Sample position (y, x) of the reference's pixel [0, 0], metres.
    modes : int
        Probe modes that are reconstructed.
    """

    name: str
    scan: Scan
    reference: ComplexArray
    origin_m: tuple[float, float]
    modes: int

    @property
    def grid(self) -> ObjectGrid:
        """Where the object's pixels lie."""
        low, high = self.scan.positions_m.min(axis=0), self.scan.positions_m.max(axis=0)
        geometry = self.scan.geometry
        return ObjectGrid.covering(low, high, geometry.pixel_m, geometry.frame_px, MARGIN_PX)

    @property
    def reference_on_grid(self) -> ComplexArray:
        """The part of the reference under the grid; beyond its border the border goes on."""
        grid = self.grid
        first = np.rint((np.array(grid.origin_m) - self.origin_m) / grid.pixel_m).astype(np.int64)
        return _window(self.reference, first, grid.shape)

    def first_probe(self, mask: npt.NDArray[np.bool_] | None = None) -> Tensor:
        """Guess the probe, with all modes and the photons of a frame through vacuum.

        Parameters
        ----------
        mask : ndarray, shape (N, N), bool, optional
            Pixels whose photons count; all if absent.

        Returns
        -------
        Tensor, shape (M, N, N), complex64
        """
        counts = np.asarray(self.scan.counts, np.float32)
        guess = with_modes(first_guess(self.scan, Config()), self.modes, self.scan.geometry.frame_px)
        photons = (counts if mask is None else counts * mask).sum(axis=(1, 2))
        return scaled_to(torch.from_numpy(guess), photons_through_vacuum(photons))


def siemens_star(folder: Path) -> RecordedScan:
    """Read the Siemens star of the Velociprobe: far field, one mode known, three to be found."""
    scan = read_scan(folder / "canonical.npz")
    reference = read_reference(folder / "reference.npz", scan)
    return RecordedScan("Siemens star", scan, reference.object, reference.origin_m, 3)


def p25_near_field(folder: Path) -> RecordedScan:
    """Read the near field of P25, whose probe is not known."""
    scan = read_cxi(folder / "PETRAIII_P25_Near_Field_Ptycho.cxi", focus_to_sample_m=3.65e-3)
    with open_npz(folder / "reference.npz", "a reference NPZ file") as file:
        reference = file["obj"]
    # The reference's object begins 200 pixels before the first frame's.
    first = scan.positions_m.min(axis=0) - (scan.geometry.frame_px // 2 + 200) * scan.geometry.pixel_m
    return RecordedScan("P25, near field", scan, reference, (float(first[0]), float(first[1])), 1)


# Recorded scans by name: their folder and how it is read.
RECORDED: Mapping[str, tuple[str, Callable[[Path], RecordedScan]]] = {
    "Siemens star": (STAR, siemens_star),
    "P25, near field": (P25, p25_near_field),
}


def problem_of(recorded: RecordedScan, device: torch.device) -> Problem:
    """Pose a recorded scan without its held-out frames.

    Parameters
    ----------
    recorded : RecordedScan
        Its bad pixels are looked for in its frames.
    device : torch.device
        Device that computes.

    Returns
    -------
    Problem
    """
    scan, grid = recorded.scan, recorded.grid
    counts = np.asarray(scan.counts, np.float32)
    valid = valid_pixels(counts) if scan.mask is None else valid_pixels(counts) & scan.mask
    probe = recorded.first_probe(valid)[None].to(device)
    propagator = propagator_of(scan.geometry, device)
    corner, shift = grid.place(scan.positions_m)
    data = Diffraction(
        propagator.to_working(torch.from_numpy(counts)).to(device),
        torch.from_numpy(corner).to(device),
        torch.from_numpy(shift).to(device, torch.float32),
        (1, *grid.shape),
        mask=propagator.to_working(torch.from_numpy(valid)).to(device),
        propagator=propagator,
    )
    illuminated = illuminated_mask(summed_illumination(probe, data)[0].cpu().numpy(), REFERENCE_SHARE)
    held_out = torch.arange(len(scan), device=device) % HELD_OUT_EVERY == HELD_OUT_EVERY // 2
    return Problem(
        data[~held_out],
        probe,
        True,
        recorded.reference_on_grid,
        illuminated,
        grid.origin_m,
        grid.pixel_m,
        data[held_out],
        scan.geometry.propagation,
    )


def _window(image: ComplexArray, first: npt.NDArray[np.int64], shape: tuple[int, int]) -> ComplexArray:
    """Cut a window out of an image; beyond its border the border goes on."""
    sides = zip(first, shape, image.shape, strict=True)
    rows, columns = (np.clip(np.arange(start, start + n), 0, side - 1) for start, n, side in sides)
    return np.asarray(image[np.ix_(rows, columns)])
