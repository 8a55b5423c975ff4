"""Settings for every test: one thread for each process, no window for matplotlib, the same examples each time."""

import asyncio
import contextlib
import functools
import gc
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import settings
from hypothesis.internal.conjecture import providers
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
# examples would depend on which tests ran before, and all sources would be read when tests are collected.
if not hasattr(providers, "_get_local_constants"):
    raise RuntimeError("this version of hypothesis finds its constants elsewhere; see how to keep examples the same")
providers._get_local_constants = Constants


def pytest_collection_finish():
    """Spare the garbage collector what stays: modules and tests, hundreds of thousands of objects at each full pass."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@pytest.fixture(autouse=True)
def one_torch_thread():
    """PyTorch may have been given more threads by what an earlier test ran; it is not loaded for this."""
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def logging_not_configured():
    """An earlier test may have run a command, which sets what the package, or a part of it, logs."""
    logging.getLogger("bluesky_cdi").handlers.clear()
    for name, logger in list(logging.root.manager.loggerDict.items()):
        ours = name.split(".")[0] == "bluesky_cdi" and isinstance(logger, logging.Logger)
        if ours and logger.level != logging.NOTSET:  # setting a level clears what all loggers have cached
            logger.setLevel(logging.NOTSET)


@pytest.fixture(autouse=True)
def servers_open_quickly():
    """FastAPI analyses what requests depend on anew for each route, and tests open a hundred servers of 60 routes each.

    What a route depends on, and what that depends on in turn, is analysed once for each route here.
    """
    utils, routing = (sys.modules.get(f"fastapi.{name}") for name in ("dependencies.utils", "routing"))
    if utils is None or routing is None or hasattr(utils.get_dependant, "__wrapped__"):
        return
    real, known = utils.get_dependant, {}

    @functools.wraps(real)
    def get_dependant(*, name=None, **options):
        if name is None:  # a route itself
            known.clear()
            return real(**options)
        key = name, *(tuple(each) if isinstance(each, list) else each for each in options.values())
        if key not in known:
            known[key] = real(name=name, **options)
        return known[key]

    utils.get_dependant = routing.get_dependant = get_dependant
    utils.get_typed_signature = functools.lru_cache(1024)(utils.get_typed_signature)


@pytest.fixture(autouse=True)
def clients_open_quickly():
    """HTTPX reads the certificates of all authorities anew for each client; none of ours asks for them."""
    transports = sys.modules.get("httpx._transports.default")
    if transports is not None and not hasattr(transports.create_ssl_context, "cache_info"):
        transports.create_ssl_context = functools.lru_cache(8)(transports.create_ssl_context)


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
def until():
    """Wait until a condition holds. What never comes about is ended by the time-out of all tests, in pyproject.toml."""

    def wait(condition):
        while not condition():
            time.sleep(0.002)

    return wait


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


@pytest.fixture(scope="session")
def info():
    from bluesky_cdi.protocols import RunInfo

    geometry = {"energy_ev": 8000.0, "distance_m": 2.0, "detector_pixel_m": 172e-6}
    return RunInfo("0a0a0a0a-raw", 7, {"uid": "0a0a0a0a-raw", "scan_id": 7, "geometry": geometry}, (8, 8))


@pytest.fixture(scope="session")
def make_estimate():
    """Square images, and as many frames as embedding components: sizes that tell no axes apart."""
    import numpy as np

    from bluesky_cdi.protocols import Estimate

    def make(seed, n=6, grid=(16, 16), d=6):
        rng = np.random.default_rng(seed)

        def real(*shape):
            return rng.random(shape).astype(np.float32)

        def complex_(*shape):
            return (rng.normal(size=shape) + 1j * rng.normal(size=shape)).astype(np.complex64)

        return Estimate(
            n_frames=n,
            object=complex_(*grid),
            origin_m=(-1.1e-6 / 3, 2.3e-6 / 7),
            pixel_m=2.8e-8 / 3,
            probe=complex_(2, 8, 8),
            std_amplitude=real(*grid),
            std_phase_rad=real(*grid),
            coverage=real(*grid),
            frame_seq_nums=np.arange(1, n + 1) * 2,
            positions_m=rng.normal(size=(n, 2)) * 1e-6,
            embedding=real(n, d),
            frame_uncertainty=real(n),
            residual=real(n),
            novelty=real(n),
            seconds=0.25,
            source={"name": "pinn", "version": "1", "scale": 0.5},
        )

    return make


@pytest.fixture(scope="session")
def assert_equal():
    """Compare two estimates bit by bit."""
    import numpy as np

    from bluesky_cdi.protocols import Estimate

    def check(found, wanted):
        for name in Estimate.__dataclass_fields__:
            a, b = getattr(found, name), getattr(wanted, name)
            if isinstance(b, np.ndarray):
                assert a.dtype == b.dtype, name
                np.testing.assert_array_equal(a, b, err_msg=name, strict=True)
            else:
                assert a == b, name

    return check


PROXY = """
import sys, json, pathlib
from bluesky.callbacks.zmq import Proxy, ServerCurve
inner, outer, keys = json.loads(sys.argv[1])
curve = keys and ServerCurve(pathlib.Path(keys[0]), pathlib.Path(keys[1]), None)
proxy = Proxy(inner, outer, out_curve=curve)
print(json.dumps([proxy.in_port, proxy.out_port]), flush=True)
proxy.start()
"""


@pytest.fixture(scope="session")
def start_zmq_proxy():
    """Start bluesky's proxy in a process of its own, killed in the end; its inner and its outer address."""
    import json

    @contextlib.contextmanager
    def started(inner="tcp://127.0.0.1", outer="tcp://127.0.0.1", keys=None):
        command = [sys.executable, "-c", PROXY, json.dumps([inner, outer, keys])]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            try:
                yield tuple(json.loads(process.stdout.readline()))
            finally:
                process.kill()

    return started


# What takes a process seconds to import. Nothing of it may start a thread, so ophyd is kept from connecting to EPICS.
FORKS = """
import json, os, signal, sys
import bluesky.plan_stubs, torch._dynamo, torch.distributed.nn, torch.distributed.tensor
import bluesky_cdi.journal, bluesky_cdi.physics.probes, bluesky_cdi.plans, bluesky_cdi.sim_devices
import bluesky_cdi.training.pretraining.run
for line in sys.stdin:
    order = json.loads(line)
    if isinstance(order, int):
        print(os.waitstatus_to_exitcode(os.waitpid(order, 0)[1]), flush=True)
    elif pid := os.fork():
        print(pid, flush=True)
    else:
        break
else:
    os._exit(0)
# Under nohup a process inherits that SIGHUP is ignored, and it stays so, as its user wishes.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
output, variables, *sys.argv = order
os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), 1)
os.dup2(1, 2)
os.environ.update(variables)
with open(sys.argv[0]) as file:
    program = compile(file.read(), sys.argv[0], "exec")
exec(program, {"__name__": "__main__"})
"""


class Forked:
    """A process, as `subprocess.Popen` has it; the one that it was forked from waits for it."""

    def __init__(self, ask, pid):
        self._ask, self.pid, self.returncode = ask, pid, None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.wait()

    def wait(self, timeout=300.0):
        """Wait for its end; one that has not ended by then is killed, which its exit code tells."""
        if self.returncode is None:
            late = threading.Timer(timeout, self.kill)
            late.start()
            self.returncode = self._ask(self.pid)
            late.cancel()
        return self.returncode

    def send_signal(self, number):
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)


@pytest.fixture(scope="session")
def fork_script():
    """Run a script in a process of its own, which is forked from one that has imported already what takes seconds.

    What it writes goes into a file beside the script, which ends in ``.out``.
    """
    import json

    environment = {**os.environ, "OPHYD_CONTROL_LAYER": "dummy"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", FORKS], env=environment, **pipes) as process:

        def ask(order):
            print(json.dumps(order), file=process.stdin, flush=True)
            return int(process.stdout.readline())

        def fork(script, *arguments, **variables):
            return Forked(ask, ask([f"{script}.out", variables, str(script), *map(str, arguments)]))

        yield fork
