"""What a follower's workers are made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bluesky_cdi.errors import WorkerError
from bluesky_cdi.journal import Journal
from bluesky_cdi.packing import unpack
from bluesky_cdi.protocols import Estimate
from bluesky_cdi.remote.run_files import RunFiles
from bluesky_cdi.remote.setup import Setup, live_setup

# Names the factory of a follower's worker.
FOLLOWING = "bluesky_cdi.follow.worker:following_setup"


def following_setup(arguments: Mapping[str, Any]) -> Setup:
    """Make what a follower's worker is made from: a session's, whose results may be published too.

    Parameters
    ----------
    arguments : Mapping
        As `bluesky_cdi.remote.setup.live_arguments` gives them, and under ``publish`` the arguments of
        `bluesky_cdi.follow.publishing.publisher_of`, or None.
    """
    from bluesky_cdi.catalog.feeder import PROCESSED
    from bluesky_cdi.follow.publishing import publisher_of

    if arguments["publish"] is None:
        return live_setup(arguments)
    journal = Journal(Path(arguments["directory"]) / "journal" / PROCESSED)
    publisher = publisher_of(arguments["publish"])

    def emit(name: str, doc: dict[str, Any]) -> None:
        journal(name, doc)
        publisher(name, doc)

    return live_setup(arguments, emit)


class WorkerHere:
    """Reconstructs runs in this process; to lanes it is what a `WorkerProcess` is.

    Parameters
    ----------
    arguments : Mapping
        Of `following_setup`.
    listeners : sequence of callable
        Called with estimates.
    """

    def __init__(self, arguments: Mapping[str, Any], listeners: Sequence[Callable[[Estimate], None]] = ()) -> None:
        self._worker, self._documents = following_setup(arguments).start(listeners)
        self._files = RunFiles()

    @property
    def error(self) -> Exception | None:
        """Why the reconstruction of the newest run failed, if it did."""
        return self._worker.error

    def appended(self, path: Path) -> None:
        """Learn that a run's file of the journal has grown."""
        for record in self._files.new_records(path):
            self._documents(*unpack(record))

    def wait(self, timeout_s: float) -> None:
        """Wait until the latest run's reconstruction has ended.

        Raises
        ------
        WorkerError
            If it failed, or has not ended in time.
        """
        if not self._documents.drain(timeout_s):
            raise WorkerError(f"the frames of the run could not all be read within {timeout_s:g} s; wait again")
        self._worker.wait(timeout_s)

    def close(self, timeout_s: float) -> None:
        """End the threads after what is being done."""
        self._documents.close()
        self._worker.close(timeout_s)
        self._files.close()
