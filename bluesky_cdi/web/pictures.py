"""Arrays as PNG images for a browser: grey or in a colour map, transparent where nothing was measured."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
import numpy.typing as npt

from bluesky_cdi.protocols import FloatArray
from bluesky_cdi.viz.panels import limits_of

# Pixels along the longer side that a browser gets at most; larger images are averaged over blocks.
MOST_PX = 1024
Colours = Literal["gray", "viridis", "magma", "RdBu_r", "twilight"]
BoolImage = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Picture:
    """A PNG image, and what its colours mean.

    Attributes
    ----------
    png : bytes
    low, high : float
        Values at the two ends of the scale; NaN where colours are what they are.
    colours : str
        Name of the colour map; empty where colours are what they are.
    unit : str
    shape : tuple of int
        (Y, X) of the array, before blocks were averaged.
    """

    png: bytes
    low: float
    high: float
    colours: str
    unit: str
    shape: tuple[int, int]


def draw(
    values: FloatArray,
    *,
    covered: BoolImage | None = None,
    limits: tuple[float, float] | None = None,
    colours: Colours = "gray",
    unit: str = "",
    most_px: int = MOST_PX,
) -> Picture:
    """Draw an image; row 0 is above.

    Parameters
    ----------
    values : ndarray, shape (Y, X)
        What is drawn; pixels that are not finite are transparent.
    covered : ndarray, shape (Y, X), bool, optional
        Where there is something to see; the rest is transparent.
    limits : pair of float, optional
        Values at the ends of the scale; by default `limits_of`.
    colours : str
        The colour map.
    unit : str
        Of the values.
    most_px : int
        Longer side of the PNG at most.
    """
    seen = _seen(values, covered)
    low, high = limits or limits_of(np.ma.array(values, mask=~seen))
    small, share = _averaged(np.where(seen, values, 0.0).astype(np.float64), seen, most_px)
    level = np.clip((small - low) / (high - low), 0, 1)
    index = np.rint(255 * level).astype(np.uint8)
    opaque = np.where(share >= 0.5, 255, 0).astype(np.uint8)
    shape = (int(values.shape[0]), int(values.shape[1]))
    if colours == "gray":
        return Picture(_encoded(np.dstack([index, opaque])), low, high, colours, unit, shape)
    return Picture(_encoded(np.dstack([_table(colours)[index], opaque])), low, high, colours, unit, shape)


def draw_colours(values: FloatArray, most_px: int = MOST_PX) -> Picture:
    """Draw an image whose colours are given, (Y, X, 3), 0 to 1; pixels that are not finite are transparent."""
    seen = _seen(values.sum(axis=-1), None)
    parts = [_averaged(np.where(seen, values[..., k], 0.0).astype(np.float64), seen, most_px) for k in range(3)]
    levels = np.dstack([np.rint(255 * np.clip(part, 0, 1)) for part, _ in parts]).astype(np.uint8)
    opaque = np.where(parts[0][1] >= 0.5, 255, 0).astype(np.uint8)
    shape = (int(values.shape[0]), int(values.shape[1]))
    return Picture(_encoded(np.dstack([levels, opaque])), math.nan, math.nan, "", "", shape)


def _seen(values: FloatArray, covered: BoolImage | None) -> BoolImage:
    finite = np.isfinite(values)
    return np.asarray(finite if covered is None else finite & covered, np.bool_)


def _averaged(
    values: npt.NDArray[np.float64], seen: BoolImage, most_px: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Average the seen pixels over square blocks; the averages, and the share of each block that is seen."""
    block = math.ceil(max(values.shape) / most_px)
    if block <= 1:
        return values, seen.astype(np.float64)
    rows, columns = (np.arange(0, side, block) for side in values.shape)
    total, number, room = (
        np.add.reduceat(np.add.reduceat(each, rows, axis=0), columns, axis=1)
        for each in (values, seen.astype(np.float64), np.ones(values.shape))
    )
    return np.divide(total, number, out=np.zeros_like(total), where=number > 0), number / room


def _encoded(pixels: npt.NDArray[np.uint8]) -> bytes:
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "png", compress_level=3)
    return out.getvalue()


@cache
def _table(colours: str) -> npt.NDArray[np.uint8]:
    from matplotlib import colormaps

    return np.asarray(np.rint(255 * np.asarray(colormaps[colours](np.arange(256)))[:, :3]), np.uint8)
