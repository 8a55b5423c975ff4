"""A host of reconstructions that ends with the benchmark which started it, however that ends."""

from __future__ import annotations

import os
import signal
import sys
import threading


def _end_with_parent() -> None:
    """Wait until the other end of the standard input is gone; then end as `SIGTERM` does."""
    sys.stdin.buffer.read()
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    from bluesky_cdi.cli import main

    threading.Thread(target=_end_with_parent, daemon=True).start()
    sys.exit(main(sys.argv[1:]))
