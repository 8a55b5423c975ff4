"""What the page asks of a catalog, with what was read before kept for a while."""

from __future__ import annotations

import math
import tempfile
import threading
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bluesky_cdi.catalog import Catalog, load_result
from bluesky_cdi.catalog.columns import RunColumns
from bluesky_cdi.config import Config
from bluesky_cdi.errors import CatalogError
from bluesky_cdi.evaluation.fit import FittedFrame
from bluesky_cdi.evaluation.scan_maps import ScanMaps
from bluesky_cdi.export import FORMATS, SUFFIXES, export_result, load_to_export
from bluesky_cdi.physics.geometry import Geometry
from bluesky_cdi.protocols import Estimate, FloatArray
from bluesky_cdi.recorded_run import measured_frame, recorded_run, settings_of
from bluesky_cdi.web.kept import Kept
from bluesky_cdi.web.pairs import Pair
from bluesky_cdi.web.pictures import Picture, draw
from bluesky_cdi.web.run_list import Found, RunList
from bluesky_cdi.web.run_pictures import LATENT_MAP, THUMBNAIL_PX, picture, stored_thumbnail
from bluesky_cdi.web.run_view import describe
from bluesky_cdi.web.scan_pictures import PIXELS_MAX, SCAN_MAPS, scan_picture, sums_of_frames

# Of a run as it is: what is kept of it is made anew once it has changed.
Key = tuple[str, int | None]
FRAME_PICTURES = ("measured", "fit", "misfit")
# Standard deviations at the ends of the scale of a misfit.
MISFIT_ENDS = 5.0


class NotFoundError(CatalogError):
    """The catalog holds nothing of that name."""


@dataclass(frozen=True, eq=False)
class SeenFrame:
    """A frame of a run.

    Attributes
    ----------
    measured : ndarray, shape (N, N)
        Its counts; NaN where pixels don't count.
    fitted : FittedFrame or None
        What the final estimate expects; None before there is one.
    """

    measured: FloatArray
    fitted: FittedFrame | None


class Reader:
    """Answers the page's questions; each may come from any thread.

    Parameters
    ----------
    catalog : Catalog
        Where the runs are.
    config : Config
        Its section `documents` tells what of raw runs makes frames, and `detector` what is done to them, where no
        result tells it.
    """

    def __init__(self, catalog: Catalog, config: Config) -> None:
        self._catalog, self._config = catalog, config
        self.runs = RunList(catalog)
        self._views, self._pictures, self._small = Kept(32), Kept(128), Kept(2000)
        self._estimates, self._frames, self._pairs = Kept(2), Kept(32), Kept(2)
        self._scan_maps = Kept(8)
        self._columns = Kept(16)
        # One of each at a time: an export holds a whole result in memory, sums of frames all frames.
        self._exporting, self._summing = threading.Lock(), threading.Lock()

    def view(self, uid: str) -> dict[str, Any]:
        """Give all of a run that is no image; with the other results of its raw run."""
        raw, derived, *keys = self._found(uid)

        def read() -> dict[str, Any]:
            with self._catalog.reaching():
                measured, made = self._columns_of(raw, keys[0]), self._columns_of(derived, keys[1])
                return describe(self._catalog, measured, made, self._config.documents)

        ended = derived is not None and (raw is None or _has_ended(raw)) and _has_ended(derived)
        # Of a run that goes on all who look within a second get one answer: its server has the scan to serve.
        until = None if ended else int(time.monotonic())
        found = self._views.get((*keys, until), read)
        raw_uid = derived.start["raw_uid"] if derived is not None else uid
        others = [
            {"uid": each.uid, "time": each.time, "made_by": each.made_by} for each in self.runs.results_of(raw_uid)
        ]
        return {**found, "results": others}

    def image(self, uid: str, name: str, update: int, mode: int, limits: tuple[float, float] | None) -> Picture:
        """Give an image of a result, or of what the frames of its run say; see `run_pictures` and `scan_pictures`."""
        if name in SCAN_MAPS:
            return self._scan_map(uid, name)
        _, derived, _, key = self._derived(uid)

        def make() -> Picture:
            with self._catalog.reaching():
                return picture(self._columns_of(derived, key), name, update, mode=mode, limits=limits)

        # Counted from the end, or the map of a result that goes on, it may be another one next time.
        stays = update >= 0 and (name != LATENT_MAP or _has_ended(derived))
        return self._pictures.get((key, name, update, mode, limits), make) if stays else make()

    def thumbnail(self, uid: str) -> bytes:
        """Give a small PNG of a result."""
        _, derived, _, key = self._derived(uid)

        def make() -> bytes:
            if (stored := stored_thumbnail(derived.metadata)) is not None:
                return stored
            with self._catalog.reaching():
                return picture(self._columns_of(derived, key), "phase", -1, most_px=THUMBNAIL_PX).png

        return self._small.get(key, make) if _has_ended(derived) else make()

    def frame(self, uid: str, number: int) -> SeenFrame:
        """Give a frame of a run beside its fit, if there is a final estimate."""
        raw, derived, *keys = self._found(uid)
        if raw is None:
            raise NotFoundError(f"the catalog does not hold the raw run of {uid}, and so none of its frames")

        start = None if derived is None else derived.start
        complete = derived is not None and bool((derived.metadata.get("stop") or {}).get("complete"))

        def make() -> SeenFrame:
            from bluesky_cdi.reconstruction.frame_fit import fitted_frame

            config = self._config if start is None else settings_of(start, self._config)
            counts, valid = measured_frame(self._catalog, raw.start["uid"], number, config)
            fitted = None
            if start is not None and complete:
                rows, columns = start["frame_shape"]
                geometry = Geometry.from_metadata(start, (rows, columns))
                fitted = fitted_frame(self._estimate(start["uid"], keys[1]), geometry, number, counts, valid)
            return SeenFrame(np.where(valid, counts, np.nan), fitted)

        # A frame that was seen while the run went on has its fit later.
        return self._frames.get((*keys, complete, number), make)

    def frame_picture(self, uid: str, number: int, name: str) -> Picture:
        """Draw the pattern of a frame, its fit on the same scale, or their misfit in standard deviations."""
        found = self.frame(uid, number)
        counts = found.measured
        if name != "measured":
            if found.fitted is None:
                raise NotFoundError(f"there is no {name} before there is a final estimate")
            if name == "misfit":
                return draw(found.fitted.misfit, limits=(-MISFIT_ENDS, MISFIT_ENDS), colours="RdBu_r", unit="σ")
            counts = found.fitted.fit
        top = float(np.log10(1 + max(1.0, float(np.nanquantile(found.measured, 0.9999)))))
        return draw(np.log10(1 + counts), limits=(0.0, top), colours="magma", unit="log10(1 + counts)")

    def pair(self, first: str, second: str) -> Pair:
        """Give two results side by side."""
        found = [self._derived(uid) for uid in (first, second)]
        uids = [each.derived.start["uid"] for each in found]
        return self._pairs.get(tuple(each.derived_key for each in found), lambda: Pair.read(self._catalog, *uids))

    def export(self, uid: str, form: str, folder: Path) -> Path:
        """Write a result to a file in a folder; several files are put into a ZIP archive.

        Parameters
        ----------
        uid : str
            Of the result.
        form : str
            One of `FORMATS`.
        folder : Path
            An empty one.
        """
        derived = self._derived(uid).derived
        suffix = next(each for each, meant in SUFFIXES.items() if meant == form)
        # Only what the catalog's own numbers give: no text of the metadata goes into a file's name.
        scan = derived.start.get("scan_id")
        path = folder / f"scan_{scan if isinstance(scan, int) else 'unnumbered'}{suffix}"
        with self._exporting:
            written = export_result(path, load_to_export(self._catalog, derived.start["uid"]), form)
        if written == (path,):
            return path
        with zipfile.ZipFile(folder / f"{path.stem}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for each in written:
                archive.write(each, each.name)
        return folder / f"{path.stem}.zip"

    def _estimate(self, uid: str, key: Key) -> Estimate:
        return self._estimates.get(key, lambda: load_result(self._catalog, uid))

    def _scan_map(self, uid: str, name: str) -> Picture:
        raw, derived, *keys = self._found(uid)
        if raw is None or derived is None or not (derived.metadata.get("stop") or {}).get("complete"):
            raise NotFoundError("maps of a scan are drawn on the grid of its final estimate, from the raw run")
        start, n = derived.start, int(derived.metadata["stop"]["n_frames"])
        if n * math.prod(start["frame_shape"]) > PIXELS_MAX:
            raise CatalogError(f"the {n} frames are too many to be summed here; the live view has their maps")

        def read() -> ScanMaps:
            config = settings_of(start, self._config)
            return sums_of_frames(recorded_run(self._catalog, raw.start["uid"], config, unfinished=True))

        def sums() -> ScanMaps:
            with self._summing:
                # Who waited for the lock may find them made.
                return self._scan_maps.get(tuple(keys), read)

        def make() -> Picture:
            return scan_picture(self._scan_maps.get(tuple(keys), sums), self._estimate(start["uid"], keys[1]), name)

        return self._pictures.get((*keys, name), make)

    def _columns_of(self, run: Any, key: Key) -> RunColumns:
        """Give the columns of a run: those that were looked at before, if it is over; else as they are now."""
        if run is None or not _has_ended(run):
            return RunColumns(run)
        return self._columns.get(key, lambda: RunColumns(run))

    def _found(self, uid: str) -> Found:
        found = self.runs.find(uid)
        if found.raw is None and found.derived is None:
            raise NotFoundError("the catalog holds no run of this uid")
        return found

    def _derived(self, uid: str) -> Found:
        found = self.runs.find_result(uid)
        if found.derived is None:
            raise NotFoundError("the catalog holds no result of this run, or no run of this uid")
        return found


def _has_ended(run: Any) -> bool:
    """Tell whether a run had a stop document when it was found: it does not change any more."""
    return bool(run.metadata.get("stop"))


def temporary_folder() -> tempfile.TemporaryDirectory[str]:
    """Make a folder for a file that is sent and then forgotten."""
    return tempfile.TemporaryDirectory(prefix="bluesky_cdi-export-")


__all__ = ["FORMATS", "FRAME_PICTURES", "NotFoundError", "Reader", "temporary_folder"]
