"""Tasks given to workers, and what becomes of each."""

from __future__ import annotations

import queue
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Executor, Future

from bluesky_cdi.errors import ScanFileError
from bluesky_cdi.many.rows import Row, row_of_result, row_without_result
from bluesky_cdi.many.task import Task
from bluesky_cdi.many.work import reconstruct_one

# How often it is looked whether Ctrl-C was pressed.
LOOK_UP_S = 0.2
INTERRUPTED = "interrupted"
LOST = "the workers' scheduler was lost, or gave the scan up. Is it still running?"


def run_tasks(
    tasks: Sequence[Task],
    workers: Executor,
    on_row: Callable[[Row], None] = lambda row: None,
    interrupted: Callable[[], bool] = lambda: False,
    work: Callable[[Task], str] = reconstruct_one,
) -> list[Row]:
    """Have tasks done, and read back from its file what each of them has made.

    Parameters
    ----------
    tasks : sequence of Task
        What is to be done.
    workers : Executor
        Who does it.
    on_row : callable
        Told of each task when it has ended, in the order in which they end.
    interrupted : callable
        Asked all the while whether to end; what is under way is then given up.
    work : callable
        What a worker does with a task; says why there is no result, or nothing.

    Returns
    -------
    list of Row
        One a task, in the order of the tasks.
    """
    ended: queue.SimpleQueue[Future[str]] = queue.SimpleQueue()
    waiting = {workers.submit(work, task): task for task in tasks}
    rows: dict[str, Row] = {}
    for future in list(waiting):
        future.add_done_callback(ended.put)
    while waiting and not interrupted():
        try:
            future = ended.get(timeout=LOOK_UP_S)
        except queue.Empty:
            continue
        task = waiting.pop(future)
        rows[task.name] = _row(task, future)
        on_row(rows[task.name])
    for future, task in list(waiting.items()):
        # What ended in the same moment stays.
        rows[task.name] = _row(task, future) if future.done() else row_without_result(task, "not done", INTERRUPTED)
        future.cancel()
    return [rows[task.name] for task in tasks]


def _row(task: Task, future: Future[str]) -> Row:
    try:
        error = future.result()
    except CancelledError:
        return row_without_result(task, "not done", LOST)
    except Exception as err:  # noqa: BLE001 - whatever happened to a worker is told, and the others go on
        return row_without_result(task, "failed", f"{type(err).__name__}: {err}")
    if error:
        return row_without_result(task, "failed", error)
    try:
        return row_of_result(task)
    except ScanFileError as err:
        reason = f"its worker says that it is done, but {err} Workers and this process must share the folder."
        return row_without_result(task, "failed", reason)
