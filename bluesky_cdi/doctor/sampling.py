"""Whether a configured geometry and scan can give an image."""

from __future__ import annotations

from collections.abc import Iterator

from bluesky_cdi.config import USUAL, Config
from bluesky_cdi.doctor.findings import Finding

# Neighbouring frames should share most of the probe; without a third of it nothing ties them together.
OVERLAP_WANTED, OVERLAP_LEAST = 0.6, 0.3
# A probe that fills more than this share of the frame's field of view is not sampled by the detector.
PROBE_SHARE = 0.5


def examine_sampling(config: Config) -> Iterator[Finding]:
    """Check geometry, probe and step against one another.

    Parameters
    ----------
    config : Config
        The one that is meant.
    """
    yield geometry(config)
    yield from probe_and_step(config)


def geometry(config: Config) -> Finding:
    """Compare energy, distance and pixel with those of other instruments.

    Parameters
    ----------
    config : Config
        With the geometry.
    """
    from bluesky_cdi.io import Preprocessing

    settings = config.geometry
    pixel_m = Preprocessing.stated_geometry(config).pixel_m
    text = (
        f"{settings.energy_ev:g} eV, {settings.distance_m:g} m, detector pixel {settings.detector_pixel_m * 1e6:g} um, "
        f"{settings.frame_px} pixels: {pixel_m * 1e9:.3g} nm a pixel of the sample"
    )
    odd = [
        f"geometry.{key} in {unit}"
        for key, (unit, low, high) in USUAL.items()
        if not low <= getattr(settings, key) <= high
    ]
    if odd:
        return Finding(
            "geometry", "warn", text, f"Few instruments have that: is it another unit? Check {', '.join(odd)}."
        )
    return Finding("geometry", "ok", text)


def probe_and_step(config: Config) -> Iterator[Finding]:
    """Compare the lens's probe with the field of view and with the step; a probe from a file is not looked at.

    Parameters
    ----------
    config : Config
        With geometry, probe and scan.
    """
    from bluesky_cdi.io import Preprocessing

    if config.geometry.propagation == "near" or config.probe.file is not None:
        yield Finding("sampling", "ok", "not looked at: a near field, or a probe from a file")
        return
    settings = config.geometry
    field_m = Preprocessing.stated_geometry(config).pixel_m * settings.frame_px
    wavelength_m = 1.239841984e-6 / settings.energy_ev
    aperture = config.probe.numerical_aperture
    # The blurred shadow of the aperture, and the diffraction limit.
    width_m = 2 * aperture * abs(config.probe.defocus_m) + wavelength_m / (2 * aperture)
    text = f"probe about {width_m * 1e6:.2g} um wide, field of view {field_m * 1e6:.3g} um"
    if width_m > PROBE_SHARE * field_m:
        advice = "More distance, smaller pixels, or less probe.defocus_m: frames can't hold so wide a probe."
        yield Finding("probe", "warn" if width_m < field_m else "fail", text, advice)
    else:
        yield Finding("probe", "ok", text)
    overlap = 1 - config.scan.step_um * 1e-6 / width_m
    text = f"step {config.scan.step_um:g} um, overlap about {100 * max(overlap, 0):.0f} % of the probe's width"
    if overlap < OVERLAP_WANTED:
        # Two digits may round up by 5 %.
        most_um = 0.95 * width_m * 1e6 * (1 - OVERLAP_WANTED)
        level = "fail" if overlap < OVERLAP_LEAST else "warn"
        yield Finding("step", level, text, f"Set scan.step_um to {most_um:.2g} or less.")  # type: ignore[arg-type]
    else:
        yield Finding("step", "ok", text)
