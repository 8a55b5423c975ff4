"""Runs and their reconstructions found in a catalog, and an estimate read back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from bluesky_cdi.catalog.columns import Columns, RunColumns
from bluesky_cdi.catalog.connect import Catalog
from bluesky_cdi.catalog.listing import ResultSummary, results_of
from bluesky_cdi.catalog.result_file import FRAMES, IMAGES
from bluesky_cdi.catalog.schema import NOTED_AT_END, PER_FRAME, SOURCE, UPDATES
from bluesky_cdi.errors import CatalogError
from bluesky_cdi.protocols import Estimate

if TYPE_CHECKING:
    from bluesky_cdi.io import ProbeFile


def find_raw(catalog: Catalog, result: ResultSummary | str | int) -> Any:
    """Return the raw run (a ``BlueskyRun``) that a result was made from.

    Parameters
    ----------
    catalog : Catalog
        Where to look.
    result : ResultSummary, str or int
        A row of `list_results`, or what `load_result` takes.

    Raises
    ------
    CatalogError
        If there is no such result, or the catalog does not hold its raw run.
    """
    with catalog.reaching():
        uid = result.raw_uid if isinstance(result, ResultSummary) else _find(catalog, result).start["raw_uid"]
        if uid not in catalog.raw:
            raise CatalogError(
                f"the catalog at {catalog.uri} does not hold the raw run {uid}. Open the catalog that the scan "
                "was recorded in."
            )
        return catalog.raw[uid]


def find_run(catalog: Catalog, which: str | int) -> Any:
    """Return a raw run (a ``BlueskyRun``), whether it has a result or not.

    Parameters
    ----------
    catalog : Catalog
        Where to look.
    which : str or int
        Uid of the run or of a result of it, or the beginning of one; a scan number, of which the newest run counts;
        or a negative index, -1 being the newest run.

    Raises
    ------
    CatalogError
        If there is no such run, or several match.
    """
    with catalog.reaching():
        if isinstance(which, str):
            return _find_run_uid(catalog, which)
        runs, n = catalog.raw, len(catalog.raw)
        if which < 0:
            if -which > n:
                raise CatalogError(f"there is no run [{which}]: the catalog at {catalog.uri} holds {n} run(s)")
            return runs.values()[which]
        from tiled.queries import Key

        found = runs.search(Key("scan_id") == int(which))
        if len(found) == 0:
            raise CatalogError(f"the catalog at {catalog.uri} holds no run of scan {which}")
        return found.values().last()


def find_result(catalog: Catalog, which: str | int) -> Any:
    """Return a derived run (a ``BlueskyRun``).

    Parameters
    ----------
    catalog : Catalog
        Where to look.
    which : str or int
        As `load_result` takes it.

    Raises
    ------
    CatalogError
        If there is no such result, or several match.
    """
    with catalog.reaching():
        return _find(catalog, which)


def load_result(catalog: Catalog, which: str | int, update: int = -1) -> Estimate:
    """Read an estimate back.

    From the catalog of an open session, the final estimate of the run that was measured last is waited for.

    Parameters
    ----------
    catalog : Catalog
        Where to look.
    which : str or int
        Uid of a result or of its raw run, or the beginning of one; a scan number, of which the
        newest result counts; or a negative index, -1 being the newest result.
    update : int
        Which update, from 0; negative from the end. The default, -1, is the final estimate,
        which only a complete result has; any other index reads what is there, of a run that goes
        on or failed too. Per-frame values are kept for the final estimate: another update's
        per-frame arrays are empty.

    Raises
    ------
    CatalogError
        If there is no such result or update, several runs match, or the result is not complete.
    """
    if update == -1 and catalog.settle is not None:
        catalog.settle(which)
    with catalog.reaching():
        return _read(_find(catalog, which), update)


def probe_file_of(estimate: Estimate, start: Mapping[str, Any]) -> ProbeFile:
    """Give the probe of a result as a first guess for other runs.

    Parameters
    ----------
    estimate : Estimate
        The result.
    start : Mapping
        Start document of its raw run, which states the detector's own pixel, before any binning.
    """
    from bluesky_cdi.io import ProbeFile
    from bluesky_cdi.physics.geometry import Geometry

    side = estimate.probe.shape[-1]
    geometry = Geometry.from_metadata(start, (side, side))
    binned = int(estimate.source.get("preprocessing", {}).get("bin", 1))
    geometry = replace(geometry, detector_pixel_m=geometry.detector_pixel_m * binned)
    return ProbeFile(estimate.probe, geometry, f"run {start['uid']}", dict(estimate.source))


def _find(catalog: Catalog, which: str | int) -> Any:
    results = results_of(catalog)
    if isinstance(which, str):
        return _find_uid(catalog, results, which)
    if which < 0:
        n = len(results)
        if -which > n:
            raise CatalogError(
                f"there is no result [{which}]: the catalog at {catalog.uri} holds {n} result(s); "
                "`list_results` shows what there is"
            )
        return results.values()[which]
    from tiled.queries import Key

    found = results.search(Key("scan_id") == int(which))
    if len(found) == 0:
        raise CatalogError(
            f"the catalog at {catalog.uri} holds no result of scan {which}; `list_results` shows what there is"
        )
    return found.values().last()


def _find_uid(catalog: Catalog, results: Any, uid: str) -> Any:
    from tiled.queries import Like

    for key in ("start.uid", "start.raw_uid"):
        found = list(results.search(Like(key, f"{uid}%")).values())
        if len(found) == 1:
            return found[0]
        if found:
            uids = ", ".join(run.start["uid"] for run in found)
            raise CatalogError(f"{len(found)} results match {uid!r}: {uids}. Give the uid of one of them.")
    raise CatalogError(
        f"the catalog at {catalog.uri} holds no result with a uid (its own, or its raw run's) that begins with "
        f"{uid!r}; `list_results` shows what there is"
    )


def _find_run_uid(catalog: Catalog, uid: str) -> Any:
    from tiled.queries import Like

    runs = catalog.raw.search(Like("start.uid", f"{uid}%"))
    uids = list(runs.keys())
    if not uids:
        made_from = results_of(catalog).search(Like("start.uid", f"{uid}%")).values()
        uids = sorted({run.start["raw_uid"] for run in made_from} & set(catalog.raw.keys()))
    if len(uids) == 1:
        return catalog.raw[uids[0]]
    if uids:
        raise CatalogError(f"{len(uids)} runs match {uid!r}: {', '.join(uids)}. Give the uid of one of them.")
    raise CatalogError(
        f"the catalog at {catalog.uri} holds no run with a uid (its own, or a result's) that begins with {uid!r}"
    )


def _read(run: Any, update: int) -> Estimate:
    streams = RunColumns(run)
    updates = streams.of(UPDATES)
    events = updates.events()
    index = _index(run, len(events), update)
    obj = updates.descriptor["configuration"][SOURCE]["data"]
    final = index == len(events) - 1 and PER_FRAME in streams
    stop = (run.metadata.get("stop") or {}) if final else {}
    return Estimate(
        n_frames=int(events[index]["n_frames"]),
        seconds=float(events[index]["seconds"]),
        origin_m=(float(obj["origin_y_m"]), float(obj["origin_x_m"])),
        pixel_m=float(obj["pixel_m"]),
        source={
            **run.start["source"],
            **(stop.get("source") or {}),
            **{key: stop[key] for key in NOTED_AT_END if key in stop},
        },
        **{name: np.asarray(updates.row(name, index), column.dtype) for name, column in IMAGES.items()},
        **_frames(streams.of(PER_FRAME) if final else Columns(None)),
    )


def update_rows(run: Any) -> list[dict[str, Any]]:
    """Read the scalars of a derived run's updates in order; of a repeated row the last counts.

    Parameters
    ----------
    run : BlueskyRun
        The derived run.
    """
    return RunColumns(run).of(UPDATES).events()


def _index(run: Any, n_updates: int, update: int) -> int:
    """Return which of the stored updates is meant."""
    stop = run.metadata.get("stop") or {}
    index = update if update >= 0 else n_updates + update
    if update == -1 and not stop.get("complete"):
        newest = f"pass update={index} for the newest" if n_updates else "there is nothing to load"
        raise CatalogError(f"the result {run.start['uid']} {_state(stop)}; it holds {n_updates} update(s): {newest}")
    if not 0 <= index < n_updates:
        raise CatalogError(
            f"the result {run.start['uid']} holds {n_updates} update(s); there is no update {update}. "
            "Updates count from 0, or from -1 back."
        )
    return index


def _state(stop: Mapping[str, Any]) -> str:
    if not stop:
        return "has no stop document: it goes on, or its process died"
    reason = stop.get("reason")
    return f"ended with {stop['exit_status']!r}" + (f" ({reason})" if reason else "")


def _frames(stored: Columns) -> dict[str, Any]:
    """Return the per-frame fields of an `Estimate`, empty where nothing is stored."""
    columns = {
        name: np.asarray(stored.read(name), column.dtype)
        if name in stored
        else np.zeros((0,) * (1 + len(column.dims)), column.dtype)
        for name, column in FRAMES.items()
    }
    vacuum = columns["vacuum_residual"]
    return {
        "frame_seq_nums": columns["frame_seq_num"],
        "positions_m": np.stack([columns["y_m"], columns["x_m"]], axis=-1),
        "embedding": columns["embedding"],
        "frame_uncertainty": columns["uncertainty_rad"],
        "residual": columns["residual"],
        # Files before this was stored, and makers that don't tell it, have none.
        "vacuum_residual": vacuum if len(vacuum) == len(columns["residual"]) and np.isfinite(vacuum).all() else None,
        "novelty": columns["novelty"],
    }
