"""One process of the reconstruction and the channel to it."""

from __future__ import annotations

import contextlib
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing import Pipe
from typing import Any

from bluesky_cdi.live.activity import Silence
from bluesky_cdi.packing import pack, unpack

logger = logging.getLogger(__name__)

# A process that says nothing for so long is told of, and after so long killed.
QUIET_S, SILENT_S = 2.0, 15.0
LOOK_S = 0.25
START_S = 120.0
# What a process runs: the worker itself, or what connects to one on a host.
CHILD, RELAY = "bluesky_cdi.remote.child", "bluesky_cdi.remote.relay"


class Link:
    """One process and the channel to it.

    Parameters
    ----------
    setup : list
        Factory and arguments.
    module : str
        Of the package: what the process runs.
    received : callable
        Gets what the process says, in a thread of the link; must not take long.
    ended : callable
        Called when the process is gone.

    Attributes
    ----------
    is_dead : Event
        Set when the process is gone.
    could_not_begin : bool
        Whether it has said that it can't make its worker: another one could not either.
    """

    def __init__(
        self,
        setup: list[Any],
        received: Callable[[Link, list[Any]], None],
        ended: Callable[[], None],
        module: str = CHILD,
    ) -> None:
        self._received, self._ended = received, ended
        self.is_dead, self._is_ready = threading.Event(), threading.Event()
        self._why = ""
        self._silence: Silence | None = None
        self.could_not_begin = False
        self._send_lock = threading.Lock()
        self._connection, theirs = Pipe()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                # Ctrl-C is the session's, not its worker's.
                start_new_session=True,
            )
        self._heard = time.monotonic()
        self._threads = [
            threading.Thread(target=target, name=f"bluesky_cdi-{name}", daemon=True)
            for target, name in ((self._listen, "link"), (self._watch, "watch"))
        ]
        for thread in self._threads:
            thread.start()
        with contextlib.suppress(OSError):  # it has ended already, which its exit code tells
            self.send(["setup", *setup])

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    def send(self, message: list[Any]) -> None:
        """Send a message; waits while the process does not read.

        Raises
        ------
        OSError
            If it is gone.
        """
        data = pack(message)
        with self._send_lock:
            self._connection.send_bytes(data)

    def wait_until_ready(self) -> bool:
        """Wait until the process has made its worker; False: it can't."""
        while not self._is_ready.wait(LOOK_S):
            if self.is_dead.is_set():
                return False
        return True

    def learn(self, silence: Silence | None) -> None:
        """Learn what the worker is at: told when that takes longer than usual, and ended when it hangs.

        Parameters
        ----------
        silence : Silence or None
            None: nothing unusual.
        """
        if silence is None:
            if self._silence is not None:
                logger.warning("the reconstruction goes on after %.0f s at %s", self._silence.for_s, self._silence.at)
        elif silence.left_s <= 0:
            self._why = f"it had been at {silence.at} for {silence.for_s:.0f} s without a sign of life and was killed"
            self.kill()
        elif self._silence is None:
            logger.warning(
                "the reconstruction has been at %s for %.1f s, where up to %.1f s are usual; the scan goes on. "
                "It is started again if that lasts %.0f s more.",
                silence.at,
                silence.for_s,
                silence.usual_s,
                silence.left_s,
            )
        self._silence = silence

    def finish(self) -> None:
        """Wait for the end of a process that was told to close."""
        self._process.wait()

    def kill(self) -> None:
        """End the process at once."""
        self._process.kill()

    def close(self) -> None:
        """End what is left of the process and of the channel."""
        self._process.kill()
        self._process.wait()
        for thread in self._threads:
            thread.join()
        self._connection.close()

    def how(self) -> str:
        """Say how the process ended."""
        code = self._process.returncode
        if self._why:
            return self._why
        if code is None or code >= 0:
            return f"exit code {code}"
        return f"by signal {-code}" + ("; out of memory?" if code == -9 else "")

    def _listen(self) -> None:
        """Hand on what the process says, until it is gone."""
        try:
            while True:
                message = unpack(self._connection.recv_bytes())
                self._heard = time.monotonic()
                if message[0] == "ready":
                    self._is_ready.set()
                elif message[0] == "failed":
                    self._why, self.could_not_begin = message[1], True
                elif message[0] == "ended":
                    # Why it can't begin says more than how it ended then.
                    self._why = self._why if self.could_not_begin else message[1]
                else:
                    self._received(self, message)
        except (EOFError, OSError):
            pass  # the process is gone, or about to go
        except Exception:
            self._why = "it said what can't be understood and was killed"
            logger.exception("a message of the reconstruction's process can't be understood")
            self.kill()
        finally:
            self._process.wait()
            self.is_dead.set()
            self._ended()

    def _watch(self) -> None:
        """Tell of a process that says nothing, and end it if that goes on; a new one may take longer."""
        told = False
        while not self.is_dead.wait(LOOK_S):
            limit_s = SILENT_S if self._is_ready.is_set() else START_S
            quiet_s = time.monotonic() - self._heard
            if quiet_s > limit_s:
                self._why = f"it had not answered for {limit_s:g} s and was killed"
                self.kill()
                return
            if not self._is_ready.is_set():
                continue
            if told != (quiet_s > QUIET_S):
                told = not told
                logger.warning(
                    "the reconstruction's process does not answer; the scan goes on"
                    if told
                    else "the reconstruction's process answers again"
                )
