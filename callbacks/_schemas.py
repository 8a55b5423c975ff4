"""Documents of older schemas, as those of today."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from typing import Any

Document = Mapping[str, Any]


class Schemas:
    """Hands on the documents of one run, those of older schemas as StreamResource and StreamDatum.

    Parameters
    ----------
    start : Mapping
        The run's start document.
    accept : callable
        Takes each document that comes of them, as (name, document).
    """

    def __init__(self, start: Document, accept: Callable[[str, Document], None]) -> None:
        self._start, self._accept = start, accept
        self._descriptors: list[Document] = []
        self._normalize: Callable[[str, Document], None] | None = None
        self._seq_num_of_datum: dict[str, int] = {}

    def receive(self, name: str, doc: Document, keys: Container[str | None]) -> None:
        """Take one document of the run.

        Parameters
        ----------
        name : str
            Kind of the document.
        doc : Mapping
            The document.
        keys : container of str
            Data keys whose values frames are made of.
        """
        if self._normalize is None:
            if not _is_legacy(name, doc):
                if name == "descriptor":
                    self._descriptors.append(doc)
                self._accept(name, doc)
                return
            self._normalize = self._begin()
        if name == "event":
            # The normalizer numbers datums by their place in the file, which a point taken twice puts out of step.
            for key, value in doc["data"].items():
                if key in keys and isinstance(value, str):
                    self._seq_num_of_datum[value] = doc["seq_num"]
        self._normalize(name, doc)

    def seq_nums(self, datum: Document) -> range:
        """Give the numbers of the events that a stream_datum belongs to."""
        if (seq_num := self._seq_num_of_datum.get(datum["uid"])) is not None:
            return range(seq_num, seq_num + 1)
        return range(datum["seq_nums"]["start"], datum["seq_nums"]["stop"])

    def _begin(self) -> Callable[[str, Document], None]:
        """Give what brings documents to today's schemas, from the run's beginning."""
        from bluesky_tiled_plugins.writing.tiled_writer import RunNormalizer

        normalizer = RunNormalizer()
        normalizer("start", self._start)
        for descriptor in self._descriptors:
            normalizer("descriptor", descriptor)
        normalizer.subscribe(self._accept)
        return normalizer  # type: ignore[no-any-return]


def _is_legacy(name: str, doc: Document) -> bool:
    """Tell whether a document needs the conversion to StreamResource and StreamDatum."""
    match name:
        case "resource" | "datum" | "datum_page":
            return True
        case "stream_resource":
            return "mimetype" not in doc
        case "descriptor":
            external = (key.get("external") for key in doc["data_keys"].values() if "external" in key)
            return any(not str(value).startswith("STREAM:") for value in external)
    return False
