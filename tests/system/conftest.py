"""Sessions on the simulated beamline, small enough to run a scan in a second or two."""

import contextlib
import copy
import shutil
import threading
import time

import numpy as np
import pytest
from bluesky.utils import RunEngineInterrupted
from event_model import DocumentNames, schema_validators

from bluesky_cdi.config import Config
from bluesky_cdi.errors import WorkerError

WINDOW = {"extent_um": (1.2, 1.2), "step_um": 0.2}
# Least time between updates: writing one to the catalog costs a slow machine more than making it here.
PACE_S = 0.25


class Documents(list):
    """Documents of runs, as (name, document), valid or not until `validate` is called."""

    __hash__ = object.__hash__

    def __call__(self, name, doc):
        self.append((name, copy.deepcopy(doc)))

    def validate(self):
        for name, doc in self:
            schema_validators[DocumentNames[name]].validate(doc)

    def of(self, kind, stream=None):
        found = [doc for name, doc in self if name == kind]
        if stream is None:
            return found
        uids = {doc["uid"] for name, doc in self if name == "descriptor" and doc["name"] == stream}
        return [doc for doc in found if doc["descriptor"] in uids]

    @property
    def measured_m(self):
        """Read-back (y, x) of the events of stream primary, metres."""
        rows = [[e["data"]["stage_y"], e["data"]["stage_x"]] for e in self.of("event", "primary")]
        return np.array(rows).reshape(-1, 2) * 1e-6

    @property
    def decided_m(self):
        """(y, x) of the events of stream agent, metres."""
        data = [e["data"] for e in self.of("event", "agent")]
        rows = [np.column_stack([d["agent_y"], d["agent_x"]])[: d["agent_n_proposed"]] for d in data]
        return np.concatenate(rows)


class Tee:
    """Stands in front of a session's writer of results and keeps what goes through."""

    def __init__(self, writer):
        self.documents, self._writer = Documents(), writer

    def __call__(self, name, doc):
        self.documents(name, doc)
        self._writer(name, doc)

    def __getattr__(self, name):
        return getattr(self._writer, name)


class Lab:
    """A session with its beamline, and what passed through it."""

    def __init__(self, config, directory, **options):
        from bluesky_cdi.session import Session
        from bluesky_cdi.sim_devices import simulated_beamline

        self.history, self.listener_error = [], None
        self.session = Session(config, directory, monitor_key="i0", listeners=[self._listen], **options)
        self.beamline = simulated_beamline(config, self.session.frames_directory)
        self.docs, tee = Documents(), Tee(self.session._result_writer)
        self.session._result_writer, self.derived = tee, tee.documents
        self.session.RE.subscribe(self.docs)

    def _listen(self, estimate):
        self.history.append(estimate)
        time.sleep(PACE_S)
        if self.listener_error is not None:
            raise self.listener_error

    @property
    def devices(self):
        beamline = self.beamline
        return [beamline.detector, beamline.monitor], beamline.stage.y, beamline.stage.x

    def adaptive(self, **changes):
        from bluesky_cdi.plans import adaptive_ptycho

        arguments = {**WINDOW, "budget": 16, "batch": 8, "decision_timeout_s": 30.0, **changes}
        return adaptive_ptycho(*self.devices, self.session.live, **arguments)

    def run(self, plan):
        """Run a plan; its result."""
        results = []

        def keep():
            results.append((yield from plan))

        self.session.RE(keep())
        return results[0]

    def pause_when_waiting(self, gate):
        """Run a scan, and pause it once the first batch is measured and the plan waits for the next decision."""

        def pause():
            assert gate.asked.wait(20)
            while len(self.docs.of("event", "primary")) < 8:
                time.sleep(0.01)
            time.sleep(0.2)
            self.session.RE.request_pause()

        thread = threading.Thread(target=pause)
        thread.start()
        with pytest.raises(RunEngineInterrupted):
            self.run(self.adaptive())
        thread.join()
        assert self.session.RE.state == "paused"

    def settle(self):
        """Wait until all is in the catalog, whether the reconstruction failed or not."""
        with contextlib.suppress(WorkerError):
            self.session.wait(60)

    def clear(self):
        self.docs.clear()
        self.derived.clear()
        self.history.clear()
        self.listener_error = None

    def check_raw_run(self, exit_status, n=None):
        """The raw run in the catalog holds what was measured: every frame at its place; the frames."""
        (start,), (stop,) = self.docs.of("start"), self.docs.of("stop")
        assert stop["exit_status"] == exit_status
        self.docs.validate()
        events = self.docs.of("event", "primary")
        numbers = [e["seq_num"] for e in events]
        assert numbers == list(range(1, len(events) + 1))
        assert n is None or n == len(events)
        run = self.session.catalog.raw[start["uid"]]
        assert run.stop["exit_status"] == exit_status
        frames = run["primary"]["diff_image"].read()
        assert frames.shape == (len(events), 64, 64)
        np.testing.assert_array_equal(frames.sum(axis=(1, 2)), [e["data"]["diff_total"] for e in events])
        return frames

    def check_derived_run(self, exit_status):
        """The derived run is complete in its documents and in the catalog; its summary."""
        from bluesky_cdi.catalog import find_results

        self.derived.validate()
        assert self.derived[0][0] == "start" and self.derived[-1][0] == "stop"
        (start,), (stop,) = self.derived.of("start"), self.derived.of("stop")
        (raw,) = self.docs.of("start")
        assert start["raw_uid"] == raw["uid"]
        assert start["uid"] == raw.get("reconstruction_uid", start["uid"])
        assert stop["exit_status"] == exit_status
        (result,) = find_results(self.session.catalog, raw["uid"])
        assert (result.uid, result.exit_status) == (start["uid"], exit_status)
        return result


@pytest.fixture(scope="session")
def empty_catalog(tmp_path_factory):
    """An initialised, empty catalog; initialising takes seconds, so it is copied."""
    from bluesky_cdi.catalog import serve

    directory = tmp_path_factory.mktemp("empty")
    with serve(directory):
        pass
    return directory


@pytest.fixture(scope="session")
def make_config():
    """Configuration of a small and fast scan; sections are merged into it."""

    def make(**sections):
        small = {
            "scan": {**WINDOW, "exposure_s": 0.0},
            "simulation": {"velocity_m_per_s": 0.02, "seed": 2},
            "reconstructor": {"threads": 1, "device": "cpu", "final_steps": 1},
        }
        keys = {*small, *sections}
        return Config.model_validate({key: {**small.get(key, {}), **sections.get(key, {})} for key in keys})

    return make


@pytest.fixture(scope="session")
def fast_config(make_config):
    """Plain rPIE with little to do: for tests of the machinery."""
    return make_config(reconstructor={"name": "rpie", "refine_iterations": 1, "final_steps": 0})


@pytest.fixture(scope="session")
def open_lab(empty_catalog, tmp_path_factory):
    """Open a lab on a fresh catalog, and close it in the end."""

    @contextlib.contextmanager
    def opened(config, **options):
        directory = shutil.copytree(empty_catalog, tmp_path_factory.mktemp("lab") / "catalog")
        lab = Lab(config, directory, **options)
        with contextlib.closing(lab.session):
            yield lab

    return opened


@pytest.fixture(scope="module")
def shared_lab(open_lab, fast_config):
    with open_lab(fast_config) as lab:
        yield lab


@pytest.fixture
def lab(shared_lab):
    """The module's lab, with a clean slate."""
    shared_lab.settle()
    shared_lab.clear()
    return shared_lab


@pytest.fixture
def slow_agent(monkeypatch):
    """From the second decision on, the agent waits for `go`; `asked` tells that it does."""

    from bluesky_cdi.agent.bayesian import BayesianAgent

    class Gate:
        go, asked, calls = threading.Event(), threading.Event(), 0

    real = BayesianAgent.propose

    def propose(self, n):
        Gate.calls += 1
        if Gate.calls > 1:
            Gate.asked.set()
            assert Gate.go.wait(30)
        return real(self, n)

    monkeypatch.setattr(BayesianAgent, "propose", propose)
    yield Gate
    Gate.go.set()


@pytest.fixture
def fail_after(monkeypatch):
    """Make the reconstructor's step after `steps` others raise, within a context."""
    from bluesky_cdi.live.reconstructor import PtychoReconstructor

    @contextlib.contextmanager
    def failing(steps, error):
        real, done = PtychoReconstructor.step, []

        def step(self, budget_s):
            if len(done) >= steps:
                raise error
            done.append(1)
            return real(self, budget_s)

        with monkeypatch.context() as patch:
            patch.setattr(PtychoReconstructor, "step", step)
            yield

    return failing
