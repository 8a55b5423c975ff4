"""A scripted IPython session with the simulated profile, started both ways."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from bluesky_cdi.errors import ConfigError
from bluesky_cdi.profiles import profile_directory

SCAN = """
(uid,) = RE(adaptive(budget=16, batch=8, extent_um=[1.0, 1.0], decision_timeout_s=600))[:1]
session.wait()
raw = catalog.raw[uid]
print("frames", raw["primary"].read().sizes["time"])
print("linked", raw.start["reconstruction_uid"] == list_results(catalog)[-1].uid)
figure = show()
print("panels", len(figure.axes) >= 4)
"""
END = """
print("devices", diff.name, stage.name, i0.name, shutter.name, "plans", adaptive.__name__, full.__name__)
session.close()
"""


# Started in both ways, the profile has the same names. A scan runs once, in a folder without a catalog, with catalog
# and reconstruction in processes of their own; the other time both are in the session's.
@pytest.mark.end_to_end
@pytest.mark.parametrize(
    ("command", "script", "wanted"),
    [("profile-dir", SCAN + END, ("frames 16", "linked True", "panels True")), ("shell", END, ())],
)
def test_scripted_session(tmp_path, empty_catalog, command, script, wanted):
    path = tmp_path / "script.py"
    path.write_text(script)
    inside = str(command == "shell").lower()
    (tmp_path / "here.yaml").write_text(
        f"catalog: {{directory: '{tmp_path / 'data'}', in_process: {inside}}}\nscan: {{exposure_s: 0.0}}\n"
        f"reconstructor: {{name: rpie, refine_iterations: 1, final_steps: 1, in_process: {inside}}}\n"
    )
    if command == "shell":  # the other begins without a catalog
        shutil.copytree(empty_catalog, tmp_path / "data")
    environment = {
        **os.environ,
        "BLUESKY_CDI_CONFIG": str(tmp_path / "here.yaml"),
        "IPYTHONDIR": str(tmp_path / "ipython"),
        "MPLBACKEND": "Agg",
    }
    if command == "shell":
        line = [sys.executable, "-m", "bluesky_cdi", "shell", "--script", str(path)]
    else:
        profile = str(profile_directory("sim"))
        line = [sys.executable, "-m", "IPython", "--profile-dir", profile, "-c", f"%run -i {path}"]
    done = subprocess.run(line, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=280, check=False)
    printed = done.stdout + done.stderr
    assert done.returncode == 0, printed
    for text in (*wanted, "devices diff stage i0 shutter plans adaptive full"):
        assert text in printed, printed


def test_a_failing_script_gives_an_exit_code(tmp_path):
    (tmp_path / "profile" / "startup").mkdir(parents=True)
    script = tmp_path / "script.py"
    script.write_text("print('begun')\nraise ValueError('on purpose')\n")
    profile = str(tmp_path / "profile")
    line = [sys.executable, "-m", "bluesky_cdi", "shell", "--profile", profile, "--script", str(script)]
    environment = {**os.environ, "IPYTHONDIR": str(tmp_path / "ipython")}
    done = subprocess.run(line, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "begun" in done.stdout and "on purpose" in done.stdout + done.stderr


def test_an_unknown_profile_is_named():
    with pytest.raises(ConfigError, match=r"no profile 'nowhere'.*sim"):
        profile_directory("nowhere")
