"""A raw run of a catalog as a recorded scan: to be reconstructed again, or written to a file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bluesky_cdi.config import Config
from bluesky_cdi.io import Preprocessing, Scan
from bluesky_cdi.physics.geometry import Geometry
from bluesky_cdi.protocols import RunInfo

if TYPE_CHECKING:
    from bluesky_cdi.catalog import Catalog

# What `Scan.source` says of the file's form, of a scan that comes from no file.
FORM = "catalog"


@dataclass(frozen=True, eq=False)
class RecordedRun:
    """A raw run, as a scan.

    Attributes
    ----------
    info : RunInfo
        Of the run, with the geometry of the scan's frames.
    scan : Scan
    numbers : tuple of int
        Number of each frame in the run.
    """

    info: RunInfo
    scan: Scan
    numbers: tuple[int, ...]


def recorded_run(
    catalog: Catalog,
    which: str | int,
    config: Config,
    *,
    unfinished: bool = False,
    mask: npt.NDArray[np.bool_] | None = None,
) -> RecordedRun:
    """Read a raw run from a catalog; its frames are preprocessed as a recorded scan's.

    Parameters
    ----------
    catalog : Catalog
        Where to look.
    which : str or int
        The run, as `bluesky_cdi.catalog.find_run` takes it.
    config : Config
        Its sections `documents` and `detector`.
    unfinished : bool
        Take a run without a stop document: whoever measured it is gone.
    mask : ndarray, shape (H, W), bool, optional
        Valid pixels of the detector.

    Raises
    ------
    CatalogError
        If there is no such run, or it has not ended.
    DocumentError, FrameError, GeometryError
        If the run can't be reconstructed.
    """
    from bluesky_cdi.callbacks import collect_frames
    from bluesky_cdi.catalog import ending_of, find_run, run_documents

    run = find_run(catalog, which)
    ending_of(run, unfinished)
    info, frames = collect_frames(
        run_documents(catalog, run, config.documents.stream),
        settings=config.documents,
        mask=mask,
        preprocessing=Preprocessing.recorded(config),
    )
    scan = Scan(
        counts=np.stack([frame.counts for frame in frames]),
        positions_m=np.stack([frame.position_m for frame in frames]).astype(np.float64),
        geometry=Geometry.from_metadata(info.metadata, info.frame_shape),
        mask=mask if info.preprocessed is None else info.preprocessed.mask,
        name=f"scan {info.scan_id}",
        source=_source_of(info),
    )
    return RecordedRun(info, scan, tuple(frame.seq_num for frame in frames))


def _source_of(info: RunInfo) -> dict[str, Any]:
    near = info.metadata["geometry"].get("propagation", "far") == "near"
    notes = {} if info.preprocessed is None else {"preprocessing": dict(info.preprocessed.notes)}
    return {"format": FORM, "run": info.uid, "propagation": "near field" if near else "far field", **notes}
