"""RunEngine, catalog and live reconstruction."""

import atexit
from multiprocessing.util import Finalize
from pathlib import Path

from bluesky_cdi.config import files_in_environment, load_config
from bluesky_cdi.log import configure_logging
from bluesky_cdi.session import Session

configure_logging()
config = load_config([Path(__file__).parents[1] / "config.yaml", *files_in_environment()])

session = Session(config, monitor_key="i0")
atexit.register(session.close)
# A queue server runs this in a process of multiprocessing, which ends without calling what `atexit` keeps.
Finalize(None, session.close, exitpriority=0)
RE, live, catalog, live_view = session.RE, session.live, session.catalog, session.live_view
