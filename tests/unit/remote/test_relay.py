"""What the session's machine does for a host's process, and what it does not."""

import queue

import h5py
import numpy as np
import pytest

from bluesky_cdi.config import Config
from bluesky_cdi.packing import pack, unpack
from bluesky_cdi.remote import relay
from bluesky_cdi.remote.messages import pack_estimate, pack_run

SOON_S = 240.0
COUNTS = np.arange(24).reshape(2, 3, 4)


@pytest.fixture
def told():
    return queue.SimpleQueue()


@pytest.fixture
def answers(tmp_path, told):
    made = relay.Answers(Config(), tmp_path / "session", lambda *message: told.put(message))
    yield made
    made.close("the end of the test")


def resource(path):
    return {"uri": f"file://localhost{path}", "mimetype": "application/x-hdf5", "parameters": {"dataset": "d"}}


@pytest.mark.parametrize("kind", ["stream_resource", "resource"])
def test_files_of_the_sessions_runs_are_read_and_no_others(answers, told, tmp_path, kind):
    for name in ("a.h5", "b.h5"):
        with h5py.File(tmp_path / name, "w") as file:
            file["d"] = COUNTS
    path = tmp_path / "a.h5"
    doc = {"root": str(tmp_path), "resource_path": "a.h5"} if kind == "resource" else resource(path)
    answers.announce(kind, {"uid": "r", **doc})
    answers.ask(1, "rows", resource(path), 0, 2, None)
    _, number, error, rows = told.get(timeout=SOON_S)
    assert (number, error) == (1, None)
    np.testing.assert_array_equal(rows, COUNTS)
    (tmp_path / "elsewhere" / "sub").mkdir(parents=True)
    with h5py.File(tmp_path / "elsewhere" / "a.h5", "w") as file:
        file["d"] = COUNTS + 1
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere" / "sub")
    answers.ask(3, "rows", resource(f"{tmp_path}/link/../a.h5"), 0, 2, None)
    np.testing.assert_array_equal(told.get(timeout=SOON_S)[3], COUNTS)
    for other in (tmp_path / "b.h5", f"{tmp_path}/a.h5/../b.h5", "/etc/passwd"):
        answers.ask(2, "rows", resource(other), 0, 2, None)
        _, number, error, rows = told.get(timeout=SOON_S)
        assert (
            number == 2
            and rows is None
            and error.endswith("is no file of this session's runs: it is not read for a host")
        )


def test_documents_that_name_files_are_noted_on_their_way_up(answers):
    """Whatever else a message holds."""
    messages = [
        ["setup", "resource", {}],
        ["document", pack(["start", {"uid": "resource"}])],
        ["document", pack(["stream_resource", {"uid": "a" * 40, **resource("/data/a.h5")}])],
        ["document", pack(["stream_resource", {"uid": "b", "uri": "https://far", "mimetype": "application/x-hdf5"}])],
        ["document", pack(["resource", {"uid": "c"}])],
        ["document", pack(["resource", {"uid": "d", "root": "/data", "resource_path": "b.h5"}])],
    ]
    coming, gone = [*map(pack, messages)], []

    class Session:
        def receive_packed(self):
            if not coming:
                raise EOFError
            return coming.pop(0)

    class Host:
        def hand_on(self, data):
            gone.append(unpack(data))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(relay.os, "_exit", lambda code: None)
        relay._upwards(Session(), Host(), answers)
    assert gone == messages
    assert answers._announced == {"/data/a.h5", "/data/b.h5"}


def test_results_are_kept_in_the_sessions_folder_and_those_left_open_end_as_failed(
    answers, told, tmp_path, info, make_estimate
):
    for number, (what, *values) in enumerate(
        [
            ("record", "one", pack_run(info)),
            ("publish", "one", pack_estimate(make_estimate(1))),
            ("end", "one", pack_estimate(make_estimate(1)), "success", ""),
            ("record", "two", pack_run(info)),
            ("publish", "two", pack_estimate(make_estimate(2))),
            ("publish", "three", pack_estimate(make_estimate(3))),
        ]
    ):
        answers.ask(number, what, *values)
    errors = [told.get(timeout=SOON_S)[2] for _ in range(6)]
    assert errors == [None] * 5 + ["'three'"]
    answers.close("the host is gone")
    stops = {}
    for path in (tmp_path / "session" / "journal" / "processed").iterdir():
        documents = relay_documents(path)
        stops[path.stem] = documents[-1][1]["exit_status"], documents[-1][1]["complete"], documents[-1][1]["reason"]
    assert stops["one"][:2] == ("success", True)
    assert stops["two"] == ("fail", False, "the host is gone")
    assert sorted(each.name for each in (tmp_path / "session" / "results").iterdir()) == ["one.h5", "two.h5"]


def test_files_of_a_run_do_not_stay_open_when_it_has_ended(answers, told, tmp_path, info, make_estimate):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["d"] = COUNTS
    answers.announce("stream_resource", {"uid": "r", **resource(tmp_path / "a.h5")})
    estimate = pack_estimate(make_estimate(1))
    for _ in range(2):
        answers.ask(1, "rows", resource(tmp_path / "a.h5"), 0, 2, None)
        np.testing.assert_array_equal(told.get(timeout=SOON_S)[3], COUNTS)
        assert answers._files._files
        answers.ask(2, "record", "one", pack_run(info))
        answers.ask(3, "end", "one", estimate, "success", "")
        assert [told.get(timeout=SOON_S)[2] for _ in range(2)] == [None, None]
        answers._pools["rows"].submit(print).result(SOON_S)
        assert not answers._files._files


def test_a_host_names_no_files(answers, told, tmp_path, info):
    for uid in ("../../out", str(tmp_path / "out"), "", "."):
        answers.ask(1, "record", uid, pack_run(info))
        assert "letters, digits and hyphens" in told.get(timeout=SOON_S)[2]
    assert answers._recorders == {}


def relay_documents(path):
    from bluesky_cdi.journal import JournalReader

    reader = JournalReader(path)
    documents = list(reader.documents())
    reader.close()
    return documents
