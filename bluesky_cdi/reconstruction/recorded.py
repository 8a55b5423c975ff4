"""A whole recorded scan before its reconstruction and after it: what every command for recorded scans does."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bluesky_cdi.config import Config
from bluesky_cdi.errors import BlueskyCDIError
from bluesky_cdi.evaluation.motion import MOTION
from bluesky_cdi.evaluation.verdict import verdict_said
from bluesky_cdi.io import Preprocessing, Scan, read_scan
from bluesky_cdi.protocols import Estimate
from bluesky_cdi.reconstruction.batch import without_dark
from bluesky_cdi.reconstruction.lag import check_lag
from bluesky_cdi.reconstruction.orientation import AS_STATED, check_orientation
from bluesky_cdi.reconstruction.probe_checkin import LEAST_FRAMES, ScanCheckIn, Wanted, check_in_scan
from bluesky_cdi.reconstruction.probe_guess import first_guess, fitted

if TYPE_CHECKING:
    from bluesky_cdi.io import ProbeFile

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Recorded:
    """A recorded scan.

    Attributes
    ----------
    scan : Scan
    numbers : tuple of int
        Of its frames.
    checked : ScanCheckIn or None
        What the check of its probe found, if it was checked.
    """

    scan: Scan
    numbers: tuple[int, ...]
    checked: ScanCheckIn | None = None


def recorded_file(path: Path, config: Config, focus_to_sample_m: float | None = None) -> Recorded:
    """Read a scan from its file; one without a name is named as the file is.

    Parameters
    ----------
    path : Path
        The file.
    config : Config
        Its section `detector`.
    focus_to_sample_m : float, optional
        As for `bluesky_cdi.io.read_scan`, metres.

    Raises
    ------
    ScanFileError, FrameError, GeometryError
        If the file can't be read or holds no scan.
    """
    scan = read_scan(path, focus_to_sample_m=focus_to_sample_m, preprocessing=Preprocessing.recorded(config))
    return Recorded(scan if scan.name else replace(scan, name=path.stem), tuple(range(1, len(scan) + 1)))


def prepared(
    recorded: Recorded,
    config: Config,
    *,
    probe: ProbeFile | None = None,
    half: int | None = None,
    orientation: bool = True,
    check_in: bool = True,
    on_orientation: Callable[[], None] = lambda: None,
) -> Recorded:
    """Leave out dark frames, and check which way round the frames lie and with which probe they were measured.

    Of another orientation is only warned, and so of positions of a fly scan that lag; a better probe is taken.

    Parameters
    ----------
    recorded : Recorded
        The scan.
    config : Config
        As for `reconstruct`.
    probe : ProbeFile, optional
        First guess of the probe, in place of the scan's own.
    half : {1, 2}, optional
        Use every other frame only.
    orientation, check_in : bool
        Whether orientation and probe are checked. The probe of a scan of too few frames is trusted.
    on_orientation : callable
        Called after each orientation that was tried.

    Raises
    ------
    FrameError, GeometryError
        If the scan can't be reconstructed.
    """
    scan, chosen = recorded.scan, np.asarray(recorded.numbers)
    if half:
        scan, chosen = scan.subset(np.arange(half - 1, len(scan), 2)), chosen[half - 1 :: 2]
    scan, names = without_dark(scan, chosen.tolist())
    if probe is not None:
        scan = replace(scan, probe=fitted(probe, scan.geometry))
    if orientation:
        _warn_of_orientation(scan, config, on_orientation)
        if MOTION in scan.source:
            _warn_of_lag(scan, config)
    checked = _checked(scan, config) if check_in else None
    return Recorded(scan if checked is None else checked.scan, tuple(names), checked)


def noted(estimate: Estimate, checked: ScanCheckIn | None) -> Estimate:
    """Put what the check of the probe said into the source of a result, which must be worth keeping.

    Parameters
    ----------
    estimate : Estimate
        The result.
    checked : ScanCheckIn or None
        What was found, if the probe was checked.

    Raises
    ------
    BlueskyCDIError
        If the object is not finite.
    """
    if checked is not None:
        estimate = replace(estimate, source={**estimate.source, "probe_check_in": checked.as_notes()})
    if not np.isfinite(estimate.object).all():
        raise BlueskyCDIError(f"the reconstruction {verdict_said(estimate.source)}: nothing is written")
    return estimate


def _checked(scan: Scan, config: Config) -> ScanCheckIn | None:
    if len(scan) < LEAST_FRAMES:
        logger.warning("%d frames are too few to check the probe by (at least %d): trusted", len(scan), LEAST_FRAMES)
        return None
    # The orientation is checked before, with more frames, and only warned of: it may not be changed here.
    return check_in_scan(
        scan, config, wanted=Wanted(orientation=False), on_progress=lambda what: logger.info("probe check-in: %s", what)
    )


def _warn_of_orientation(scan: Scan, config: Config, on_orientation: Callable[[], None]) -> None:
    check = check_orientation(scan, first_guess(scan, config), on_progress=lambda _: on_orientation())
    if check.better is not None:
        logger.warning(
            "%s is explained better with its positions %s (deviance %.3g a pixel) than as they are (%.3g): "
            "look at the axes and signs of the stage and the detector",
            scan.name,
            check.better,
            check.deviance[check.better],
            check.deviance[AS_STATED],
        )


def _warn_of_lag(scan: Scan, config: Config) -> None:
    check = check_lag(scan, first_guess(scan, config))
    if check is None or check.better is None:
        return
    period_s = scan.source[MOTION].get("period_s")
    lag_s, stated_s = check.better * (period_s or 0.0), config.documents.time_stamps.offset_s
    logger.warning(
        "%s is explained better with positions of %.2g times from frame to frame %s (deviance %.3g a pixel) than as "
        "they are (%.3g)%s",
        scan.name,
        abs(check.better),
        "later" if check.better > 0 else "earlier",
        min(check.deviance.values()),
        check.deviance[0.0],
        f": documents.time_stamps.offset_s of {stated_s + lag_s:.3g} s takes them" if period_s else "",
    )
