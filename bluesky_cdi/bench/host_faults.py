"""A host of reconstructions on this machine that fails again and again, in ways of its own."""

from __future__ import annotations

import itertools
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bluesky_cdi.bench.without_memory import SIGN
from bluesky_cdi.remote import WorkerProcess

FACTORY = "bluesky_cdi.bench.without_memory:setup"
LOOK_S, SETTLE_S = 0.05, 1800.0


class HostProcess:
    """A host on a port of its own, started and ended at will.

    Parameters
    ----------
    folder : Path
        Where it writes.
    device : str
        On which it computes, as PyTorch calls it.

    Attributes
    ----------
    address : str
    sign : Path
        While this file is there, the next step takes it away and finds no memory.
    """

    def __init__(self, folder: Path, device: str = "auto") -> None:
        self._folder, self._device, self.sign = folder / "host", device, folder / "no memory"
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = free.getsockname()[1]
        self.address = f"127.0.0.1:{self._port}"

    def __enter__(self) -> HostProcess:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        # It may be stopped.
        self.send(signal.SIGCONT)
        self.end(signal.SIGTERM)

    def start(self) -> None:
        """Begin a process; one that ran before must have ended."""
        command = ["serve-reconstructor", "--port", self._port, "--folder", self._folder, "--factory", FACTORY]
        command += ["--device", self._device]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bluesky_cdi.bench.served", *map(str, command)],
            env={**os.environ, SIGN: str(self.sign)},
            # Its other end is gone when this process is.
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )

    def end(self, how: signal.Signals) -> None:
        """End the process by a signal, and wait until it is gone."""
        self.send(how)
        self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()

    def send(self, what: signal.Signals) -> None:
        """Send the process a signal."""
        self._process.send_signal(what)


class Faults:
    """Brings faults at their events, in a thread of its own: the scan does not wait for it.

    The host is killed, ended, stopped for a while, and its device has no memory, in turns.

    Parameters
    ----------
    number : int
        Faults, spread evenly over the events.
    events : int
        That will be seen.
    unreachable_s : float
        How long the host is stopped, seconds.
    served : HostProcess
    live : WorkerProcess
        The session's side of the reconstruction.
    tell : callable
        Called with what is done next.

    Attributes
    ----------
    kinds : list of str
        Of the faults that came.
    up : int
        Faults that found the reconstruction working.
    back_s : list of float
        After how long it worked again, seconds.
    """

    def __init__(
        self,
        number: int,
        events: int,
        unreachable_s: float,
        served: HostProcess,
        live: WorkerProcess,
        tell: Callable[[str], None],
    ) -> None:
        self._unreachable_s, self._served, self._live, self._tell = unreachable_s, served, live, tell
        self._due = {round((k + 1) * events / (number + 1)) for k in range(number)}
        self._queue: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self.kinds: list[str] = []
        self.up = 0
        self.back_s: list[float] = []
        self._thread = threading.Thread(target=self._run, name="bench-faults", daemon=True)
        self._thread.start()

    def see(self, n: int) -> None:
        """Learn that so many events were measured."""
        if n in self._due:
            self._queue.put(n)

    def close(self) -> None:
        """Bring what is due, and end."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        all_kinds = {
            "killed": self._kill,
            "ended": self._end,
            "unreachable": self._stop,
            "no memory": self._take_memory,
        }
        kinds = itertools.cycle(all_kinds.items())
        while (n := self._queue.get()) is not None:
            name, bring = next(kinds)
            self._tell(f"frame {n}: the host is {name}" if name != "no memory" else f"frame {n}: no memory")
            self.up += is_up(self._live)
            self.kinds.append(name)
            bring()
            began = time.perf_counter()
            while not is_up(self._live) and time.perf_counter() < began + SETTLE_S:
                time.sleep(LOOK_S)
            self.back_s.append(time.perf_counter() - began)

    def notes(self) -> dict[str, Any]:
        """Give what came, as plain values."""
        kinds = {name: self.kinds.count(name) for name in dict.fromkeys(self.kinds)}
        return {"faults": kinds, "up": self.up, "back_s": self.back_s}

    def _kill(self) -> None:
        self._served.end(signal.SIGKILL)
        self._wait_for_it_to_be_told()
        self._served.start()

    def _end(self) -> None:
        self._served.end(signal.SIGTERM)
        self._wait_for_it_to_be_told()
        self._served.start()

    def _stop(self) -> None:
        self._served.send(signal.SIGSTOP)
        time.sleep(self._unreachable_s)
        self._served.send(signal.SIGCONT)

    def _take_memory(self) -> None:
        self._served.sign.touch()
        self._wait_for_it_to_be_told()

    def _wait_for_it_to_be_told(self) -> None:
        deadline = time.perf_counter() + self._unreachable_s
        while is_up(self._live) and time.perf_counter() < deadline:
            time.sleep(LOOK_S)


def is_up(live: WorkerProcess) -> bool:
    """Tell whether a session has a process for its reconstruction, and nothing against it is known."""
    return live.error is None and live.link is not None and not live.link.is_dead.is_set()
