"""Which runs of a catalog are meant."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bluesky_cdi.errors import CatalogError
from bluesky_cdi.many.task import CatalogRun

if TYPE_CHECKING:
    from bluesky_cdi.catalog import Catalog

logger = logging.getLogger(__name__)


def runs_in(
    catalog: Catalog, wanted: Sequence[str | int | range], directory: Path | None = None, *, unfinished: bool = False
) -> list[CatalogRun]:
    """Find runs, each once, in the order in which they are named; of a range of scan numbers those that are there.

    Parameters
    ----------
    catalog : Catalog
        Where they are.
    wanted : sequence of str, int or range
        Each as `bluesky_cdi.catalog.find_run` takes it, or a range of scan numbers, of which the newest runs count.
    directory : Path, optional
        Folder that workers open the catalog in; else the configured one.
    unfinished : bool
        Take runs without a stop document.

    Raises
    ------
    CatalogError
        If one that is named is not there, or none of a range.
    """
    from bluesky_cdi.catalog import find_run

    starts: list[Any] = []
    for which in wanted:
        starts += _starts_of(catalog, which) if isinstance(which, range) else [find_run(catalog, which).start]
    runs = (CatalogRun(str(start["uid"]), start.get("scan_id"), directory, unfinished) for start in starts)
    return list(dict.fromkeys(runs))


def _starts_of(catalog: Catalog, numbers: range) -> list[Any]:
    from tiled.queries import Key

    with catalog.reaching():
        found = {number: catalog.raw.search(Key("scan_id") == number) for number in numbers}
        starts = [runs.values().last().start for runs in found.values() if len(runs)]
        absent = [number for number, runs in found.items() if not len(runs)]
    said = f"{numbers[0]}-{numbers[-1]}"
    if not starts:
        raise CatalogError(f"the catalog at {catalog.uri} holds no run of scans {said}")
    if absent:
        logger.warning("of scans %s the catalog holds no run of %s", said, ", ".join(map(str, absent)))
    return starts
