"""What a host's process needs of the session's machine: rows of files, and somebody who keeps results."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any

import numpy as np

from bluesky_cdi.callbacks import Part, SharedFolders, local_path, rows_of
from bluesky_cdi.errors import ScanFileError, WorkerError
from bluesky_cdi.protocols import Estimate, RunInfo
from bluesky_cdi.remote.messages import pack_estimate, pack_part, pack_run

# How long rows are waited for, seconds: several times what the largest block takes over a slow network.
ROWS_S = 120.0


class Asking:
    """Asks the session's machine, and takes its answers; may be used from any thread.

    Parameters
    ----------
    send : callable
        Sends a message: its name and values.
    """

    def __init__(self, send: Callable[..., None]) -> None:
        self._send = send
        self._lock = threading.Lock()
        self._open: dict[int, Future[Any]] = {}
        self._n = 0

    def ask(self, what: str, *values: Any) -> Future[Any]:
        """Ask for something; the answer is a value, or a `WorkerError` with what went wrong there."""
        answer: Future[Any] = Future()
        with self._lock:
            self._n += 1
            number, self._open[self._n] = self._n, answer
        self._send("ask", number, what, *values)
        return answer

    def told(self, number: int, error: str | None, value: Any) -> None:
        """Take an answer.

        Parameters
        ----------
        number : int
            Of what was asked.
        error : str or None
            Why there is none.
        value : object
            The answer.
        """
        with self._lock:
            answer = self._open.pop(number)
        if error is None:
            answer.set_result(value)
        else:
            answer.set_exception(WorkerError(error))


class FarFiles:
    """Finds the files of a session's machine: under another name here, or by asking that machine for rows.

    Parameters
    ----------
    paths : SharedFolders
        Those of the session's machine that are seen here.
    asking : Asking
    """

    def __init__(self, paths: SharedFolders, asking: Asking) -> None:
        self._paths, self._asking = paths, asking

    def path(self, resource: Mapping[str, Any]) -> str | None:
        """Give the path that a file has here; None: no folder of it is seen from here.

        Raises
        ------
        ScanFileError
            If it leads out of the folder in which it should lie.
        """
        found = self._paths.find(local_path(resource))
        return str(found) if found is not None and found.parent.is_dir() else None

    def rows(self, resource: Mapping[str, Any], start: int, stop: int, part: Part | None) -> np.ndarray[Any, Any]:
        """Get rows from the session's machine.

        Raises
        ------
        ScanFileError
            If they can't be read there, or do not come.
        """
        named = {key: resource.get(key) for key in ("uri", "mimetype", "parameters")}
        try:
            sent = self._asking.ask("rows", named, start, stop, pack_part(part)).result(ROWS_S)
        except WorkerError as err:
            raise ScanFileError(str(err)) from err
        except TimeoutError as err:
            raise ScanFileError(
                f"rows {start} to {stop - 1} of {resource['uri']} did not come in {ROWS_S:g} s"
            ) from err
        if isinstance(sent, np.ndarray):
            return sent
        block = rows_of(sent, None)
        return block if part is None or block.shape[-2:] != part.shape else block[(..., *part.region)]


class FarRecorder:
    """Has the session's machine keep the estimates of one run: the newest, one at a time, and the last in any case.

    Parameters
    ----------
    info : RunInfo
        The run.
    uid : str
        Of its derived run.
    asking : Asking
    """

    def __init__(self, info: RunInfo, uid: str, asking: Asking) -> None:
        self._asking, self._uid = asking, uid
        self._changed = threading.Condition()
        self._newest: Estimate | None = None
        self._is_busy = False
        self._error: BaseException | None = None
        asking.ask("record", uid, pack_run(info)).result()

    def publish(self, estimate: Estimate) -> None:
        """Have an update kept, in place of one that could not be sent yet.

        Raises
        ------
        WorkerError
            If one before could not be kept.
        """
        with self._changed:
            if self._error is not None:
                raise self._error
            self._newest = estimate
        self._send()

    def close(self, estimate: Estimate | None, exit_status: Any, reason: str) -> None:
        """Have the final estimate kept, and wait until it is.

        Raises
        ------
        WorkerError
            If it could not be.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._newest is None and not self._is_busy)
        packed = None if estimate is None else pack_estimate(estimate)
        self._asking.ask("end", self._uid, packed, str(exit_status), reason).result()

    def _send(self) -> None:
        with self._changed:
            if self._is_busy or self._newest is None:
                return
            estimate, self._newest, self._is_busy = self._newest, None, True
        self._asking.ask("publish", self._uid, pack_estimate(estimate)).add_done_callback(self._arrived)

    def _arrived(self, answer: Future[Any]) -> None:
        with self._changed:
            self._is_busy = False
            self._error = self._error or answer.exception()
            if self._error is not None:
                self._newest = None
            self._changed.notify_all()
        self._send()
