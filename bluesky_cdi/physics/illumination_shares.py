"""From what share of the light on a pixel counts, by purpose: thresholds of a summed illumination.

The module loads no torch, so that metrics and figures can use it.
"""

from __future__ import annotations

# Metrics, losses and figures: with less light than this share of the brightest pixel's there is noise, not an object.
MEASURED_SHARE = 0.02
# Comparing programs, as shares of the brightest pixel: at the faint border they differ by how they damp, so it is
# left out; a recorded scan's reference knows even less there.
ENGINES_SHARE = 0.05
REFERENCE_SHARE = 0.1
# Stitching a network's patches, as a share of the probe's peak: below it the division by the light amplifies
# rounding, and vacuum stands instead.
STITCHED_SHARE = 1e-3
# Keeping an object from step to step while frames come, as a share of the probe's peak: what fewer photons have shown
# is worth less than what the network makes of the new frames.
KNOWN_SHARE = 0.05
