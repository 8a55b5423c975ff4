"""Plans, and the configured scan."""

import bluesky.plan_stubs as bps
import bluesky.plans as bp

from bluesky_cdi.catalog import list_results, load_result
from bluesky_cdi.plans import adaptive_ptycho, ptycho_raster, ptycho_spiral


def adaptive(**changes):
    """Run the configured adaptive scan, e.g. ``RE(adaptive(budget=100))``."""
    return adaptive_ptycho([diff, i0], stage.y, stage.x, live, **{**config.scan.as_plan_arguments(), **changes})


def show(which=-1):
    """Draw a result of the catalog: by scan number, uid, or -1 for the newest."""
    session.wait()
    live_view(load_result(catalog, which))
    live_view.draw()
    return live_view.figure
