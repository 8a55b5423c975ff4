"""Settings for every test: one thread for each process, no window for matplotlib, the same examples each time."""

import asyncio
import contextlib
import logging
import os
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import settings
from hypothesis.internal.conjecture.providers import HypothesisProvider
from hypothesis.internal.constants_ast import Constants

os.environ.setdefault("MPLBACKEND", "Agg")
# What commands under test log is not for this user's own log file.
os.environ.setdefault("BLUESKY_CDI_LOG", os.path.join(tempfile.gettempdir(), "bluesky_cdi-tests", "log"))
# Test processes run side by side, one a core. Set before anything loads a numerical library; children inherit it.
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")

# `--hypothesis-profile search` looks further.
settings.register_profile("same", derandomize=True, deadline=None, database=None)
settings.register_profile("search", deadline=None, max_examples=3000)
settings.load_profile("same")
# Hypothesis also draws numbers from the source of the modules that are loaded, even where it must not be random: then
# examples would depend on which tests ran before.
if not hasattr(HypothesisProvider, "_local_constants"):
    raise RuntimeError("this version of hypothesis finds its constants elsewhere; see how to keep examples the same")
HypothesisProvider._local_constants = Constants()


@pytest.fixture(autouse=True)
def one_torch_thread():
    """PyTorch may have been given more threads by what an earlier test ran; it is not loaded for this."""
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def logging_not_configured():
    """An earlier test may have run a command, which sets what the package logs."""
    logger = logging.getLogger("bluesky_cdi")
    logger.setLevel(logging.NOTSET)
    logger.handlers.clear()


@pytest.fixture(scope="session")
def beside():
    """Do something in another thread while the body runs; what it raises comes out at the end."""

    @contextlib.contextmanager
    def doing(action):
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(action)
            yield future
            future.result()

    return doing


@pytest.fixture(scope="session")
def run_engine():
    """Open a RunEngine on a loop of its own; in the end its thread has ended too."""
    from bluesky.run_engine import RunEngine, TransitionError

    @contextlib.contextmanager
    def opened():
        before, loop = set(threading.enumerate()), asyncio.new_event_loop()
        engine = RunEngine({}, loop=loop, call_returns_result=True)
        (thread,) = (each for each in set(threading.enumerate()) - before if each.name == "bluesky-run-engine")
        yield engine
        if engine.state not in ("idle", "panicked"):
            with contextlib.suppress(TransitionError):
                engine.halt()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()

    return opened


@pytest.fixture
def RE(run_engine):
    with run_engine() as engine:
        yield engine


@pytest.fixture(scope="session")
def empty_catalog(tmp_path_factory):
    """An initialised, empty catalog to copy, made once for all processes."""
    from bluesky_cdi.catalog import serve

    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "empty catalog"
    if not shared.exists():
        made = tmp_path_factory.mktemp("made") / "deep" / "catalog"
        with serve(made):
            pass
        # Another process may have been quicker; a folder with files is never replaced.
        with contextlib.suppress(OSError):
            made.rename(shared)
    return shared


@pytest.fixture(scope="module")
def patient():
    """On a busy machine a server that has just begun may take longer to answer than a user should be kept waiting."""
    from bluesky_cdi.catalog import connect

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(connect, "REACH_TIMEOUT_S", 240.0)
        yield
