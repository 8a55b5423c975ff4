"""A run in Tiled that is written with fewer requests than Tiled's own writer makes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bluesky_tiled_plugins.writing.consolidators import consolidator_factory
from bluesky_tiled_plugins.writing.tiled_writer import _RunWriter
from tiled.client.utils import handle_error, retry_context

from bluesky_cdi.catalog.closing import CLOSE_ALL

# What a server that is not of this package answers to `CLOSE_ALL`.
ELSEWHERE = (404, 405)


class TiledRun(_RunWriter):  # type: ignore[misc]
    """Writes one run as Tiled's writer does, with two requests less for each array; a result has some twenty.

    That registers an array of a file without rows, and updates it at once; and in the end it closes each by itself.
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

    def _close_stream_tree(self) -> None:
        if self.root_node is None:
            return
        node = self.root_node
        for attempt in retry_context():
            with attempt:
                answer = node.context.http_client.delete(node.uri.replace("/metadata/", f"/{CLOSE_ALL}/", 1))
                if answer.status_code not in ELSEWHERE:
                    handle_error(answer)
                    return
        super()._close_stream_tree()
