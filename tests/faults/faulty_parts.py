"""What a session's worker is made of, with a reconstructor that fails as the file named by ``FAULT`` says.

The file holds JSON: ``kind`` of the fault, ``after`` how many steps, and ``always``, whether also when the run is read
again; otherwise a fault happens once.
"""

import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from bluesky_cdi.live import activity
from bluesky_cdi.remote.setup import live_setup


def setup(arguments, emit=None):
    made = live_setup(arguments, emit)
    real = made.parts.make_reconstructor

    def make_reconstructor(info):
        path = Path(os.environ["FAULT"])
        fault = json.loads(path.read_text())
        if not fault.get("always"):
            path.write_text("{}")
        return Faulty(real(info), fault)

    return replace(made, parts=replace(made.parts, make_reconstructor=make_reconstructor))


def broken(arguments, emit=None):
    raise ValueError("no such network")


class Faulty:
    def __init__(self, real, fault):
        self._real, self._fault, self._n = real, fault, 0

    def __getattr__(self, name):
        return getattr(self._real, name)

    def step(self, budget_s, interrupted=None):
        self._n += 1
        estimate = self._real.step(budget_s, interrupted)
        if self._n <= self._fault.get("after", 0):
            return estimate
        match self._fault.get("kind"):
            case "raise":
                raise ValueError("numbers went wrong")
            case "memory":
                raise MemoryError("no room for 20 GB")
            case "exit":
                os._exit(3)
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
            case "hang":
                # It is given up soon.
                activity.IDLE_S = activity.STUCK_S = 4.0
                while True:
                    time.sleep(1.0)
            case "nan" if estimate is not None:
                return replace(estimate, object=np.full_like(estimate.object, np.nan))
        return estimate
