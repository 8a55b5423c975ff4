"""RunEngine, catalog and live reconstruction."""

import atexit
from multiprocessing.util import Finalize
from pathlib import Path

import matplotlib

from bluesky_cdi.callbacks import LiveReconstruction
from bluesky_cdi.config import files_in_environment, load_config
from bluesky_cdi.log import configure_logging
from bluesky_cdi.session import Session

configure_logging()
config = load_config([Path(__file__).parents[1] / "config.yaml", *files_in_environment()])

# Without a window, drawing each image would only cost the worker time: `show()` draws the newest.
live_view = LiveReconstruction()
_has_window = matplotlib.get_backend().lower() not in ("agg", "pdf", "svg", "ps", "cairo", "template")

session = Session(config, monitor_key="i0", listeners=[live_view] if _has_window else [])
atexit.register(session.close)
# A queue server runs this in a process of multiprocessing, which ends without calling what `atexit` keeps.
Finalize(None, session.close, exitpriority=0)
RE, live, catalog = session.RE, session.live, session.catalog
