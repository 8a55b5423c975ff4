"""What somebody does who has just installed this: demo, serve, look, reprocess, export, and open the files elsewhere.

The server is stopped in the middle and started again. Commands are those of the docs, each in a process of its own.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys

import h5py
import httpx
import numpy as np
import pytest

from bluesky_cdi import open_catalog
from bluesky_cdi.recorded_run import frame_and_fit

SMALL = """
scan: {extent_um: [0.8, 0.8], step_um: 0.2, budget: 12, batch: 6, exposure_s: 0.0, decision_timeout_s: 240}
reconstructor: {name: rpie, final_steps: 1, device: cpu, in_process: true}
catalog: {in_process: true}
probe: {trust: true}
"""
SOON_S = 240.0
PROGRAM = [sys.executable, "-m", "bluesky_cdi"]
pytestmark = pytest.mark.usefixtures("patient")


@pytest.fixture
def command(tmp_path):
    """Call a command in an empty folder; what it printed, and its exit code."""

    def call(*words):
        done = subprocess.run(
            [*PROGRAM, *words], cwd=tmp_path, capture_output=True, text=True, timeout=SOON_S, check=False
        )
        return done.returncode, done.stdout, done.stderr

    return call


@contextlib.contextmanager
def served(folder):
    """Run ``bluesky-cdi serve``; the address of Tiled that it prints, with the key."""
    process = subprocess.Popen(
        [*PROGRAM, "serve", "demo_output", "--port", "0"],
        cwd=folder, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    try:
        lines = iter(process.stdout.readline, "")
        yield next(found[0] for line in lines if (found := re.search(r"http://[^\s\"]+/api/v1\?api_key=\w+", line)))
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=SOON_S)


def test_from_the_demo_to_files_in_other_programs(command, tmp_path):
    (tmp_path / "small.yaml").write_text(SMALL)
    assert command("demo", "-q", "-c", "small.yaml", "--out", "demo_output")[0] == 0

    with served(tmp_path) as address:
        server, _, key = address.replace("/api/v1?api_key=", " ").partition(" ")
        with httpx.Client(base_url=server, params={"api_key": key}, trust_env=False, timeout=SOON_S) as browser:
            (listed,) = (run for run in browser.get("/page/api/runs").json()["runs"] if not run["replaced"])
            assert listed["sample"] == "star" and listed["complete"]
            assert "script" in browser.get("/page/", follow_redirects=True).text
            image = browser.get(f"/page/api/run/{listed['uid']}/image/phase.png")
            assert image.is_success and image.content.startswith(b"\x89PNG")
        with open_catalog(address) as catalog:
            first = catalog.latest()
            assert first.summary.n_frames == 12 and first.thumbnail and first.loss_history is None
            assert first.decisions and {each.reason for each in first.decisions}
            fit = frame_and_fit(catalog, first.uid, 5)
            (row,) = np.flatnonzero(first.estimate.frame_seq_nums == 5)
            # Bad pixels that only the reconstruction found count here.
            assert fit.deviance == pytest.approx(float(first.estimate.residual[row]), rel=0.25)
            first.plot(fit)
        reprocess = ("reconstruct", "--run", "-1", "--directory", "demo_output", "--iterations", "30", "--trust-probe")
        code, _, said = command(*reprocess, "--trust-orientation", "-q")
        assert code == 1 and "bluesky-cdi serve" in said

    code, _, said = command(*reprocess, "--trust-orientation", "-q")
    assert code == 0, said

    with served(tmp_path) as address:
        with open_catalog(address) as catalog:
            results = catalog.search(sample="star")
            assert results[0].uid == first.uid and len(results) == 2
            again = results[1]
            assert again.start["configuration"]["reconstructor"]["name"] == "lsqml"
            losses = again.loss_history["deviance"]
            assert 5 < len(losses) <= 30 and losses[-1] < losses[0]
            wanted, phase = again.estimate, again.phase_rad
        code, _, said = command(
            "export", "-1", "a.cxi", "a.nxs", "a.npz", "a.tif", "a.png", "a.h5", "--directory", "demo_output"
        )
        assert code == 0, said

    with h5py.File(tmp_path / "a.cxi") as file:
        np.testing.assert_array_equal(file["entry_1/image_1/data"][()], wanted.object)
    with h5py.File(tmp_path / "a.nxs") as file:
        group = file
        while group.attrs["NX_class"] != b"NXdata":
            group = group[group.attrs["default"].decode()]
        np.testing.assert_allclose(group[group.attrs["signal"].decode()], phase, atol=1e-6)
    with np.load(tmp_path / "a.npz") as file:
        np.testing.assert_array_equal(file["object"], wanted.object)
        assert json.loads(str(file["notes"]))["verdict"]["word"] == again.summary.verdict
    tifffile = pytest.importorskip("tifffile", reason="opens the TIFF again; `pip install tifffile`")
    np.testing.assert_allclose(tifffile.imread(tmp_path / "a_phase.tif"), phase, atol=1e-6)
    with h5py.File(tmp_path / "a.h5") as file:
        np.testing.assert_array_equal(file["object"][0], wanted.object)
        assert file.attrs["probe_energy_eV"] == pytest.approx(again.geometry.energy_ev)
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
