"""A recorded scan reconstructed from its file, without a beamline."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from bluesky_cdi.config import Config, ReconstructorConfig
from bluesky_cdi.errors import FrameError, GeometryError
from bluesky_cdi.evaluation.missing import unreached, with_missing
from bluesky_cdi.evaluation.motion import RUN_NOTES
from bluesky_cdi.evaluation.verdict import with_verdict
from bluesky_cdi.io import photons_of_frames
from bluesky_cdi.io.frame_summaries import DARK_SHARE, dark_frames
from bluesky_cdi.protocols import Estimate, Frame, Preprocessed, RunInfo
from bluesky_cdi.reconstruction.probe_guess import first_guess

if TYPE_CHECKING:
    from bluesky_cdi.io import Scan


logger = logging.getLogger(__name__)

# Iterations after which the network predicts again, if the probe has changed enough.
PREDICT_EVERY = 10
# Losses that are kept of a reconstruction: a curve shows no more, and they stand in the result's metadata.
LOSSES_MAX = 500


def reconstruct(
    scan: Scan,
    config: Config,
    iterations: int,
    on_progress: Callable[[int, float], None] | None = None,
    numbers: Sequence[int] | None = None,
    interrupted: Callable[[], bool] | None = None,
) -> Estimate:
    """Reconstruct all frames of a scan.

    Parameters
    ----------
    scan : Scan
        Its geometry, mask and probe (if it has one) are used.
    config : Config
        Its sections `reconstructor` (which engine, what it refines, when it stops) and `probe` (number
        of modes, and the lens where a far-field scan has no probe). Of `detector` the saturation is used, where the
        scan's frames were not preprocessed.
    iterations : int
        Most iterations of the engine, after the network if that is chosen; fewer where
        ``reconstructor.tolerance`` ends them. 0: the network alone.
    on_progress : callable, optional
        Called after each iteration with the iterations so far and the mean deviance of the frames.
    numbers : sequence of int, optional
        Numbers of the frames in the result, where `scan` is a part of one; from 1 if absent. Dark frames are left out.
    interrupted : callable, optional
        Asked after each iteration whether to end with what there is by then.

    Returns
    -------
    Estimate
        Its `source` says how the iterations ended, and whether the result can be believed (``verdict``, see
        `evaluation.verdict`). The iterations are kept only if they explain the frames better.

    Raises
    ------
    FrameError
        If the scan has no frames.
    GeometryError
        If probe or mask do not fit, or the section `detector` wants preprocessing that the scan has not had.
    """
    from bluesky_cdi.reconstruction.build import build_reconstructor

    notes = scan.source.get("preprocessing")
    if config.detector.changes_frames and notes is None:
        raise GeometryError(
            "the section `detector` says what is done to frames when they are read, and this scan's were read as they "
            "are: read_scan(path, preprocessing=Preprocessing.recorded(config))."
        )
    scan, names = without_dark(scan, numbers)
    steps = _steps(config.reconstructor, iterations)
    # All frames are there: nothing is gained from regions, and iterations of the whole converge further.
    settings = config.reconstructor.model_copy(update={"refine_iterations": iterations // steps, "window_px": None})
    # Whoever has a whole scan checks its probe before (`probe_checkin.check_in_scan`), more thoroughly than beside it.
    probe = config.probe.model_copy(update={"trust": True})
    config = config.model_copy(update={"reconstructor": settings, "probe": probe})
    low, high = scan.positions_m.min(axis=0), scan.positions_m.max(axis=0)
    metadata = {"geometry": scan.geometry.as_metadata(), "window_m": [low.tolist(), high.tolist()]}
    side = scan.geometry.frame_px
    preprocessed = Preprocessed(scan.mask, scan.saturation(config.detector.saturation), notes or {})
    info = RunInfo(scan.name, 0, metadata, (side, side), preprocessed=preprocessed)
    losses = _Losses(on_progress)
    reconstructor = build_reconstructor(info, config, probe=first_guess(scan, config), on_progress=losses)
    # Not by a name: the reconstructor has its own copy of the counts.
    reconstructor.add(_frames(scan, names))
    is_over = interrupted or (lambda: False)
    found: list[Estimate] = []
    for _ in range(steps):
        if (estimate := reconstructor.step(np.inf, is_over)) is not None:
            found.append(estimate)
        if is_over():
            break
    if not found:
        raise FrameError(f"{scan.name or 'the scan'} has no frames to reconstruct from")
    kept = ("dark_frames", "unwritten_frames", "flagged_pixels", *RUN_NOTES)
    noted = {key: scan.source[key] for key in kept if key in scan.source}
    noted["loss_history"] = losses.as_notes()
    if is_over():
        noted["ended"] = "interrupted"
    result = replace(
        found[-1],
        seconds=sum(estimate.seconds for estimate in found),
        source={**found[-1].source, **noted},
    )
    result = reconstructor.checked(result, is_over)
    return with_verdict(with_missing(result, unreached(result, names)))


class _Losses:
    """Keeps the mean deviance after each iteration, and tells it on.

    Parameters
    ----------
    on_progress : callable, optional
        Called with the iterations so far and the mean deviance of the frames.
    """

    def __init__(self, on_progress: Callable[[int, float], None] | None) -> None:
        self._on_progress = on_progress
        self._iterations: list[int] = []
        self._deviances: list[float] = []

    def __call__(self, iterations: int, deviance: float) -> None:
        """Take the loss of an iteration."""
        self._iterations.append(int(iterations))
        self._deviances.append(float(deviance))
        if self._on_progress is not None:
            self._on_progress(iterations, deviance)

    def as_notes(self) -> dict[str, list[Any]]:
        """Give them as plain values, to six digits, of many iterations at most `LOSSES_MAX`, evenly."""
        every = max(1, math.ceil(len(self._iterations) / LOSSES_MAX))
        # Counted back from the last, which is always kept.
        kept = range(len(self._iterations) - 1, -1, -every)
        return {
            "iteration": [self._iterations[k] for k in kept][::-1],
            "deviance": [float(f"{self._deviances[k]:.6g}") for k in kept][::-1],
        }


def without_dark(scan: Scan, numbers: Sequence[int] | None = None) -> tuple[Scan, list[int]]:
    """Leave out frames without light: the shutter was closed, or the ring was being filled.

    A frame is dark that has less than `DARK_SHARE` of a bright frame's photons. Such a frame would be taken for an
    opaque sample. They are logged, and listed in the scan's `source` under ``dark_frames``.

    Parameters
    ----------
    scan : Scan
        The scan.
    numbers : sequence of int, optional
        Of its frames; from 1 if absent.

    Returns
    -------
    Scan
        The same one where no frame is dark.
    list of int
        Numbers of its frames.
    """
    names = np.arange(1, len(scan) + 1) if numbers is None else np.asarray(numbers)
    photons = photons_of_frames(scan.counts, scan.mask)
    dark = dark_frames(photons)
    if not dark.any():
        return scan, names.tolist()
    left_out = names[dark].tolist()
    shown = ", ".join(map(str, left_out[:10])) + ", ..." * (len(left_out) > 10)
    logger.warning(
        "%d of %d frames have less than %g %% of a bright one's photons and are left out: %s",
        len(left_out),
        len(names),
        100 * DARK_SHARE,
        shown,
    )
    lit = scan.subset(~dark)
    return replace(lit, source={**scan.source, "dark_frames": left_out}), names[~dark].tolist()


def _frames(scan: Scan, names: Sequence[int]) -> list[Frame]:
    counts = np.asarray(scan.counts)
    flux = np.ones(len(scan)) if scan.flux is None else scan.flux
    return [Frame(int(k), scan.positions_m[i], counts[i], flux=float(flux[i])) for i, k in enumerate(names)]


def _steps(settings: ReconstructorConfig, iterations: int) -> int:
    """Count the steps, between which the network predicts again if the probe, or itself, has become better."""
    if settings.name != "pinn":
        return 1
    return max(math.ceil(iterations / PREDICT_EVERY), 2 if settings.fine_tune_s else 1)
