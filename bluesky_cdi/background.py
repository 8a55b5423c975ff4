"""Work that has the time which others leave."""

from __future__ import annotations

import os
import sys
import threading

# A thread of this niceness has a tenth of the time of one that is not nice, where both want a core.
NICENESS = 10


def step_back() -> None:
    """Let other threads and processes come first from now on, before this thread; where there is no Linux, it can't."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
