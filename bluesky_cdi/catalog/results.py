"""A reconstruction as a run of its own: documents that refer to the raw run, arrays in an HDF5 file.

A callback can't add a stream to a run that the RunEngine has open, so every reconstruction is a
*derived run* with the streams ``reconstruction`` (an event for each update), and at the end ``frames`` (a row
for each frame) and ``maps`` (one row).
"""

from __future__ import annotations

import base64
import logging
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bluesky_cdi.catalog.provenance import versions
from bluesky_cdi.catalog.result_file import FRAMES, IMAGES, MAPS, SCALARS, UPDATED, Column, ResultFile, chunk_shape
from bluesky_cdi.catalog.schema import (
    MAPPED,
    NOTED_AT_END,
    PER_FRAME,
    PLAN_NAME,
    SOURCE,
    SPEC,
    UPDATES,
    ExitStatus,
    StartNotes,
    StopNotes,
    checked,
    sample_of,
    title_of,
)
from bluesky_cdi.errors import DocumentError
from bluesky_cdi.evaluation.gauge import shown_images
from bluesky_cdi.evaluation.pipeline import pipeline_numbers
from bluesky_cdi.latents.columns import LatentColumns, latent_columns
from bluesky_cdi.latents.painting import paint_frames
from bluesky_cdi.latents.projection import COLOURS, COMPONENTS
from bluesky_cdi.plain import as_plain
from bluesky_cdi.protocols import Estimate, FloatArray, RunInfo
from bluesky_cdi.viz import thumbnail_png

logger = logging.getLogger(__name__)

Emit = Callable[[str, dict[str, Any]], Any]


class ResultPublisher:
    """Turns the estimates of one raw run into the documents of its derived run.

    The start document goes out with the first estimate, which tells what made it, or with
    `close`. All estimates must share grid, probe shape and embedding length. May be called from
    any thread.

    Parameters
    ----------
    info : RunInfo
        The raw run.
    directory : path
        Folder for the file ``<uid>.h5``; the catalog's server must be able to read it.
    emit : callable
        Takes (name, document), as a `Journal` does.
    derived_uid : str, optional
        The derived run's uid, when something refers to it before; a random one by default.
    continues : str, optional
        Uid of the derived run that this one goes on from.
    configuration : Mapping, optional
        Settings that it was made with.
    """

    def __init__(
        self,
        info: RunInfo,
        directory: Path | str,
        emit: Emit,
        derived_uid: str | None = None,
        continues: str | None = None,
        configuration: Mapping[str, Any] | None = None,
    ) -> None:
        self.uid = derived_uid or str(uuid.uuid4())
        self._info = info
        self._continues = continues
        self._configuration = as_plain(configuration or {})
        self._source: dict[str, Any] = {}
        self._path = Path(directory).expanduser().resolve() / f"{self.uid}.h5"
        self._emit = emit
        self._lock = threading.RLock()
        self._bundle: Any = None
        self._counters: dict[str, int] = {}
        self._file: ResultFile | None = None
        self._layout: _Layout | None = None
        self._updates: _Stream | None = None
        self._last: Estimate | None = None
        self._closed = False

    def publish(self, estimate: Estimate) -> None:
        """Write one update: images to the file, then the documents that announce them.

        Of a run whose window grows only the final estimate is kept: the file has one grid.

        Raises
        ------
        DocumentError
            If the run is closed, or the estimate's grid or shapes differ from the first one's.
        CatalogError
            If the file can't be created.
        """
        with self._lock:
            if self._closed:
                raise DocumentError(
                    f"the derived run {self.uid} is closed; it takes no further estimates. "
                    "Make another ResultPublisher."
                )
            if not self._info.grows:
                self._update(estimate)

    def close(self, estimate: Estimate | None, exit_status: ExitStatus = "success", reason: str = "") -> None:
        """Write the final estimate with its per-frame values, and end the derived run.

        The stop document goes out in any case. The result counts as complete if a final estimate
        is given and could be written, and `exit_status` is not ``fail``; an aborted scan can so
        have a complete reconstruction of what it measured. Of one that is not, the stop document keeps what its source
        tells, and no verdict. A second call does nothing.

        Parameters
        ----------
        estimate : Estimate or None
            The final one; published first if it wasn't.
        exit_status : {'success', 'abort', 'fail'}
            The raw run's, as its stop document has it.
        reason : str
            Why the run ended, if not as planned.

        Raises
        ------
        DocumentError, CatalogError
            As `publish` does.
        """
        with self._lock:
            if self._closed:
                return
            ended: tuple[ExitStatus, str] = ("fail", "the final estimate could not be written")
            notes: dict[str, Any] = {"complete": False, "n_frames": None}
            try:
                self._start({} if estimate is None else estimate.source)
                if estimate is not None:
                    latents = self._finish(estimate)
                    if exit_status != "fail":
                        notes = _end_notes(estimate, latents, self._source)
                    else:
                        notes |= _since(estimate, self._source)
                ended = (exit_status, reason)
            finally:
                self._closed = True
                self._stop(*ended, notes)

    def _update(self, estimate: Estimate) -> None:
        file, updates = self._open(estimate)
        images = {name: getattr(estimate, name) for name in IMAGES} | shown_images(estimate)
        rows = {name: _row(images[name], column) for name, column in UPDATED.items()}
        # Where the documents stand, not the file: an update that failed half-way is overwritten.
        file.write(UPDATES, updates.rows, rows)
        updates.announce(1)
        updates.event(_scalars(estimate))
        self._last = estimate

    def _start(self, source: Mapping[str, Any]) -> None:
        if self._bundle is not None:
            return
        from event_model import compose_run

        info, self._source = self._info, _source_of(source)
        metadata = {
            "plan_name": PLAN_NAME,
            "title": title_of({**info.metadata, "scan_id": info.scan_id}),
            "raw_uid": info.uid,
            "scan_id": int(info.scan_id),
            "source": self._source,
            "geometry": as_plain(info.metadata.get("geometry", {})),
            "frame_shape": [int(side) for side in info.frame_shape],
            "versions": versions(),
            "configuration": self._configuration,
            "tiled_specs": [SPEC],
        }
        if self._continues is not None:
            metadata["continues"] = self._continues
        if (sample := sample_of(info.metadata)) is not None:
            metadata["sample"] = sample
        metadata = checked(StartNotes, metadata)
        self._bundle = compose_run(uid=self.uid, metadata=metadata, event_counters=self._counters)
        self._emit("start", self._bundle.start_doc)

    def _open(self, estimate: Estimate) -> tuple[ResultFile, _Stream]:
        """Return file and stream, made for the first estimate and checked for the later ones."""
        layout = _Layout.of(estimate)
        if self._file is None or self._updates is None:
            self._start(estimate.source)
            groups = {UPDATES: UPDATED, PER_FRAME: FRAMES, MAPPED: MAPS}
            self._file = ResultFile(self._path, groups, layout.row_shapes, self._attributes(layout))
            self._layout = layout
            self._updates = _Stream(self._bundle, self._emit, self._file, UPDATES, UPDATED, layout, SCALARS)
        elif layout != self._layout:
            raise DocumentError(
                f"all estimates of a run must share one grid and one layout; the first had {self._layout}, "
                f"this one has {layout}. Begin a new derived run for another grid."
            )
        return self._file, self._updates

    def _attributes(self, layout: _Layout) -> dict[str, Any]:
        return {
            "uid": self.uid,
            "raw_uid": self._info.uid,
            "scan_id": int(self._info.scan_id),
            "pixel_m": layout.pixel_m,
            "origin_m": np.asarray(layout.origin_m),
        }

    def _finish(self, estimate: Estimate) -> LatentColumns:
        # A final estimate that was published before may have a verdict since; its errors may have been checked.
        if self._last is None or any(getattr(estimate, name) is not getattr(self._last, name) for name in IMAGES):
            self._update(estimate)
        file, _ = self._open(estimate)
        latents = latent_columns(estimate)
        self._write_at_once(file, PER_FRAME, FRAMES, _frame_rows(estimate, latents), estimate)
        self._write_at_once(file, MAPPED, MAPS, _map_rows(estimate, latents), estimate)
        return latents

    def _write_at_once(
        self,
        file: ResultFile,
        stream: str,
        columns: Mapping[str, Column],
        rows: Mapping[str, npt.NDArray[Any]],
        estimate: Estimate,
    ) -> None:
        file.write(stream, 0, rows)
        n = len(next(iter(rows.values())))
        _Stream(self._bundle, self._emit, file, stream, columns, _Layout.of(estimate)).announce(n)
        self._counters[stream] += n  # only events count themselves

    def _stop(self, exit_status: ExitStatus, reason: str, notes: Mapping[str, Any]) -> None:
        try:
            if self._file is not None:
                if notes["complete"]:
                    self._file.mark_complete()
                self._file.close()
        finally:
            self._emit("stop", {**self._bundle.compose_stop(exit_status=exit_status, reason=reason), **notes})


@dataclass(frozen=True)
class _Layout:
    """What all estimates of a run must share."""

    pixel_m: float
    origin_m: tuple[float, float]
    row_shapes: Mapping[str, tuple[int, ...]]

    @classmethod
    def of(cls, estimate: Estimate) -> _Layout:
        shapes: dict[str, tuple[int, ...]] = {name: () for name in FRAMES}
        shapes["embedding"] = estimate.embedding.shape[1:]
        shapes |= {name: getattr(estimate, name).shape for name in IMAGES}
        shapes |= dict.fromkeys(("amplitude", "phase"), estimate.object.shape)
        shapes["latents"], shapes["colour"] = (min(COMPONENTS, estimate.embedding.shape[1]),), (COLOURS,)
        shapes["latent_map"], shapes["residual_map"] = (*estimate.object.shape, COLOURS), estimate.object.shape
        shapes |= dict.fromkeys(("probe_amplitude", "probe_phase"), estimate.probe.shape)
        origin = (float(estimate.origin_m[0]), float(estimate.origin_m[1]))
        return cls(float(estimate.pixel_m), origin, shapes)


class _Stream:
    """A stream whose columns lie in a file: composes and emits its documents."""

    def __init__(
        self,
        bundle: Any,
        emit: Emit,
        file: ResultFile,
        name: str,
        columns: Mapping[str, Column],
        layout: _Layout,
        scalars: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        self._emit = emit
        self.rows = 0
        inline = {key: {"source": SOURCE, "shape": [], **spec} for key, spec in (scalars or {}).items()}
        external = {key: _external_key(column, layout.row_shapes[key]) for key, column in columns.items()}
        self._described = bundle.compose_descriptor(
            name=name,
            data_keys={**inline, **external},
            object_keys={SOURCE: [*inline, *external]},
            configuration={SOURCE: _configuration(layout)},
            hints={SOURCE: {"fields": [key for key in inline if key.startswith("median")]}},
        )
        emit("descriptor", self._described.descriptor_doc)
        self._resources = [
            bundle.compose_stream_resource(
                mimetype="application/x-hdf5",
                uri=file.uri,
                data_key=key,
                parameters={
                    "dataset": f"/{name}/{key}",
                    "chunk_shape": list(chunk_shape(layout.row_shapes[key])),
                    "swmr": True,
                },
            )
            for key in columns
        ]
        for resource in self._resources:
            emit("stream_resource", resource.stream_resource_doc)

    def announce(self, rows: int) -> None:
        """Tell that the file has `rows` more rows of every column."""
        start, self.rows = self.rows, self.rows + rows
        for resource in self._resources:
            doc = resource.compose_stream_datum(
                indices={"start": start, "stop": self.rows},
                seq_nums={"start": start + 1, "stop": self.rows + 1},
                descriptor=self._described.descriptor_doc,
            )
            self._emit("stream_datum", doc)

    def event(self, data: dict[str, Any]) -> None:
        now = time.time()
        self._emit("event", self._described.compose_event(data=data, timestamps=dict.fromkeys(data, now), time=now))


def _external_key(column: Column, row_shape: tuple[int, ...]) -> dict[str, Any]:
    scalar = "integer" if column.dtype == "<i8" else "number"
    return {
        "source": SOURCE,
        "dtype": "array" if column.dims else scalar,
        "dtype_numpy": column.dtype,
        "shape": list(row_shape),
        "dims": list(column.dims),
        "units": column.units,
        "external": "STREAM:",
    }


def _configuration(layout: _Layout) -> dict[str, Any]:
    data = {"pixel_m": layout.pixel_m, "origin_y_m": layout.origin_m[0], "origin_x_m": layout.origin_m[1]}
    key = {"source": SOURCE, "dtype": "number", "dtype_numpy": "<f8", "shape": [], "units": "m"}
    return {
        "data": data,
        "timestamps": dict.fromkeys(data, time.time()),
        "data_keys": {name: dict(key) for name in data},
    }


def _map_rows(estimate: Estimate, latents: LatentColumns) -> dict[str, npt.NDArray[Any]]:
    """Put what the frames tell where their light fell."""
    residual = np.full(estimate.object.shape, np.nan, np.float32)
    if len(estimate.residual) and estimate.probe.any():
        residual = paint_frames(estimate, estimate.residual[:, np.newaxis])[..., 0]
    return {"latent_map": latents.map[np.newaxis], "residual_map": residual[np.newaxis]}


def _source_of(source: Mapping[str, Any]) -> dict[str, Any]:
    """Give an estimate's source as documents have it, without what has keys of its own in the stop document."""
    return {key: as_plain(value) for key, value in source.items() if key not in NOTED_AT_END}


def _since(estimate: Estimate, began: Mapping[str, Any]) -> dict[str, Any]:
    """Give what of an estimate's source the start document, where it is `began`, does not have; empty without any."""
    absent = object()
    since = {key: value for key, value in _source_of(estimate.source).items() if began.get(key, absent) != value}
    return {"source": since} if since else {}


def _end_notes(estimate: Estimate, latents: LatentColumns, began: Mapping[str, Any]) -> dict[str, Any]:
    """Gather what a stop document says of a final estimate; a note that has not its form is left out, and told.

    Parameters
    ----------
    estimate : Estimate
        The final one.
    latents : LatentColumns
        Of its frames.
    began : Mapping
        Its source as the start document has it.
    """
    notes = checked(
        StopNotes,
        {
            "complete": True,
            "n_frames": int(estimate.n_frames),
            **_since(estimate, began),
            **_thumbnail(estimate),
            "latents": {"projection_sha256": latents.projection_sha256},
        },
    )
    for key in NOTED_AT_END:
        if key in estimate.source:
            try:
                notes = checked(StopNotes, {**notes, key: as_plain(estimate.source[key])})
            except DocumentError as err:
                # What was measured and reconstructed counts for more than a word about it.
                logger.error("the result is written without its %s: %s", key, err)
    return notes


def _thumbnail(estimate: Estimate) -> dict[str, str]:
    """Draw the phase small, as text; what goes wrong is logged, and does not keep a result from being written."""
    try:
        return {"thumbnail": base64.b64encode(thumbnail_png(estimate)).decode("ascii")}
    except Exception as err:
        logger.exception("the result is written without a thumbnail: %s", err)
        return {}


def _row(values: npt.NDArray[Any], column: Column) -> npt.NDArray[Any]:
    return np.asarray(values, column.dtype)[np.newaxis]


def _scalars(estimate: Estimate) -> dict[str, Any]:
    return {
        "n_frames": int(estimate.n_frames),
        "seconds": float(estimate.seconds),
        "median_frame_uncertainty_rad": _median(estimate.frame_uncertainty),
        "median_residual": _median(estimate.residual),
        **pipeline_numbers(estimate.source),
    }


def _median(values: FloatArray) -> float:
    return float(np.median(values)) if values.size else float("nan")


def _frame_rows(estimate: Estimate, latents: LatentColumns) -> dict[str, npt.NDArray[Any]]:
    vacuum = estimate.vacuum_residual
    columns = {
        "frame_seq_num": estimate.frame_seq_nums,
        "y_m": estimate.positions_m[:, 0],
        "x_m": estimate.positions_m[:, 1],
        "embedding": estimate.embedding,
        "uncertainty_rad": estimate.frame_uncertainty,
        "residual": estimate.residual,
        "vacuum_residual": np.full(len(estimate.residual), np.nan) if vacuum is None else vacuum,
        "novelty": estimate.novelty,
        **latents.of_frames,
    }
    return {name: np.asarray(values, FRAMES[name].dtype) for name, values in columns.items()}
