"""Tiled's writer of runs, told how many events go out together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


class RunWriter:
    """Writes one run's documents by Tiled's writer, events that are given together at once.

    Parameters
    ----------
    container : CatalogOfBlueskyRuns
        Where the run goes.
    """

    def __init__(self, container: Any) -> None:
        from bluesky_tiled_plugins.writing.tiled_writer import RunNormalizer

        from bluesky_cdi.catalog.tiled_run import TiledRun

        # max_array_size=0: Tiled's table store turns small arrays in events into strings.
        self._run = TiledRun(container.include_data_sources(), batch_size=1, max_array_size=0)
        self._documents = RunNormalizer()
        self._documents.subscribe(self._run)

    def write(self, name: str, docs: Sequence[Mapping[str, Any]]) -> None:
        """Write documents of one kind; events of one descriptor.

        Parameters
        ----------
        name : str
            The kind.
        docs : sequence of Mapping
            The documents.
        """
        # Tiled's writer has one number of events that it waits for.
        self._run._batch_size = len(docs) if name == "event" else 1
        for doc in docs:
            self._documents(name, doc)
