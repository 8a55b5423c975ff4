"""Workers of Dask: processes of this machine, or those of a scheduler elsewhere."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from bluesky_cdi.errors import BlueskyCDIError
from bluesky_cdi.many.task import Task

logger = logging.getLogger(__name__)

# How often a scan is tried whose worker is lost: it may be what its worker was lost for.
TRIALS = 3
# How long workers may take to begin, seconds: they load PyTorch on what may be a busy machine.
BEGIN_S = 120.0


def cores() -> int:
    """Count the CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gpus_of(device: str) -> list[str]:
    """List the GPUs to share out, as CUDA_VISIBLE_DEVICES names them.

    Parameters
    ----------
    device : str
        ``reconstructor.device``: with a number in it, or ``cpu``, there is nothing to share out.
    """
    import torch

    if device not in ("auto", "cuda"):
        return []
    if visible := os.environ.get("CUDA_VISIBLE_DEVICES"):
        return visible.split(",")[: torch.cuda.device_count()]
    return [str(number) for number in range(torch.cuda.device_count())]


def with_threads(tasks: Sequence[Task], threads: int) -> list[Task]:
    """Tell tasks how many CPU threads they may use.

    Parameters
    ----------
    tasks : sequence of Task
        All with one method.
    threads : int
        Of each worker.
    """
    if not tasks:
        return []
    config = tasks[0].method.config
    settings = config.reconstructor.model_copy(update={"threads": threads})
    method = replace(tasks[0].method, config=config.model_copy(update={"reconstructor": settings}))
    return [replace(task, method=method) for task in tasks]


def check_installed() -> None:
    """Refuse to begin without Dask.

    Raises
    ------
    BlueskyCDIError
        If it is not installed.
    """
    try:
        import distributed  # noqa: F401
    except ImportError as err:
        raise BlueskyCDIError(
            f"several workers need Dask, and {err.name} is not installed: it comes with this package's extra `many` "
            "(pip install 'bluesky-cdi[many]'; in a checkout pip install -e '.[many]')."
        ) from err


@contextmanager
def local_workers(number: int, gpus: Sequence[str] = ()) -> Iterator[Executor]:
    """Start worker processes on this machine, for as long as the context lasts; one that is lost is started again.

    Parameters
    ----------
    number : int
        How many.
    gpus : sequence of str
        Shared out among them, one each.

    Yields
    ------
    Executor
        To which tasks are given; a worker does one at a time.

    Raises
    ------
    BlueskyCDIError
        If Dask is not installed, or the workers don't begin.
    """
    check_installed()
    import dask
    from distributed import Client, LocalCluster
    from distributed.security import Security

    settings = {
        "distributed.scheduler.allowed-failures": TRIALS - 1,
        # None waits at a busy worker while another is free.
        "distributed.scheduler.worker-saturation": 1.0,
    }
    # Whoever reaches a scheduler can run programs as its user: keys that are made for this run keep others away.
    with (
        dask.config.set(settings),
        LocalCluster(
            n_workers=number,
            threads_per_worker=1,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            security=Security.temporary(),
            # What becomes of each scan is told here; Dask would also tell of every connection that is closed.
            silence_logs=logging.CRITICAL,
        ) as cluster,
        Client(cluster) as client,
    ):
        client.register_plugin(_setup(tuple(gpus)))
        try:
            client.wait_for_workers(number, timeout=BEGIN_S)
        except TimeoutError as err:
            raise BlueskyCDIError(f"{number} workers must begin within {BEGIN_S:g} s; fewer did") from err
        yield client.get_executor(pure=False)


@contextmanager
def scheduled_workers(address: str) -> Iterator[Executor]:
    """Reach the workers of a scheduler that runs elsewhere.

    Parameters
    ----------
    address : str
        Such as ``tls://host:8786``.

    Yields
    ------
    Executor
        To which tasks are given.

    Raises
    ------
    BlueskyCDIError
        If Dask is not installed, or no scheduler answers.
    """
    check_installed()
    from distributed import Client

    try:
        client = Client(address)
    except (OSError, ValueError) as err:
        raise BlueskyCDIError(
            f"--scheduler must be the address of a Dask scheduler, such as tcp://host:8786; {address}: {err}"
        ) from err
    with client:
        threads = {name: each["nthreads"] for name, each in client.scheduler_info(n_workers=-1)["workers"].items()}
        if not threads:
            logger.warning("the scheduler at %s has no workers yet: waiting for some (Ctrl-C ends that)", address)
        if several := [name for name, number in threads.items() if number > 1]:
            logger.warning(
                "%d worker(s) do more than one scan at a time, which share memory and GPU: start them with "
                "--nthreads 1 (%s)",
                len(several),
                ", ".join(several[:3]),
            )
        yield client.get_executor(pure=False)


def _setup(gpus: tuple[str, ...]) -> Any:
    """Make what each worker of this machine does first, also one that takes a lost one's place."""
    from distributed import WorkerPlugin

    class Setup(WorkerPlugin):  # type: ignore[misc]
        name = "bluesky_cdi"

        def setup(self, worker: Any) -> None:
            # A terminal's Ctrl-C reaches all its processes; it is the first one that ends the others.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            if gpus:
                os.environ["CUDA_VISIBLE_DEVICES"] = gpus[int(worker.name) % len(gpus)]

    return Setup()
