"""Documents of many runs, sorted into those that are followed and those that are not."""

import logging
import random

import pytest

from bluesky_cdi.callbacks import SharedFolders
from bluesky_cdi.config import DocumentsConfig
from bluesky_cdi.errors import JournalError
from bluesky_cdi.follow import Cut, Message, Selection
from bluesky_cdi.follow.intake import HELD_MAX, MADE_UP, Intake


class Kept:
    """A sink that keeps the documents of each run."""

    def __init__(self):
        self.runs, self.error = {}, None

    def begin(self, start):
        if self.error is not None:
            raise self.error
        assert start["uid"] not in self.runs
        self.runs[start["uid"]] = [("start", start)]

    def add(self, uid, name, doc):
        assert self.runs[uid][-1][0] != "stop"
        self.runs[uid].append((name, doc))


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def make():
    def made(**options):
        sink, clock = Kept(), Clock()
        given = {"selection": Selection(), "paths": SharedFolders(), "metadata": {}, "clock": clock, **options}
        intake = Intake(sink, DocumentsConfig(), **given)
        return intake, sink, clock

    return made


@pytest.fixture
def said(caplog):
    caplog.set_level(logging.INFO, "bluesky_cdi.follow")
    return lambda: [record.getMessage() for record in caplog.records]


def give(intake, documents, place="", first=-1):
    for k, (name, doc) in enumerate(documents):
        intake.take(Message(name, doc, place, first + k if first >= 0 else -1))


def test_a_run_comes_through_as_it_was(make, published, said):
    intake, sink, _ = make(metadata={"geometry": "ours", "sample": "gold"})
    run = published("a")
    give(intake, run.documents)
    # What it states stays, what it lacks is added.
    assert sink.runs == {"a": [("start", {**run.start, "sample": "gold"}), *run.documents[1:]]}
    assert said() == ["run 1 (a) is followed: frames in 'image'"]


def test_runs_that_alternate_are_told_apart(make, published):
    intake, sink, _ = make()
    runs = [published(f"run{k}", n=3 + k, scan_id=k) for k in range(4)]
    queues = [list(run.documents) for run in runs]
    order = random.Random(3)
    while any(queues):
        queue = order.choice([queue for queue in queues if queue])
        intake.take(Message(*queue.pop(0)))
    assert sink.runs == {run.uid: run.documents for run in runs}
    assert intake.followed == []


def test_runs_without_frames_are_passed_over_with_one_line(make, published, said):
    intake, sink, _ = make()
    for run in (published("a", frames="none"), published("b")):
        give(intake, run.documents)
    assert list(sink.runs) == ["b"]
    assert len(said()) == 2 and "run 1 (a) is passed over: the run's stream 'primary' has no 2-D frames" in said()[0]


def test_runs_without_their_stream(make, published, said):
    intake, _, _ = make()
    run = published("a")
    give(intake, [("start", run.start), ("stop", {**run.stop, "num_events": {}})])
    give(intake, [("start", run.start), *run.documents[2:]])
    assert said()[0] == "run 1 (a) is passed over: it has no stream 'primary'"
    assert "a descriptor (a-d) that never came" in said()[1]
    assert said()[2] == "run 1 (a) is passed over: the descriptor of its stream 'primary' never came, lost on the way"
    assert len(said()) == 3


def test_a_run_that_was_under_way_is_told_once_and_the_next_is_taken(make, published, said):
    intake, sink, _ = make()
    give(intake, published("before").documents[1:])
    give(intake, published("after").documents)
    assert list(sink.runs) == ["after"]
    assert len([line for line in said() if "began before this follower" in line]) == 1
    assert len(said()) == 2


def test_results_of_others_are_no_runs(make, published, said):
    intake, sink, _ = make()
    give(intake, published("a", plan_name="cdi_reconstruction", raw_uid="b").documents)
    assert sink.runs == {} and said() == []


def test_frames_in_files_here(make, published, said, tmp_path):
    intake, sink, _ = make(paths=SharedFolders.parse([f"/data={tmp_path}"]))
    run = published("a", frames="file")
    assert [name for name, _ in run.documents[:3]] == ["start", "descriptor", "stream_resource"]
    give(intake, run.documents[:2])
    # Nothing is decided before it is known where they lie.
    assert sink.runs == {}
    give(intake, run.documents[2:])
    assert sink.runs["a"][2][1]["uri"] == (tmp_path / "scan.h5").as_uri()
    assert len(sink.runs["a"]) == len(run.documents)


def test_frames_in_files_elsewhere(make, published, said, tmp_path):
    intake, sink, _ = make(paths=SharedFolders.parse([f"/beamline={tmp_path}"]))
    give(intake, published("a", frames="file").documents)
    assert sink.runs == {}
    assert len(said()) == 1 and "--paths /data where it has the same name here" in said()[0]


def test_a_run_whose_files_go_elsewhere_later_is_ended(make, published):
    intake, sink, _ = make()
    run = published("a")
    give(intake, [*run.documents[:4], ("stream_resource", run.resource), *run.documents[4:]])
    *_, (name, stop) = sink.runs["a"]
    assert name == "stop" and stop["exit_status"] == "abort" and "--paths" in stop["reason"]
    assert stop["num_events"] == {"primary": 2}


def test_frames_that_lie_nowhere(make, published, said):
    intake, sink, _ = make()
    run = published("a", n=2 * HELD_MAX, frames="nowhere")
    give(intake, run.documents)
    assert sink.runs == {} and said() == ["run 1 (a) is passed over: nothing tells where the frames of 'image' lie"]


def test_a_run_that_can_not_be_kept(make, published, said):
    intake, sink, _ = make()
    sink.error = JournalError("no room")
    give(intake, published("a").documents)
    assert sink.runs == {} and said() == ["run 1 (a) is passed over: no room"]


@pytest.mark.parametrize(
    ("name", "doc"),
    [
        ("start", {}), ("start", {"uid": "../../etc/x"}), ("start", {"uid": "a/b"}), ("start", {"uid": 3}),
        ("start", {"uid": "x" * 129}), ("start", {"uid": ""}), ("descriptor", {"run_start": "a"}),
        ("descriptor", {"run_start": "a", "uid": "d", "name": "primary", "data_keys": 3}), ("stop", {}),
        ("event", {"descriptor": "a-d"}), ("event", {"descriptor": ["a-d"]}), ("event", {}), ("nonsense", {}),
        ("stream_datum", {"descriptor": "a-d", "seq_nums": 3}), ("event_page", {"descriptor": "a-d", "seq_num": 3}),
        ("resource", {"run_start": "a", "uid": "r"}), ("start", {"uid": "a"}),
    ],
)  # fmt: skip
def test_documents_of_a_wrong_form_harm_nobody(make, published, name, doc):
    intake, sink, _ = make()
    run, other = published("a"), published("b")
    give(intake, run.documents[:3])
    intake.take(Message(name, doc))
    give(intake, other.documents)
    assert sink.runs["b"] == other.documents
    assert set(sink.runs) == {"a", "b"}


def test_silent_runs_are_ended_once_another_one_has_begun(make, published):
    intake, sink, clock = make()
    give(intake, published("a").documents[:4], "x")
    give(intake, published("elsewhere").documents, "y")
    clock.now = 1000.0
    intake.let_go_silent(600.0)
    assert intake.followed == ["a"]
    give(intake, published("b").documents[:3], "x")
    # The last documents of both came at the same moment, but none of a's since b began.
    intake.let_go_silent(600.0)
    assert intake.followed == ["b"]
    *_, (name, stop) = sink.runs["a"]
    assert name == "stop" and stop["uid"].startswith(MADE_UP) and "no document has come for 600 s" in stop["reason"]
    clock.now = 10_000.0
    intake.let_go_silent(600.0)
    assert intake.followed == ["b"]


def test_a_run_that_speaks_again_goes_on(make, published):
    intake, sink, clock = make()
    run = published("a")
    give(intake, run.documents[:4])
    give(intake, published("b").documents)
    give(intake, run.documents[4:5])
    clock.now = 1000.0
    intake.let_go_silent(600.0)
    give(intake, run.documents[5:])
    assert sink.runs["a"] == run.documents


def test_places_that_are_gone(make, published):
    intake, sink, _ = make()
    give(intake, published("a").documents[:4], "0", 10)
    give(intake, published("b").documents[:4], "1", 20)
    intake.cut(Cut("0", "another has it"))
    assert intake.followed == ["b"] and sink.runs["a"][-1][1]["reason"] == "another has it"
    assert intake.offsets.done_before == {"1": 20}


def test_offsets_stay_before_the_first_run_that_is_not_done(make, published):
    intake, _, _ = make(is_known=lambda uid: uid == "known")
    a, b, known = published("a"), published("b"), published("known")
    give(intake, a.documents, "0", 100)
    give(intake, b.documents[:3], "0", 200)
    assert intake.offsets.done_before == {"0": 100}
    intake.offsets.release("a")
    assert intake.offsets.done_before == {"0": 200}
    give(intake, b.documents[3:], "0", 203)
    give(intake, known.documents, "0", 300)
    assert intake.offsets.done_before == {"0": 200}
    intake.offsets.release("b")
    assert intake.offsets.done_before == {"0": 300 + len(known.documents)}


def test_runs_that_begin_when_no_more_are_taken_come_again(make, published):
    intake, sink, _ = make()
    intake.takes_new = False
    give(intake, published("a").documents, "0", 7)
    assert sink.runs == {} and intake.offsets.done_before == {"0": 7}


def test_memory_is_bounded(make, published, monkeypatch):
    monkeypatch.setattr("bluesky_cdi.follow.intake.OPEN_MAX", 5)
    intake, sink, _ = make()
    good = published("good")
    give(intake, good.documents[:3])
    for k in range(50):
        give(intake, published(f"r{k}", frames="none").documents[:2])
        give(intake, [("descriptor", {**published(f"u{k}").descriptor})])
    assert len(intake._runs) <= 5 and intake.followed == ["good"]
    give(intake, good.documents[3:])
    assert sink.runs["good"] == good.documents


@pytest.mark.parametrize("uid", ["../../etc/x", "a/b", "/tmp/x", "x" * 129, "", ".", "-rf", "a\n"])
def test_no_file_gets_a_name_from_elsewhere(make, published, uid):
    intake, sink, _ = make()
    give(intake, published(uid).documents)
    assert sink.runs == {} and intake.followed == []
