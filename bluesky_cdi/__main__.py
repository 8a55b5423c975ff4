"""``python -m bluesky_cdi``."""

import sys

from bluesky_cdi.cli import main

sys.exit(main())
