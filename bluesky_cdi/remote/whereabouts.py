"""Where the next process of the reconstruction runs: on this machine, or on a host that answers and has room."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from bluesky_cdi.config import HostConfig
from bluesky_cdi.errors import HostError
from bluesky_cdi.remote.link import CHILD, RELAY

logger = logging.getLogger(__name__)


class Whereabouts:
    """Knows whether a host is meant, and looks for one while there is none.

    Parameters
    ----------
    settings : HostConfig
        Which hosts, and what to do without one.
    found : callable
        Called, in another thread, when one was found.

    Attributes
    ----------
    is_awaited : bool
        Whether nothing is reconstructed until there is a host.
    """

    def __init__(self, settings: HostConfig, found: Callable[[], None]) -> None:
        self._settings, self._found = settings, found
        self._stop = threading.Event()
        self._was_found = threading.Event()
        self._thread: threading.Thread | None = None
        self._is_local = not settings.address
        self.is_awaited = False

    @property
    def is_found(self) -> bool:
        """Whether a host was found after there had been none."""
        return self._was_found.is_set()

    def choose(self) -> str:
        """Give the module that the next process runs.

        Raises
        ------
        HostError
            If it is to be on a host and none can be had.
        """
        if self._is_local:
            return CHILD
        from bluesky_cdi.remote.calling import find_host

        logger.info("the reconstruction runs on the host %s", find_host(self._settings).address)
        return RELAY

    def go_without(self) -> str:
        """Do without a host for now, and look for one; what becomes of the reconstruction, for people."""
        self.is_awaited = self._settings.otherwise == "none"
        self._is_local = not self.is_awaited
        self._was_found.clear()
        self._thread = threading.Thread(target=self._look, name="bluesky_cdi-lookout", daemon=True)
        self._thread.start()
        if self.is_awaited:
            every_s = self._settings.retry_s
            return f"Runs are recorded without a reconstruction until one answers; it is tried every {every_s:g} s."
        return "The reconstruction runs on this machine until the next run."

    def come_back(self) -> None:
        """Use the host that was found."""
        logger.warning("a host answers again: the reconstruction goes there")
        self._was_found.clear()
        self.is_awaited = self._is_local = False

    def close(self) -> None:
        """Look no more."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _look(self) -> None:
        from bluesky_cdi.remote.calling import find_host

        while not self._stop.wait(self._settings.retry_s):
            try:
                find_host(self._settings)
            except HostError as err:
                logger.debug("still no host: %s", err)
            else:
                self._was_found.set()
                self._found()
                return
