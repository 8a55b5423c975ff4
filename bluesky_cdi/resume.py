"""A reconstruction that was interrupted goes on, from the raw run in the catalog and its checkpoint."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bluesky_cdi.config import Config, ReconstructorConfig
from bluesky_cdi.errors import ScanFileError, WorkerError
from bluesky_cdi.evaluation.missing import unreached, with_missing
from bluesky_cdi.evaluation.motion import with_run_notes
from bluesky_cdi.evaluation.verdict import fault_of, with_verdict
from bluesky_cdi.io import CheckpointFile, CheckpointHeader, Preprocessing, read_checkpoint, remove_checkpoint
from bluesky_cdi.protocols import ComplexArray, Estimate, Frame, RunInfo
from bluesky_cdi.reconstruction.checkpoint import checkpoint_file, going_on, with_settings_of

if TYPE_CHECKING:
    from bluesky_cdi.catalog import Catalog, ResultPublisher
    from bluesky_cdi.catalog.schema import ExitStatus
    from bluesky_cdi.reconstruction.online import PtychoReconstructor

logger = logging.getLogger(__name__)

# Subfolder of a session's folder.
CHECKPOINTS = "checkpoints"
# The numbers of the frames that a checkpoint knows.
KNOWN_FRAMES = "frames/seq_num"


@dataclass(frozen=True, eq=False)
class Resumed:
    """What a resumed reconstruction came to.

    Attributes
    ----------
    info : RunInfo
        The raw run.
    uid : str
        The new derived run.
    continues : str or None
        The derived run that it goes on from; None: it was begun anew.
    estimate : Estimate
        The last.
    n_restored : int
        Frames that the checkpoint knew.
    finished : bool
        Whether nothing is left to improve; if not, the reconstruction can be resumed again.
    seconds : float
        Time that the steps took.
    """

    info: RunInfo
    uid: str
    continues: str | None
    estimate: Estimate
    n_restored: int
    finished: bool
    seconds: float


@dataclass(frozen=True)
class StoredCheckpoint:
    """A file in the folder of checkpoints.

    Attributes
    ----------
    path : Path
        Where the file is.
    header : CheckpointHeader or None
        None where the file can't be used.
    n_frames : int
        Frames that it knows.
    error : str
        Why it can't be used, else empty.
    """

    path: Path
    header: CheckpointHeader | None
    n_frames: int = 0
    error: str = ""


@dataclass(frozen=True)
class Resumable:
    """A checkpoint and the run that it belongs to.

    Attributes
    ----------
    raw_uid, reconstruction_uid : str
        The raw run, and the derived run that was interrupted.
    scan_id : int or None
        The raw run's number.
    plan_name : str or None
        Its plan.
    exit_status : str or None
        Of the raw run; None without a stop document.
    saved_at : float
        When the checkpoint was saved, seconds since 1970.
    n_frames : int
        Frames that the checkpoint knows.
    n_measured : int or None
        Frames of the raw run; None without a stop document.
    in_catalog : bool
        Whether the catalog holds the raw run, without which nothing can be resumed.
    """

    raw_uid: str
    reconstruction_uid: str
    scan_id: int | None
    plan_name: str | None
    exit_status: str | None
    saved_at: float
    n_frames: int
    n_measured: int | None
    in_catalog: bool


def checkpoints_folder(directory: Path | str) -> Path:
    """Give the folder of checkpoints that belongs to a session's folder.

    Parameters
    ----------
    directory : path
        The session's folder.
    """
    return Path(directory).expanduser().resolve() / CHECKPOINTS


def stored_checkpoints(directory: Path | str) -> list[StoredCheckpoint]:
    """List the checkpoints of a session's folder, oldest first, those that can't be used before all.

    Parameters
    ----------
    directory : path
        The session's folder.
    """
    found = []
    for path in checkpoints_folder(directory).glob("*.npz"):
        try:
            header, state = read_checkpoint(path, [KNOWN_FRAMES])
            found.append(StoredCheckpoint(path, header, len(state[KNOWN_FRAMES])))
        except ScanFileError as err:
            found.append(StoredCheckpoint(path, None, error=str(err)))
    return sorted(found, key=lambda each: each.header.saved_at if each.header else -math.inf)


def list_resumable(catalog: Catalog, directory: Path | str) -> list[Resumable]:
    """List the reconstructions that can be resumed, oldest checkpoint first.

    Parameters
    ----------
    catalog : Catalog
        Where the raw runs are.
    directory : path
        The session's folder.

    Raises
    ------
    CatalogError
        If the server can't be reached.
    """
    rows = []
    for stored in stored_checkpoints(directory):
        if stored.header is None:
            logger.warning("%s", stored.error)
            continue
        uid = stored.header.raw_uid
        with catalog.reaching():
            metadata: dict[str, Any] = dict(catalog.raw[uid].metadata) if uid in catalog.raw else {}
        start, stop = metadata.get("start") or {}, metadata.get("stop") or {}
        rows.append(
            Resumable(
                raw_uid=uid,
                reconstruction_uid=stored.header.reconstruction_uid,
                scan_id=start.get("scan_id"),
                plan_name=start.get("plan_name"),
                exit_status=stop.get("exit_status"),
                saved_at=stored.header.saved_at,
                n_frames=stored.n_frames,
                n_measured=(stop.get("num_events") or {}).get("primary"),
                in_catalog=bool(start),
            )
        )
    return rows


def resume_run(
    catalog: Catalog,
    which: str | int,
    config: Config,
    directory: Path | str | None = None,
    *,
    anew: bool = False,
    unfinished: bool = False,
    seconds: float = math.inf,
    monitor_key: str | None = None,
    probe: ComplexArray | None = None,
    mask: np.ndarray[Any, np.dtype[np.bool_]] | None = None,
    on_progress: Callable[[int, float], None] | None = None,
) -> Resumed:
    """Go on with the reconstruction of a recorded run, until nothing is left to improve.

    The result is a derived run of its own that names the one which it goes on from (``continues``); the raw run stays
    as it is. The checkpoint is renewed meanwhile and removed in the end. Without a checkpoint the run is reconstructed
    from the start, which is logged.

    Parameters
    ----------
    catalog : Catalog
        Where the run is, and where the result goes.
    which : str or int
        The raw run, as `bluesky_cdi.catalog.find_run` takes it.
    config : Config
        What is set in it, and is no default, changes the settings that the checkpoint holds; without a checkpoint it
        is all there is.
    directory : path, optional
        The session's folder, with its checkpoints and results; by default that of the configuration.
    anew : bool
        Leave the checkpoint out, and replace it.
    unfinished : bool
        Take a run without a stop document: whoever measured it is gone.
    seconds : float
        Work ends after this time.
    monitor_key : str, optional
        Data key of the incident flux, where neither the configuration nor the run's start document names it.
    probe : ndarray, shape (modes, N, N), complex, optional
        First guess, where the run is reconstructed from the start.
    mask : ndarray, shape (N, N), bool, optional
        Valid pixels, where the run is reconstructed from the start.
    on_progress : callable, optional
        Called after each iteration with the iterations so far and the mean deviance.

    Returns
    -------
    Resumed

    Raises
    ------
    CatalogError
        If there is no such run, it has not ended, or the catalog does not take the result.
    ScanFileError
        If the run's checkpoint or a file of frames can't be read.
    ConfigError
        If the checkpoint is of another reconstruction.
    DocumentError, FrameError, GeometryError
        If the run can't be reconstructed.
    """
    from bluesky_cdi.callbacks import collect_frames
    from bluesky_cdi.catalog import ending_of, find_run, publishing, run_documents
    from bluesky_cdi.reconstruction.build import build_reconstructor

    directory = Path(directory or config.catalog.directory).expanduser().resolve()
    run = find_run(catalog, which)
    ended = ending_of(run, unfinished)
    stored = _checkpoints_of(catalog, run, directory)
    newest = None if anew or not stored else _header_of(stored[-1], run.start["uid"])
    if newest is not None:
        config = with_settings_of(newest, config)
    settings = config.with_documents(monitor_key=monitor_key).documents
    info, frames = collect_frames(
        run_documents(catalog, run, settings.stream, positions=settings.time_stamps.stream),
        settings=settings,
        mask=mask,
        preprocessing=Preprocessing.recorded(config),
    )
    if newest is not None:
        config = going_on(newest, config, info.frame_shape)
    elif not anew:
        logger.warning("there is no checkpoint of the run %s: it is reconstructed from the start", info.uid)
    reconstructor = build_reconstructor(info, config, probe=probe, mask=mask, on_progress=on_progress)
    n_restored = _restore(reconstructor, frames, stored[-1].path if newest else None)
    continues = newest.reconstruction_uid if newest else None
    publishing_run = publishing(catalog, info, directory, continues, config.as_notes())
    with contextlib.closing(reconstructor), publishing_run as publisher:
        file = checkpoint_file(info, publisher.uid, config, checkpoints_folder(directory))
        work = _Work(reconstructor, publisher, file, [each.path for each in stored])
        estimate, finished, took = work.run(config.reconstructor, seconds)
        missing = unreached(estimate, [frame.seq_num for frame in frames])
        estimate = with_run_notes(estimate, info.notes)
        if finished:
            estimate = with_verdict(with_missing(reconstructor.checked(estimate), missing))
        else:
            doubt = f"time was over before nothing was left to improve, with {len(missing)} frame(s) not in the image"
            estimate = with_verdict(estimate, doubt=doubt)
        publisher.close(estimate, *_ending(ended, None if finished else took))
    # Not before the result is in the catalog.
    if finished:
        work.forget()
    return Resumed(info, publisher.uid, continues, estimate, n_restored, finished, took)


class _Work:
    """Step after step, with a checkpoint and an update in the catalog from time to time."""

    def __init__(
        self,
        reconstructor: PtychoReconstructor,
        publisher: ResultPublisher,
        checkpoint: CheckpointFile,
        older: Sequence[Path],
    ) -> None:
        self._reconstructor, self._publisher, self._checkpoint = reconstructor, publisher, checkpoint
        self._older = older

    def run(self, settings: ReconstructorConfig, seconds: float) -> tuple[Estimate, bool, float]:
        """Work until nothing is left to improve, or time is over.

        Parameters
        ----------
        settings : ReconstructorConfig
            Time for a step, and between two checkpoints.
        seconds : float
            Work ends after this time.

        Returns
        -------
        estimate : Estimate
        finished : bool
        seconds : float
        """
        started = saved = time.monotonic()

        def is_over() -> bool:
            return time.monotonic() >= started + seconds

        # Where nothing is left to improve, what was restored is the result.
        latest = self._reconstructor.estimate()
        finished, fault = False, ""
        while not is_over() or (latest is None and not fault):
            estimate = self._reconstructor.step(settings.step_budget_s, is_over)
            if estimate is None:
                finished = True
                break
            if fault := fault_of(estimate):
                logger.warning("an image is left out: %s", fault)
                continue
            latest = estimate
            if settings.checkpoint_s and time.monotonic() >= saved + settings.checkpoint_s:
                self._publisher.publish(latest)
                self._save()
                saved = time.monotonic()
        if latest is None:
            why = f"the last one was not good: {fault}" if fault else "there is nothing to go on with"
            raise WorkerError(f"the frames of the run give no image: {why}")
        if settings.checkpoint_s and not finished:
            self._save()
        return latest, finished, time.monotonic() - started

    def forget(self) -> None:
        """Remove all checkpoints of the run."""
        for path in [*self._older, self._checkpoint.path]:
            remove_checkpoint(path)

    def _save(self) -> None:
        """Save a checkpoint, which replaces the run's earlier ones; without room on the disk the work goes on."""
        try:
            self._checkpoint.save(self._reconstructor.checkpoint())
            for path in self._older:
                remove_checkpoint(path)
        except ScanFileError as err:
            logger.warning("no checkpoint: %s", err)


def _ending(ended: tuple[ExitStatus, str], cut_after_s: float | None) -> tuple[ExitStatus, str]:
    status, reason = ended
    cut = "" if cut_after_s is None else f"there was more to improve after {cut_after_s:.0f} s"
    return status, "; ".join(part for part in (reason, cut) if part)


def _checkpoints_of(catalog: Catalog, run: Any, directory: Path) -> list[StoredCheckpoint]:
    """List the checkpoints of a run, the newest last, and before them those that only their names show to be of it."""
    from bluesky_cdi.catalog import find_results

    raw_uid = run.start["uid"]
    names = {run.start.get("reconstruction_uid"), *(result.uid for result in find_results(catalog, raw_uid))}
    return [
        each
        for each in stored_checkpoints(directory)
        if each.path.stem in names or (each.header and each.header.raw_uid == raw_uid)
    ]


def _header_of(stored: StoredCheckpoint, raw_uid: str) -> CheckpointHeader:
    """Give the header of a checkpoint that is meant for a run.

    Raises
    ------
    ScanFileError
        If the file is damaged, of another version, or another run's.
    """
    if stored.header is None:
        raise ScanFileError(f"{stored.error} Or reconstruct from the start (--anew).")
    if stored.header.raw_uid != raw_uid:
        raise ScanFileError(
            f"the checkpoint {stored.path} has the name of a reconstruction of the run {raw_uid}, and is of "
            f"{stored.header.raw_uid}: it was copied or renamed. Remove it, or reconstruct from the start (--anew)."
        )
    return stored.header


def _restore(reconstructor: PtychoReconstructor, frames: Sequence[Frame], path: Path | None) -> int:
    """Give a reconstructor its frames, and what a checkpoint holds; how many of the frames the checkpoint knew."""
    if path is None:
        reconstructor.add(frames)
        return 0
    _, state = read_checkpoint(path)
    try:
        reconstructor.restore(state, frames)
    except KeyError as err:
        raise ScanFileError(
            f"the checkpoint {path} lacks {err}: it is another version's. Reconstruct from the start (--anew)."
        ) from err
    return int(np.isin([frame.seq_num for frame in frames], state[KNOWN_FRAMES]).sum())
