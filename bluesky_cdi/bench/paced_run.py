"""The documents of a scan whose frames lie in an HDF5 file, at a stated rate, from a process of their own."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import numpy as np

from bluesky_cdi.packing import pack, unpack
from bluesky_cdi.protocols import FloatArray

Form = Literal["rows", "pages"]
DATASET = "entry/data/data"
# Pages come so often, as of a flyer that is collected while it moves, seconds.
PAGE_S = 0.05


@dataclass(frozen=True, eq=False)
class PacedRun:
    """A scan to be sent.

    Attributes
    ----------
    path : Path
        Its file; frames (n, H, W) in `DATASET`.
    positions_m : ndarray, shape (n, 2)
        (y, x), metres.
    frame_shape : tuple of int
        (H, W).
    metadata : Mapping
        Of the start document: ``geometry`` and ``window_m``.
    form : {'rows', 'pages'}
        An event and a stream datum for each frame, as a step scan gives them, or pages of events and stream datums of
        many rows, as a fly scan does.
    """

    path: Path
    positions_m: FloatArray
    frame_shape: tuple[int, int]
    metadata: Mapping[str, Any]
    form: Form

    def documents(self, rate: float) -> Iterator[tuple[int, list[tuple[str, Any]]]]:
        """Give documents that belong together, with the frames that were measured when they come.

        Parameters
        ----------
        rate : float
            Frames a second, which says how many come in a page.
        """
        import event_model

        number = {"source": "bench", "dtype": "number", "shape": [], "units": "m"}
        image = {"source": "bench", "dtype": "array", "shape": list(self.frame_shape), "external": "STREAM:"}
        run = event_model.compose_run(metadata={"motors": ["y", "x"], "scan_id": 1, **self.metadata}, validate=False)
        stream = run.compose_descriptor(
            name="primary",
            data_keys={"image": image, "y": number, "x": number},
            object_keys={"image": ["image"], "y": ["y"], "x": ["x"]},
            configuration={},
            validate=False,
        )
        resource = run.compose_stream_resource(
            mimetype="application/x-hdf5",
            uri="file://localhost" + str(self.path.resolve()),
            data_key="image",
            parameters={"dataset": DATASET},
        )
        head = [("start", run.start_doc), ("descriptor", stream.descriptor_doc)]
        yield 0, [*head, ("stream_resource", resource.stream_resource_doc)]
        step = 1 if self.form == "rows" else max(1, round(rate * PAGE_S))
        for first in range(0, len(self.positions_m), step):
            stop = min(first + step, len(self.positions_m))
            datum = resource.compose_stream_datum(
                indices={"start": first, "stop": stop},
                seq_nums={"start": first + 1, "stop": stop + 1},
                descriptor=stream.descriptor_doc,
            )
            events = [self._event(stream, k) for k in range(first, stop)]
            together = [("event", events[0])] if self.form == "rows" else [("event_page", _page(events))]
            yield stop, [("stream_datum", datum), *together]
        yield len(self.positions_m), [("stop", run.compose_stop())]

    def _event(self, stream: Any, k: int) -> Any:
        y, x = self.positions_m[k].tolist()
        stamps = {"y": 0.0, "x": 0.0}
        return stream.compose_event(data={"y": y, "x": x}, timestamps=stamps, seq_num=k + 1, validate=False)


def _page(events: Sequence[Any]) -> Any:
    import event_model

    return event_model.pack_event_page(*events)


class Sender:
    """A process that sends a run's documents at a rate.

    Parameters
    ----------
    run : PacedRun
        What it sends.
    rate : float
        Frames a second.
    """

    def __init__(self, run: PacedRun, rate: float) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_send, args=(theirs, run, rate), daemon=True)
        self._process.start()
        theirs.close()

    def documents(self) -> Iterator[tuple[str, Any]]:
        """Give documents as they come; the last is ``("sent", times)``.

        The times are those at which each frame's documents were sent, seconds of `time.monotonic`, by frame.
        """
        name = ""
        while name != "sent":
            name, doc = unpack(self._connection.recv_bytes())
            yield name, doc
        self._process.join()


def _send(
    connection: Connection,
    run: PacedRun,
    rate: float,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Send, no sooner than is due; what a slow receiver holds up is sent as fast as it takes it."""
    # Before the clock runs: documents are made as fast as a RunEngine hands them on.
    ready = [(frames, [pack([name, doc]) for name, doc in docs]) for frames, docs in run.documents(rate)]
    sent = np.zeros(len(run.positions_m))
    began, done = clock(), 0
    for frames, messages in ready:
        if (early := began + frames / rate - clock()) > 0:
            sleep(early)
        sent[done:frames], done = clock(), frames
        for message in messages:
            connection.send_bytes(message)
    connection.send_bytes(pack(["sent", sent]))
