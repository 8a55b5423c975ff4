"""What a catalog holds, told by the metadata alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bluesky_cdi.catalog.schema import PLAN_NAME, sample_of, title_of

if TYPE_CHECKING:
    from bluesky_cdi.catalog.connect import Catalog

# The server sends at most so many entries at a time.
PAGE = 300
# What is read of a run for a list.
Selected = Mapping[str, Any]
# Of a run's metadata: without settings, thumbnails and the like a thousand of them are quickly sent. JMESPath.
SELECTED = (
    "{start: start.{uid: uid, raw_uid: raw_uid, scan_id: scan_id, plan_name: plan_name, time: time, title: title, "
    "sample: sample, sample_name: sample_name, made_by: source.reconstructor}, "
    "stop: stop && stop.{exit_status: exit_status, complete: complete, n_frames: n_frames, verdict: verdict.word, "
    "num_events: num_events}, written_again: written_again}"
)


@dataclass(frozen=True)
class ResultSummary:
    """One reconstruction, or one raw run that has none.

    Attributes
    ----------
    uid : str or None
        The derived run; None where there is none.
    raw_uid : str
        The raw run.
    scan_id : int or None
        The raw run's number.
    plan_name : str or None
        The raw run's plan; None if the catalog does not hold that run.
    time : float
        Start of the derived run, else of the raw run, seconds since 1970.
    n_frames : int or None
        Frames that the final estimate rests on, or of the raw run where there is no result; None
        while the run goes on, or without a final estimate.
    exit_status : str or None
        ``success``, ``abort`` or ``fail``; None while the run goes on (or if its process died).
    complete : bool
        Whether there is a final estimate.
    verdict : str or None
        ``good``, ``doubtful`` or ``failed``; None where there is none.
    sample : str or None
        What was measured, as the raw run's metadata say it (``sample``); None if they don't, or the catalog does not
        hold that run.
    raw_time : float or None
        Start of the raw run, seconds since 1970; None if the catalog does not hold it.
    title : str
        For people: plan, scan number, when it was measured.
    made_by : str or None
        What reconstructed: a network or an engine, by name.
    """

    uid: str | None
    raw_uid: str
    scan_id: int | None
    plan_name: str | None
    time: float
    n_frames: int | None
    exit_status: str | None
    complete: bool
    verdict: str | None = None
    sample: str | None = None
    raw_time: float | None = None
    title: str = ""
    made_by: str | None = None


def list_results(catalog: Catalog) -> list[ResultSummary]:
    """List all reconstructions, and the raw runs that have none, oldest first.

    Raises
    ------
    CatalogError
        If the server can't be reached.
    """
    with catalog.reaching():
        raw = {each["start"]["uid"]: each for each in read_selected(catalog.raw)}
        derived = [each for each in read_selected(catalog.processed) if each["start"]["plan_name"] == PLAN_NAME]
    results = [result_row(metadata, raw.get(metadata["start"]["raw_uid"])) for metadata in derived]
    reconstructed = {result.raw_uid for result in results}
    rest = [raw_row(metadata) for uid, metadata in raw.items() if uid not in reconstructed]
    return sorted(results + rest, key=lambda row: row.time)


def find_results(catalog: Catalog, raw_uid: str) -> list[ResultSummary]:
    """List the reconstructions of one raw run, oldest first; empty if there are none.

    Parameters
    ----------
    catalog : Catalog
        Where to look.
    raw_uid : str
        Uid of the raw run, in full.

    Raises
    ------
    CatalogError
        If the server can't be reached.
    """
    from tiled.queries import Key

    with catalog.reaching():
        raw = next(read_selected(catalog.raw.search(Key("uid") == raw_uid)), None)
        derived = list(read_selected(results_of(catalog).search(Key("raw_uid") == raw_uid)))
    return sorted((result_row(metadata, raw) for metadata in derived), key=lambda row: row.time)


def results_of(catalog: Catalog) -> Any:
    """Give the reconstructions of a catalog, as Tiled's client has them."""
    from tiled.queries import Key

    return catalog.processed.search(Key("plan_name") == PLAN_NAME)


def read_selected(runs: Any, first: int = 0, stop: int | None = None) -> Iterator[Selected]:
    """Read of each run in a container, or of those found there, what a list shows, in their order.

    Parameters
    ----------
    runs : CatalogOfBlueskyRuns
        The container.
    first : int
        From which one on.
    stop : int, optional
        Up to which one, which is left out; by default all.

    Yields
    ------
    Mapping
        What `SELECTED` says; what a run's metadata lack is None.
    """
    from tiled.client.utils import handle_error

    at, params = runs.item["links"]["search"], {**runs._queries_as_params, "select_metadata": SELECTED}
    while stop is None or first < stop:
        most = PAGE if stop is None else min(PAGE, stop - first)
        params |= {"page[offset]": first, "page[limit]": most, "fields": "metadata", "omit_links": True}
        found = handle_error(runs.context.http_client.get(at, params=params)).json()["data"]
        for entry in found:
            yield entry["attributes"]["metadata"]["selected"]
        first += len(found)
        if len(found) < most:
            return


def result_row(metadata: Selected, raw: Selected | None) -> ResultSummary:
    """Make the row of a reconstruction.

    Parameters
    ----------
    metadata : Mapping
        Of the derived run, as `read_selected` gives it.
    raw : Mapping or None
        Of its raw run; None: the catalog does not hold it.
    """
    start, stop = metadata["start"], metadata["stop"] or {}
    raw_start = {} if raw is None else raw["start"]
    return ResultSummary(
        uid=start["uid"],
        raw_uid=start["raw_uid"],
        scan_id=start["scan_id"],
        plan_name=raw_start.get("plan_name"),
        time=float(start["time"]),
        n_frames=stop.get("n_frames"),
        exit_status=stop.get("exit_status"),
        complete=bool(stop.get("complete")),
        verdict=stop.get("verdict"),
        sample=sample_of(raw_start),
        raw_time=raw_start.get("time"),
        # Results of earlier versions have no title.
        title=start["title"] or f"scan {start['scan_id']}",
        made_by=start["made_by"],
    )


def raw_row(metadata: Selected) -> ResultSummary:
    """Make the row of a raw run that has no result.

    Parameters
    ----------
    metadata : Mapping
        Of the raw run, as `read_selected` gives it.
    """
    start, stop = metadata["start"], metadata["stop"] or {}
    return ResultSummary(
        uid=None,
        raw_uid=start["uid"],
        scan_id=start["scan_id"],
        plan_name=start["plan_name"],
        time=float(start["time"]),
        n_frames=(stop.get("num_events") or {}).get("primary"),
        exit_status=stop.get("exit_status"),
        complete=False,
        sample=sample_of(start),
        raw_time=float(start["time"]),
        title=title_of(start),
    )
