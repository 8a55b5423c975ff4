"""Workers of Dask: one that is killed is replaced, and its scan is done by another."""

import json
import os
import signal

import numpy as np
import pytest

from bluesky_cdi.bench.cases import Case, scan_of
from bluesky_cdi.config import load_config
from bluesky_cdi.io import read_cxi_result, write_scan
from bluesky_cdi.many import Method, ScanFile, Task, run_tasks
from bluesky_cdi.many.work import reconstruct_one
from bluesky_cdi.many.workers import local_workers

pytest.importorskip("distributed", reason="Dask comes with the extra `many`")


def test_a_scan_whose_worker_is_killed_is_done_by_the_next(tmp_path):
    settings = {"name": "rpie", "background": 0.0, "threads": 1}
    config = load_config(overrides={"reconstructor": settings, "probe": {"modes": 1}})
    method = Method(config, iterations=2, orientation=False, check_in=False)
    tasks = []
    for name in ("a", "b", "deadly"):
        write_scan(tmp_path / f"{name}.npz", scan_of(Case(frame_px=32, field=0.5), len(tasks)))
        tasks.append(Task(name, ScanFile(tmp_path / f"{name}.npz"), method, tmp_path / f"{name}.cxi"))

    # Not at the top of the module, which workers can't import.
    def work(task):
        import json
        import os
        import signal
        import sys

        from bluesky_cdi.many.work import reconstruct_one

        tried = task.out.with_suffix(".tried")
        with tried.open("a") as file:
            file.write(f"{os.getpid()}\n")
        if task.name == "deadly" or (task.name == "b" and len(tried.read_text().split()) == 1):
            os.kill(os.getpid(), signal.SIGKILL)
        error = reconstruct_one(task)
        threads = sys.modules["torch"].get_num_threads()
        gpu, ignores = os.environ.get("CUDA_VISIBLE_DEVICES"), signal.getsignal(signal.SIGINT) == signal.SIG_IGN
        task.out.with_suffix(".json").write_text(json.dumps([threads, gpu, ignores]))
        return error

    with local_workers(1, gpus=["7"]) as workers:
        rows = run_tasks(tasks, workers, work=work)
    assert [row.state for row in rows] == ["done", "done", "failed"]
    assert "workers died while running it" in rows[2].reason
    tried = {name: (tmp_path / f"{name}.tried").read_text().split() for name in ("a", "b", "deadly")}
    assert len(set(tried["b"])) == 2 and len(set(tried["deadly"])) == 3
    assert str(os.getpid()) not in {pid for pids in tried.values() for pid in pids}
    assert json.loads((tmp_path / "b.json").read_text()) == [1, "7", True]
    # Who computes makes no difference.
    found = read_cxi_result(tasks[1].out).object
    assert reconstruct_one(tasks[1]) == ""
    np.testing.assert_array_equal(read_cxi_result(tasks[1].out).object, found)
    assert not list(tmp_path.glob(".*.partial"))
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler
