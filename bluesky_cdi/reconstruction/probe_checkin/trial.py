"""What is tried in place of what is assumed: a probe, and how frames and positions lie."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bluesky_cdi.reconstruction.orientation import AS_STATED, Orientation

# Aberrations in the order of their coefficients.
ABERRATIONS = ("defocus", "astigmatism", "oblique astigmatism", "coma along y", "coma along x", "spherical aberration")
DEFOCUS = 0


@dataclass(frozen=True)
class Trial:
    """Changes of what is assumed; by default none.

    Attributes
    ----------
    amplitude : {'assumed', 'frames'}
        Of the main mode at the detector: the assumed one, or the square root of the mean frame.
    flat : bool
        The assumed phase at the detector is dropped.
    aberrations_rad : tuple of float
        Added phase, root mean square over the pupil, radians; in the order of `ABERRATIONS`.
    powers : tuple of float, optional
        Share of each mode in the photons; as assumed if absent.
    centre_px : tuple of int
        Where the beam's centre lies on the frames (rows, columns), pixels from where it is assumed to lie.
    scale : float
        Factor on the distances between positions, in pixels.
    orientation : Orientation
        How the positions are turned.
    """

    amplitude: Literal["assumed", "frames"] = "assumed"
    flat: bool = False
    aberrations_rad: tuple[float, ...] = (0.0,) * len(ABERRATIONS)
    powers: tuple[float, ...] | None = None
    centre_px: tuple[int, int] = (0, 0)
    scale: float = 1.0
    orientation: Orientation = AS_STATED

    @property
    def keeps_probe(self) -> bool:
        """Whether the probe is the assumed one."""
        return self.amplitude == "assumed" and not self.flat and self.powers is None and not any(self.aberrations_rad)

    @property
    def border_px(self) -> int:
        """Pixels along a border of the frames that come in from the other side when they are moved."""
        return max(map(abs, self.centre_px))

    @property
    def keeps_places(self) -> bool:
        """Whether the positions are the assumed ones."""
        return self.scale == 1.0 and self.orientation == AS_STATED
