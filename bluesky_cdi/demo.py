"""The whole loop once: an adaptive scan, reconstructed live, kept in the catalog, judged and drawn."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bluesky_cdi.config import Config
from bluesky_cdi.errors import BlueskyCDIError, CatalogError, ScanFileError
from bluesky_cdi.protocols import ComplexArray, Estimate, FloatArray, Proposal

if TYPE_CHECKING:
    from bluesky_cdi.io import Reference, Scan
    from bluesky_cdi.session import Session
    from bluesky_cdi.sim_devices import Beamline

logger = logging.getLogger(__name__)

# Share of a recorded scan's frames that its replay may use.
REPLAY_SHARE = 0.5
FINISH_TIMEOUT_S = 600.0


@dataclass(frozen=True, eq=False)
class Yardstick:
    """What the result is compared with: a simulation's truth, or a recorded scan's reference.

    Attributes
    ----------
    name : str
        How the table calls it.
    object : ndarray, shape (Y, X), complex
    origin_m : tuple of float
        Sample position (y, x) of its pixel [0, 0], metres.
    """

    name: str
    object: ComplexArray
    origin_m: tuple[float, float]


@dataclass(frozen=True, eq=False)
class Setting:
    """What a demonstration runs on.

    Attributes
    ----------
    config : Config
    make_beamline : callable
        From the folder for frames to the devices.
    make_yardstick : callable
        From the devices to what the result is compared with; gives None if there is nothing.
    title : str
    full_scan_frames : int
        Frames of the full scan of the same window.
    session_options : Mapping
        Further arguments of the session.
    """

    config: Config
    make_beamline: Callable[[Path], Beamline]
    make_yardstick: Callable[[Beamline], Yardstick | None]
    title: str
    full_scan_frames: int
    session_options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a demonstration gave.

    Attributes
    ----------
    table : Mapping of str to str
        For people.
    numbers : Mapping
        The same as plain values, for machines.
    figure : Path
    """

    table: Mapping[str, str]
    numbers: Mapping[str, Any]
    figure: Path


def simulated(config: Config) -> Setting:
    """The demonstration on the simulated beamline."""
    from bluesky_cdi.agent.patterns import raster
    from bluesky_cdi.sim_devices import simulated_beamline

    scan = config.scan
    half = np.array(scan.extent_um) / 2
    full = raster(-half, half, scan.step_um)

    def yardstick(beamline: Beamline) -> Yardstick | None:
        truth = beamline.truth
        return None if truth is None else Yardstick("truth", truth.object, truth.origin_m)

    return Setting(
        config=config,
        make_beamline=lambda directory: simulated_beamline(config, directory),
        make_yardstick=yardstick,
        title=f"Adaptive ptychography of a simulated sample ({config.simulation.sample})",
        full_scan_frames=len(full),
        session_options={"monitor_key": "i0"},
    )


def replayed(config: Config, path: Path, reference: Path | None = None) -> Setting:
    """The demonstration on a recorded scan, from `scan.budget` of its frames and at most half of them.

    Parameters
    ----------
    config : Config
    path : Path
        A scan that `bluesky_cdi.io.read_scan` reads.
    reference : Path, optional
        Reference reconstruction; by default ``reference.npz`` beside the scan, where there is one.

    Raises
    ------
    ScanFileError, FrameError, GeometryError
        If a file can't be used.
    """
    import torch

    from bluesky_cdi.agent.space import SearchSpace
    from bluesky_cdi.io import read_reference, read_scan
    from bluesky_cdi.physics.probes import width_px
    from bluesky_cdi.sim_devices import replayed_beamline

    scan = read_scan(path)
    found = read_reference(reference, scan) if reference else _reference_beside(path, scan)
    space = SearchSpace.from_positions(scan.positions_m)
    options: dict[str, Any] = {"space": space, "mask": scan.mask}
    if scan.probe is not None:
        width = width_px(torch.from_numpy(np.asarray(scan.probe))) * scan.geometry.pixel_m
        options |= {"probe": scan.probe, "probe_width_m": width}
    return Setting(
        config=_replay_config(config, scan, space.spacing_m),
        make_beamline=lambda directory: replayed_beamline(scan, directory),
        make_yardstick=lambda _: Yardstick("reference", found.object, found.origin_m) if found else None,
        title=f"Adaptive ptychography, replayed from a recorded scan ({scan.name or path.name})",
        full_scan_frames=len(scan),
        session_options=options,
    )


def _reference_beside(path: Path, scan: Scan) -> Reference | None:
    """A fitting ``reference.npz`` in the scan's folder; one of another form is no reason to fail."""
    from bluesky_cdi.io import read_reference

    beside = path.with_name("reference.npz")
    if not beside.is_file():
        return None
    try:
        return read_reference(beside, scan)
    except ScanFileError as err:
        logger.warning("no comparison: %s", err)
        return None


def run(setting: Setting, out: Path, show_progress: bool = True) -> Outcome:
    """Run a demonstration.

    Parameters
    ----------
    setting : Setting
    out : Path
        Folder for the catalog, the frames, the results and the figure.
    show_progress : bool
        A progress bar on standard error.

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
            uid, reason = _scan(session, beamline, progress)
            scanned = time.monotonic()
            session.wait(FINISH_TIMEOUT_S)
            finished = time.monotonic()
            estimate, decisions = _from_catalog(session, uid)
        yardstick = setting.make_yardstick(beamline)
    comparison = _compare(estimate, yardstick)
    numbers = {
        **_scan_numbers(setting, estimate, decisions, reason),
        "scan_s": scanned - started,
        "finish_s": finished - scanned,
        "first_image_frames": history[0].n_frames,
        **({} if comparison is None else comparison.numbers),
        "catalog": str(out),
        "raw_uid": uid,
    }
    figure = _draw(setting, estimate, comparison, decisions, numbers, out)
    if comparison is not None and comparison.numbers["complex_nrmse"] >= comparison.numbers["complex_nrmse_of_vacuum"]:
        raise BlueskyCDIError(f"the reconstruction is no better than vacuum; see {figure}")
    return Outcome(_table(numbers, yardstick), numbers, figure)


def _replay_config(config: Config, scan: Scan, spacing_m: float) -> Config:
    """The configuration with the recorded scan's geometry and window, and no dwell to hide decisions behind."""
    low, high = scan.positions_m.min(axis=0) * 1e6, scan.positions_m.max(axis=0) * 1e6
    budget = max(1, min(config.scan.budget, int(REPLAY_SHARE * len(scan))))
    geometry = scan.geometry
    return config.model_copy(
        update={
            "geometry": config.geometry.model_copy(update={**geometry.as_metadata(), "frame_px": geometry.frame_px}),
            "probe": config.probe.model_copy(update={"modes": max(config.probe.modes, 3)}),
            "reconstructor": config.reconstructor.model_copy(update={"background": 0.0, "step_budget_s": 30.0}),
            "scan": config.scan.model_copy(
                update={
                    "centre_um": tuple(map(float, (low + high) / 2)),
                    "extent_um": tuple(map(float, high - low)),
                    "step_um": spacing_m * 1e6,
                    "budget": budget,
                    "batch": min(config.scan.batch, budget),
                    "decision_timeout_s": 60.0,
                }
            ),
        }
    )


def _scan(session: Session, beamline: Beamline, progress: _Progress) -> tuple[str, str]:
    """Run the adaptive plan; the raw run's uid and why the scan ended."""
    from bluesky_cdi.plans import adaptive_ptycho

    uids: list[str] = []
    reasons: list[str] = []

    def plan() -> Any:
        stage = beamline.stage
        detectors = [beamline.detector, beamline.monitor]
        options = session.config.scan.as_plan_arguments()
        reasons.append((yield from adaptive_ptycho(detectors, stage.y, stage.x, session.live, **options)))

    session.RE.subscribe(lambda _, doc: uids.append(doc["uid"]), "start")
    session.RE.subscribe(progress.event, "event")
    session.RE(plan())
    return uids[0], reasons[0]


def _from_catalog(session: Session, raw_uid: str) -> tuple[Estimate, Mapping[str, Any]]:
    """Result and decisions as the catalog gives them back."""
    from bluesky_cdi.catalog import find_results, load_result

    results = find_results(session.catalog, raw_uid)
    if not results or results[-1].uid is None or not results[-1].complete:
        raise CatalogError(f"the catalog holds no complete result of the run {raw_uid}; its raw frames are there")
    decisions = session.catalog.raw[raw_uid]["agent"].read()
    return load_result(session.catalog, results[-1].uid), {key: decisions[key].values for key in decisions}


def _scan_numbers(setting: Setting, estimate: Estimate, decisions: Mapping[str, Any], reason: str) -> dict[str, Any]:
    from bluesky_cdi.metrics import dose

    delivered = dose(estimate.coverage, estimate.pixel_m)
    seconds = np.asarray(decisions["agent_decision_s"], dtype=np.float64)
    seconds = seconds[np.isfinite(seconds)]
    return {
        "frames": estimate.n_frames,
        "full_scan_frames": setting.full_scan_frames,
        "full_scan_share": estimate.n_frames / setting.full_scan_frames,
        "photons": delivered.photons,
        "photons_per_m2": delivered.photons_per_m2,
        "decisions": int(np.count_nonzero(decisions["agent_n_proposed"])),
        "late_decisions": int(sum(r == "decision late" for r in decisions["agent_reason"])),
        "decision_s_median": float(np.median(seconds)),
        "decision_s_max": float(seconds.max()),
        "uncertainty_rad": float(np.median(estimate.frame_uncertainty)),
        "stopped_by": reason,
    }


@dataclass(frozen=True, eq=False)
class _Comparison:
    """The estimate beside its yardstick, ambiguities removed."""

    object: ComplexArray
    yardstick: ComplexArray
    numbers: Mapping[str, float]


def _compare(estimate: Estimate, yardstick: Yardstick | None) -> _Comparison | None:
    """Align and measure on the pixels of `conventions`: coverage of at least 2 % of the maximum."""
    if yardstick is None:
        return None
    from bluesky_cdi import metrics

    mask = metrics.illuminated(estimate.coverage)
    shape, pixel_m = estimate.object.shape, estimate.pixel_m
    truth = metrics.crop_to(yardstick.object, yardstick.origin_m, estimate.origin_m, shape, pixel_m)
    aligned = metrics.align(estimate.object, truth, mask)
    error = metrics.wrap_rad(np.angle(aligned.object) - np.angle(aligned.truth))[mask]
    inside = metrics.interval_coverage(error, estimate.std_phase_rad[mask])
    numbers = {
        "complex_nrmse": metrics.complex_nrmse(aligned.object, aligned.truth, mask),
        "complex_nrmse_of_vacuum": metrics.complex_nrmse(np.ones_like(aligned.truth), aligned.truth, mask),
        "phase_mae_rad": metrics.phase_mae_rad(aligned.object, aligned.truth, mask),
        "inside_90_percent_interval": inside[0.9],
        "uncertainty_rank_correlation": metrics.rank_correlation(error, estimate.std_phase_rad[mask]),
    }
    return _Comparison(aligned.object, aligned.truth, numbers)


def _table(numbers: Mapping[str, Any], yardstick: Yardstick | None) -> dict[str, str]:
    n = numbers
    decision_ms, longest_s = 1e3 * n["decision_s_median"], n["decision_s_max"]
    table = {
        "frames": f"{n['frames']}, {100 * n['full_scan_share']:.0f} % of the full scan's {n['full_scan_frames']}",
        "dose": f"{n['photons']:.2e} photons, {n['photons_per_m2']:.2e} per m²",
    }
    if yardstick is not None:
        nrmse, vacuum = n["complex_nrmse"], n["complex_nrmse_of_vacuum"]
        table |= {
            f"complex NRMSE to {yardstick.name}": f"{nrmse:.3f} (vacuum: {vacuum:.2f})",
            f"phase MAE to {yardstick.name}": f"{n['phase_mae_rad']:.4f} rad",
            "errors inside the 90 % interval": f"{100 * n['inside_90_percent_interval']:.0f} %",
        }
    return table | {
        "first image after": f"{n['first_image_frames']} frames",
        "decisions": f"{n['decisions']}, {n['late_decisions']} late; "
        f"median {decision_ms:.0f} ms, longest {longest_s:.2f} s",
        "scan ended by": str(n["stopped_by"]),
        "time": f"scan {n['scan_s']:.0f} s, final refinement and catalog {n['finish_s']:.0f} s",
        "results": f"{n['catalog']} (bluesky-cdi browse {n['catalog']})",
    }


def _draw(
    setting: Setting,
    estimate: Estimate,
    comparison: _Comparison | None,
    decisions: Mapping[str, Any],
    numbers: Mapping[str, Any],
    out: Path,
) -> Path:
    from bluesky_cdi import viz

    shown = {
        "frames": f"{numbers['frames']} of {numbers['full_scan_frames']}",
        "photons per m²": f"{numbers['photons_per_m2']:.1e}",
        "median decision": f"{1e3 * numbers['decision_s_median']:.0f} ms",
    }
    if comparison is not None:
        shown["complex NRMSE"] = f"{numbers['complex_nrmse']:.3f}"
        shown["phase MAE"] = f"{numbers['phase_mae_rad']:.3f} rad"
    figure = viz.figure_demo(
        estimate,
        None if comparison is None else comparison.yardstick,
        aligned=None if comparison is None else comparison.object,
        path_m=_in_scan_order(estimate),
        table=shown,
        title=setting.title,
        proposals=_proposals(decisions),
    )
    path = out / "demo.png"
    viz.save_figure(figure, path)
    return path


def _proposals(decisions: Mapping[str, Any]) -> list[Proposal]:
    """The decisions as the raw run recorded them."""
    fields = ("agent_y", "agent_x", "agent_expected_gain", "agent_n_proposed", "agent_acquisition", "agent_reason")
    rows = zip(*(decisions[key] for key in fields), strict=True)
    return [
        Proposal(np.stack([y[:n], x[:n]], axis=1), gain[:n], str(rule), str(reason))
        for y, x, gain, n, rule, reason in rows
    ]


def _in_scan_order(estimate: Estimate) -> FloatArray:
    return estimate.positions_m[np.argsort(estimate.frame_seq_nums)]


class _Progress:
    """A bar that counts measured frames and names the newest image's uncertainty."""

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
