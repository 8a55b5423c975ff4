"""What frames have in common: embeddings of frames as coordinates, colours, clusters, and as unlike all seen before.

Everything here is NumPy, and scikit-learn where clusters are sought.
"""

from bluesky_cdi.latents.clusters import cluster_frames, representatives
from bluesky_cdi.latents.columns import LatentColumns, latent_columns
from bluesky_cdi.latents.frames import Latents, latents_of
from bluesky_cdi.latents.known import KnownFrames, known_of_runs
from bluesky_cdi.latents.painting import paint_frames
from bluesky_cdi.latents.projection import LatentProjection, projection_of_run
from bluesky_cdi.latents.store import find_projection, load_projection, projection_for, save_projection

__all__ = [
    "KnownFrames",
    "LatentColumns",
    "LatentProjection",
    "Latents",
    "cluster_frames",
    "find_projection",
    "known_of_runs",
    "latent_columns",
    "latents_of",
    "load_projection",
    "paint_frames",
    "projection_for",
    "projection_of_run",
    "representatives",
    "save_projection",
]
