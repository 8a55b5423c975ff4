"""Thickness maps from 0 to 1 in which samples are drawn: seeded, of any shape, in NumPy."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import numpy.typing as npt

FloatImage = npt.NDArray[np.float64]
Shape = tuple[int, int]


def siemens_star(shape: Shape, radius_px: float, spokes: int = 16, hub: float = 0.12) -> FloatImage:
    """Draw a Siemens star with a solid hub and one ring gap, centred; one spoke is missing over its outer half.

    Parameters
    ----------
    shape : tuple of int
        (Y, X) pixels.
    radius_px : float
        Radius of the star, pixels.
    spokes : int
        How many.
    hub : float
        Radius of the hub as a share of the star's.

    Returns
    -------
    ndarray, shape (Y, X), float64
        Thickness, 0 to 1.
    """
    y, x, r = _polar_grid(shape)
    angle = np.arctan2(y, x)
    # Edges one pixel soft: distance to the spoke's edge along the circle.
    along = np.sin(spokes * angle) * r / spokes
    spoke = np.clip(along + 0.5, 0, 1)
    ring = np.clip(np.abs(r - 0.55 * radius_px) - 0.035 * radius_px + 0.5, 0, 1)
    star = np.maximum(spoke * ring, np.clip(hub * radius_px - r + 0.5, 0, 1))
    # One spoke is missing over its outer half, so that no flip or rotation maps the star on itself.
    gap = (np.abs(angle - math.pi / (2 * spokes)) < math.pi / spokes) & (r > 0.6 * radius_px)
    return np.asarray(star * np.clip(radius_px - r + 0.5, 0, 1) * ~gap)


def particles(shape: Shape, rng: np.random.Generator, number: int, radius_px: tuple[float, float]) -> FloatImage:
    """Draw spheres at random places.

    Parameters
    ----------
    shape : tuple of int
        (Y, X) pixels.
    rng : Generator
        Draws what is random.
    number : int
        How many.
    radius_px : tuple of float
        Smallest and largest radius, pixels.

    Returns
    -------
    ndarray, shape (Y, X), float64
        Thickness, 0 to 1.
    """
    rows, columns = np.indices(shape)
    out = np.zeros(shape)
    for _ in range(number):
        radius = rng.uniform(*radius_px)
        cy, cx = rng.uniform(0, shape[0]), rng.uniform(0, shape[1])
        squared = 1 - ((rows - cy) ** 2 + (columns - cx) ** 2) / radius**2
        out = np.maximum(out, rng.uniform(0.5, 1) * np.sqrt(np.clip(squared, 0, None)))
    return out


def power_law_texture(shape: Shape, rng: np.random.Generator, exponent: float = 1.4) -> FloatImage:
    """Draw a random field squeezed into 0..1, whose amplitude spectrum falls as ``k ** -exponent``.

    Parameters
    ----------
    shape : tuple of int
        (Y, X) pixels.
    rng : Generator
        Draws what is random.
    exponent : float
        0: white noise.

    Returns
    -------
    ndarray, shape (Y, X), float64
        Thickness, 0 to 1.
    """
    return _squeeze(power_law_field(shape, rng, exponent), 2)


def power_law_field(shape: Shape, rng: np.random.Generator, exponent: float) -> FloatImage:
    """Draw a normal random field whose amplitude spectrum falls as ``k ** -exponent``.

    Parameters
    ----------
    shape : tuple of int
        (Y, X) pixels.
    rng : Generator
        Draws what is random.
    exponent : float
        0: white noise.

    Returns
    -------
    ndarray, shape (Y, X), float64
        Mean 0, variance 1.
    """
    k = _frequency(shape)
    k[0, 0] = 1
    noise = np.fft.ifft2(np.fft.fft2(rng.standard_normal(shape)) * k**-exponent).real
    return np.asarray((noise - noise.mean()) / noise.std())


def dead_leaves(shape: Shape, rng: np.random.Generator, radius_px: tuple[float, float]) -> FloatImage:
    """Draw discs of random height that hide each other, until they cover the plane.

    Radii fall as ``r ** -3`` between the limits, which makes the image statistically the same at every
    scale between them (Lee, Mumford and Huang, Int. J. Comput. Vis. 41, 35 (2001)).

    Parameters
    ----------
    shape : tuple of int
        (Y, X) pixels.
    rng : Generator
        Draws what is random.
    radius_px : tuple of float
        Smallest and largest radius, pixels.

    Returns
    -------
    ndarray, shape (Y, X), float64
        Thickness, 0 to 1.
    """
    low, high = radius_px
    mean_area = 2 * math.pi * math.log(high / low) / (low**-2 - high**-2)
    side_y, side_x = shape[0] + 2 * high, shape[1] + 2 * high
    # Seven layers on average leave a thousandth of the plane bare.
    number = math.ceil(7 * side_y * side_x / mean_area)
    radii = (low**-2 - rng.uniform(size=number) * (low**-2 - high**-2)) ** -0.5
    places = rng.uniform(size=(number, 2)) * (side_y, side_x) - high
    heights = rng.uniform(size=number)
    out = np.full(shape, 0.5)
    for radius, (cy, cx), height in zip(radii, places, heights, strict=True):
        box = _around(cy, radius, shape[0]), _around(cx, radius, shape[1])
        rows, columns = np.mgrid[box]
        out[box] += np.clip(radius - np.hypot(rows - cy, columns - cx) + 0.5, 0, 1) * (height - out[box])
    return out


def natural_scene(shape: Shape, rng: np.random.Generator) -> FloatImage:
    """Draw large leaves, each with one of two textures: power falls about as ``k ** -2``, edges stay sharp.

    The spectrum is that of natural images (Field, J. Opt. Soc. Am. A 4, 2379 (1987)).

    Parameters
    ----------
    shape : tuple of int
        (Y, X) pixels.
    rng : Generator
        Draws what is random.

    Returns
    -------
    ndarray, shape (Y, X), float64
        Thickness, 0 to 1.
    """
    side = min(shape)
    leaves = dead_leaves(shape, rng, (max(2.0, 0.03 * side), 0.4 * side))
    # Textures flatter than k ** -1 make up for the edges, which are steeper.
    high, low = (power_law_field(shape, rng, 0.8) for _ in range(2))
    return _squeeze(3 * (leaves - 0.5) + 0.7 * np.where(leaves > 0.5, high, low), 1.2)


def gratings(shape: Shape, rng: np.random.Generator, pitches_px: tuple[float, ...] = (4, 6, 9, 13, 18)) -> FloatImage:
    """Draw patches of lines, each with a pitch, a direction and a height of its own.

    Parameters
    ----------
    shape : tuple of int
        (Y, X) pixels.
    rng : Generator
        Draws what is random.
    pitches_px : tuple of float
        Pitches to choose from, pixels.

    Returns
    -------
    ndarray, shape (Y, X), float64
        Thickness, 0 to 1.
    """
    out = np.zeros(shape)
    cells = [max(2, round(side / (4 * max(pitches_px)))) for side in shape]
    edges = [np.linspace(0, side, number + 1).astype(int) for side, number in zip(shape, cells, strict=True)]
    for low_y, high_y in pairwise(edges[0]):
        for low_x, high_x in pairwise(edges[1]):
            rows, columns = np.mgrid[low_y + 2 : high_y - 2, low_x + 2 : high_x - 2]
            pitch, angle = rng.choice(pitches_px), rng.choice(np.arange(8)) * math.pi / 8
            along = rows * math.cos(angle) + columns * math.sin(angle) + rng.uniform(0, pitch)
            # Distance to the line's edge, half of the pitch being line; edges one pixel soft.
            line = np.clip(pitch / 4 - np.abs(along % pitch - pitch / 2) + 0.5, 0, 1)
            out[low_y + 2 : high_y - 2, low_x + 2 : high_x - 2] = line * rng.uniform(0.5, 1)
    return out


def wiring(shape: Shape, rng: np.random.Generator, widths_px: tuple[int, ...] = (3, 4, 6, 10)) -> FloatImage:
    """Draw layers of Manhattan wires, each wider than and across the one below, with vias between.

    A layer and the vias to the next are equally thick; all layers together are 1.

    Parameters
    ----------
    shape : tuple of int
        (Y, X) pixels.
    rng : Generator
        Draws what is random.
    widths_px : tuple of int
        Width of the wires of each layer, pixels.

    Returns
    -------
    ndarray, shape (Y, X), float64
        Thickness, 0 to 1.
    """
    out = np.zeros(shape)
    below = np.zeros(shape, bool)
    for layer, width in enumerate(widths_px):
        wires = _wires(shape if layer % 2 == 0 else shape[::-1], rng, width)
        wires = wires if layer % 2 == 0 else wires.T
        vias = _vias(wires & below, rng, widths_px[max(0, layer - 1)])
        out += wires.astype(float) + vias
        below = wires
    return out / (2 * len(widths_px) - 1)


def facets(shape: Shape, rng: np.random.Generator, number: int, radius_px: tuple[float, float]) -> FloatImage:
    """Draw flat crystals with straight edges at random places, overlapping ones as thick as the thicker.

    Parameters
    ----------
    shape : tuple of int
        (Y, X) pixels.
    rng : Generator
        Draws what is random.
    number : int
        How many.
    radius_px : tuple of float
        Smallest and largest radius, pixels.

    Returns
    -------
    ndarray, shape (Y, X), float64
        Thickness, 0 to 1.
    """
    rows, columns = np.indices(shape)
    out = np.zeros(shape)
    for _ in range(number):
        radius, cy, cx = rng.uniform(*radius_px), rng.uniform(0, shape[0]), rng.uniform(0, shape[1])
        corners = int(rng.integers(4, 8))
        turns = 2 * math.pi * (np.arange(corners) + rng.uniform(-0.2, 0.2, corners)) / corners + rng.uniform(0, math.pi)
        reach = radius * rng.uniform(0.7, 1.0, corners)
        depth = np.full(shape, np.inf)
        for turn, far in zip(turns, reach, strict=True):
            depth = np.minimum(depth, far - (rows - cy) * math.sin(turn) - (columns - cx) * math.cos(turn))
        out = np.maximum(out, rng.uniform(0.5, 1) * np.clip(depth + 0.5, 0, 1))
    return out


def labyrinth(shape: Shape, rng: np.random.Generator, period_px: float) -> FloatImage:
    """Draw winding bands of one width, as of a demixed blend.

    Parameters
    ----------
    shape : tuple of int
        (Y, X) pixels.
    rng : Generator
        Draws what is random.
    period_px : float
        Mean distance from band to band, pixels.

    Returns
    -------
    ndarray, shape (Y, X), float64
        Thickness, 0 to 1.
    """
    ring = np.exp(-(((_frequency(shape) * period_px - 1) / 0.2) ** 2))
    noise = np.fft.ifft2(np.fft.fft2(rng.standard_normal(shape)) * ring).real
    return _squeeze(noise / noise.std(), 5)


def _squeeze(field: FloatImage, slope: float) -> FloatImage:
    return np.asarray(1 / (1 + np.exp(-slope * field)))


def _frequency(shape: Shape) -> FloatImage:
    """Compute the cycles per pixel of each element of an FFT, shape (Y, X)."""
    return np.asarray(np.hypot(np.fft.fftfreq(shape[0])[:, None], np.fft.fftfreq(shape[1])[None, :]))


def _polar_grid(shape: Shape) -> tuple[FloatImage, FloatImage, FloatImage]:
    y = np.arange(shape[0])[:, None] - (shape[0] - 1) / 2 + np.zeros(shape)
    x = np.arange(shape[1])[None, :] - (shape[1] - 1) / 2 + np.zeros(shape)
    return y, x, np.hypot(y, x)


def _around(centre: float, radius: float, side: int) -> slice:
    """Return the indices along one axis that a disc touches."""
    low, high = (min(max(0, edge), side) for edge in (math.floor(centre - radius), math.ceil(centre + radius) + 1))
    return slice(low, high)


def _wires(shape: Shape, rng: np.random.Generator, width: int) -> npt.NDArray[np.bool_]:
    """Draw horizontal wires on tracks twice as far apart as they are wide, cut at random places."""
    out = np.zeros(shape, bool)
    for row in range(int(rng.integers(0, 2 * width)), shape[0], 2 * width):
        column = -int(rng.integers(0, 30 * width))
        while column < shape[1]:
            length = int(rng.integers(6, 40)) * width
            if rng.uniform() < 0.4:
                out[row : row + width, max(0, column) : max(0, column + length)] = True
            column += length + 2 * width
    return out


def _vias(crossing: npt.NDArray[np.bool_], rng: np.random.Generator, width: int) -> FloatImage:
    """Choose a random third of the places where two layers cross, on a mesh of `width` pixels."""
    mesh = rng.uniform(size=tuple(side // width + 1 for side in crossing.shape)) < 1 / 3
    chosen = np.repeat(np.repeat(mesh, width, axis=0), width, axis=1)
    return np.asarray(crossing & chosen[: crossing.shape[0], : crossing.shape[1]], float)
