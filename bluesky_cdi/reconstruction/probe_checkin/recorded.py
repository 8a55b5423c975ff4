"""The check-in of a recorded scan, and what it changes there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from bluesky_cdi.config import Config, ReconstructorConfig
from bluesky_cdi.errors import FrameError
from bluesky_cdi.io import Scan
from bluesky_cdi.io.frames import moved
from bluesky_cdi.models.weights import load_weights
from bluesky_cdi.physics.forward import Diffraction
from bluesky_cdi.physics.geometry import ObjectGrid
from bluesky_cdi.physics.probes import scaled_to
from bluesky_cdi.physics.propagators import propagator_of
from bluesky_cdi.protocols import ComplexArray
from bluesky_cdi.reconstruction.bad_pixels import valid_pixels
from bluesky_cdi.reconstruction.batch import without_dark
from bluesky_cdi.reconstruction.build import device_of
from bluesky_cdi.reconstruction.middle import nearest_to_middle
from bluesky_cdi.reconstruction.prediction import ProbeFinder, probe_finder
from bluesky_cdi.reconstruction.probe_checkin.check import LEAST_FRAMES, MOST_FRAMES, CheckIn, check_in
from bluesky_cdi.reconstruction.probe_checkin.search import Wanted
from bluesky_cdi.reconstruction.probe_checkin.words import in_words, notes_of
from bluesky_cdi.reconstruction.probe_guess import first_guess, with_modes

LENS_KEYS = {"file", "numerical_aperture", "central_stop", "defocus_m"}


@dataclass(frozen=True, eq=False)
class ScanCheckIn:
    """A scan and what the check-in found about its probe.

    Attributes
    ----------
    scan : Scan
        With the changes, if there are any: probe, positions, frames.
    check : CheckIn
        What was tried, and what came of it.
    says : str
        What was changed and how sure that is.
    """

    scan: Scan
    check: CheckIn
    says: str

    @property
    def assumed(self) -> ComplexArray:
        """The assumed probe, (M, N, N)."""
        return np.asarray(self.check.assumed.cpu().numpy())

    @property
    def found(self) -> ComplexArray:
        """The probe that was found, (M, N, N); the assumed one where none is better."""
        return np.asarray(self.check.probe.cpu().numpy())

    def as_notes(self) -> dict[str, Any]:
        """Give what is kept with a result, as plain JSON values."""
        return notes_of(self.check, self.scan.geometry)


def check_in_scan(
    scan: Scan,
    config: Config,
    *,
    wanted: Wanted | None = None,
    frames: int = MOST_FRAMES,
    device: str | None = None,
    on_progress: Callable[[str], None] | None = None,
) -> ScanCheckIn:
    """Check the probe of a recorded scan by the frames in its middle.

    Parameters
    ----------
    scan : Scan
        With its probe; without one the configured lens's is checked, and if no lens is configured either, a probe is
        looked for from nothing (far field) or from the mean frame (near field).
    config : Config
        Its sections `probe`, `reconstructor` (background, and the network, if one is chosen) and `detector`
        (saturation).
    wanted : Wanted, optional
        What may be changed besides the probe; by default all but the scale.
    frames : int
        Frames that are used.
    device : str, optional
        PyTorch device; by default that of the configured reconstructor.
    on_progress : callable, optional
        Called with what is done next.

    Returns
    -------
    ScanCheckIn

    Raises
    ------
    FrameError
        If the scan has too few frames.
    WeightsError
        If the configured network's weights can't be loaded.
    """
    whole, (scan, _) = scan, without_dark(scan)
    if len(scan) < LEAST_FRAMES:
        raise FrameError(
            f"a check-in of the probe needs at least {LEAST_FRAMES} frames; {scan.name or 'the scan'} has {len(scan)}. "
            "Trust the probe."
        )
    device = device_of(config.reconstructor) if device is None else device
    lens = bool(LENS_KEYS & config.probe.model_fields_set)
    assumed = None
    if scan.probe is not None or scan.geometry.propagation == "near" or lens:
        modes = with_modes(first_guess(scan, config), config.probe.modes, scan.geometry.frame_px)
        assumed = torch.from_numpy(np.asarray(modes, np.complex64)).to(device)
    part = scan.subset(nearest_to_middle(scan.positions_m, frames))
    found = check_in(
        _diffraction(part, config, device),
        assumed,
        wanted=wanted,
        most_frames=frames,
        finder=_finder(config.reconstructor, device),
        on_progress=on_progress,
    )
    return ScanCheckIn(applied(whole, found), found, in_words(found, scan.geometry))


def applied(scan: Scan, check: CheckIn) -> Scan:
    """Change a scan as a check-in says; one without changes is given back.

    Parameters
    ----------
    scan : Scan
        The assumed one.
    check : CheckIn
        What was found with some of its frames.
    """
    if not check.changed and check.known:
        return scan
    trial = check.trial
    if trial.centre_px != (0, 0):
        scan = _centred(scan, trial.centre_px)
    if not trial.keeps_places:
        middle = scan.positions_m.mean(axis=0)
        scan = replace(
            scan, positions_m=middle + trial.scale * trial.orientation.turn(np.asarray(scan.positions_m - middle))
        )
    probe = scaled_to(check.probe.cpu(), scan.mean_photons)
    return replace(scan, probe=probe.numpy().astype(np.complex64))


def _finder(settings: ReconstructorConfig, device: str) -> ProbeFinder | None:
    """Give what finds a probe by the configured network; None where engines reconstruct."""
    return probe_finder(load_weights(settings.weights, device).unrolled_net) if settings.name == "pinn" else None


def _centred(scan: Scan, centre_px: tuple[int, int]) -> Scan:
    """Move frames and mask; what comes in from the other side is masked."""
    back = (-centre_px[0], -centre_px[1])
    mask = np.ones(scan.counts.shape[1:], bool) if scan.mask is None else scan.mask
    mask = np.roll(mask, back, axis=(0, 1))
    for axis, step in enumerate(back):
        if step:
            gone = slice(0, step) if step > 0 else slice(step, None)
            mask[(gone, slice(None)) if axis == 0 else (slice(None), gone)] = False
    return replace(scan, counts=moved(scan.counts, back), mask=mask)


def _diffraction(scan: Scan, config: Config, device: str) -> Diffraction:
    geometry, settings = scan.geometry, config.reconstructor
    low, high = scan.positions_m.min(axis=0), scan.positions_m.max(axis=0)
    grid = ObjectGrid.covering(low, high, geometry.pixel_m, geometry.frame_px)
    corner, shift = grid.place(scan.positions_m)
    counts = np.asarray(scan.counts, np.float32)
    if scan.mask is not None:
        counts = np.where(scan.mask, counts, np.float32(0))
    valid = valid_pixels(counts) if scan.mask is None else valid_pixels(counts) & scan.mask
    propagator = propagator_of(geometry, device)
    return Diffraction(
        propagator.to_working(torch.from_numpy(counts)).to(device),
        torch.from_numpy(corner).to(device),
        torch.from_numpy(shift).to(device, torch.float32),
        (1, *grid.shape),
        mask=None if valid.all() else propagator.to_working(torch.from_numpy(valid)).to(device),
        background=settings.background,
        saturation=scan.saturation(config.detector.saturation),
        propagator=propagator,
    )
