"""The recorded scans as computing needs them, each with its reference's deviance of every frame.

The deviance of a reference is that of its own object and probe through this package's forward model, on the pixels
that the case has: the central 64x64 of the Siemens star's frames are cut out of the reference's whole frames.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from engines_beside_ptychi import P25, STAR, p25_case, star_case
from torch import Tensor
from with_ours import diffraction

from bluesky_cdi.physics.forward import Diffraction, fft2c, ifft2c
from bluesky_cdi.physics.likelihood import mean_over_valid, poisson_deviance
from bluesky_cdi.physics.probes import scaled_to
from bluesky_cdi.physics.propagators import FAR_FIELD


@dataclass(frozen=True, eq=False)
class Recorded:
    """A recorded scan.

    Attributes
    ----------
    name : str
    data : Diffraction
    probe : Tensor, shape (1, M, N, N), complex64
        The first guess that comes with the scan.
    reference : ndarray, shape (Y, X)
        The reference's object on the canvas of `data`.
    reference_deviance : Tensor, shape (n,)
        Poisson deviance per valid pixel of each frame under the reference.
    """

    name: str
    data: Diffraction
    probe: Tensor
    reference: np.ndarray
    reference_deviance: Tensor


def star(folder: Path, device: str) -> Recorded:
    """The Siemens star as recorded, 128x128, three modes."""
    case = star_case(folder)
    return _recorded("star", case.problem, case.reference, star_rate(folder, case.problem), device)


def star64(folder: Path, device: str) -> Recorded:
    """The central 64x64 detector pixels of the Siemens star: its sample pixel is twice as large."""
    case = star_case(folder)
    problem, middle = case.problem, slice(32, 96)
    counts = problem["counts"][:, middle, middle]
    probe = ifft2c(fft2c(torch.from_numpy(problem["probe"]))[:, middle, middle])
    probe = scaled_to(probe, float(np.quantile(counts.sum(axis=(1, 2)), 0.9)))
    # Pixel k of the coarse canvas lies on pixel 2 k of the fine one, and the coarse frames reach as far.
    rows, columns = (int(np.ceil(side / 2)) + 1 for side in problem["object_shape"])
    half = {
        **problem,
        "counts": counts,
        "positions_px": problem["positions_px"] / 2,
        "origin_px": problem["origin_px"] / 2,
        "object_shape": np.array((rows, columns)),
        "probe": probe.numpy(),
        "mask": problem["mask"][middle, middle],
    }
    reference = halved(case.reference, (rows, columns))
    return _recorded("star64", half, reference, star_rate(folder, problem)[:, middle, middle], device)


def p25(folder: Path, device: str) -> Recorded:
    """The near field of P25, 100x100, one mode."""
    case = p25_case(folder)
    data = diffraction(case.problem, "cpu")
    with np.load(folder / P25 / "reference.npz") as file:
        probe = torch.from_numpy(file["probe"])[None]
    frames = data.patches(torch.from_numpy(case.reference)[None])
    rate = data.rate(data.probes(probe), frames)
    # The package that made it has another unit of its probe.
    return _recorded("p25", case.problem, case.reference, rate * (data.counts.sum() / rate.sum()), device)


CASES: dict[str, Callable[[Path, str], Recorded]] = {"star": star, "p25": p25, "star64": star64}


def star_rate(folder: Path, problem: dict[str, Any]) -> Tensor:
    """Counts that the reference of the Siemens star expects, (n, 128, 128), as its package places frames."""
    with np.load(folder / STAR / "reference.npz") as file:
        sample, probe, relative_px = (file[key] for key in ("obj", "probe", "pos_in"))
    # Its Fourier transform is not normalised.
    waves = torch.from_numpy(probe * np.float32(probe.shape[-1]))[None]
    placed = {
        "counts": problem["counts"],
        "positions_px": relative_px + np.round(np.array(sample.shape) / 2),
        "object_shape": np.array(sample.shape),
    }
    canvas = torch.from_numpy(sample)[None]
    parts = diffraction(placed, "cpu").chunks(64)
    return FAR_FIELD.to_detector(torch.cat([part.rate(part.probes(waves), part.patches(canvas)) for part in parts]))


def halved(image: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Every other pixel of an image without its upper frequencies; the border goes on beyond it."""
    rows, columns = (np.clip(np.arange(n) * 2, 0, side - 1) for n, side in zip(shape, image.shape, strict=True))
    spectrum = np.fft.fftshift(np.fft.fft2(image))
    for axis, side in enumerate(image.shape):
        kept = np.abs(np.arange(side) - side // 2) < side / 4
        spectrum = spectrum * np.expand_dims(kept, 1 - axis)
    smooth = np.fft.ifft2(np.fft.ifftshift(spectrum))
    return smooth[np.ix_(rows, columns)].astype(np.complex64)


def _recorded(
    name: str, problem: dict[str, Any], reference: np.ndarray, reference_rate: Tensor, device: str
) -> Recorded:
    data = diffraction(problem, "cpu")
    deviance = poisson_deviance(data.propagator.to_working(reference_rate), data.counts)
    probe = torch.from_numpy(problem["probe"])[None].to(device)
    return Recorded(name, diffraction(problem, device), probe, reference, mean_over_valid(deviance, data.valid))
