"""The page: runs and results of a catalog in a browser, served beside Tiled or on its own.

Importing this package loads neither Tiled nor a network library; making the page loads Starlette.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bluesky_cdi.web.application import Page

__all__ = ["Page"]


def __getattr__(name: str) -> Any:
    if name != "Page":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from bluesky_cdi.web.application import Page

    return Page
