"""Recorded scans with how well their reference explains every frame.

The deviance of a reference is that of its own object and probe through this package's forward model, on the pixels
that the scan has: the central 64x64 of the Siemens star's frames are cut out of the reference's whole frames.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bluesky_cdi.bench.exchange import Arrays, diffraction, recorded_arrays
from bluesky_cdi.bench.recorded import P25, STAR, p25_near_field, siemens_star
from bluesky_cdi.io import open_npz
from bluesky_cdi.physics.forward import Diffraction, fft2c, ifft2c
from bluesky_cdi.physics.illumination import photons_through_vacuum
from bluesky_cdi.physics.likelihood import mean_over_valid, poisson_deviance
from bluesky_cdi.physics.probes import scaled_to
from bluesky_cdi.physics.propagators import FAR_FIELD
from bluesky_cdi.protocols import ComplexArray


@dataclass(frozen=True, eq=False)
class Explained:
    """A recorded scan on a device.

    Attributes
    ----------
    data : Diffraction
    probe : Tensor, shape (1, M, N, N), complex64
        First guess that comes with the scan.
    reference : ndarray, shape (Y, X), complex
        The reference's object on the object of `data`.
    reference_deviance : Tensor, shape (n,)
        Poisson deviance per valid pixel of each frame under the reference, on the CPU.
    """

    data: Diffraction
    probe: Tensor
    reference: ComplexArray
    reference_deviance: Tensor


def star(folder: Path, device: torch.device) -> Explained:
    """Read the Siemens star as recorded, 128x128, three modes.

    Parameters
    ----------
    folder : Path
        Of all recorded scans.
    device : torch.device
        Device that computes.
    """
    recorded = siemens_star(folder / STAR)
    problem = recorded_arrays(recorded)
    return _explained(problem, recorded.reference_on_grid, _star_rate(folder, problem), device)


def star64(folder: Path, device: torch.device) -> Explained:
    """Cut the central 64x64 detector pixels out of the Siemens star's frames: its sample pixel is twice as large.

    Parameters
    ----------
    folder : Path
        Of all recorded scans.
    device : torch.device
        Device that computes.
    """
    recorded = siemens_star(folder / STAR)
    problem, middle = recorded_arrays(recorded), slice(32, 96)
    counts = problem["counts"][:, middle, middle]
    probe = ifft2c(fft2c(torch.from_numpy(problem["probe"]))[:, middle, middle])
    # Pixel k of the coarse object lies on pixel 2 k of the fine one, and the coarse frames reach as far.
    rows, columns = (int(np.ceil(side / 2)) + 1 for side in problem["object_shape"])
    half = {
        **problem,
        "counts": counts,
        "positions_px": problem["positions_px"] / 2,
        "origin_px": problem["origin_px"] / 2,
        "object_shape": np.array((rows, columns)),
        "probe": scaled_to(probe, photons_through_vacuum(counts.sum(axis=(1, 2)))).numpy(),
        "mask": problem["mask"][middle, middle],
    }
    reference = _halved(recorded.reference_on_grid, (rows, columns))
    return _explained(half, reference, _star_rate(folder, problem)[:, middle, middle], device)


def p25(folder: Path, device: torch.device) -> Explained:
    """Read the near field of P25, 100x100, one mode.

    Parameters
    ----------
    folder : Path
        Of all recorded scans.
    device : torch.device
        Device that computes.
    """
    recorded = p25_near_field(folder / P25)
    problem, reference = recorded_arrays(recorded), recorded.reference_on_grid
    data = diffraction(problem, "cpu")
    with open_npz(folder / P25 / "reference.npz", "a reference NPZ file") as file:
        probe = torch.from_numpy(file["probe"])[None]
    rate = data.rate(data.probes(probe), data.patches(torch.from_numpy(reference)[None]))
    # The package that made it has another unit of its probe.
    rate = data.propagator.to_detector(rate * (data.counts.sum() / rate.sum()))
    return _explained(problem, reference, rate, device)


EXPLAINED: Mapping[str, Callable[[Path, torch.device], Explained]] = {"p25": p25, "star": star, "star64": star64}


def _star_rate(folder: Path, problem: Mapping[str, Any]) -> Tensor:
    """Compute the counts that the star's reference expects, (n, 128, 128), as its package places frames."""
    with open_npz(folder / STAR / "reference.npz", "a reference NPZ file") as file:
        sample, probe, relative_px = (file[key] for key in ("obj", "probe", "pos_in"))
    # Its Fourier transform is not normalised.
    waves = torch.from_numpy(probe * np.float32(probe.shape[-1]))[None]
    placed = {
        "counts": problem["counts"],
        "positions_px": relative_px + np.round(np.array(sample.shape) / 2),
        "object_shape": np.array(sample.shape),
    }
    obj = torch.from_numpy(sample)[None]
    parts = diffraction(placed, "cpu").chunks(64)
    return FAR_FIELD.to_detector(torch.cat([part.rate(part.probes(waves), part.patches(obj)) for part in parts]))


def _halved(image: ComplexArray, shape: tuple[int, int]) -> ComplexArray:
    """Take every other pixel of an image without its upper frequencies; the border goes on beyond it."""
    rows, columns = (np.clip(np.arange(n) * 2, 0, side - 1) for n, side in zip(shape, image.shape, strict=True))
    spectrum = np.fft.fftshift(np.fft.fft2(image))
    for axis, side in enumerate(image.shape):
        kept = np.abs(np.arange(side) - side // 2) < side / 4
        spectrum = spectrum * np.expand_dims(kept, 1 - axis)
    smooth = np.fft.ifft2(np.fft.ifftshift(spectrum))
    return np.asarray(smooth[np.ix_(rows, columns)].astype(np.complex64))


def _explained(problem: Arrays, reference: ComplexArray, reference_rate: Tensor, device: torch.device) -> Explained:
    data = diffraction(problem, "cpu")
    deviance = poisson_deviance(data.propagator.to_working(reference_rate), data.counts)
    probe = torch.from_numpy(problem["probe"])[None].to(device)
    return Explained(diffraction(problem, device), probe, reference, mean_over_valid(deviance, data.valid))
