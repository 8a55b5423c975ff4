"""The how-tos with simulated hardware, followed to the letter: their files are what the pages show."""

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from bluesky_cdi.callbacks import collect_frames
from bluesky_cdi.catalog import load_result, open_catalog, run_documents, serve
from bluesky_cdi.config import load_config
from bluesky_cdi.evaluation import compare, crop_to
from bluesky_cdi.io import Preprocessing
from bluesky_cdi.sim_devices import SimulatedSource

DOCS = Path(__file__).parents[2] / "docs"
FILE = re.compile(r"^```\w+\n# (\w+\.\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# Beside what the page says: plain rPIE with a fixed raster in one process, so that the test is about documents.
QUICK = {
    "agent": {"name": "raster"},
    "catalog": {"in_process": True},
    "probe": {"trust": True},
    "reconstructor": {"name": "rpie", "refine_iterations": 8, "final_steps": 2, "device": "cpu", "in_process": True},
}
N_RASTER = 36
WAIT_S = 240


@pytest.fixture
def follow(tmp_path, empty_catalog):
    """Lay the files of a page into a folder; what its programs are to run in."""
    shutil.copytree(empty_catalog, tmp_path / "data")

    def followed(page):
        for name, code in FILE.findall((DOCS / page).read_text(encoding="utf-8")):
            (tmp_path / name).write_text(code, encoding="utf-8")
        config = yaml.safe_load((tmp_path / "config.yaml").read_text(encoding="utf-8"))
        merged = {key: {**config.get(key, {}), **QUICK.get(key, {})} for key in {**config, **QUICK}}
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(merged), encoding="utf-8")
        return {"cwd": tmp_path, "env": {**os.environ, "MPLBACKEND": "Agg"}, "text": True}

    return followed


def measure(surroundings):
    done = subprocess.run(
        [sys.executable, "measure.py"], **surroundings, capture_output=True, timeout=WAIT_S, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def check(folder, said):
    """The catalog holds each frame as it was simulated, bit by bit, and the image is that of the sample."""
    config = load_config([folder / "config.yaml"])
    source, scan = SimulatedSource(config), config.scan
    with serve(folder / "data", claim_s=240.0) as uri, contextlib.closing(open_catalog(uri)) as catalog:
        run = catalog.raw[-1]
        assert run.start["plan_name"] == "adaptive_ptycho"
        preprocessing = Preprocessing.live(config)
        _, frames = collect_frames(run_documents(catalog, run), preprocessing=preprocessing)
        result = load_result(catalog, -1)
    assert f"from {N_RASTER} frames" in said and len(frames) == result.n_frames == N_RASTER
    positions = np.array([frame.position_m for frame in frames])
    assert len(np.unique(positions.round(9), axis=0)) == N_RASTER
    assert np.abs(positions).max() <= max(scan.extent_um) * 0.5e-6 + 1e-9
    for frame in frames:
        wanted = source.expose(frame.position_m, scan.exposure_s, 1.0)
        np.testing.assert_array_equal(frame.counts, wanted, err_msg=f"frame {frame.seq_num}")
    truth = source.truth
    sample = crop_to(truth.object, truth.origin_m, result.origin_m, result.object.shape, result.pixel_m)
    numbers = compare(result.object, sample, result.coverage).numbers
    # An empty image has an error of 1.
    assert numbers["complex_nrmse"] < 0.6 and numbers["phase_mae_rad"] < 0.2, numbers


@pytest.fixture
def soft_ioc():
    """Start the soft IOC of a folder, and tell the other programs of the folder where it is."""
    with contextlib.ExitStack() as stack:

        def port():
            """A port of UDP that is free, and the socket that holds it."""
            held = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            held.bind(("127.0.0.1", 0))
            return held, held.getsockname()[1]

        def started(surroundings):
            server, server_port = port()
            # Held as if by a repeater: else clients would start one, which outlives them.
            _, repeater_port = port()
            surroundings["env"].update(
                EPICS_CA_ADDR_LIST=f"127.0.0.1:{server_port}", EPICS_CA_AUTO_ADDR_LIST="NO",
                EPICS_CA_SERVER_PORT=str(server_port), EPICS_CA_REPEATER_PORT=str(repeater_port),
            )  # fmt: skip
            server.close()
            command = [sys.executable, "-m", "bluesky_cdi.sim_devices.soft_ioc", "config.yaml"]
            ioc = stack.enter_context(subprocess.Popen(command, **surroundings, stdout=subprocess.PIPE))
            stack.callback(ioc.kill)
            assert ioc.stdout.readline() == "ready: SIM:Y, SIM:X, SIM:DET:\n"

        yield started


def test_an_area_detector_on_a_soft_ioc(tmp_path, follow, soft_ioc):
    pytest.importorskip("caproto", reason="caproto is not installed: pip install '.[test-beamline]'")
    surroundings = follow("area-detector.md")
    soft_ioc(surroundings)
    check(tmp_path, measure(surroundings))


def test_ophyd_async(tmp_path, follow):
    pytest.importorskip("ophyd_async", reason="ophyd-async is not installed: pip install '.[test-beamline]'")
    check(tmp_path, measure(follow("ophyd-async.md")))
