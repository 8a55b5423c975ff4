"""Two results side by side: aligned on the area that both have measured, and their difference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from bluesky_cdi.catalog import Catalog
from bluesky_cdi.evaluation.alignment import wrap_rad
from bluesky_cdi.evaluation.gauge import phase_rad
from bluesky_cdi.evaluation.products import ProductComparison, compare_products
from bluesky_cdi.export import load_to_export
from bluesky_cdi.io.product import product_of
from bluesky_cdi.protocols import FloatArray
from bluesky_cdi.viz.panels import limits_of
from bluesky_cdi.web.pictures import Picture, draw

SIDES = ("first", "second", "difference")
QUANTITIES = {"phase": "rad", "amplitude": "relative to vacuum"}


@dataclass(frozen=True, eq=False)
class Pair:
    """Two results that were made comparable.

    Attributes
    ----------
    names : tuple of str
        Of both.
    comparison : ProductComparison
        The first one without its ramp, scaled to the second, beside the second on the first one's grid.
    """

    names: tuple[str, str]
    comparison: ProductComparison

    @classmethod
    def read(cls, catalog: Catalog, first: str, second: str) -> Pair:
        """Read two complete results and align them.

        Parameters
        ----------
        catalog : Catalog
            Where they are.
        first, second : str
            Uids of the derived runs.

        Raises
        ------
        CatalogError
            If one is not complete.
        GeometryError
            If their pixels differ, or they share too little.
        """
        results = [load_to_export(catalog, uid) for uid in (first, second)]
        products = [product_of(result.estimate, result.geometry, result.name) for result in results]
        return cls((results[0].name, results[1].name), compare_products(products[0], products[1]))

    def describe(self) -> dict[str, Any]:
        """Give names, shift, the measures of how far they agree, and the grid of the images."""
        found = self.comparison
        return {
            "names": list(self.names),
            "shift_m": list(found.shift_m),
            "numbers": dict(found.images.numbers),
            "grid": {
                "pixel_m": found.pixel_m,
                "origin_m": list(found.origin_m),
                "shape": list(found.images.mask.shape),
            },
        }

    def picture(self, side: str, quantity: str) -> Picture:
        """Draw one side, both in one scale, or the difference of the first less the second.

        Parameters
        ----------
        side : str
            One of `SIDES`.
        quantity : str
            One of `QUANTITIES`.
        """
        mask, unit = self.comparison.images.mask, QUANTITIES[quantity]
        first, second = self._images(quantity)
        if side == "difference":
            difference = first - second if quantity == "amplitude" else wrap_rad(first - second)
            most = float(np.percentile(np.abs(difference[mask]), 99.5)) or 1e-6
            return draw(difference, covered=mask, limits=(-most, most), colours="RdBu_r", unit=unit)
        limits = limits_of(np.ma.array(np.stack([first, second]), mask=np.stack([~mask, ~mask])))
        return draw(first if side == "first" else second, covered=mask, limits=limits, unit=unit)

    def _images(self, quantity: str) -> tuple[FloatArray, FloatArray]:
        images = self.comparison.images
        if quantity == "amplitude":
            return np.abs(images.object), np.abs(images.truth)
        # Both from the second one's mean: the first was scaled to it.
        second = phase_rad(images.truth, images.mask)
        return np.asarray(second + np.angle(images.object * np.conj(images.truth))), second
