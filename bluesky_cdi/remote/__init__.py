"""The live reconstruction in a process of its own: what a session has in place of a `LiveWorker`.

Importing this package loads no network library.
"""

from bluesky_cdi.remote.parent import WorkerProcess

__all__ = ["WorkerProcess"]
