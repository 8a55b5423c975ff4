"""A run of the catalog as the documents that its stream of frames was made of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from bluesky_cdi.catalog.columns import streams_of
from bluesky_cdi.catalog.connect import Catalog
from bluesky_cdi.catalog.masks import mask_keys, with_masks
from bluesky_cdi.errors import CatalogError

Document = tuple[str, dict[str, Any]]

# Arrays that came inside events are read so many rows at a time.
BLOCK_ROWS = 64
# Of columns with one number a row, as samples of positions, so many at a time.
BLOCK_NUMBERS = 2**16


def run_documents(
    catalog: Catalog, run: Any, stream: str = "primary", *, positions: str | None = None, only: int | None = None
) -> Iterator[Document]:
    """Yield the documents of the stream of frames of a run, as an assembler of frames takes them.

    Of a fly scan the stream of its positions comes before it.

    A run whose process died has no stop document; one is made up for it, with the exit status ``fail``. Events have
    the order in which they were written, and a point that was measured twice is there twice, with its two frames.

    Parameters
    ----------
    catalog : Catalog
        Where the run is.
    run : BlueskyRun
        Of ``catalog.raw``.
    stream : str
        Name of the stream.
    positions : str, optional
        Name of the stream of a fly scan's positions; by default what the start document says (``position_stream``).
    only : int, optional
        Number of the one event that is wanted, with all samples of positions.

    Raises
    ------
    CatalogError
        If the server can't be reached, or does not tell where frames lie.
    """
    start = dict(run.start)
    yield "start", start
    with catalog.reaching():
        streams = streams_of(run)
        for name in (positions or start.get("position_stream"), stream):
            if name is not None and name in streams:
                yield from _stream_documents(streams[name], only if name == stream else None)
    stop = run.metadata.get("stop") or {
        "run_start": start["uid"], "uid": f"stop-{start['uid']}", "time": start["time"], "exit_status": "fail",
        "reason": "the run has no stop document",
    }  # fmt: skip
    # Where one event is wanted, the others are not missing.
    yield "stop", {key: value for key, value in stop.items() if only is None or key != "num_events"}


def _stream_documents(stream: Any, only: int | None) -> Iterator[Document]:
    descriptors = stream.descriptors
    masks = mask_keys(descriptors[0])
    for descriptor in descriptors:
        keys = {key: each for key, each in descriptor["data_keys"].items() if key not in masks.values()}
        yield "descriptor", {**descriptor, "data_keys": keys}
    parts = dict(stream.base.items())
    table = parts.pop("internal").read() if "internal" in parts else None
    numbers = None if table is None else [int(number) for number in table["seq_num"]]
    inside = {}
    for key, node in parts.items():
        if descriptors[0]["data_keys"].get(key, {}).get("external"):
            yield from _file_documents(key, node, descriptors[0], numbers, only)
        else:
            inside[key] = node
    if table is not None:
        yield from _events(table, inside, descriptors, only)


def _file_documents(
    key: str, node: Any, descriptor: Mapping[str, Any], numbers: list[int] | None, only: int | None
) -> Iterator[Document]:
    """Yield where a data key's rows lie, and which event each of them belongs to."""
    (source,) = node.data_sources()
    uris = [asset.data_uri for asset in source.assets]
    if len(uris) != 1:
        raise CatalogError(
            f"the rows of {key!r} must lie in one file, so that each can be found; the catalog names {len(uris)}. "
            "Let the detector write one file a run."
        )
    resource = {
        "uid": f"{descriptor['uid']}-{key}",
        "data_key": key,
        "mimetype": source.mimetype,
        "uri": uris[0],
        "parameters": dict(source.parameters),
        "run_start": descriptor["run_start"],
    }
    yield "stream_resource", resource
    rows = int(node.shape[0])
    if numbers is None and only is None:
        # A fly scan has no events: rows are numbered through.
        step = BLOCK_NUMBERS if len(node.shape) == 1 else BLOCK_ROWS
        for first in range(0, rows, step):
            yield "stream_datum", _datum(resource, descriptor, first, min(first + step, rows), first + 1)
        return
    # Beyond the last one that was written, rows are numbered through.
    known = (numbers or [])[:rows]
    beyond = max(known, default=0) - len(known) + 1
    for row in range(rows):
        number = known[row] if row < len(known) else row + beyond
        if only is None or number == only:
            yield "stream_datum", _datum(resource, descriptor, row, row + 1, number)


def _datum(
    resource: Mapping[str, Any], descriptor: Mapping[str, Any], start: int, stop: int, number: int
) -> dict[str, Any]:
    """Say which events rows belong to, from the number of the first one."""
    return {
        "uid": f"{resource['uid']}/{start}",
        "stream_resource": resource["uid"],
        "descriptor": descriptor["uid"],
        "indices": {"start": start, "stop": stop},
        "seq_nums": {"start": number, "stop": number + stop - start},
    }


def _events(
    table: Any, inside: Mapping[str, Any], descriptors: list[dict[str, Any]], only: int | None
) -> Iterator[Document]:
    """Yield the events in the order of their rows; arrays that they hold are read block by block."""
    masks = mask_keys(descriptors[0])
    keys = [key for key in table.columns if key not in ("seq_num", "time") and not key.startswith("ts_")]
    rows = table.to_dict("records")
    blocks = [(first, rows[first : first + BLOCK_ROWS]) for first in range(0, len(rows), BLOCK_ROWS)]
    if only is not None:
        blocks = [(k, [row]) for k, row in enumerate(rows) if row["seq_num"] == only]
    for first, block in blocks:
        arrays = {key: np.asarray(node[first : first + len(block)]) for key, node in inside.items()}
        for k, row in enumerate(block):
            data = {key: row[key] for key in keys} | {key: each[k] for key, each in arrays.items() if k < len(each)}
            data = with_masks(data, masks)
            # A configuration that changed during the run has a descriptor of its own from then on.
            since = [each for each in descriptors if each["time"] <= row["time"]] or descriptors[:1]
            yield (
                "event",
                {
                    "uid": f"{since[-1]['uid']}/{row['seq_num']}",
                    "descriptor": since[-1]["uid"],
                    "seq_num": int(row["seq_num"]),
                    "time": row["time"],
                    "data": data,
                    "timestamps": {key: row.get(f"ts_{key}", row["time"]) for key in data},
                    "filled": {},
                },
            )
