"""What a session knows of the reconstruction's process."""

from __future__ import annotations

import logging
import threading

from bluesky_cdi.errors import WorkerError

logger = logging.getLogger(__name__)

# So many new processes one after the other without a further frame in the image, and no more.
RESTARTS_MAX = 3


class ProcessState:
    """What is known of the process: whether it is there, failed or has done all; may be used from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._error: WorkerError | None = None
        self._down: WorkerError | None = None
        self.restarts = self.documents = 0
        # Scans that were announced, those of them that were sent to any process, and to this one.
        self._announced = self._sent = self._sent_here = 0
        # Documents of which the process has said that all is done with them.
        self.done = -1
        self.is_given_up = self.is_hopeless = False
        # Frames in the newest run's image, at most.
        self._furthest = 0

    @property
    def error(self) -> WorkerError | None:
        """Why there is no reconstruction of the newest run now, if so."""
        return self._down or self._error

    def begin(self) -> None:
        """Begin a scan: what was before is forgotten."""
        with self._lock:
            self._announced += 1
            self._error, self._furthest = None, 0
        self.tries_again()

    def tries_again(self) -> None:
        """Forget how often processes have ended: another run comes."""
        with self._lock:
            self.restarts = 0
            if self.is_given_up and not self.is_hopeless:
                self.is_given_up, self._down = False, None

    def progress(self, frames: int) -> None:
        """Learn how many frames an image has: a process that got further than those before is worth another one."""
        with self._lock:
            if frames > self._furthest:
                self._furthest, self.restarts = frames, 0

    def is_up(self) -> None:
        """Have a process that has caught up."""
        with self._lock:
            if self._down is not None:
                logger.warning("the reconstruction's process is there again")
            self._down = None

    def starts_anew(self) -> None:
        """Have a process that knows nothing yet."""
        with self._lock:
            self._sent_here, self.documents, self.done = 0, 0, -1

    def sends_scan(self, *, again: bool = False) -> None:
        """Send a scan that was announced to the process; `again`: one before knew of it."""
        with self._lock:
            self._sent += not again
            self._sent_here += 1

    def fail(self, begun: int, error: str | None) -> None:
        """Learn why the newest run's reconstruction failed, or that it did not.

        Parameters
        ----------
        begun : int
            Scans that the process knows of. One that has not heard of the newest scan tells of another.
        error : str or None
            Why.
        """
        with self._lock:
            if begun == self._sent_here and self._sent == self._announced:
                self._error = None if error is None else WorkerError(error)

    def lost(self, how: str) -> WorkerError:
        """Count a process that has ended; what is to be said of it."""
        with self._lock:
            self.restarts += 1
            self.is_given_up = self.restarts > RESTARTS_MAX
            what = f"the reconstruction's process ended ({how})"
            self._down = WorkerError(
                f"{what}, {self.restarts} times in one run: it is given up for this run. The raw run is intact."
                if self.is_given_up
                else f"{what}; it is started again. The raw run is intact."
            )
            return self._down

    def away(self, how: str, then: str) -> WorkerError:
        """Have no host to reconstruct on; what is to be said of it.

        Parameters
        ----------
        how : str
            Why not.
        then : str
            What becomes of the reconstruction.
        """
        with self._lock:
            self.restarts = 0
            self._down = WorkerError(f"{how}. {then} The raw run is intact.")
            return self._down

    def can_not_begin(self, why: str) -> WorkerError:
        """Give up for good: what a process is made from is the same for the next one."""
        with self._lock:
            self.is_given_up = self.is_hopeless = True
            self._down = WorkerError(
                f"there is no live reconstruction: its process can't begin ({why}). Runs are recorded all the same; "
                "mend that and start a new session."
            )
            return self._down
