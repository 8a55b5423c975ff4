"""A thread that steps back is nice; the others stay as they are."""

import os
import sys
import threading

import pytest

from bluesky_cdi.background import NICENESS, step_back


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux gives each thread a niceness of its own")
def test_only_the_thread_that_steps_back_is_nice():
    seen = []

    def run():
        step_back()
        seen.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))

    before = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [NICENESS]
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == before
