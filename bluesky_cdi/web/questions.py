"""Questions to a catalog that are answered in threads, whether its server is there or comes back."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from typing import TypeVar

import httpx

from bluesky_cdi.catalog import Catalog
from bluesky_cdi.config import Config
from bluesky_cdi.errors import BlueskyCDIError, CatalogError
from bluesky_cdi.web.reader import Reader

T = TypeVar("T")

logger = logging.getLogger(__name__)

# Questions that are answered at a time: the server of the catalog is often in this process, and has work of its own.
WORKERS = 4


class Questions:
    """Asks a catalog: in threads, since answers are waited for, and the catalog's server may be in this process.

    Parameters
    ----------
    connect : callable
        Opens the catalog; asked by the first question, and again if that failed or the server is gone.
    config : Config
        What of raw runs makes frames: section `documents`.
    """

    def __init__(self, connect: Callable[[], Catalog], config: Config) -> None:
        self._connect, self._config = connect, config
        self._lock = threading.Lock()
        self._catalog: Catalog | None = None
        self._reader: Reader | None = None
        self._workers = ThreadPoolExecutor(WORKERS, thread_name_prefix="bluesky_cdi-page")

    async def ask(self, question: Callable[[Reader], T]) -> T:
        """Put a question to the catalog's reader."""
        return await asyncio.get_running_loop().run_in_executor(self._workers, self._answer, question)

    def prepare(self) -> None:
        """Open the catalog and load what answers need, in one of the threads.

        That takes seconds, or tens of them on a busy machine, and the first who asks would wait for it.
        """
        self._workers.submit(self._prepare)

    def close(self) -> None:
        """Close the connection to the catalog; no question follows."""
        self._workers.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            if self._catalog is not None:
                self._catalog.close()

    def _prepare(self) -> None:
        try:
            self._opened()
        except BlueskyCDIError as err:
            logger.info("the catalog is looked for again when something is to be seen: %s", err)
        # The first array of a catalog, its image, and a frame's fit would else wait for these.
        for name in ("zarr", "PIL.Image", "torch"):
            import_module(name)
        import_module("dask.array").zeros(1).compute()

    def _answer(self, question: Callable[[Reader], T]) -> T:
        reader = self._opened()
        try:
            return question(reader)
        except CatalogError as err:
            if isinstance(err.__cause__, httpx.TransportError):
                self._forget(reader)
            raise
        except RuntimeError as err:
            with self._lock:
                is_left = reader is not self._reader
            if not is_left:
                raise
            # Another question has found the server gone meanwhile, and closed the connection that this one had.
            raise CatalogError("the catalog's server has gone; it is looked for again") from err

    def _opened(self) -> Reader:
        with self._lock:
            if self._reader is None:
                self._catalog = self._connect()
                self._reader = Reader(self._catalog, self._config)
            return self._reader

    def _forget(self, reader: Reader) -> None:
        """Leave a catalog whose server is gone: the next question looks for it anew."""
        with self._lock:
            if self._reader is reader and self._catalog is not None:
                self._catalog.close()
                self._reader = self._catalog = None
