"""The columns of one stream of a run, whether they are in its table or arrays of their own."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

# Name of the node that holds the scalars of events.
TABLE = "internal"


def streams_of(run: Any) -> dict[str, Any]:
    """Give the streams of a run by name, in one look; none of a run that is None."""
    return {} if run is None else dict(run.items())


class Columns:
    """Reads columns of a stream; those that are not there, or not yet, are empty.

    Parameters
    ----------
    stream : BlueskyEventStream or None
        The stream; None: there is none.
    """

    def __init__(self, stream: Any) -> None:
        self._nodes = {} if stream is None else dict(stream.base.items())
        # As a whole: reading single columns of a growing table fails on the server.
        table = self._nodes.pop(TABLE).read() if TABLE in self._nodes else None
        # Of an event that was written twice the last row counts; rows of arrays are those of the events.
        self._table = None if table is None else {name: table[name].to_numpy() for name in table.columns}

    def __contains__(self, name: str) -> bool:
        return name in self._nodes or (self._table is not None and name in self._table)

    def read(self, name: str) -> npt.NDArray[Any]:
        """Read a whole column, shape (n, ...); shape (0,) if it is not there."""
        if self._table is not None and name in self._table:
            values = self._table[name]
            # Short arrays may stand in the table as lists.
            return (
                np.stack([np.asarray(each) for each in values])
                if values.dtype == object and _has_rows(values)
                else values
            )
        return np.asarray(self._nodes[name].read()) if name in self._nodes else np.empty(0)

    def row(self, name: str, index: int) -> npt.NDArray[Any]:
        """Read one row of an array; the column must be there, and hold the row."""
        if name in self._nodes:
            return np.asarray(self._nodes[name][index])
        return np.asarray(self.read(name)[index])

    def rows_of(self, name: str) -> int:
        """Tell how many rows a column has; 0 if it is not there."""
        if name in self._nodes:
            return int(self._nodes[name].shape[0])
        return len(self.read(name))


def _has_rows(values: npt.NDArray[Any]) -> bool:
    return len(values) > 0 and not isinstance(values[0], str) and hasattr(values[0], "__len__")
