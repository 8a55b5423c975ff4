"""A run in Tiled whose arrays in files are made with their first rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bluesky_tiled_plugins.writing.consolidators import consolidator_factory
from bluesky_tiled_plugins.writing.tiled_writer import _RunWriter


class TiledRun(_RunWriter):  # type: ignore[misc]
    """Writes one run as Tiled's writer does, with a request less for each array.

    That registers an array without rows, and updates it at once. A result has some twenty arrays.
    """

    def _write_external_data(self, doc: Mapping[str, Any]) -> None:
        stream = self._desc_nodes[doc["descriptor"]]
        resource = self._stream_resource_cache.get(doc["stream_resource"])
        names = [] if resource is None else [doc["stream_resource"], f"{stream.item['id']}_{resource['data_key']}"]
        if not names or any(name in self._sres_nodes for name in names):
            super()._write_external_data(doc)
            return
        consolidator = consolidator_factory(resource, stream.metadata)
        consolidator.consume_stream_datum(doc)
        source = consolidator.get_data_source()
        node = stream.new(
            key=consolidator.data_key,
            structure_family=source.structure_family,
            data_sources=[source],
            metadata={},
            specs=[],
            access_tags=self.access_tags,
        )
        for name in names:
            self._sres_nodes[name], self._consolidators[name] = node, consolidator
