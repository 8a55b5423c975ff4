"""Plans on an instant stage and a scripted worker: no frames, no network, no catalog."""

from concurrent.futures import Future

import numpy as np
import pytest
from event_model import DocumentNames, schema_validators
from ophyd import Signal

from bluesky_cdi.protocols import Proposal, ScanTicket
from bluesky_cdi.sim_devices import SimAxis

UM = 1e-6


class Documents(list):
    """Validated documents of the runs, as (name, document)."""

    __hash__ = object.__hash__
    when_measured = (0, None)

    def __call__(self, name, doc):
        schema_validators[DocumentNames[name]].validate(doc)
        self.append((name, doc))
        number, action = self.when_measured
        if name == "event" and doc in self.of("event", "primary") and doc["seq_num"] == number:
            action()

    def of(self, kind, stream=None):
        found = [doc for name, doc in self if name == kind]
        if stream is None:
            return found
        uids = {doc["uid"] for name, doc in self if name == "descriptor" and doc["name"] == stream}
        return [doc for doc in found if doc["descriptor"] in uids]

    @property
    def measured_um(self):
        """(y, x) of the events of stream primary, micrometres, shape (n, 2)."""
        data = [event["data"] for event in self.of("event", "primary")]
        return np.array([[d["stage_y"], d["stage_x"]] for d in data]).reshape(-1, 2)

    @property
    def decided_um(self):
        """(y, x) of the events of stream agent, micrometres, shape (n, 2)."""
        rows = [np.column_stack([e["data"]["agent_y"], e["data"]["agent_x"]]) for e in self.of("event", "agent")]
        rows = np.concatenate(rows)
        return rows[np.isfinite(rows).all(axis=1)] / UM

    @property
    def reasons(self):
        return [e["data"]["agent_reason"] for e in self.of("event", "agent")]


def proposal(points_um, reason="adapt"):
    points = np.array(points_um, dtype=float).reshape(-1, 2) * UM
    return Proposal(points, np.arange(len(points), dtype=float), "script", reason)


class Script:
    """A `ScanSource` that gives prepared answers: proposals, errors, or, for None, a future in `open`."""

    def __init__(self, *answers, path_um=()):
        self.answers = list(answers)
        self.path_m = np.array(path_um, dtype=float).reshape(-1, 2) * UM
        self.asked, self.areas, self.error = [], [], None
        self.open: list[Future] = []

    def begin(self, area):
        self.areas.append(area)
        return _done(ScanTicket("derived-uid", self.path_m))

    def request(self, n, after):
        self.asked.append((n, after))
        answer = self.answers.pop(0) if self.answers else proposal([], "script is over")
        if answer is None:
            self.open.append(Future())
            return self.open[-1]
        return _done(answer)

    def check(self):
        if self.error is not None:
            raise self.error


def _done(value):
    future = Future()
    if isinstance(value, Exception):
        future.set_exception(value)
    else:
        future.set_result(value)
    return future


class Instruments:
    """An instant stage and a detector that counts its readings."""

    def __init__(self):
        self.y, self.x = SimAxis(name="stage_y"), SimAxis(name="stage_x")
        for axis in (self.y, self.x):
            axis.velocity.put(1e9)
        self.detector = Signal(name="det", value=1)

    @property
    def arguments(self):
        return [self.detector], self.y, self.x


@pytest.fixture
def script():
    return Script


@pytest.fixture
def propose():
    return proposal


@pytest.fixture
def devices():
    return Instruments()


@pytest.fixture
def docs(RE):
    documents = Documents()
    RE.subscribe(documents)
    return documents


@pytest.fixture
def when_waiting(RE):
    """Do something, in the RunEngine's thread, once the plan begins to wait for an answer."""

    def do(action):
        def hook(message):
            if message.command == "wait_for":
                RE.msg_hook = None
                action()

        RE.msg_hook = hook

    return do
