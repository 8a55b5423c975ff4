"""The reconstruction beside a scan: what becomes of the scan when the reconstruction fails."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any, Literal, TypeVar, get_args

import bluesky.plan_stubs as bps

from bluesky_cdi.errors import ConfigError, WorkerError
from bluesky_cdi.plans._plan import Plan
from bluesky_cdi.protocols import ScanArea, ScanSource, ScanTicket

logger = logging.getLogger(__name__)

T = TypeVar("T")
OnFailure = Literal["continue", "pause", "abort"]
ON_FAILURE: Sequence[str] = get_args(OnFailure)

# How long a scan waits for the reconstruction to get ready, seconds: a first agent loads its libraries.
READY_S = 60.0
# How often a plan that waits looks whether the worker still lives, seconds.
LOOK_S = 0.5
# How often it looks for the answer, seconds: little beside any decision or move.
POLL_S = 0.005


class Beside:
    """Asks the reconstruction on behalf of a plan, and keeps its failures from the scan unless they are to end it.

    A failure is told once. Then the scan goes on, pauses (and goes on when it is resumed) or ends.

    Parameters
    ----------
    live : ScanSource
        The session's worker.
    on_failure : {'continue', 'pause', 'abort'}

    Raises
    ------
    ConfigError
        If `on_failure` is none of these.
    """

    def __init__(self, live: ScanSource, on_failure: str) -> None:
        if on_failure not in ON_FAILURE:
            raise ConfigError(f"on_reconstruction_failure must be one of {', '.join(ON_FAILURE)}; got {on_failure!r}")
        self._live, self._on_failure = live, on_failure
        self._is_reported = False

    def begin(self, area: ScanArea) -> Plan[ScanTicket]:
        """Announce a scan.

        Raises
        ------
        WorkerError
            If the worker refuses, has failed, or is not ready in a minute: nothing is measured yet.
        """
        future = self._live.begin(area)
        deadline = time.monotonic() + READY_S
        while not future.done():
            if time.monotonic() >= deadline:
                future.cancel()
                raise WorkerError(
                    f"the reconstruction was not ready for the scan within {READY_S:g} s; "
                    "start a new session, or scan without it (live=None)"
                )
            yield from _wait(future, LOOK_S)
        return future.result()

    def announced(self, area: ScanArea) -> Plan[dict[str, str]]:
        """Announce a scan that asks for nothing; give what its start document says of the reconstruction.

        Raises
        ------
        WorkerError
            If the reconstruction has failed and that is to end the scan.
        """
        try:
            return {"reconstruction_uid": (yield from self.begin(area)).reconstruction_uid}
        except WorkerError as err:
            yield from self.failed(err)
            return {}

    def is_well(self) -> Plan[bool]:
        """Look whether the reconstruction is there; tell it where it is not any more.

        Raises
        ------
        WorkerError
            If it has failed and that is to end the scan.
        """
        try:
            self._live.check()
        except WorkerError as err:
            yield from self.failed(err)
            return False
        if self._is_reported:
            self._is_reported = False
            logger.warning("the reconstruction is there again")
        return True

    def failed(self, error: WorkerError) -> Plan[None]:
        """Tell a failure, once; then go on, pause, or raise it."""
        if self._on_failure == "abort":
            raise error
        if self._is_reported:
            return
        self._is_reported = True
        logger.error("%s The scan goes on without it.", error)
        if self._on_failure == "pause":
            yield from bps.checkpoint()
            yield from bps.pause()

    def request(self, n: int, after: int) -> Future[Any]:
        """Ask for positions, as `ScanSource.request` does.

        Parameters
        ----------
        n : int
            How many.
        after : int
            Number of the frame that must be in the reconstruction before they are decided.
        """
        return self._live.request(n, after)

    def answer(self, future: Future[T], timeout_s: float) -> Plan[T | None]:
        """Wait for an answer.

        Parameters
        ----------
        future : Future
            The question's.
        timeout_s : float
            Longest wait, seconds.

        Returns
        -------
        object or None
            None where the answer is late, or the reconstruction has failed.

        Raises
        ------
        WorkerError
            If it has failed and that is to end the scan.
        """
        deadline = time.monotonic() + timeout_s
        while not future.done() and (left := deadline - time.monotonic()) > 0:
            if not (yield from self.is_well()):
                return None
            yield from _wait(future, min(left, LOOK_S))
        if not future.done():
            return None
        try:
            return future.result()
        except WorkerError as err:
            yield from self.failed(err)
            return None


def _wait(future: Future[Any], seconds: float) -> Plan[None]:
    """Let the RunEngine wait without blocking: it can be paused meanwhile, and waits again when resumed."""

    async def done() -> None:
        deadline = time.monotonic() + seconds
        while not future.done() and time.monotonic() < deadline:
            await asyncio.sleep(POLL_S)

    yield from bps.wait_for([done])
