"""A short reconstruction of a part of a scan, to see whether its frames and positions belong together."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bluesky_cdi.protocols import ComplexArray

if TYPE_CHECKING:
    from bluesky_cdi.io import Scan


def short_deviance(scan: Scan, probe: ComplexArray, epochs: int, device: str) -> float:
    """Reconstruct a scan for a few epochs of LSQ-ML and say how well that explains its frames.

    Parameters
    ----------
    scan : Scan
        A small part of a scan.
    probe : ndarray, shape (modes, N, N), complex
        First guess; held for a third of the epochs, then refined.
    epochs : int
        How many.
    device : str
        PyTorch device.

    Returns
    -------
    float
        Mean Poisson deviance per valid pixel.
    """
    import torch

    from bluesky_cdi.engines import make_engine
    from bluesky_cdi.engines.ptychography import Schedule, Solution, iterate
    from bluesky_cdi.physics.geometry import ObjectGrid
    from bluesky_cdi.physics.probes import scaled_to
    from bluesky_cdi.physics.propagators import propagator_of
    from bluesky_cdi.protocols import Frame
    from bluesky_cdi.reconstruction.frames import MeasuredFrames

    geometry = scan.geometry
    low, high = scan.positions_m.min(axis=0), scan.positions_m.max(axis=0)
    grid = ObjectGrid.covering(low, high, geometry.pixel_m, geometry.frame_px)
    propagator = propagator_of(geometry, device)
    measured = MeasuredFrames(grid, torch.device(device), propagator=propagator, known_mask=scan.mask)
    measured.add(Frame(i + 1, scan.positions_m[i], counts) for i, counts in enumerate(np.asarray(scan.counts)))
    if scan.mask is not None:
        measured.use_mask(scan.mask)
    first = scaled_to(torch.from_numpy(np.asarray(probe, np.complex64)), max(measured.light.mean_photons(), 1.0))[None]
    vacuum = torch.ones((1, *grid.shape), dtype=torch.complex64, device=device)
    start = Solution.start(vacuum, first.to(device), measured.diffraction())
    # The guess of the probe decides between the twins, so it is held for a while.
    outcome = iterate(make_engine("lsqml", batch=16), start, Schedule(epochs, probe_from=epochs // 3))
    return outcome.solution.judged().mean_deviance
