"""Where pixels are: wavelength, sample pixel, and the grid on which frames are stitched.

The one place in which metres become pixels. Imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from bluesky_cdi.errors import GeometryError
from bluesky_cdi.protocols import FloatArray

# h c in eV m, exact since the 2019 SI (CODATA): photon energy times wavelength.
HC_EV_M = 1.239841984332e-6
# A scan within less than this part of a sample pixel is none, and one over more than so many fields of view of a frame
# is none that anybody measures: a length or an energy is in another unit.
LEAST_PIXELS, MOST_FIELDS = 0.5, 1000.0


@dataclass(frozen=True)
class Geometry:
    """Geometry of a scanning diffraction experiment.

    In the far field a frame is the squared Fourier transform of the exit wave. In the near field
    it is the sample's shadow with interference: the sample stands in a parallel beam, or behind a
    focus, which magnifies the shadow. A magnified near field is computed as the parallel beam that
    is equivalent to it: magnification ``M = (z1 + z2) / z1``, pixel ``p / M`` and distance
    ``z2 / M`` (the Fresnel scaling theorem; Paganin, Coherent X-Ray Optics, 2006, appendix B).

    Parameters
    ----------
    energy_ev : float
        Photon energy, eV.
    distance_m : float
        Sample to detector, ``z2``, metres.
    detector_pixel_m : float
        Detector pixel, ``p``, metres.
    frame_px : int
        Pixels along one side of the (square) frame, N.
    propagation : {'far', 'near'}
        From sample to detector.
    focus_to_sample_m : float, optional
        Near field only: focus to sample, ``z1``, metres; a parallel beam if absent.

    Raises
    ------
    GeometryError
        If a value is not finite and positive, `propagation` is neither, or a far field has a focus distance.
    """

    energy_ev: float
    distance_m: float
    detector_pixel_m: float
    frame_px: int
    propagation: Literal["far", "near"] = "far"
    focus_to_sample_m: float | None = None

    def __post_init__(self) -> None:
        positive = {name: getattr(self, name) for name in ("energy_ev", "distance_m", "detector_pixel_m", "frame_px")}
        if self.focus_to_sample_m is not None:
            positive["focus_to_sample_m"] = self.focus_to_sample_m
        for name, value in positive.items():
            if not isinstance(value, (int, float)) or not math.isfinite(value) or value <= 0:
                raise GeometryError(f"geometry.{name} must be a finite positive number; it is {value!r}")
        if self.propagation not in ("far", "near"):
            raise GeometryError(f"geometry.propagation must be 'far' or 'near'; it is {self.propagation!r}")
        if self.propagation == "far" and self.focus_to_sample_m is not None:
            raise GeometryError(
                "geometry.focus_to_sample_m belongs to the near field; state propagation = 'near', or leave it out"
            )

    @property
    def wavelength_m(self) -> float:
        """Wavelength, metres."""
        return HC_EV_M / self.energy_ev

    @property
    def magnification(self) -> float:
        """Size of the shadow over that of the sample; 1 in a parallel beam and in the far field."""
        if self.focus_to_sample_m is None:
            return 1.0
        return (self.focus_to_sample_m + self.distance_m) / self.focus_to_sample_m

    @property
    def effective_distance_m(self) -> float:
        """Distance of the equivalent parallel beam, metres."""
        return self.distance_m / self.magnification

    @property
    def pixel_m(self) -> float:
        """Sample pixel, metres: ``p / M`` in the near field, ``wavelength * distance / (N p)`` in the far."""
        if self.propagation == "near":
            return self.detector_pixel_m / self.magnification
        return self.wavelength_m * self.distance_m / (self.frame_px * self.detector_pixel_m)

    def as_metadata(self) -> dict[str, Any]:
        """Return the geometry as a start document carries it, under the key ``geometry``."""
        stated: dict[str, Any] = {
            "energy_ev": self.energy_ev,
            "distance_m": self.distance_m,
            "detector_pixel_m": self.detector_pixel_m,
        }
        if self.propagation == "near":
            stated["propagation"] = self.propagation
            if self.focus_to_sample_m is not None:
                stated["focus_to_sample_m"] = self.focus_to_sample_m
        return stated

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any], frame_shape: tuple[int, int]) -> Geometry:
        """Read the geometry of a run from its start document.

        Parameters
        ----------
        metadata : Mapping
            Start document; its key ``geometry`` holds `energy_ev`, `distance_m`, `detector_pixel_m`, and in the
            near field `propagation` and `focus_to_sample_m`.
        frame_shape : tuple of int
            (H, W) of the frames.

        Raises
        ------
        GeometryError
            If the key or one of its values is missing, or the frame is not square.
        """
        found = metadata.get("geometry")
        wanted = ("energy_ev", "distance_m", "detector_pixel_m")
        values: Mapping[str, Any] = found if isinstance(found, Mapping) else {}
        missing = [k for k in wanted if k not in values]
        if missing:
            raise GeometryError(
                f"the run's metadata must hold geometry = {{{', '.join(wanted)}}}; missing: {', '.join(missing)}. "
                "Put it into RE.md['geometry'], or pass it to the plan in md."
            )
        if frame_shape[0] != frame_shape[1]:
            raise GeometryError(
                f"frames must be square; they are {frame_shape[0]} x {frame_shape[1]}. "
                "Set the detector's region of interest to a square centred on the direct beam."
            )
        try:
            energy, distance, pixel = (float(values[k]) for k in wanted)
            focus = values.get("focus_to_sample_m")
            focus = None if focus is None else float(focus)
        except (TypeError, ValueError) as err:
            raise GeometryError(f"geometry must hold numbers; it holds {dict(values)!r}") from err
        return cls(energy, distance, pixel, int(frame_shape[0]), values.get("propagation", "far"), focus)


@dataclass(frozen=True)
class ObjectGrid:
    """Where the object's pixels lie: the grid on which frames are stitched.

    Parameters
    ----------
    origin_m : tuple of float
        Sample position (y, x) of pixel [0, 0], metres.
    shape : tuple of int
        (Y, X) pixels.
    pixel_m : float
        Sample pixel, metres.
    frame_px : int
        Pixels along one side of a frame, N.
    """

    origin_m: tuple[float, float]
    shape: tuple[int, int]
    pixel_m: float
    frame_px: int

    @classmethod
    def covering(
        cls, low_m: FloatArray, high_m: FloatArray, pixel_m: float, frame_px: int, margin_px: int = 2
    ) -> ObjectGrid:
        """Make the smallest grid that holds every patch of probes centred in a window.

        Parameters
        ----------
        low_m, high_m : ndarray, shape (2,)
            Corners (y, x) of the window of probe centres, metres.
        pixel_m : float
            Sample pixel, metres.
        frame_px : int
            Pixels along one side of a frame, N.
        margin_px : int
            Extra pixels at each border, for stages that overshoot.

        Raises
        ------
        GeometryError
            If the window is empty or not finite, smaller than half a pixel or larger than `MOST_FIELDS` frames (a
            length or an energy in the wrong unit looks like this), or the grid would exceed 2**28 pixels.
        """
        low, high = np.asarray(low_m, float), np.asarray(high_m, float)
        if not (np.isfinite(low).all() and np.isfinite(high).all() and (high >= low).all()):
            raise GeometryError(f"a scan window needs finite corners low <= high; they are {low} and {high} metres")
        extent = float((high - low).max())
        if 0 < extent < LEAST_PIXELS * pixel_m:
            raise GeometryError(
                f"a scan's window must be larger than half a sample pixel; it is {extent:.3g} m wide, and a pixel is "
                f"{pixel_m:.3g} m. Are the positions and the distance in metres (not millimetres), and the energy in "
                "eV (not keV)?"
            )
        if extent > MOST_FIELDS * frame_px * pixel_m:
            raise GeometryError(
                f"a scan's window must be smaller than {MOST_FIELDS:g} frames; it is {extent:.3g} m wide, and a frame "
                f"sees {frame_px * pixel_m:.3g} m ({frame_px} pixels of {pixel_m:.3g} m). Are the positions and the "
                "detector's pixel in metres (not micrometres), and the distance too?"
            )
        half = frame_px // 2 + margin_px
        sides = np.ceil((high - low) / pixel_m) + 2 * half + 1
        # Still floating point: as integers, the product of two absurd sides can wrap to a small one.
        if sides.prod() > 2**28:
            raise GeometryError(
                f"the window {high - low} m needs an object grid of {sides[0]:.6g} x {sides[1]:.6g} pixels "
                f"of {pixel_m:.3g} m, more than 2**28. Are the positions in metres, and is the geometry right?"
            )
        origin = low - half * pixel_m
        return cls((float(origin[0]), float(origin[1])), (int(sides[0]), int(sides[1])), float(pixel_m), int(frame_px))

    def grown_to(
        self, positions_m: FloatArray, slack_px: int, multiple_px: int = 1, most_px: int = 2**24
    ) -> ObjectGrid:
        """Make the grid larger, by whole pixels, where patches would leave it.

        Parameters
        ----------
        positions_m : ndarray, shape (n, 2)
            Probe centres (y, x), metres.
        slack_px : int
            Pixels by which a side that grows at all grows beyond them.
        multiple_px : int
            Each side grows by a multiple of so many pixels.
        most_px : int
            Pixels that the larger grid may have.

        Returns
        -------
        ObjectGrid
            This one where nothing would leave it.

        Raises
        ------
        GeometryError
            If the larger grid would have more pixels.
        """
        inside = self.contains(positions_m)
        centre = np.rint((np.asarray(positions_m, float)[~inside] - np.asarray(self.origin_m)) / self.pixel_m)
        if not len(centre) or not np.isfinite(centre).all():
            return self
        low = centre.min(axis=0) - self.frame_px // 2
        high = centre.max(axis=0) - self.frame_px // 2 + self.frame_px
        before, after = (
            np.where(missing > 0, np.ceil((missing + slack_px) / multiple_px) * multiple_px, 0)
            for missing in (-low, high - self.shape)
        )
        sides = before + self.shape + after
        if sides.prod() > most_px:
            raise GeometryError(
                f"a position lies so far from those before it that the object grid would grow from {self.shape[0]} x "
                f"{self.shape[1]} to {sides[0]:.6g} x {sides[1]:.6g} pixels, more than {most_px}: is it the stage's? "
                "State the scan's window in the run's metadata (`window_m`)."
            )
        origin = np.asarray(self.origin_m) - before * self.pixel_m
        return ObjectGrid(
            (float(origin[0]), float(origin[1])), (int(sides[0]), int(sides[1])), self.pixel_m, self.frame_px
        )

    def place(self, positions_m: FloatArray) -> tuple[np.ndarray[Any, Any], FloatArray]:
        """Convert probe centres to patch corners and sub-pixel shifts.

        Parameters
        ----------
        positions_m : ndarray, shape (n, 2)
            (y, x), metres.

        Returns
        -------
        corner : ndarray, shape (n, 2), int64
            First row and column of each N x N patch.
        shift_px : ndarray, shape (n, 2), float64
            What remains, in [-0.5, 0.5]: the probe's centre relative to pixel
            ``corner + N // 2``.

        Raises
        ------
        GeometryError
            If a patch would leave the grid.
        """
        centre = (np.asarray(positions_m, float) - np.asarray(self.origin_m)) / self.pixel_m
        outside = ~self.contains(positions_m)
        if outside.any():
            first = np.asarray(positions_m)[outside][0]
            raise GeometryError(
                f"{int(outside.sum())} position(s) lie outside the object grid, the first at (y, x) = {first} m; "
                "it is made for the window in the run's metadata (`window_m`): "
                "measure inside it, or state the real one."
            )
        nearest = np.rint(centre)
        return nearest.astype(np.int64) - self.frame_px // 2, centre - nearest

    def contains(self, positions_m: FloatArray) -> np.ndarray[Any, Any]:
        """Test which positions (n, 2), metres, have their patches on the grid; shape (n,), bool.

        Parameters
        ----------
        positions_m : ndarray, shape (n, 2)
            Probe centres (y, x), metres.
        """
        centre = np.rint((np.asarray(positions_m, float) - np.asarray(self.origin_m)) / self.pixel_m)
        low = centre - self.frame_px // 2
        return np.asarray(((low >= 0) & (low + self.frame_px <= np.asarray(self.shape))).all(axis=1))
