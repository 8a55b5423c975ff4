"""A session that measures rasters until somebody ends it; what was emitted goes to standard output, line by line.

    measuring.py CONFIG DIRECTORY

Each line is a JSON list: ["ready"], then for every document ["document", its name, uid of its run, seq_num or null],
told after all other callbacks have had it.
"""

import json
import os
import sys

from bluesky_cdi.config import load_config
from bluesky_cdi.plans import ptycho_raster
from bluesky_cdi.session import Session
from bluesky_cdi.sim_devices import simulated_beamline


def tell(*what):
    os.write(1, (json.dumps(what) + "\n").encode())


def main():
    config, directory = load_config([sys.argv[1]]), sys.argv[2]
    runs = {}

    def emitted(name, doc):
        uid = doc["uid"] if name == "start" else runs.get(doc.get("run_start") or doc.get("descriptor"))
        if name in ("start", "descriptor"):
            runs[doc["uid"]] = uid
        tell("document", name, uid, doc.get("seq_num"))

    with Session(config, directory, monitor_key="i0") as session:
        beamline = simulated_beamline(config, session.frames_directory)
        session.RE.subscribe(emitted)
        tell("ready")
        scan = config.scan
        while True:
            session.RE(
                ptycho_raster(
                    [beamline.detector, beamline.monitor], beamline.stage.y, beamline.stage.x, session.live,
                    extent_um=scan.extent_um, step_um=scan.step_um,
                )
            )  # fmt: skip


if __name__ == "__main__":
    main()
