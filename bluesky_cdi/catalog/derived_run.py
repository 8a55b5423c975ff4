"""Writing one more derived run of a raw run that is in the catalog."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bluesky_cdi.catalog.connect import Catalog
from bluesky_cdi.catalog.feeder import PROCESSED, Feeder, refused_files
from bluesky_cdi.catalog.results import ResultPublisher
from bluesky_cdi.catalog.schema import ExitStatus
from bluesky_cdi.errors import CatalogError
from bluesky_cdi.journal import SUFFIX, Journal
from bluesky_cdi.protocols import RunInfo

# How long the catalog may take for a result.
FEED_S = 60.0


def ending_of(run: Any, unfinished: bool) -> tuple[ExitStatus, str]:
    """Give exit status and reason of a derived run from its raw run's end.

    Parameters
    ----------
    run : BlueskyRun
        The raw run.
    unfinished : bool
        Take one without a stop document: whoever measured it is gone.

    Raises
    ------
    CatalogError
        If it has not ended.
    """
    stop = run.metadata.get("stop")
    if stop:
        status = stop["exit_status"]
        # What a failed run measured can have a complete reconstruction, as that of an aborted one.
        return ("success", "") if status == "success" else ("abort", f"the raw run ended with {status!r}")
    if not unfinished:
        raise CatalogError(
            f"the run {run.start['uid']} has no stop document: it may still be measured by a process that shares "
            "this catalog. Wait for its end; if that process is gone, say so (--unfinished)."
        )
    return "abort", "the raw run has no stop document"


@contextlib.contextmanager
def publishing(
    catalog: Catalog,
    info: RunInfo,
    directory: Path,
    continues: str | None = None,
    configuration: Mapping[str, Any] | None = None,
) -> Iterator[ResultPublisher]:
    """Give the publisher of a new derived run, which ends whatever happens; all of it is in the catalog then.

    Parameters
    ----------
    catalog : Catalog
        Where it goes.
    info : RunInfo
        The raw run.
    directory : Path
        Folder of the session's own files.
    continues : str, optional
        Uid of the derived run that this one goes on from.
    configuration : Mapping, optional
        Settings that it is made with.

    Raises
    ------
    CatalogError
        If the catalog is open for reading only, or does not take all of it.
    """
    if catalog.read_only:
        raise CatalogError(
            f"the catalog at {catalog.uri} is open for reading, and takes no result. Open its folder with "
            "open_catalog(folder, writable=True), or use the catalog of an open session."
        )
    folder = directory / "journal"
    with contextlib.closing(Journal(folder / PROCESSED)) as journal:
        publisher = ResultPublisher(
            info, directory / "results", journal, continues=continues, configuration=configuration
        )
        try:
            yield publisher
        except BaseException as err:
            was_stopped = isinstance(err, KeyboardInterrupt)
            publisher.close(None, "abort" if was_stopped else "fail", "interrupted" if was_stopped else str(err))
            raise
        finally:
            Feeder(folder, catalog).finish(FEED_S)
    if waiting := [path for path in refused_files(folder, info.uid) if path.stem == publisher.uid]:
        raise CatalogError(f"the catalog did not take all of the result: what it refused is in {waiting[0]}")
    if (left := folder / PROCESSED / f"{publisher.uid}{SUFFIX}").exists():
        raise CatalogError(
            f"the catalog did not take the result within {FEED_S:g} s; it waits in {left}, and `bluesky-cdi restore` "
            "brings it to the catalog later."
        )
