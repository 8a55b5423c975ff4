"""What is written to Tiled, and how it is read back and browsed.

Importing this package loads neither Tiled nor Bluesky; using one of its names does.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bluesky_cdi.catalog.browse import find_raw, find_result, find_run, load_result, probe_file_of
    from bluesky_cdi.catalog.connect import Catalog, open_catalog
    from bluesky_cdi.catalog.derived_run import ending_of, publishing
    from bluesky_cdi.catalog.documents import run_documents
    from bluesky_cdi.catalog.feeder import Feeder
    from bluesky_cdi.catalog.history import decisions_of
    from bluesky_cdi.catalog.listing import ResultSummary, find_results, list_results
    from bluesky_cdi.catalog.result import Result, Results
    from bluesky_cdi.catalog.results import ResultPublisher
    from bluesky_cdi.catalog.searching import search
    from bluesky_cdi.catalog.server import serve

_MODULE_OF = {
    "Catalog": "connect",
    "Feeder": "feeder",
    "ResultPublisher": "results",
    "Result": "result",
    "ResultSummary": "listing",
    "Results": "result",
    "decisions_of": "history",
    "ending_of": "derived_run",
    "find_raw": "browse",
    "find_result": "browse",
    "find_results": "listing",
    "find_run": "browse",
    "list_results": "listing",
    "load_result": "browse",
    "open_catalog": "connect",
    "probe_file_of": "browse",
    "publishing": "derived_run",
    "run_documents": "documents",
    "search": "searching",
    "serve": "server",
}

__all__ = [
    "Catalog",
    "Feeder",
    "Result",
    "ResultPublisher",
    "ResultSummary",
    "Results",
    "decisions_of",
    "ending_of",
    "find_raw",
    "find_result",
    "find_results",
    "find_run",
    "list_results",
    "load_result",
    "open_catalog",
    "probe_file_of",
    "publishing",
    "run_documents",
    "search",
    "serve",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
