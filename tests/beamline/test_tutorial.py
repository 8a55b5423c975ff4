"""The tutorial, followed to the letter: its commands and what it types at the prompt, in their order."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import h5py
import pytest

PAGE = Path(__file__).parents[2] / "docs" / "first-scan.md"
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PROGRAM = [sys.executable, "-m", "bluesky_cdi"]
# Each command gets this file: less work for the reconstruction, nothing else.
QUICK = """
catalog: {{directory: '{data}', in_process: true}}
probe: {{trust: true}}
reconstructor: {{name: rpie, refine_iterations: 1, final_steps: 1, device: cpu, in_process: true}}
scan: {{budget: 32, batch: 8, extent_um: [1.5, 1.5], exposure_s: 0.0}}
simulation: {{velocity_m_per_s: 1.0}}
"""
WAIT_S = 600


def steps():
    """The page as commands, files and what is typed at the prompt: a `shell` has all Python that follows it."""
    found = []
    for language, code in BLOCK.findall(PAGE.read_text(encoding="utf-8")):
        if language == "python":
            assert found[-1][0] == "bluesky-cdi shell"
            found[-1] = (found[-1][0], found[-1][1] + code)
        elif language == "yaml":
            found.append(("file", code))
        elif not language:
            found += [(line, "") for line in code.splitlines()]
    return found


@pytest.mark.timeout(1800)
def test_every_block_works_in_order(tmp_path):
    (tmp_path / "quick.yaml").write_text(QUICK.format(data=tmp_path / "data"))
    environment = {**os.environ, "IPYTHONDIR": str(tmp_path / "ipython"), "MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1"}
    said = {}
    for command, text in steps():
        if command == "file":
            (tmp_path / text.split()[1]).write_text(text)
            continue
        # The environment is the one that runs the tests.
        name, *arguments = shlex.split("bluesky-cdi demo" if command == "make demo" else command)
        if name == "source":
            continue
        assert name == "bluesky-cdi", command
        if text:
            (tmp_path / "typed.py").write_text(f"{text}\nprint('decisions', len(run['agent'].read()['agent_reason']))")
            arguments += ["--script", "typed.py"]
        done = subprocess.run(
            [*PROGRAM, *arguments, "-c", "quick.yaml"],
            env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=WAIT_S, check=False,
        )  # fmt: skip
        assert done.returncode == 0, (command, done.stdout + done.stderr)
        said[command] = done.stdout
    assert "frames  " in said["make demo"] and "32, " in said["make demo"]
    # Six frames a decision, the last of which the budget leaves to be made.
    assert int(re.search(r"decisions (\d+)", said["bluesky-cdi shell"])[1]) >= 36 // 6
    assert len(said["bluesky-cdi browse demo_output"].splitlines()) >= 2
    with h5py.File(tmp_path / "star.nxs") as file:
        assert file.attrs["default"]
    for name in ("star.png", "star_phase.tif", "star_amplitude.tif", "weak/demo.png", "my_beamline/config.yaml"):
        assert (tmp_path / name).stat().st_size, name
