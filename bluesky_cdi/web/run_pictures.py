"""The images of a result: each update's, and of the final estimate the map of its latents."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any

import numpy as np

from bluesky_cdi.catalog.columns import Columns, RunColumns
from bluesky_cdi.catalog.schema import MAPPED, UPDATES
from bluesky_cdi.errors import CatalogError
from bluesky_cdi.evaluation.gauge import measured_area, phase_rad
from bluesky_cdi.protocols import FloatArray
from bluesky_cdi.web.pictures import Colours, Picture, draw, draw_colours

# Of an image: unit, colour map, and whether only the measured area is drawn.
IMAGES: Mapping[str, tuple[str, Colours, bool]] = {
    "phase": ("rad", "gray", True),
    "amplitude": ("relative to vacuum", "gray", True),
    "std_phase_rad": ("rad", "viridis", True),
    "std_amplitude": ("relative to vacuum", "viridis", True),
    "coverage": ("photons per pixel", "viridis", False),
}
PROBE: Mapping[str, tuple[str, Colours]] = {
    "probe_amplitude": ("square root of photons", "gray"),
    # As in figures: its two ends are one phase.
    "probe_phase": ("rad", "twilight"),
}
LATENT_MAP = "latent_map"
NAMES = (*IMAGES, *PROBE, LATENT_MAP)
THUMBNAIL_PX = 160
# The most that a stored thumbnail may have, bytes.
THUMBNAIL_MAX = 64 * 2**10
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# The phase of the probe means nothing where there is hardly any light: below this share of the largest amplitude.
DARK_SHARE = 0.05


def picture(
    made: RunColumns,
    name: str,
    update: int,
    *,
    mode: int = 0,
    limits: tuple[float, float] | None = None,
    **options: Any,
) -> Picture:
    """Draw an image of a result.

    Parameters
    ----------
    made : RunColumns
        Of the derived run.
    name : str
        One of `NAMES`.
    update : int
        Which update, from 0, or from -1 back.
    mode : int
        Which mode of the probe.
    limits : pair of float, optional
        Values at the ends of the scale.
    **options
        For `pictures.draw`.

    Raises
    ------
    CatalogError
        If there is no such update or mode, or the result holds no such image.
    """
    uid = str(made.run.start["uid"])
    if name == LATENT_MAP:
        return _latent_map(made.of(MAPPED), uid)
    columns = made.of(UPDATES)
    row = _row(columns, uid, update)
    if name in PROBE:
        return _probe(columns, uid, name, row, mode, limits)
    coverage = columns.row("coverage", row)
    values = _of_object(columns, name, row, coverage)
    unit, colours, inside = IMAGES[name]
    covered = measured_area(coverage) if inside else None
    return draw(values, covered=covered, limits=limits, colours=colours, unit=unit, **options)


def stored_thumbnail(derived: Mapping[str, Any]) -> bytes | None:
    """Give the small PNG of the phase that is stored with a result; None where there is none that can be shown.

    Parameters
    ----------
    derived : Mapping
        Metadata of the derived run.
    """
    stored = (derived.get("stop") or {}).get("thumbnail")
    if isinstance(stored, str) and len(stored) <= THUMBNAIL_MAX:
        try:
            png = base64.b64decode(stored, validate=True)
        except binascii.Error:
            png = b""
        if png.startswith(PNG_SIGNATURE):
            return png
    return None


def _row(columns: Columns, uid: str, update: int) -> int:
    n = columns.rows_of("coverage")
    row = update if update >= 0 else n + update
    if not 0 <= row < n:
        raise CatalogError(f"the result {uid} holds {n} update(s) so far; there is no update {update}")
    return row


def _of_object(columns: Columns, name: str, row: int, coverage: FloatArray) -> FloatArray:
    # Results of earlier versions hold the complex object alone.
    if name in columns or name not in ("phase", "amplitude"):
        return columns.row(name, row)
    image = columns.row("object", row)
    return phase_rad(image, measured_area(coverage)) if name == "phase" else np.asarray(np.abs(image))


def _probe(columns: Columns, uid: str, name: str, row: int, mode: int, limits: tuple[float, float] | None) -> Picture:
    probe = columns.row("probe", row)
    if not 0 <= mode < len(probe):
        raise CatalogError(f"the probe of the result {uid} has {len(probe)} mode(s), from 0; there is no mode {mode}")
    unit, colours = PROBE[name]
    amplitude = np.abs(probe[mode])
    if name == "probe_amplitude":
        return draw(amplitude, limits=limits or (0.0, float(amplitude.max()) or 1.0), colours=colours, unit=unit)
    phase = columns.row(name, row)[mode] if name in columns else np.angle(probe[mode])
    bright = amplitude > DARK_SHARE * amplitude.max()
    return draw(phase, covered=bright, limits=limits or (-np.pi, np.pi), colours=colours, unit=unit)


def _latent_map(columns: Columns, uid: str) -> Picture:
    if columns.rows_of(LATENT_MAP) == 0:
        raise CatalogError(f"the result {uid} holds no map of latents: only the final estimate of newer results does")
    return draw_colours(columns.row(LATENT_MAP, 0))
