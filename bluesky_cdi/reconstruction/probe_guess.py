"""What a probe is before anything is known of it but the optics, the scan's file, or its mean frame."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bluesky_cdi.config import Config
from bluesky_cdi.errors import GeometryError
from bluesky_cdi.physics.geometry import Geometry
from bluesky_cdi.protocols import ComplexArray

if TYPE_CHECKING:
    from bluesky_cdi.io import ProbeFile, Scan
    from bluesky_cdi.reconstruction.probe_library import Offer

# Sample pixels, and energies, that differ by no more than these shares are the same.
SAME_PIXEL, SAME_ENERGY = 1e-3, 1e-3
# Share of the photons in the first mode of the configured lens.
COHERENT_SHARE = 0.9
# Each mode that is added to a given probe begins with this share of its photons: enough to grow where the data ask
# for it.
ADDED_MODE_SHARE = 0.02


def first_guess(scan: Scan, config: Config) -> ComplexArray:
    """Guess the probe of a recorded scan.

    Parameters
    ----------
    scan : Scan
        Its probe, or its geometry and frames.
    config : Config
        The lens, where that is needed.

    Returns
    -------
    ndarray, shape (modes, N, N), complex
        The scan's own; else its mean frame taken back to the sample in the near field, and the configured lens's in
        the far field.
    """
    if scan.probe is not None:
        return scan.probe
    return first_probe(scan.geometry, config) if scan.geometry.propagation == "far" else _mean_frame_taken_back(scan)


def fitted(content: ProbeFile, geometry: Geometry) -> ComplexArray:
    """Bring the probe of a file to a scan of the same instrument, whatever its frames and its sample pixel.

    Parameters
    ----------
    content : ProbeFile
        What the file holds.
    geometry : Geometry
        Of the scan.

    Returns
    -------
    ndarray, shape (modes, N, N), complex64
        The file's own where the grids are the same.

    Raises
    ------
    GeometryError
        If the energy is another, at which the beam has its focus elsewhere, or the other field was measured.
    """
    theirs = content.geometry
    if theirs.propagation != geometry.propagation or abs(theirs.energy_ev / geometry.energy_ev - 1) > SAME_ENERGY:
        raise GeometryError(
            f"the probe file is of a {theirs.propagation} field at {theirs.energy_ev:g} eV; the scan is of a "
            f"{geometry.propagation} field at {geometry.energy_ev:g} eV. Use a probe of the same energy and field, or "
            "leave it out."
        )
    same_pixel = abs(theirs.pixel_m / geometry.pixel_m - 1) <= SAME_PIXEL
    if same_pixel and theirs.frame_px == geometry.frame_px:
        return content.probe
    import torch

    from bluesky_cdi.physics.probes import resampled

    probe = torch.from_numpy(np.asarray(content.probe))
    return np.asarray(resampled(probe, theirs.pixel_m, geometry.pixel_m, geometry.frame_px).numpy())


def first_probe(geometry: Geometry, config: Config) -> ComplexArray:
    """Compute the probe of the configured file, the nearest of the configured library, or that of the configured lens.

    See `first_probe_and_offer`.
    """
    return first_probe_and_offer(geometry, config)[0]


def first_probe_and_offer(geometry: Geometry, config: Config) -> tuple[ComplexArray, Offer | None]:
    """Compute `first_probe`, and say what the library has to do with it.

    Parameters
    ----------
    geometry : Geometry
        Of the instrument.
    config : Config
        Its section `probe`.

    Returns
    -------
    ndarray, shape (modes, N, N), complex64
        Of the lens: one photon in all, most of it in the first mode.
    Offer or None
        Of the library, where the probe is from there.

    Raises
    ------
    GeometryError, ScanFileError
        If the file can't be read, or is of another instrument.
    """
    from bluesky_cdi.io import read_probe
    from bluesky_cdi.physics.probes import focused_probe
    from bluesky_cdi.reconstruction.probe_library import offered

    if config.probe.file is not None:
        stated = fitted(read_probe(config.probe.file), geometry)
        return with_modes(stated, config.probe.modes, geometry.frame_px), None
    if (offer := offered(geometry, config)) is not None:
        return with_modes(offer.probe, config.probe.modes, geometry.frame_px), offer
    lens = config.probe
    probe = focused_probe(
        geometry,
        numerical_aperture=lens.numerical_aperture,
        central_stop=lens.central_stop,
        defocus_m=lens.defocus_m,
        modes=lens.modes,
        coherent_share=1.0 if lens.modes == 1 else COHERENT_SHARE,
    )
    return np.asarray(probe.numpy()), None


def with_modes(probe: ComplexArray, modes: int, frame_px: int) -> ComplexArray:
    """Check a given probe, and add weak modes to it up to a number.

    Parameters
    ----------
    probe : ndarray, shape (m, N, N), complex
        What is given.
    modes : int
        Least number of modes afterwards.
    frame_px : int
        Pixels along a side of the frames.

    Returns
    -------
    ndarray, shape (max(m, modes), N, N), complex

    Raises
    ------
    GeometryError
        If it is not (m, N, N) with the frames' N.
    """
    import torch

    from bluesky_cdi.physics.probes import orthogonal_modes

    if probe.ndim != 3 or probe.shape[1:] != (frame_px, frame_px):
        raise GeometryError(f"a probe must be (modes, {frame_px}, {frame_px}); it is {probe.shape}")
    if len(probe) >= modes:
        return probe
    first = torch.from_numpy(np.asarray(probe[0], dtype=np.complex128))
    added = orthogonal_modes(first, modes)[len(probe) :].numpy()
    energy = float((np.abs(probe) ** 2).sum())
    return np.concatenate([probe, added * np.sqrt(ADDED_MODE_SHARE * energy)]).astype(np.complex64)


def _mean_frame_taken_back(scan: Scan) -> ComplexArray:
    """Propagate the root of the mean frame, with a flat phase, from the detector back to the sample."""
    import torch

    from bluesky_cdi.io.frames import blocks
    from bluesky_cdi.physics.propagators import propagator_of

    mean = sum(block.sum(axis=0, dtype=np.float64) for block in blocks(scan.counts)) / len(scan)
    if scan.mask is not None:
        mean = np.where(scan.mask, mean, np.median(mean[scan.mask]))
    flat = torch.from_numpy(np.sqrt(mean)).to(torch.complex64)[None, None]
    return np.asarray(propagator_of(scan.geometry).adjoint(flat)[0].numpy())
