import json
import logging
import threading

import numpy as np
import pytest
from event_model import compose_run

from bluesky_cdi.catalog import RunWriter, restore_backup, run_writer
from bluesky_cdi.errors import CatalogError


def composed_run(n=3, **metadata):
    """A run with a number and a vector in each event."""
    run = compose_run(metadata=metadata)
    keys = {
        "x": {"source": "test", "dtype": "number", "shape": [], "dtype_numpy": "<f8"},
        "vector": {"source": "test", "dtype": "array", "shape": [3], "dtype_numpy": "<f4"},
    }
    described = run.compose_descriptor(name="primary", data_keys=keys)
    yield "start", run.start_doc
    yield "descriptor", described.descriptor_doc
    for i in range(n):
        data = {"x": i / 3, "vector": np.arange(3, dtype=np.float32) + i}
        # event-model's schemas know lists only, but devices do put arrays into events.
        yield "event", described.compose_event(data=data, timestamps=dict.fromkeys(data, 0.0), validate=False)
    yield "stop", run.compose_stop()


# The router between the runs packs each event into a page.
PAGED = ["start", "descriptor", "event_page", "event_page", "event_page", "stop"]


class Failing:
    """A target that refuses events of one run and keeps what it got."""

    def __init__(self, uid):
        self.uid = uid
        self.got = []
        self._run = {}

    def __call__(self, name, doc):
        if name == "descriptor":
            self._run[doc["uid"]] = doc["run_start"]
        if name == "event_page" and self._run[doc["descriptor"]] == self.uid:
            raise OSError("no")
        self.got.append((name, doc))


def test_run_engine_through_to_the_catalog(catalog, tmp_path):
    from bluesky import RunEngine
    from bluesky.plans import scan
    from ophyd.sim import SynAxis, SynGauss

    engine = RunEngine({}, call_returns_result=True)
    motor = SynAxis(name="motor")
    det = SynGauss("det", motor, "motor", center=0, Imax=1)
    writer = run_writer(catalog.raw, tmp_path / "backup", batch_size=2)
    engine.subscribe(writer)
    (uid,) = engine(scan([det], motor, -1, 1, 5), sample="star").run_start_uids
    writer.close(20)
    engine.loop.call_soon_threadsafe(engine.loop.stop)
    engine._th.join()
    engine.loop.close()

    writer.check()
    assert writer.error is None
    assert not (tmp_path / "backup").exists()
    run = catalog.raw[uid]
    assert run.start["sample"] == "star"
    assert run.stop["num_events"]["primary"] == 5
    np.testing.assert_array_equal(run["primary/motor"].read(), np.linspace(-1, 1, 5))
    assert run.validate(raise_on_error=True)
    with pytest.raises(RuntimeError, match="after shutdown"):
        writer("start", {})


def test_failed_run_goes_to_backup_whole_and_the_next_one_on(tmp_path, caplog):
    bad, good = list(composed_run(scan_id=1)), list(composed_run(scan_id=2))
    uid = bad[0][1]["uid"]
    target = Failing(uid)
    writer = RunWriter(target, tmp_path / "backup")
    with caplog.at_level(logging.CRITICAL):
        for pair in zip(bad, good, strict=True):
            for document in pair:
                writer(*document)
        writer.close(5)

    assert target.got[-1] == good[-1]
    assert [name for name, _ in target.got] == ["start", "start", "descriptor", *PAGED[1:]]
    assert isinstance(writer.error, OSError)
    assert list(writer.failures) == [uid]
    with pytest.raises(CatalogError, match=r"1 run\(s\) could not be written .*backup"):
        writer.check()
    lines = [json.loads(line) for line in writer.failures[uid].read_text().splitlines()]
    assert [line["name"] for line in lines] == PAGED
    assert lines[3]["doc"]["data"]["vector"] == [[1.0, 2.0, 3.0]]


def test_backup_is_restored_in_place_of_the_partial_run(catalog, tmp_path, caplog):
    from bluesky_tiled_plugins import TiledWriter

    documents = list(composed_run(scan_id=5))
    uid = documents[0][1]["uid"]
    tiled = TiledWriter(catalog.raw, batch_size=1, max_array_size=0)

    def breaks_at_last_event(name, doc):
        if name == "event_page" and doc["seq_num"] == [3]:
            raise ConnectionError("server gone")
        tiled(name, doc)

    writer = RunWriter(breaks_at_last_event, tmp_path)
    with caplog.at_level(logging.CRITICAL):
        for document in documents:
            writer(*document)
        writer.close(20)
    assert len(catalog.raw[uid]["primary/x"].read()) == 2

    assert restore_backup(writer.failures[uid], catalog.raw) == uid
    run = catalog.raw[uid]
    data = run["primary"].read()
    np.testing.assert_array_equal(data["x"], [0, 1 / 3, 2 / 3])
    np.testing.assert_array_equal(data["vector"], np.arange(3.0) + np.arange(3.0)[:, None])
    assert run.stop["exit_status"] == "success"
    assert len(catalog.raw) == 1


@pytest.mark.parametrize("text", ["", "{", '{"name": "start"}\n'])
def test_unusable_backup(tmp_path, text):
    path = tmp_path / "x.jsonl"
    path.write_text(text)
    with pytest.raises(CatalogError, match="can't restore a run"):
        restore_backup(path, container={})


def test_drain_has_a_deadline_and_loses_nothing(tmp_path):
    release = threading.Event()
    got = []

    def slow(name, doc):
        release.wait(10)
        got.append(name)

    writer = RunWriter(slow, tmp_path)
    documents = list(composed_run())
    for document in documents:
        writer(*document)
    with pytest.raises(CatalogError, match=r"within 0\.1 s; writing goes on"):
        writer.close(0.1)
    release.set()
    writer.close(5)
    writer.close(5)
    assert got == PAGED
