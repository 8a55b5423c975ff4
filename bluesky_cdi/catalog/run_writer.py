"""Tiled's writer of runs, told how many events go out together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


class RunWriter:
    """Writes one run's documents by Tiled's writer, events that are given together at once.

    Tiled's writer has one number of events that it waits for; it is told another one with each group, by the writer of
    the run that stands behind the normalizer of documents.

    Parameters
    ----------
    container : CatalogOfBlueskyRuns
        Where the run goes.
    """

    def __init__(self, container: Any) -> None:
        from bluesky_tiled_plugins import TiledWriter
        from bluesky_tiled_plugins.writing.tiled_writer import RunNormalizer

        self._writer_of_run: Any = None

        def normalizer(**options: Any) -> Any:
            made = RunNormalizer(**options)
            subscribe = made.subscribe

            def subscribed(writer: Any, *args: Any) -> Any:
                self._writer_of_run = writer
                return subscribe(writer, *args)

            made.subscribe = subscribed
            return made

        # max_array_size=0: Tiled's table store turns small arrays in events into strings.
        self._writer = TiledWriter(container, normalizer=normalizer, batch_size=1, max_array_size=0)

    def write(self, name: str, docs: Sequence[Mapping[str, Any]]) -> None:
        """Write documents of one kind; events of one descriptor.

        Parameters
        ----------
        name : str
            The kind.
        docs : sequence of Mapping
            The documents.
        """
        if name == "event":
            self._writer_of_run._batch_size = len(docs)
        for doc in docs:
            self._writer(name, doc)
        if name == "event":
            self._writer_of_run._batch_size = 1
