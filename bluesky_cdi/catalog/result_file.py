"""The HDF5 file of a reconstruction: written while it is read, one row for each update."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bluesky_cdi.errors import CatalogError
from bluesky_cdi.recording import free_bytes

# Longest side of an HDF5 chunk: a complex64 chunk then stays below 8 MB whatever the object.
CHUNK_PX = 1024
CHUNK_ROWS = 1024
# Room beyond the data: HDF5's own tables, and what others write meanwhile.
SPARE_BYTES = 32_000_000


@dataclass(frozen=True)
class Column:
    """One array of a stream: a row for each event.

    Attributes
    ----------
    dtype : str
        NumPy type string.
    dims : tuple of str
        Names of a row's dimensions; none for a scalar.
    units : str or None
    """

    dtype: str
    dims: tuple[str, ...] = ()
    units: str | None = None


OBJECT_SHAPE = ("canvas_row", "canvas_col")
PROBE_SHAPE = ("probe_mode", "probe_row", "probe_col")

# "row" and "col" are prefixed: a dimension named like a motor would hide that motor in xarray.
IMAGES: Mapping[str, Column] = {
    "object": Column("<c8", OBJECT_SHAPE),
    "probe": Column("<c8", PROBE_SHAPE),
    "std_amplitude": Column("<f4", OBJECT_SHAPE),
    "std_phase_rad": Column("<f4", OBJECT_SHAPE, "rad"),
    "coverage": Column("<f4", OBJECT_SHAPE, "photons"),
}

# The complex images of an estimate as any client can draw them.
SHOWN: Mapping[str, Column] = {
    "amplitude": Column("<f4", OBJECT_SHAPE),
    "phase": Column("<f4", OBJECT_SHAPE, "rad"),
    "probe_amplitude": Column("<f4", PROBE_SHAPE),
    "probe_phase": Column("<f4", PROBE_SHAPE, "rad"),
}

# What an update holds.
UPDATED: Mapping[str, Column] = {**IMAGES, **SHOWN}

# What an update tells besides, in its event.
SCALARS: Mapping[str, dict[str, Any]] = {
    "n_frames": {"dtype": "integer", "dtype_numpy": "<i8", "units": None},
    "seconds": {"dtype": "number", "dtype_numpy": "<f8", "units": "s"},
    "median_frame_uncertainty_rad": {"dtype": "number", "dtype_numpy": "<f8", "units": "rad"},
    "median_residual": {"dtype": "number", "dtype_numpy": "<f8", "units": None},
    # Of a scan's frames on their way into the image; NaN where nobody counts.
    "n_received": {"dtype": "number", "dtype_numpy": "<f8", "units": None},
    "n_waiting": {"dtype": "number", "dtype_numpy": "<f8", "units": None},
    "n_thinned": {"dtype": "number", "dtype_numpy": "<f8", "units": None},
    "n_bad": {"dtype": "number", "dtype_numpy": "<f8", "units": None},
    "n_dark": {"dtype": "number", "dtype_numpy": "<f8", "units": None},
    "latency_p50_s": {"dtype": "number", "dtype_numpy": "<f8", "units": "s"},
    "latency_p95_s": {"dtype": "number", "dtype_numpy": "<f8", "units": "s"},
}

FRAMES: Mapping[str, Column] = {
    "frame_seq_num": Column("<i8"),
    "y_m": Column("<f8", (), "m"),
    "x_m": Column("<f8", (), "m"),
    "embedding": Column("<f4", ("embedding_component",)),
    "uncertainty_rad": Column("<f4", (), "rad"),
    "residual": Column("<f4"),
    "vacuum_residual": Column("<f4"),
    "novelty": Column("<f4"),
    "latents": Column("<f4", ("latent",)),
    "colour": Column("<f4", ("red_green_blue",)),
    "cluster": Column("<i8"),
    "novelty_p": Column("<f4"),
}

# What the final estimate's frames make of the object together.
MAPS: Mapping[str, Column] = {
    "latent_map": Column("<f4", (*OBJECT_SHAPE, "red_green_blue")),
    "residual_map": Column("<f4", OBJECT_SHAPE),
}

Arrays = Mapping[str, npt.NDArray[Any]]


class ResultFile:
    """A file of growing arrays that other processes may read meanwhile (SWMR).

    Nothing can be added to such a file while it is read, so every array and attribute exists
    from the start.

    Parameters
    ----------
    path : path
        The file, which must not exist.
    groups : Mapping
        The columns of each group, by name.
    row_shapes : Mapping
        Shape of one row of each column, by name.
    attributes : Mapping
        Attributes of the file. ``complete`` is False until `mark_complete`.

    Raises
    ------
    CatalogError
        If the file can't be created.
    """

    def __init__(
        self,
        path: Path,
        groups: Mapping[str, Mapping[str, Column]],
        row_shapes: Mapping[str, tuple[int, ...]],
        attributes: Mapping[str, Any],
    ) -> None:
        import h5py

        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = h5py.File(path, "x", libver="latest")
        except OSError as err:
            raise CatalogError(
                f"can't create the result's file {path}: {err}. Its folder must be writable, and a uid has one file."
            ) from err
        self._file.attrs.update({**attributes, "complete": False})
        for group, columns in groups.items():
            for name, column in columns.items():
                shape = row_shapes[name]
                self._file.create_dataset(
                    f"{group}/{name}", (0, *shape), column.dtype, maxshape=(None, *shape), chunks=chunk_shape(shape)
                )
        self._file.swmr_mode = True

    @property
    def uri(self) -> str:
        """The file's address as documents carry it: not percent-encoded, since Tiled does not decode it."""
        return f"file://localhost{self.path.as_posix()}"

    def write(self, group: str, start: int, rows: Arrays) -> None:
        """Write rows, shape (n, ...) each, from row `start` on, and let readers see them.

        Parameters
        ----------
        group : str
            Name of the stream.
        start : int
            Row, from 0, that the first of `rows` becomes; what was there is replaced.
        rows : Mapping
            Arrays (n, ...) by column, n the same in all.

        Raises
        ------
        CatalogError
            If the disk has no room: HDF5 does not survive a write that fails.
        """
        needed = 2 * sum(values.nbytes for values in rows.values()) + SPARE_BYTES
        if (free := free_bytes(self.path.parent)) < needed:
            raise CatalogError(
                f"the result's file {self.path} needs {needed / 1e6:.0f} MB more, and its disk has {free / 1e6:.0f} MB "
                "left. Make room there; what is measured is not affected."
            )
        for name, values in rows.items():
            dataset = self._file[group][name]
            dataset.resize(start + len(values), axis=0)
            dataset[start:] = values
            dataset.flush()

    def mark_complete(self) -> None:
        """Set the attribute ``complete``."""
        self._file.attrs.modify("complete", np.bool_(True))

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def chunk_shape(row_shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the chunk of a column: one image a chunk, many scalars or vectors a chunk."""
    rows = 1 if len(row_shape) > 1 else CHUNK_ROWS
    return (rows, *(min(max(side, 1), CHUNK_PX) for side in row_shape))
