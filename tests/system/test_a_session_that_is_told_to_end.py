"""A whole session in a process of its own that gets SIGTERM in the middle of a scan."""

import os
import shutil
import signal
import subprocess
import sys
from contextlib import closing

import pytest

from bluesky_cdi.catalog import open_catalog, serve

SCRIPT = """
import sys
from bluesky_cdi.config import load_config
from bluesky_cdi.plans import ptycho_raster
from bluesky_cdi.session import Session
from bluesky_cdi.sim_devices import simulated_beamline

config = load_config(overrides={
    "scan": {"exposure_s": 0.05},
    "probe": {"trust": True},
    "reconstructor": {"name": "rpie", "device": "cpu", "refine_iterations": 1, "final_steps": 0},
})


def third(name, doc):
    if doc["seq_num"] == 3:
        with open(sys.argv[2], "w") as file:
            file.write("now\\n")


with Session(config, sys.argv[1], monitor_key="i0") as session:
    session.RE.subscribe(third, "event")
    beamline = simulated_beamline(config, session.frames_directory)
    detectors, stage = [beamline.detector, beamline.monitor], beamline.stage
    session.RE(ptycho_raster(detectors, stage.y, stage.x, session.live, extent_um=[2, 2], step_um=0.05))
"""


@pytest.mark.end_to_end
def test_its_run_is_aborted_and_whole_in_the_catalog(empty_catalog, tmp_path):
    folder = shutil.copytree(empty_catalog, tmp_path / "catalog")
    os.mkfifo(tmp_path / "said")
    (tmp_path / "script.py").write_text(SCRIPT)
    process = subprocess.Popen([sys.executable, tmp_path / "script.py", folder, tmp_path / "said"])
    with (tmp_path / "said").open() as said:
        assert said.readline() == "now\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(240) == 128 + signal.SIGTERM
    with serve(folder, claim_s=240.0) as uri, closing(open_catalog(uri)) as catalog:
        (run,) = catalog.raw.values()
        assert run.stop["exit_status"] == "abort"
        assert run.stop["reason"] == "the process was told to end (SIGTERM)"
        numbers = run["primary"]["seq_num"].read()
        assert len(numbers) == run.stop["num_events"]["primary"] >= 3
        (derived,) = catalog.processed.values()
        assert derived.stop["reason"].startswith("the process was told to end (SIGTERM)")
