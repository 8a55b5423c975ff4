"""The HDF5 file of one staging: frames in slots, and the documents that announce them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from event_model import compose_stream_resource

from bluesky_cdi.sim_devices._source import Counts

DATASET = "/entry/data/data"


class FrameFile:
    """HDF5 file of frames as they are taken, readable by others meanwhile (single writer, multiple readers).

    A frame is written to the first slot that no event has claimed. A frame taken again after a
    pause therefore overwrites the one that no event will ever show, and slot i belongs to event i.

    Parameters
    ----------
    path : Path
        File to make, absolute; its folder must exist.
    data_key : str
        Key under which the frames are announced.
    shape : tuple of int
        (H, W).
    dtype : dtype
        Of a frame.
    """

    def __init__(self, path: Path, data_key: str, shape: tuple[int, int], dtype: np.dtype[Any]) -> None:
        self._lock = threading.Lock()
        self._claimed = 0
        self._pending = False
        self._announced = False
        self._last_datum: Any = None
        self._file = h5py.File(path, "w", libver="latest")
        self._frames = self._file.create_dataset(
            DATASET, (0, *shape), dtype, maxshape=(None, *shape), chunks=(1, *shape)
        )
        self._file.attrs["complete"] = False
        self._file.swmr_mode = True
        self._bundle = compose_stream_resource(
            mimetype="application/x-hdf5",
            # Not percent-encoded: Tiled takes the URI's path as it stands.
            uri=f"file://localhost{path.as_posix()}",
            data_key=data_key,
            parameters={"dataset": DATASET, "chunk_shape": (1, *shape), "swmr": True},
        )

    @property
    def claimed(self) -> int:
        """Number of frames that belong to events."""
        return self._claimed

    def write(self, frame: Counts) -> None:
        """Put a frame (H, W) into the first unclaimed slot."""
        with self._lock:
            if self._frames.shape[0] == self._claimed:
                self._frames.resize(self._claimed + 1, axis=0)
            self._frames[self._claimed] = frame
            self._frames.flush()
            self._pending = True

    def claim(self) -> Iterator[tuple[str, Any]]:
        """Give the waiting frame to the event that is being read, and yield its documents."""
        with self._lock:
            if not self._pending:
                return
            slot = self._claimed
            self._pending, self._claimed = False, slot + 1
            announce, self._announced = not self._announced, True
            self._last_datum = self._bundle.compose_stream_datum(indices={"start": slot, "stop": slot + 1})
        if announce:
            yield "stream_resource", self._bundle.stream_resource_doc
        yield "stream_datum", self._last_datum

    def unclaim_unsaved(self) -> None:
        """Take back the last claim if a pause came after the read and before the save of its event.

        The RunEngine fills in a document's descriptor and run when it saves the event, and forgets
        what it read otherwise; the frame will be taken again.
        """
        with self._lock:
            if self._last_datum is not None and not self._last_datum["descriptor"]:
                self._claimed -= 1
                self._last_datum = None
                self._announced = "run_start" in self._bundle.stream_resource_doc

    def close(self) -> None:
        """Drop a frame that no event claimed, set the attribute ``complete`` and close the file."""
        with self._lock:
            self._frames.resize(self._claimed, axis=0)
            self._frames.flush()
            # Changed in place: a file open for other readers takes no new attribute.
            self._file.attrs.modify("complete", np.bool_(True))
            self._file.close()
