"""Live, adaptive coherent diffraction imaging with Bluesky.

`open_catalog` opens what was measured and reconstructed; the import itself loads nothing.
"""

from typing import Any

__version__ = "0.1.0"

__all__ = ["__version__", "open_catalog"]


def __getattr__(name: str) -> Any:
    if name != "open_catalog":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return import_module("bluesky_cdi.catalog").open_catalog
