"""What is put on a RunEngine is taken away again, and nothing else."""

import collections
import contextlib
import logging

import bluesky.plan_stubs as bps
import pytest
from bluesky.suspenders import SuspendBoolHigh
from bluesky.utils import RunEngineInterrupted
from ophyd import Signal

from bluesky_cdi.attachment import Attachment
from bluesky_cdi.errors import ConfigError


class KeptMetadata(collections.UserDict):
    """A mapping that is no dict, as `bluesky.utils.PersistentDict` is none."""


@pytest.fixture
def engine(run_engine):
    """A RunEngine as a beamline has it: metadata, a suspender, a subscription, numbers of its own."""
    with run_engine() as engine:
        engine.md = KeptMetadata(beamline="26-ID", scan_id=41, geometry={"energy_ev": 1.0})
        engine.install_suspender(SuspendBoolHigh(Signal(name="closed", value=0)))
        engine.seen = []
        engine.subscribe(lambda name, doc: engine.seen.append((name, doc)))
        yield engine


def empty_run():
    yield from bps.open_run()
    yield from bps.close_run()


def test_all_is_as_before(engine):
    before = dict(engine.md), engine.scan_id_source, dict(engine.dispatcher._token_mapping), set(engine.suspenders)
    names = []
    attachment = Attachment(engine)
    attachment.state({"geometry": {"energy_ev": 2.0}, "monitor": "i0"})
    attachment.number_runs(lambda metadata: 99)
    attachment.subscribe(lambda name, doc: names.append(name))
    attachment.subscribe(lambda name, doc: names.append("begun"), "start")
    engine(empty_run())
    start = engine.seen[0][1]
    assert (start["scan_id"], start["geometry"], start["monitor"]) == (99, {"energy_ev": 2.0}, "i0")
    assert names == ["start", "begun", "stop"]
    attachment.detach()
    assert dict(engine.md) == before[0] | {"scan_id": 99}
    assert before[1:] == (engine.scan_id_source, dict(engine.dispatcher._token_mapping), set(engine.suspenders))
    engine(empty_run())
    assert [name for name, _ in engine.seen] == ["start", "stop"] * 2 and len(names) == 3


def test_what_the_user_changes_meanwhile_stays(engine, caplog):
    attachment = Attachment(engine)
    with caplog.at_level(logging.WARNING, "bluesky_cdi"):
        attachment.state({"geometry": {"energy_ev": 2.0}, "monitor": "i0"})
    (record,) = caplog.records
    assert "RE.md['geometry'] is {'energy_ev': 2.0} while the session is open" in record.getMessage()
    engine.md["geometry"] = {"energy_ev": 3.0}
    del engine.md["monitor"]
    attachment.detach()
    assert engine.md["geometry"] == {"energy_ev": 3.0} and "monitor" not in engine.md


def test_one_at_a_time(engine):
    attachment = Attachment(engine)
    with pytest.raises(ConfigError, match="close it first"):
        Attachment(engine)
    attachment.detach()
    Attachment(engine).detach()


def test_a_run_that_is_not_over_is_left_to_its_owner(engine, caplog):
    attachment = Attachment(engine)
    with contextlib.suppress(RunEngineInterrupted):
        engine(bps.pause())
    with caplog.at_level(logging.WARNING, "bluesky_cdi"):
        attachment.detach()
    assert "closed while its RunEngine is paused" in caplog.text and engine.state == "paused"
    with pytest.raises(ConfigError, match="this one is paused"):
        Attachment(engine)
    engine.resume()
    assert engine.state == "idle"
