"""Sessions that are killed in the middle: every event that was emitted is in the catalog afterwards, once.

``BLUESKY_CDI_KILLS`` says how often (20 for the figure in docs/reliability.md).
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import yaml

from bluesky_cdi.catalog import list_results, open_catalog, serve
from bluesky_cdi.cli import main
from tests.faults.bench import SETTINGS

KILLS = int(os.environ.get("BLUESKY_CDI_KILLS", "3"))


@pytest.fixture
def measuring(empty_catalog, tmp_path):
    """Start a session that measures rasters; its process, in the end gone."""
    directory = shutil.copytree(empty_catalog, tmp_path / "catalog")
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(json.loads(json.dumps(SETTINGS))))

    @contextlib.contextmanager
    def started():
        process = subprocess.Popen(
            [sys.executable, Path(__file__).parent / "measuring.py", config, directory],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            yield process
        finally:
            process.kill()
            process.communicate()

    started.directory = directory
    return started


def emitted(lines):
    """The numbers of the primary stream's events by run, from lines of measuring.py."""
    runs = {}
    for line in lines:
        kind, *what = json.loads(line)
        if kind == "document" and what[0] == "start":
            runs[what[1]] = []
        elif kind == "document" and what[0] == "event":
            runs[what[1]].append(what[2])
    return runs


def read_until(process, n_events):
    """Read what the process tells until it has emitted so many events."""
    lines, n = [], 0
    while n < n_events:
        line = process.stdout.readline()
        assert line, process.stderr.read()
        lines.append(line)
        n += '"event"' in line
    return lines


def check(directory, runs):
    """The catalog of a folder has each of the runs with at least these events, each once and in order."""
    with serve(directory, claim_s=240.0) as uri, contextlib.closing(open_catalog(uri)) as catalog:
        for uid, numbers in runs.items():
            run = catalog.raw[uid]
            assert run.stop["exit_status"] in ("success", "fail", "abort")
            if numbers:
                rows = list(run["primary"].base["internal"].read()["seq_num"])
                assert rows == list(range(1, len(rows) + 1)) and len(rows) >= len(numbers)
                frames = run["primary"]["diff_image"].read()
                assert len(frames) >= len(rows) and (frames.sum(axis=(1, 2)) > 0).all()
        return list_results(catalog)


def test_no_event_that_was_emitted_is_lost(measuring, capsys):
    rng, runs = np.random.default_rng(11), {}
    for _ in range(KILLS):
        with measuring() as process:
            lines = read_until(process, rng.integers(1, 120))
            process.send_signal(signal.SIGKILL)
            runs |= emitted([*lines, *process.stdout])
    assert main(["restore", str(measuring.directory)]) == 0
    assert capsys.readouterr().out.count("restored") <= 2 * KILLS
    results = check(measuring.directory, runs)
    assert sum(len(numbers) for numbers in runs.values()) > KILLS
    # Nothing is said to go on.
    assert all(result.exit_status is not None for result in results)
    assert not list((measuring.directory / "journal").glob("*/*.journal"))


def test_a_cut_last_record_costs_that_record(measuring, capsys):
    with measuring() as process:
        lines = read_until(process, 20)
        process.send_signal(signal.SIGKILL)
        runs = emitted([*lines, *process.stdout])
    (uid, numbers), *_ = runs.items()
    path = measuring.directory / "journal" / "raw" / f"{uid}.journal"
    if path.exists():
        path.write_bytes(path.read_bytes()[:-7])
        runs[uid] = numbers[:-2]
    assert main(["restore", str(measuring.directory)]) == 0
    check(measuring.directory, runs)


def states(parent=None):
    """The state of each process, by its number; of those with that parent."""
    found = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):  # it has just ended
            state, ppid, *_ = Path(f"/proc/{name}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
            if parent in (None, int(ppid)):
                found[int(name)] = state
    return found


def test_the_processes_of_a_killed_session_end(measuring):
    with measuring() as process:
        read_until(process, 10)
        children = states(process.pid)
        assert len(children) == 2
        process.send_signal(signal.SIGKILL)
        pause = threading.Event()
        while any(states().get(pid, "Z") != "Z" for pid in children):
            pause.wait(0.1)
