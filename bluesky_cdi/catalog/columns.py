"""The columns of the streams of a run, wherever they lie: in a stream's table, in files, or in arrays of the server."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bluesky_cdi.catalog.schema import SOURCE
from bluesky_cdi.errors import ScanFileError
from bluesky_cdi.io.hdf5 import CheckedFile

# Name of the node that holds the scalars of events.
TABLE = "internal"
HDF5 = "application/x-hdf5"


def streams_of(run: Any) -> dict[str, Any]:
    """Give the streams of a run by name, as they are now, in one request; none of a run that is None.

    Parameters
    ----------
    run : BlueskyRun or None
        The run. Its own mapping asks for the names and then for each stream, and remembers the names.
    """
    found: dict[str, Any] = {} if run is None else dict(run.base.items())
    within = found.get("streams")
    # Earlier versions of Bluesky's plugins kept streams one level lower.
    if within is not None and "BlueskyEventStream" not in {spec.name for spec in within.specs}:
        found = dict(within.items())
    return found


class Columns:
    """Reads columns of a stream; those that are not there, or not yet, are empty.

    It keeps how long arrays were, and what the table held: of a stream that grows make another one for the next look.

    Parameters
    ----------
    stream : BlueskyEventStream or None
        The stream; None: there is none.
    run_uid : str, optional
        Uid of its run, whose own file is read where this process sees it; without, the server is asked for everything.
    """

    def __init__(self, stream: Any, run_uid: str | None = None) -> None:
        self._stream, self._run_uid = stream, run_uid
        self._nodes = {} if stream is None else dict(stream.base.items())
        self._in_table = self._nodes.pop(TABLE, None)
        self._table: dict[str, npt.NDArray[Any]] | None = None
        self._place: tuple[Path, str] | None = None
        self._was_looked_for = False

    def __contains__(self, name: str) -> bool:
        return name in self._nodes or name in self._of_table()

    @property
    def descriptor(self) -> Mapping[str, Any]:
        """What the stream's first descriptor tells of its data keys, hints and configuration; empty without a stream.

        The client's own ``descriptors`` ask for the run once more.
        """
        return {} if self._stream is None else dict(self._stream.metadata)

    def read(self, name: str) -> npt.NDArray[Any]:
        """Read a whole column, shape (n, ...); shape (0,) if it is not there."""
        if name in self._nodes:
            return self._read_node(name, None)
        values = self._of_table().get(name, np.empty(0))
        # Short arrays may stand in the table as lists.
        has_lists = values.dtype == object and _has_rows(values)
        return np.stack([np.asarray(each) for each in values]) if has_lists else values

    def row(self, name: str, index: int) -> npt.NDArray[Any]:
        """Read one row of an array; the column must be there, and hold the row."""
        return self._read_node(name, index) if name in self._nodes else np.asarray(self.read(name)[index])

    def rows_of(self, name: str) -> int:
        """Tell how many rows a column has; 0 if it is not there."""
        return int(self._nodes[name].shape[0]) if name in self._nodes else len(self.read(name))

    def events(self) -> list[dict[str, Any]]:
        """Read the scalars of the events in their order; of an event that was written twice the last counts."""
        table = self._of_table()
        rows = [dict(zip(table, values, strict=True)) for values in zip(*table.values(), strict=True)]
        return [row for _, row in sorted({row["seq_num"]: row for row in rows}.items())]

    def _of_table(self) -> dict[str, npt.NDArray[Any]]:
        if self._table is None:
            # As a whole: reading single columns of a growing table fails on the server.
            table = None if self._in_table is None else self._in_table.read()
            self._table = {} if table is None else {name: table[name].to_numpy() for name in table.columns}
        return self._table

    def _read_node(self, name: str, index: int | None) -> npt.NDArray[Any]:
        """Read a row of an array, or all of it."""
        node, found = self._nodes[name], self._from_file(name, index) if self._is_of_a_result(name) else None
        if found is not None:
            return found
        return np.asarray(node.read() if index is None else node[index])

    def _is_of_a_result(self, name: str) -> bool:
        """Tell whether a column is one that a `ResultFile` holds, with all others of its stream."""
        key = self.descriptor.get("data_keys", {}).get(name, {})
        return key.get("source") == SOURCE and "external" in key

    def _from_file(self, name: str, index: int | None) -> npt.NDArray[Any] | None:
        """Read a row, or all, from the result's file, if this process sees it; None if it does not.

        For each column a request takes tens of milliseconds, a file that is here less than one.
        """
        if self._run_uid is None:
            return None
        if not self._was_looked_for:
            self._place, self._was_looked_for = _place_of(self._nodes[name], name), True
        if self._place is None:
            return None
        (path, group), node = self._place, self._nodes[name]
        # Opening a pipe would wait for ever.
        if not path.is_file():
            return None
        try:
            with CheckedFile(path, libver="latest", swmr=True) as file:
                # A server could name any file of this machine: none is read but that which says that it is the run's.
                if file.attrs.get("uid") != self._run_uid:
                    return None
                dataset = file[f"{group}/{name}"]
                is_meant = (dataset.dtype, dataset.shape[1:]) == (node.dtype, tuple(node.shape[1:]))
                if not is_meant or len(dataset) < node.shape[0]:
                    return None
                # A file may hold more rows than were announced.
                return np.asarray(dataset[: node.shape[0]] if index is None else dataset[index])
        except (OSError, KeyError, RuntimeError, ScanFileError):
            # The server, which is asked then, says what is wrong.
            return None


def _place_of(node: Any, name: str) -> tuple[Path, str] | None:
    """Give the path of the HDF5 file and the group in it that hold a column, by what the server knows; else None."""
    from tiled.utils import path_from_uri

    sources = node.data_sources() or []
    if len(sources) != 1 or sources[0].mimetype != HDF5 or len(sources[0].assets) != 1:
        return None
    uri, (group, _, last) = sources[0].assets[0].data_uri, sources[0].parameters.get("dataset", "").rpartition("/")
    return (path_from_uri(uri), group) if last == name and uri.startswith("file:") else None


class RunColumns:
    """Knows the streams of a run, each of which is looked at once.

    Parameters
    ----------
    run : BlueskyRun or None
        The run; None: there is none, and so no streams.

    Attributes
    ----------
    run : BlueskyRun or None
        The same.
    """

    def __init__(self, run: Any) -> None:
        self.run = run
        self._uid = None if run is None else str(run.start["uid"])
        self._streams = streams_of(run)
        self._columns: dict[str, Columns] = {}

    @property
    def metadata(self) -> Mapping[str, Any] | None:
        """The run's start and stop document, as they were when the run was found; None without a run."""
        return None if self.run is None else self.run.metadata

    def of(self, stream: str) -> Columns:
        """Give the columns of a stream; without any if the run does not have it."""
        if stream not in self._columns:
            self._columns[stream] = Columns(self._streams.get(stream), self._uid)
        return self._columns[stream]

    def __contains__(self, stream: str) -> bool:
        return stream in self._streams


def _has_rows(values: npt.NDArray[Any]) -> bool:
    return len(values) > 0 and not isinstance(values[0], str) and hasattr(values[0], "__len__")
