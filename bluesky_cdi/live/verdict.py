"""Whether an estimate may be shown."""

from __future__ import annotations

import numpy as np

from bluesky_cdi.protocols import Estimate

# Images and rows of an estimate that must be numbers everywhere.
FINITE = ("object", "probe", "std_amplitude", "std_phase_rad", "residual")
# An empty field is explained by vacuum as well as by any image of it, give or take the image's noise.
VACUUM_MARGIN = 1.1


def fault_of(estimate: Estimate) -> str:
    """Say what is wrong with an estimate; nothing where it may be shown.

    It must be finite, and explain its frames no worse than an empty field does: a wrong assumed probe or geometry,
    or a network that was trained for something else, may give an image that looks well and is not the sample.
    """
    for name in FINITE:
        bad = ~np.isfinite(getattr(estimate, name))
        if bad.any():
            return f"{100 * bad.mean():.3g} % of {name} is not finite"
    if estimate.vacuum_residual is None or not len(estimate.residual):
        return ""
    found, vacuum = float(np.mean(estimate.residual)), float(np.mean(estimate.vacuum_residual))
    if found > VACUUM_MARGIN * vacuum:
        return f"it explains its frames worse than an empty field (deviance {found:.3g} a pixel against {vacuum:.3g})"
    return ""
