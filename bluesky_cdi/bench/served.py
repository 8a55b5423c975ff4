"""The command ``bluesky-cdi``, which ends with the benchmark that started it, however that ends."""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading


def _end_with_parent() -> None:
    """Wait until the other end of the standard input is gone; then end as `SIGTERM` does."""
    # Not by `sys.stdin`, whose lock the interpreter's end would find taken: it aborts then.
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, daemon=True).start()
    runpy.run_module("bluesky_cdi", run_name="__main__")
