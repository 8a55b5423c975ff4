"""Sessions on the simulated beamline, small enough to run a scan in a second or two."""

import contextlib
import copy
import shutil
import threading

import numpy as np
import pytest
from bluesky.utils import RunEngineInterrupted
from event_model import DocumentNames, schema_validators

from bluesky_cdi.config import Config
from bluesky_cdi.errors import WorkerError

WINDOW = {"extent_um": (1.2, 1.2), "step_um": 0.2}
SOON_S = 240.0


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
    """Stands in front of a session's journal of results and keeps what goes through."""

    def __init__(self, journal):
        self.documents, self._journal = Documents(), journal

    def __call__(self, name, doc):
        self.documents(name, doc)
        self._journal(name, doc)


class Lab:
    """A session with its beamline, and what passed through it."""

    def __init__(self, config, directory, beside, **options):
        from bluesky_cdi.session import Session
        from bluesky_cdi.sim_devices import simulated_beamline

        self.history, self.listener_error, self._beside = [], None, beside
        self.session = Session(config, directory, monitor_key="i0", listeners=[self._listen], **options)
        self.beamline = simulated_beamline(config, self.session.frames_directory)
        self.docs, tee = Documents(), Tee(self.session._result_journal)
        self.session._result_journal, self.derived = tee, tee.documents
        self.session.RE.subscribe(self.docs)

    def _listen(self, estimate):
        self.history.append(estimate)
        if self.listener_error is not None:
            raise self.listener_error

    @property
    def devices(self):
        beamline = self.beamline
        return [beamline.detector, beamline.monitor], beamline.stage.y, beamline.stage.x

    def adaptive(self, **changes):
        from bluesky_cdi.plans import adaptive_ptycho

        arguments = {**WINDOW, "budget": 16, "batch": 8, "decision_timeout_s": 600.0, **changes}
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

        engine, is_waiting = self.session.RE, threading.Event()

        def look(message):
            if message.command == "wait_for" and len(self.docs.of("event", "primary")) == 8:
                is_waiting.set()

        def pause():
            assert is_waiting.wait(SOON_S) and gate.asked.wait(SOON_S)
            engine.request_pause()

        engine.msg_hook = look
        with self._beside(pause), pytest.raises(RunEngineInterrupted):
            self.run(self.adaptive())
        engine.msg_hook = None
        assert engine.state == "paused"

    def settle(self):
        """Wait until all is in the catalog, whether the reconstruction failed or not."""
        with contextlib.suppress(WorkerError):
            self.session.wait(SOON_S)

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

    def check_frames_of_the_catalog(self, run, documents):
        """The catalog gives back the frames that the documents gave, bit by bit; how many."""
        from bluesky_cdi.callbacks import collect_frames
        from bluesky_cdi.catalog import run_documents

        info, frames = collect_frames(run_documents(self.session.catalog, run))
        wanted_info, wanted = collect_frames(documents)
        for name in ("uid", "scan_id", "frame_shape"):
            assert getattr(info, name) == getattr(wanted_info, name)
        for frame, other in zip(frames, wanted, strict=True):
            for name in ("seq_num", "position_m", "counts", "exposure_s", "flux"):
                np.testing.assert_array_equal(getattr(frame, name), getattr(other, name), err_msg=name)
        return len(frames)

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


@pytest.fixture(scope="module", autouse=True)
def patience(patient):
    """Every test here talks to a server."""


@pytest.fixture(scope="session")
def make_config():
    """Configuration of a small and fast scan; sections are merged into it."""

    def make(**sections):
        small = {
            "scan": {**WINDOW, "exposure_s": 0.0},
            "simulation": {"velocity_m_per_s": 0.02, "seed": 2},
            "reconstructor": {"threads": 1, "device": "cpu", "final_steps": 1, "in_process": True},
            "catalog": {"in_process": True},
            "probe": {"trust": True},
        }
        keys = {*small, *sections}
        return Config.model_validate({key: {**small.get(key, {}), **sections.get(key, {})} for key in keys})

    return make


@pytest.fixture(scope="session")
def fast_config(make_config):
    """Plain rPIE with little to do: for tests of the machinery."""
    return make_config(reconstructor={"name": "rpie", "refine_iterations": 1, "final_steps": 0})


@pytest.fixture(scope="session")
def open_lab(empty_catalog, tmp_path_factory, beside):
    """Open a lab on a fresh catalog, and close it in the end."""

    @contextlib.contextmanager
    def opened(config, **options):
        directory = shutil.copytree(empty_catalog, tmp_path_factory.mktemp("lab") / "catalog")
        lab = Lab(config, directory, beside, **options)
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
            assert Gate.go.wait(SOON_S)
        return real(self, n)

    monkeypatch.setattr(BayesianAgent, "propose", propose)
    yield Gate
    Gate.go.set()


@pytest.fixture
def fail_after(monkeypatch):
    """Make the reconstructor's step after `steps` others raise, within a context."""
    from bluesky_cdi.reconstruction.online import PtychoReconstructor

    @contextlib.contextmanager
    def failing(steps, error):
        real, done = PtychoReconstructor.step, []

        def step(self, budget_s, interrupted=None):
            if len(done) >= steps:
                raise error
            done.append(1)
            return real(self, budget_s, interrupted)

        with monkeypatch.context() as patch:
            patch.setattr(PtychoReconstructor, "step", step)
            yield

    return failing
