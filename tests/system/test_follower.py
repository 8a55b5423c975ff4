"""A follower: runs of RunEngines elsewhere, as their documents come."""

import contextlib
import functools
import queue
import shutil
import threading
import time

import msgpack
import msgpack_numpy
import numpy as np
import pytest
from bluesky.callbacks.zmq import Publisher

from bluesky_cdi.callbacks import SharedFolders
from bluesky_cdi.catalog import find_results, load_result
from bluesky_cdi.config import CatalogConfig
from bluesky_cdi.follow import Cut, Follower, Message
from bluesky_cdi.follow.zmq_source import ZmqSource
from bluesky_cdi.live.run_job import RunJob
from bluesky_cdi.plans import ptycho_raster
from bluesky_cdi.sim_devices import simulated_beamline

SOON_S = 240.0
# Servers and worker's processes of two sides begin and end, also on a machine that is busy otherwise.
pytestmark = pytest.mark.timeout(900)
RASTER = {"extent_um": (0.4, 0.6), "step_um": 0.2}
N = 12
serializer = functools.partial(msgpack.packb, default=msgpack_numpy.encode)


class Interrupted(Exception):
    """In place of Ctrl-C, for the second time."""


class Given:
    """A source that gives documents from a list, and then nothing."""

    def __init__(self, messages, is_interrupted=lambda: False):
        self._messages, self.done, self._is_interrupted = list(messages), {}, is_interrupted

    def next(self, timeout_s):
        if self._messages:
            return self._messages.pop(0)
        if self._is_interrupted():
            raise Interrupted
        time.sleep(0.01)
        return None

    def done_before(self, offsets):
        self.done = dict(offsets)

    def close(self):
        pass

    @property
    def is_empty(self):
        return not self._messages


@pytest.fixture
def open_follower(empty_catalog, tmp_path):
    @contextlib.contextmanager
    def opened(config, source, folder="followed", **options):
        if not (directory := tmp_path / folder).exists():
            shutil.copytree(empty_catalog, directory)
        told, is_over = queue.Queue(), threading.Event()
        with Follower(config, source, directory, tell=told.put, **options) as follower:
            thread = threading.Thread(target=follower.run, args=(is_over.is_set,))
            thread.start()
            try:
                yield follower, told
            finally:
                is_over.set()
                thread.join()

    return opened


@pytest.fixture
def gate(monkeypatch):
    """Holds reconstructions at their beginning: then all frames are taken in together, whenever they come."""
    gate, real = threading.Event(), RunJob.open

    def open_later(self):
        assert gate.wait(SOON_S)
        real(self)

    monkeypatch.setattr(RunJob, "open", open_later)
    yield gate
    gate.set()


@pytest.mark.end_to_end
def test_through_the_proxy_as_in_the_session(
    open_lab, open_follower, fast_config, start_zmq_proxy, gate, until, tmp_path
):
    with start_zmq_proxy() as (inner, outer), open_lab(fast_config) as lab:
        # The beamline's folder has another name here.
        (tmp_path / "mount").symlink_to(lab.session.frames_directory)
        lab.session.frames_directory.mkdir(exist_ok=True)
        paths = SharedFolders.parse([f"{lab.session.frames_directory}={tmp_path / 'mount'}"])
        publish = {"zmq": {"address": inner, "prefix": "results", "curve": None}}
        (tmp_path / "images").mkdir()
        options = {"paths": paths, "publish": publish, "images": tmp_path / "images"}
        results = ZmqSource(outer, "results")
        # A process can serve one catalog.
        separate = fast_config.model_copy(update={"catalog": CatalogConfig()})
        with (
            contextlib.closing(results),
            open_follower(separate, ZmqSource(outer, "beamline"), **options) as (follower, told),
            contextlib.closing(Publisher(inner, prefix=b"beamline", serializer=serializer)) as publisher,
        ):
            # What is published before all are connected is lost.
            heard = follower._intake._complaints._told
            until(lambda: publisher("stop", {"run_start": "knock"}) or "knock" in heard)
            lab.session.RE.subscribe(publisher)
            assert lab.run(ptycho_raster(*lab.devices, lab.session.live, **RASTER)) == "complete"
            (raw,) = lab.docs.of("start")
            until(lambda: follower._lanes._runs and not follower._intake.followed)
            assert follower._lanes._workers[0]._documents.drain(SOON_S)
            assert lab.session._documents.drain(SOON_S)
            gate.set()
            lab.session.wait(SOON_S)
            finished = told.get(timeout=SOON_S)
            assert (finished.raw_uid, finished.n_frames, finished.n_missing) == (raw["uid"], N, 0)
            ours = load_result(follower.catalog, finished.result_uid)
            theirs = load_result(lab.session.catalog, -1)
            for name in ("object", "probe", "std_phase_rad", "positions_m", "residual"):
                scale = np.abs(getattr(theirs, name)).max()
                np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), atol=1e-5 * scale, err_msg=name)
            np.testing.assert_array_equal(ours.frame_seq_nums, np.arange(1, N + 1))
            # The raw run is kept with the names of files here.
            frames = follower.catalog.raw[raw["uid"]]["primary"]["diff_image"].read()
            wanted = lab.session.catalog.raw[raw["uid"]]["primary"]["diff_image"].read()
            np.testing.assert_array_equal(frames, wanted)
            assert (tmp_path / "images" / f"{raw['scan_id']}-{raw['uid'][:8]}.png").stat().st_size > 10_000
            published = []
            while not published or published[-1].name != "stop":
                published.append(results.next(SOON_S))
            assert told.empty()
            assert published[0].doc["raw_uid"] == raw["uid"] and published[0].doc["uid"] == finished.result_uid
            assert published[-1].doc["run_start"] == finished.result_uid


@pytest.fixture(scope="module")
def inline(make_config):
    return make_config(
        reconstructor={"name": "rpie", "refine_iterations": 1, "final_steps": 0}, simulation={"frames": "inline"}
    )


@pytest.fixture
def record(inline, run_engine, tmp_path):
    """Documents of so many scans."""

    def recorded(n):
        runs = []
        with run_engine() as engine:
            beamline = simulated_beamline(inline, tmp_path / "frames")
            devices = [beamline.detector, beamline.monitor], beamline.stage.y, beamline.stage.x
            for _ in range(n):
                runs.append([])
                token = engine.subscribe(lambda name, doc: runs[-1].append((name, doc)))
                engine(ptycho_raster(*devices, None, **RASTER))
                engine.unsubscribe(token)
        return runs

    return recorded


def test_runs_that_alternate_and_lack_documents_and_come_again(inline, record, empty_catalog, tmp_path):
    whole, lossy, cut = record(3)
    lost = {3, 4, 12}
    lossy = [each for each in lossy if each[1].get("seq_num") not in lost]
    # Two at once through one place, a document each in turn. Of a third one the place is gone in the middle of it; it
    # comes again, and its end has not come yet.
    longest = max(len(whole), len(lossy))
    turns = [run[k] for k in range(longest) for run in (whole, lossy) if k < len(run)]
    messages = [Message(*doc, "0", k) for k, doc in enumerate(turns)]
    again = [Message(*doc, "2", 7 + k) for k, doc in enumerate(cut)]
    uids = [run[0][1]["uid"] for run in (whole, lossy, cut)]
    gone = [*(Message(*doc, "1", k) for k, doc in enumerate(cut[:-6])), Cut("1", "it is another follower's")]
    told, directory = [], shutil.copytree(empty_catalog, tmp_path / "followed")
    source = Given([*messages, *gone, *again[:-4]], lambda: len(told) == 3)
    with pytest.raises(Interrupted), Follower(inline, source, directory, at_once=1, tell=told.append) as follower:
        follower.run()
    results = {}
    for finished in told:
        results.setdefault(finished.raw_uid, []).append((finished.n_frames, finished.n_missing))
    assert results == {uids[0]: [(N, 0)], uids[1]: [(N - len(lost), len(lost))], uids[2]: [(N - 5, 0), (N - 3, 0)]}
    (lacking,) = [finished for finished in told if finished.raw_uid == uids[1]]
    assert "3 frame(s) are missing: 3, 4, 12" in lacking.said and lacking.verdict != "good"
    # What was cut short by the end has an image of what came, and is had again from its first document.
    assert source.done == {"0": len(turns), "2": 7}
    assert not list((directory / "journal").glob("*/*.journal"))

    told.clear()
    source = Given([*messages, *again])
    with Follower(inline, source, directory, tell=told.append) as follower:
        follower.run(lambda: told and source.is_empty)
        assert [len(find_results(follower.catalog, uid)) for uid in uids] == [1, 1, 3]
        assert follower.catalog.raw[uids[2]].stop["exit_status"] == "success"
    assert [(each.raw_uid, each.n_frames, each.n_missing) for each in told] == [(uids[2], N, 0)]
    assert source.done == {"0": len(turns), "2": 7 + len(cut)}
