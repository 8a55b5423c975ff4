"""`reconstruct-many --scheduler`: a scheduler and workers that others have started, each a process of its own."""

import json
import subprocess
import sys
import time

import pytest

from bluesky_cdi.bench.cases import Case, scan_of
from bluesky_cdi.cli import main
from bluesky_cdi.io import read_cxi_result, write_scan

Client = pytest.importorskip("distributed", reason="Dask comes with the extra `many`").Client

SOON_S = 120.0
METHOD = ["--engine", "rpie", "--iterations", "2", "--trust-orientation", "--trust-probe"]


@pytest.fixture
def start(tmp_path):
    started = []

    def begin(command, *options):
        line = [sys.executable, "-m", f"distributed.cli.dask_{command}", *map(str, options)]
        with (tmp_path / f"{command}{len(started)}.log").open("w") as log:
            started.append(subprocess.Popen(line, stdout=log, stderr=subprocess.STDOUT, cwd=tmp_path))
        return started[-1]

    yield begin
    # Told to end, each would take seconds to take leave of the others.
    for process in started:
        process.kill()
    for process in started:
        process.wait(SOON_S)


def test_workers_of_a_scheduler_do_the_scans(tmp_path, start, capsys):
    def has_reconstructed():  # here, since workers don't find the modules of tests
        import sys

        return "bluesky_cdi.many.work" in sys.modules

    found = tmp_path / "scheduler.json"
    start("scheduler", "--host", "127.0.0.1", "--port", 0, "--dashboard-address", "127.0.0.1:0",
          "--scheduler-file", found)  # fmt: skip
    for _ in range(2):
        start("worker", "--scheduler-file", found, "--nthreads", 1, "--no-nanny", "--no-dashboard")
    scans = [tmp_path / f"{name}.npz" for name in "abcd"]
    for number, path in enumerate(scans):
        write_scan(path, scan_of(Case(frame_px=32, field=0.5), number))
    deadline = time.monotonic() + SOON_S
    while not (found.exists() and found.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    address = json.loads(found.read_text())["address"]
    with Client(address) as client:
        client.wait_for_workers(2, timeout=SOON_S)
        assert set(client.run(has_reconstructed).values()) == {False}
        line = ["--json", "reconstruct-many", *map(str, scans), "--scheduler", address]
        assert main([*line, "--out", str(tmp_path / "there"), *METHOD]) in (0, 1)
        # Both have done some, and this process none.
        assert list(client.run(has_reconstructed).values()) == [True, True]
    assert [row["state"] for row in json.loads(capsys.readouterr().out)["scans"]] == ["done"] * 4
    assert all(read_cxi_result(tmp_path / "there" / f"{name}.cxi").object.any() for name in "abcd")
