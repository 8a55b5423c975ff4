"""The HDF5 file of a device that flies: columns that grow, and the documents that announce their rows."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from event_model import compose_stream_resource


@dataclass(frozen=True)
class Column:
    """What a row of one data key is.

    Attributes
    ----------
    dataset : str
        Where it lies in the file.
    dtype : dtype
    shape : tuple of int
        Of a row.
    chunk_rows : int
        Rows that are compressed together.
    units : str, optional
    filters : Mapping
        Keywords of h5py's ``create_dataset`` that compress.
    """

    dataset: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...] = ()
    chunk_rows: int = 1024
    units: str | None = None
    filters: Mapping[str, Any] = field(default_factory=dict)

    def describe(self, source: str, name: str) -> dict[str, Any]:
        """Give its data key.

        Parameters
        ----------
        source : str
            Where values come from.
        name : str
            The device's, which the dimensions of an image are named after.
        """
        return {
            "source": source,
            "dtype": "array" if self.shape else "number",
            "shape": list(self.shape),
            "dtype_numpy": self.dtype.str,
            "external": "STREAM:",
            **({"dims": [f"{name}_row", f"{name}_col"]} if self.shape else {}),
            **({"units": self.units} if self.units else {}),
        }


class FlightFile:
    """Columns of equal length in one HDF5 file, readable by others while they grow.

    Parameters
    ----------
    path : Path
        File to make, absolute; its folder must exist.
    columns : Mapping of str to Column
        By data key.
    """

    def __init__(self, path: Path, columns: Mapping[str, Column]) -> None:
        self._lock = threading.Lock()
        self._rows = self._announced = 0
        self._has_begun = False
        self._file = h5py.File(path, "w", libver="latest")
        self._datasets, self._bundles = {}, {}
        for key, column in columns.items():
            chunk = (column.chunk_rows, *column.shape)
            self._datasets[key] = self._file.create_dataset(
                column.dataset, (0, *column.shape), column.dtype, maxshape=(None, *column.shape), chunks=chunk,
                **column.filters,
            )  # fmt: skip
            self._bundles[key] = compose_stream_resource(
                mimetype="application/x-hdf5",
                # Not percent-encoded: Tiled takes the URI's path as it stands.
                uri=f"file://localhost{path.as_posix()}",
                data_key=key,
                parameters={"dataset": column.dataset, "chunk_shape": chunk, "swmr": True},
            )
        self._file.attrs["complete"] = False
        self._file.swmr_mode = True

    @property
    def rows(self) -> int:
        """Number of rows that are written."""
        with self._lock:
            return self._rows

    def append(self, blocks: Mapping[str, np.ndarray[Any, Any]]) -> None:
        """Write rows.

        Parameters
        ----------
        blocks : Mapping of str to ndarray, shape (n, ...)
            Of each data key, as many rows.
        """
        with self._lock:
            stop = self._rows
            for key, block in blocks.items():
                stop = self._rows + len(block)
                self._datasets[key].resize(stop, axis=0)
                self._datasets[key][self._rows : stop] = block
                self._datasets[key].flush()
            self._rows = stop

    def announce(self, index: int | None = None) -> Iterator[tuple[str, Any]]:
        """Yield the documents of the rows that no document has told of yet.

        Parameters
        ----------
        index : int, optional
            Tell of no row from this one on.
        """
        with self._lock:
            start, stop = self._announced, self._rows if index is None else min(index, self._rows)
            if stop <= start:
                return
            self._announced = stop
            begins, self._has_begun = not self._has_begun, True
        if begins:
            for bundle in self._bundles.values():
                yield "stream_resource", bundle.stream_resource_doc
        for bundle in self._bundles.values():
            yield "stream_datum", bundle.compose_stream_datum(indices={"start": start, "stop": stop})

    def skip(self) -> None:
        """Tell of none of the rows that are written by now."""
        with self._lock:
            self._announced = self._rows

    def close(self) -> None:
        """Set the attribute ``complete`` and close the file."""
        with self._lock:
            # Changed in place: a file open for other readers takes no new attribute.
            self._file.attrs.modify("complete", np.bool_(True))
            self._file.close()
