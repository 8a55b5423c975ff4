"""One frame of a run beside what its result predicts for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bluesky_cdi.catalog import Catalog
from bluesky_cdi.config import DocumentsConfig
from bluesky_cdi.errors import CatalogError
from bluesky_cdi.io.frames import flagged_pixels
from bluesky_cdi.physics.geometry import Geometry, ObjectGrid
from bluesky_cdi.protocols import Estimate, FloatArray
from bluesky_cdi.web.columns import Columns, streams_of
from bluesky_cdi.web.run_view import stream_keys


@dataclass(frozen=True, eq=False)
class FrameFit:
    """A diffraction pattern and its fit.

    Attributes
    ----------
    measured : ndarray, shape (H, W), float64
        Counts as the detector told them; NaN where it told a flag.
    fit : ndarray, shape (N, N), float64, or None
        Expected counts of the result, with the sum of `measured` in its valid pixels where the two have one shape. None
        without a result.
    scale : float
        By what the fit was multiplied for that; 1 where shapes differ, for the frame was preprocessed.
    """

    measured: FloatArray
    fit: FloatArray | None
    scale: float = 1.0

    @property
    def misfit(self) -> FloatArray | None:
        """Twice the difference of the square roots of both, shape (N, N): in standard deviations of the counts.

        None where the two can't be compared.
        """
        if self.fit is None or self.fit.shape != self.measured.shape:
            return None
        return np.asarray(2 * (np.sqrt(self.measured) - np.sqrt(self.fit)))


def measured_frame(catalog: Catalog, raw: Mapping[str, Any], number: int, settings: DocumentsConfig) -> FloatArray:
    """Read one frame of a raw run from the catalog, as it was recorded, shape (H, W); NaN in place of flags.

    Parameters
    ----------
    catalog : Catalog
        Where the run is.
    raw : Mapping
        Its metadata.
    number : int
        The frame's.
    settings : DocumentsConfig
        What of the run's documents makes frames.

    Raises
    ------
    CatalogError
        If the run holds no such frame.
    DocumentError
        If its documents don't tell which of its keys holds frames.
    """
    with catalog.reaching():
        stream = streams_of(catalog.raw[raw["start"]["uid"]]).get(settings.stream)
        if stream is None:
            raise CatalogError(f"the run has no frames: there is no stream {settings.stream!r}")
        keys = stream_keys(raw["start"], stream, settings)
        columns = Columns(stream)
        each = settings.several == "each" and keys.n_images > 1
        event, image = divmod(number - 1, keys.n_images) if each else (number - 1, 0)
        row = _row_of(columns, event + 1)
        n = columns.rows_of(keys.frame)
        if not 0 <= row < n:
            raise CatalogError(f"the run holds {n} event(s) with frames; frame {number} is of none of them")
        images = np.atleast_3d(columns.row(keys.frame, row).T).T  # (n, H, W)
    wanted = images[image : image + 1] if each else images
    counts = wanted.astype(np.float64).sum(axis=0)
    counts[flagged_pixels(wanted)] = np.nan
    return np.asarray(counts)


def fit_of(estimate: Estimate, geometry: Geometry, number: int, measured: FloatArray) -> FrameFit:
    """Predict a frame from a final estimate.

    Parameters
    ----------
    estimate : Estimate
        The result.
    geometry : Geometry
        Of the frames that were reconstructed.
    number : int
        The frame's.
    measured : ndarray, shape (H, W)
        Its counts.

    Raises
    ------
    CatalogError
        If the result holds no such frame.
    GeometryError
        If it lies outside of the object.
    """
    import torch

    from bluesky_cdi.physics.forward import extract, frame_probes, intensity
    from bluesky_cdi.physics.propagators import propagator_of

    found = np.flatnonzero(estimate.frame_seq_nums == number)
    if not found.size:
        raise CatalogError(f"the result holds {len(estimate.frame_seq_nums)} frames; frame {number} is none of them")
    side = estimate.probe.shape[-1]
    shape = (int(estimate.object.shape[0]), int(estimate.object.shape[1]))
    grid = ObjectGrid(estimate.origin_m, shape, estimate.pixel_m, side)
    corner, shift = (torch.as_tensor(each) for each in grid.place(estimate.positions_m[found[:1]]))
    shift = shift.to(torch.float32)
    propagator = propagator_of(geometry)
    patches = extract(torch.as_tensor(estimate.object)[None], corner, side)
    probes = frame_probes(torch.as_tensor(estimate.probe)[None], shift)
    waves = propagator.forward(probes * patches[:, None], shift)
    fit = propagator.to_detector(intensity(waves))[0].numpy().astype(np.float64)
    if fit.shape != measured.shape:
        return FrameFit(measured, fit)
    valid = np.isfinite(measured)
    scale = float(measured[valid].sum()) / max(float(fit[valid].sum()), 1e-30)
    return FrameFit(measured, fit * scale, scale)


def _row_of(columns: Columns, event: int) -> int:
    """Find the row of an event's arrays: of one that was measured twice the last; without events rows are numbered."""
    numbers: npt.NDArray[Any] = columns.read("seq_num")
    rows = np.flatnonzero(numbers == event)
    if rows.size:
        return int(rows[-1])
    return event - 1 if not len(numbers) else -1
