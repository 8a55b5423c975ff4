"""A demonstration from the first frame to the result in the catalog."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bluesky_cdi.demo.report import Finished, Outcome, report
from bluesky_cdi.demo.settings import Setting
from bluesky_cdi.errors import CatalogError
from bluesky_cdi.protocols import Estimate

if TYPE_CHECKING:
    from bluesky_cdi.session import Session
    from bluesky_cdi.sim_devices import Beamline

FINISH_TIMEOUT_S = 600.0


def run(setting: Setting, out: Path, show_progress: bool = True) -> Outcome:
    """Run a demonstration.

    Parameters
    ----------
    setting : Setting
        What it runs on.
    out : Path
        Folder for the catalog, the frames, the results and the figure.
    show_progress : bool
        Whether a progress bar goes to standard error.

    Returns
    -------
    Outcome

    Raises
    ------
    BlueskyCDIError
        If any part of the loop failed, or the result is no better than vacuum.
    """
    from bluesky_cdi.session import Session

    history: list[Estimate] = []
    with _Progress(setting.config.scan.budget, show_progress) as progress:
        listeners = [history.append, progress.estimate]
        with Session(setting.config, out, listeners=listeners, **setting.session_options) as session:
            beamline = setting.make_beamline(session.frames_directory)
            started = time.monotonic()
            uid, reason = _scan(session, beamline, progress, setting.sample)
            scanned = time.monotonic()
            session.wait(FINISH_TIMEOUT_S)
            finished = time.monotonic()
            estimate, decisions = _from_catalog(session, uid)
        target = setting.make_target(beamline)
    done = Finished(estimate, decisions, reason, uid, scanned - started, finished - scanned, history[0].n_frames)
    return report(done, setting, target, out)


def _scan(session: Session, beamline: Beamline, progress: _Progress, sample: str) -> tuple[str, str]:
    """Run the adaptive plan; return the raw run's uid and why the scan ended."""
    from bluesky_cdi.plans import adaptive_ptycho

    uids: list[str] = []
    reasons: list[str] = []

    def plan() -> Any:
        stage = beamline.stage
        detectors = [beamline.detector, beamline.monitor]
        options = {**session.config.scan.as_plan_arguments(), "md": {"sample": sample}}
        reasons.append((yield from adaptive_ptycho(detectors, stage.y, stage.x, session.live, **options)))

    session.RE.subscribe(lambda _, doc: uids.append(doc["uid"]), "start")
    session.RE.subscribe(progress.event, "event")
    session.RE(plan())
    return uids[0], reasons[0]


def _from_catalog(session: Session, raw_uid: str) -> tuple[Estimate, Mapping[str, Any]]:
    """Return result and decisions as the catalog gives them back."""
    from bluesky_cdi.catalog import find_results, load_result

    results = find_results(session.catalog, raw_uid)
    if not results or results[-1].uid is None or not results[-1].complete:
        raise CatalogError(
            f"the catalog holds no complete result of the run {raw_uid}; its raw frames are "
            "there. The log says why; `bluesky-cdi browse` lists what the catalog holds."
        )
    decisions = session.catalog.raw[raw_uid]["agent"].read()
    return load_result(session.catalog, results[-1].uid), {key: decisions[key].values for key in decisions}


class _Progress:
    """Shows a bar that counts measured frames and names the newest image's uncertainty."""

    def __init__(self, budget: int, shown: bool) -> None:
        from tqdm import tqdm

        self._bar = tqdm(total=budget, unit="frame", disable=not shown, desc="measured")

    def event(self, name: str, doc: Mapping[str, Any]) -> None:
        """Count an event that holds a position; decisions are events, too."""
        del name
        if not any(key.startswith("agent_") for key in doc["data"]):
            self._bar.update()

    def estimate(self, estimate: Estimate) -> None:
        """Take the worker's newest image."""
        self._bar.set_postfix_str(f"image of {estimate.n_frames}, ±{np.median(estimate.frame_uncertainty):.3f} rad")

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
