"""A raw run of a catalog as a recorded scan: to be reconstructed again, or written to a file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bluesky_cdi.config import Config, load_config
from bluesky_cdi.errors import DocumentError, FrameError
from bluesky_cdi.io import Preprocessing, Scan
from bluesky_cdi.io.scan import recorded
from bluesky_cdi.physics.geometry import Geometry
from bluesky_cdi.protocols import Estimate, RunInfo

if TYPE_CHECKING:
    from bluesky_cdi.catalog import Catalog
    from bluesky_cdi.catalog.documents import Document
    from bluesky_cdi.catalog.schema import ExitStatus
    from bluesky_cdi.evaluation.fit import FittedFrame

# What `Scan.source` says of the file's form, of a scan that comes from no file.
FORM = "catalog"


@dataclass(frozen=True, eq=False)
class RecordedRun:
    """A raw run, as a scan.

    Attributes
    ----------
    info : RunInfo
        Of the run, with the geometry of the scan's frames.
    scan : Scan
        Frames, positions and flux of the run, preprocessed.
    numbers : tuple of int
        Number of each frame in the run.
    ended : tuple of str
        Exit status and reason of what is derived from it.
    """

    info: RunInfo
    scan: Scan
    numbers: tuple[int, ...]
    ended: tuple[ExitStatus, str] = ("success", "")


def recorded_run(
    catalog: Catalog,
    which: str | int,
    config: Config,
    *,
    unfinished: bool = False,
    only: int | None = None,
    mask: npt.NDArray[np.bool_] | None = None,
) -> RecordedRun:
    """Read a raw run from a catalog; its frames are preprocessed as a recorded scan's.

    Parameters
    ----------
    catalog : Catalog
        Where to look.
    which : str or int
        The run, as `bluesky_cdi.catalog.find_run` takes it.
    config : Config
        Its sections `documents` and `detector`.
    unfinished : bool
        Take a run without a stop document: whoever measured it is gone.
    only : int, optional
        Number of the one event that is wanted.
    mask : ndarray, shape (H, W), bool, optional
        Valid pixels of the detector.

    Raises
    ------
    CatalogError
        If there is no such run, or it has not ended.
    DocumentError, FrameError, GeometryError
        If the run can't be reconstructed.
    """
    from bluesky_cdi.callbacks import collect_frames
    from bluesky_cdi.catalog import ending_of, find_run, run_documents

    run, settings = find_run(catalog, which), config.documents
    ended = ending_of(run, unfinished)
    documents = run_documents(catalog, run, settings.stream, positions=settings.time_stamps.stream, only=only)
    info, frames = collect_frames(
        documents if only is None else _with_window(documents),
        settings=settings,
        mask=mask,
        preprocessing=Preprocessing.recorded(config),
    )
    # As from a file: pixels that hold flags in place of counts are masked.
    scan = recorded(
        np.stack([frame.counts for frame in frames]),
        positions_m=np.stack([frame.position_m for frame in frames]).astype(np.float64),
        geometry=Geometry.from_metadata(info.metadata, info.frame_shape),
        mask=mask if info.preprocessed is None else info.preprocessed.mask,
        name=f"scan {info.scan_id}",
        source=_source_of(info),
        flux=np.array([frame.flux for frame in frames]),
    )
    return RecordedRun(info, scan, tuple(frame.seq_num for frame in frames), ended)


def measured_frame(
    catalog: Catalog, raw_uid: str, seq_num: int, config: Config
) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
    """Read one frame of a run, as a reconstruction takes it.

    Parameters
    ----------
    catalog : Catalog
        Where the run is.
    raw_uid : str
        Uid of the run, in full.
    seq_num : int
        Number of the frame.
    config : Config
        Its sections `documents` and `detector`.

    Returns
    -------
    counts : ndarray, shape (N, N)
    valid : ndarray, shape (N, N), bool
        Pixels that count.

    Raises
    ------
    CatalogError, DocumentError, FrameError, GeometryError
        If run or frame are not there, or can't be used.
    """
    # Where the beam's centre is looked for, or an event has several frames, one alone says too little.
    whole = config.detector.beam_centre_px == "find" or config.documents.several == "each"
    try:
        run = recorded_run(catalog, raw_uid, config, unfinished=True, only=None if whole else seq_num)
    except DocumentError as err:
        raise FrameError(f"the run {raw_uid} has no frame {seq_num} that can be shown: {err}") from err
    if seq_num not in run.numbers:
        raise FrameError(f"the run {raw_uid} has no frame {seq_num}")
    counts = run.scan.counts[run.numbers.index(seq_num)]
    return counts, np.ones(counts.shape, bool) if run.scan.mask is None else run.scan.mask


def _with_window(documents: Iterable[Document]) -> Iterator[Document]:
    """State a window where a run states none: one frame alone does not tell where it measures, and nobody asks."""
    for name, doc in documents:
        yield name, {"window_m": [[0.0, 0.0], [0.0, 0.0]], **doc} if name == "start" else doc


def settings_of(start: Mapping[str, Any], otherwise: Config | None = None) -> Config:
    """Give the settings that a result was made with.

    Parameters
    ----------
    start : Mapping
        The derived run's start document.
    otherwise : Config, optional
        For results of earlier versions, which don't tell; by default the configuration's defaults.

    Raises
    ------
    ConfigError
        If this version has not all of those settings.
    """
    told = start.get("configuration")
    return otherwise if told is None and otherwise is not None else load_config(overrides=told or {})


def frame_and_fit(catalog: Catalog, which: str | int, seq_num: int, config: Config | None = None) -> FittedFrame:
    """Read one frame of a run, and compute what a result of it expects there.

    Parameters
    ----------
    catalog : Catalog
        Where both are.
    which : str or int
        The result, as `bluesky_cdi.catalog.load_result` takes it.
    seq_num : int
        Number of the frame.
    config : Config, optional
        Its sections `documents` and `detector`; by default what the result was made with.

    Raises
    ------
    CatalogError, DocumentError, FrameError, GeometryError
        If result, run or frame are not there, or the frame is not as it was for the result.
    """
    from bluesky_cdi.reconstruction.frame_fit import fitted_frame

    result = catalog[which]
    estimate = result.estimate
    counts, valid = measured_frame(catalog, result.summary.raw_uid, seq_num, config or settings_of(result.start))
    return fitted_frame(estimate, result.geometry, seq_num, counts, valid)


def with_known_probe(catalog: Catalog, run: RecordedRun) -> RecordedRun:
    """Give the scan of a run the probe that the newest usable result of it has found, in the scan's gauge.

    Parameters
    ----------
    catalog : Catalog
        Where the results are.
    run : RecordedRun
        The run.

    Returns
    -------
    RecordedRun
        The same one without a complete result whose verdict is not failed.
    """
    from bluesky_cdi.catalog import find_raw, find_results, load_result, probe_file_of
    from bluesky_cdi.reconstruction.probe_guess import fitted

    usable = [each for each in find_results(catalog, run.info.uid) if each.complete and each.verdict != "failed"]
    if not usable:
        return run
    found = probe_file_of(load_result(catalog, str(usable[-1].uid)), find_raw(catalog, usable[-1]).start)
    probe = fitted(found, run.scan.geometry)
    photons = float(np.square(np.abs(probe), dtype=np.float64).sum())
    scaled = probe * np.sqrt(run.scan.mean_photons / photons)
    return replace(run, scan=replace(run.scan, probe=scaled.astype(np.complex64)))


def keep_result(
    catalog: Catalog, run: RecordedRun, estimate: Estimate, directory: Path, config: Config | None = None
) -> str:
    """Write a reconstruction of a run into its catalog, as a new derived run beside those that are there.

    Parameters
    ----------
    catalog : Catalog
        Where the run is.
    run : RecordedRun
        The run.
    estimate : Estimate
        What was made of it.
    directory : Path
        The session's folder, for the result's file.
    config : Config, optional
        What it was made with, to be told in the result.

    Returns
    -------
    str
        Uid of the derived run.

    Raises
    ------
    CatalogError
        If the catalog does not take it.
    """
    from bluesky_cdi.catalog import publishing

    notes = None if config is None else config.as_notes()
    with publishing(catalog, run.info, directory, configuration=notes) as publisher:
        publisher.close(estimate, *run.ended)
    return publisher.uid


def _source_of(info: RunInfo) -> dict[str, Any]:
    near = info.metadata["geometry"].get("propagation", "far") == "near"
    notes = {} if info.preprocessed is None else {"preprocessing": dict(info.preprocessed.notes)}
    notes |= info.notes
    return {"format": FORM, "run": info.uid, "propagation": "near field" if near else "far field", **notes}
