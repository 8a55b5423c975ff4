"""Plans of this beamline: the configured scans, with its devices and its live reconstruction.

Their arguments are plain numbers and texts, so that a queue server can run them too.
"""

from collections.abc import Sequence
from typing import Any, Literal

import bluesky.plan_stubs as bps
import bluesky.plans as bp

from bluesky_cdi.catalog import list_results, load_result
from bluesky_cdi.plans import adaptive_ptycho, ptycho_fly, ptycho_raster, ptycho_spiral


def adaptive(
    budget: int = config.scan.budget,
    *,
    extent_um: Sequence[float] = config.scan.extent_um,
    step_um: float = config.scan.step_um,
    centre_um: Sequence[float] = config.scan.centre_um,
    batch: int = config.scan.batch,
    decision_timeout_s: float = config.scan.decision_timeout_s,
    on_reconstruction_failure: Literal["continue", "pause", "abort"] = config.scan.on_reconstruction_failure,
    md: dict[str, Any] | None = None,
):
    """Run the configured adaptive scan, e.g. ``RE(adaptive(budget=100))``."""
    return (
        yield from adaptive_ptycho(
            [diff, i0],
            stage.y,
            stage.x,
            live,
            extent_um=extent_um,
            step_um=step_um,
            budget=budget,
            centre_um=centre_um,
            batch=batch,
            decision_timeout_s=decision_timeout_s,
            on_reconstruction_failure=on_reconstruction_failure,
            md=md,
        )
    )


def full(
    *,
    extent_um: Sequence[float] = config.scan.extent_um,
    step_um: float = config.scan.step_um,
    centre_um: Sequence[float] = config.scan.centre_um,
    md: dict[str, Any] | None = None,
):
    """Run the full raster of the configured window, reconstructed live."""
    return (
        yield from ptycho_raster(
            [diff, i0], stage.y, stage.x, live, extent_um=extent_um, step_um=step_um, centre_um=centre_um, md=md
        )
    )


def fly(
    rate_hz: float = 50.0,
    exposure_s: float = 0.002,
    *,
    extent_um: Sequence[float] = config.scan.extent_um,
    step_um: float = config.scan.step_um,
    centre_um: Sequence[float] = config.scan.centre_um,
    pattern: Literal["raster", "spiral"] = "raster",
    md: dict[str, Any] | None = None,
):
    """Fly over the configured window without stopping, reconstructed live, e.g. ``RE(fly())``."""
    return (
        yield from ptycho_fly(
            [diff],
            stage.y,
            stage.x,
            scanner,
            live,
            extent_um=extent_um,
            step_um=step_um,
            rate_hz=rate_hz,
            centre_um=centre_um,
            exposure_s=exposure_s,
            pattern=pattern,
            md=md,
        )
    )


def show(which=-1):
    """Show a result of the catalog, in the live view's window too: by scan number, uid, or -1 for the newest."""
    session.wait()
    return live_view.show(load_result(catalog, which))
