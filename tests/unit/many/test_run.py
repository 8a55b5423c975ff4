"""What becomes of tasks, whoever does them."""

import threading
from concurrent.futures import Executor, Future, ThreadPoolExecutor

import numpy as np
import pytest

from bluesky_cdi.io import read_cxi_result
from bluesky_cdi.many import row_of_result, run_tasks
from bluesky_cdi.many.run import INTERRUPTED, LOST
from bluesky_cdi.many.work import reconstruct_one


class Given(Executor):
    """Workers that have answered before they were asked, each task as it was told."""

    def __init__(self, *answers):
        self._answers = list(answers)

    def submit(self, work, task):
        future, answer = Future(), self._answers.pop(0)
        if answer is None:
            return future
        if answer == "cancelled":
            future.cancel()
        elif isinstance(answer, Exception):
            future.set_exception(answer)
        else:
            future.set_result(work(task) if answer == "work" else answer)
        return future


def test_one_that_fails_is_told_and_the_others_go_on(write, tasks_of, tmp_path):
    (tmp_path / "b.npz").write_bytes(b"PK\x03\x04 and then nothing")
    tasks = tasks_of(write("a.cxi"), tmp_path / "b.npz", tmp_path / "none.cxi", write("c.cxi", seed=6))
    told = []
    with ThreadPoolExecutor(1) as workers:
        rows = run_tasks(tasks, workers, told.append)
    assert [row.state for row in rows] == ["done", "failed", "failed", "done"]
    assert [row.scan for row in told] == ["a", "b", "none", "c"]
    assert "b.npz" in rows[1].reason and "there is no file" in rows[2].reason
    assert {path.name for path in tasks[0].out.parent.iterdir()} == {"a.cxi", "c.cxi"}


def test_a_row_tells_what_the_result_holds(write, tasks_of):
    (task,) = tasks_of(write("a.cxi"))
    (row,) = run_tasks([task], Given("work"))
    product = read_cxi_result(task.out)
    assert (row.frames, row.iterations, row.engine, row.result) == (6, 1, "rpie", str(task.out))
    assert row.pixel_m == pytest.approx(product.geometry.pixel_m) and row.thumbnail and not row.earlier
    assert row.verdict in ("good", "doubtful", "failed") and row.deviance_per_pixel > 0
    assert row == row_of_result(task)


def test_results_do_not_depend_on_who_made_them(write, tasks_of, tmp_path):
    (task,) = tasks_of(write("a.cxi"))
    assert reconstruct_one(task) == ""
    alone = read_cxi_result(task.out).object
    task.out.unlink()
    with ThreadPoolExecutor(2) as workers:
        run_tasks([task], workers)
    np.testing.assert_array_equal(read_cxi_result(task.out).object, alone)


def test_what_the_package_warns_of_is_in_the_result(write, tasks_of, method):
    from dataclasses import replace

    (task,) = tasks_of(write("a.cxi"), how=replace(method, check_in=True))
    (row,) = run_tasks([task], Given("work"))
    assert any("6 frames are too few to check the probe by" in said for said in row.warnings)


def test_ctrl_c_keeps_what_is_done_and_cancels_the_rest(write, tasks_of):
    tasks = tasks_of(write("a.cxi"), write("b.cxi", seed=6))
    is_over = threading.Event()
    workers = Given("work", None)
    rows = run_tasks(tasks, workers, lambda row: is_over.set(), is_over.is_set)
    assert [(row.state, row.reason) for row in rows][1] == ("not done", INTERRUPTED)
    assert rows[0].state == "done" and tasks[0].out.exists() and not tasks[1].out.exists()


def test_lost_workers_and_schedulers_are_told(write, tasks_of):
    tasks = tasks_of(write("a.cxi"), write("b.cxi"), write("c.cxi"))
    rows = run_tasks(tasks, Given(RuntimeError("three workers died"), "cancelled", ""))
    assert [row.state for row in rows] == ["failed", "not done", "failed"]
    assert rows[0].reason == "RuntimeError: three workers died" and rows[1].reason == LOST
    assert "must share the folder" in rows[2].reason
