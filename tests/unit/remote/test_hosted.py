"""What a host's process is made from, and what it asks of the session's machine."""

import errno
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bluesky_cdi.callbacks import SharedFolders
from bluesky_cdi.config import Config
from bluesky_cdi.errors import ConfigError, HostError, ScanFileError, WorkerError
from bluesky_cdi.protocols import RunInfo
from bluesky_cdi.remote import carried, hosted
from bluesky_cdi.remote.carried import carry, put_down
from bluesky_cdi.remote.far import Asking, FarFiles, FarRecorder
from bluesky_cdi.remote.hosted import end_without_memory, hosted_setup, setup_or_end
from bluesky_cdi.remote.hosting import OUT_OF_MEMORY, Terms
from bluesky_cdi.remote.messages import pack_part, pack_run, unpack_part, unpack_run
from bluesky_cdi.remote.setup import LIVE, live_arguments

SOON_S = 240.0
WINDOW = {"window_m": ((0.0, 1.0), (2.0, 3.0)), "grows": True}


@pytest.fixture
def terms(tmp_path):
    (tmp_path / "host").mkdir()
    return Terms(str(tmp_path / "host"), "cuda:7", [], ["somebody.parts:setup"])


def arguments(directory, **sections):
    config = Config.model_validate({"reconstructor": {"name": "rpie", "checkpoint_s": 5.0}, **sections})
    made = live_arguments(config, directory)
    return {**made, "files": carry(made["config"])}


def test_a_process_works_on_the_terms_of_its_host(terms, tmp_path, monkeypatch):
    made, built = [], hosted.factory_of
    monkeypatch.setattr(hosted, "factory_of", lambda name: lambda given: made.append(given) or built(name)(given))
    setup = hosted_setup(terms, Asking(print), LIVE, arguments(tmp_path / "session"))
    (given,) = made
    assert given["directory"] == terms.folder and "files" not in given
    reconstructor = given["config"]["reconstructor"]
    assert (reconstructor["device"], reconstructor["checkpoint_s"]) == ("cuda:7", 0.0)
    assert setup.parts.make_checkpoint is None and isinstance(setup.elsewhere, FarFiles)
    assert not (tmp_path / "session").exists()


@pytest.mark.parametrize("factory", ["os:getcwd", "", "somebody.parts", "somebody.parts:other"])
def test_a_factory_that_the_host_was_not_started_with_is_not_run(terms, tmp_path, factory):
    with pytest.raises(HostError, match=f"the host runs no factory '{factory}'; .* serve-reconstructor --factory"):
        hosted_setup(terms, Asking(print), factory, arguments(tmp_path))


def test_a_host_without_room_ends_the_process_and_gives_nothing_up_for_good(terms, tmp_path, monkeypatch, caplog):
    class Ended(Exception):
        pass

    def end(code):
        raise Ended(code)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(hosted.os, "_exit", end)
    monkeypatch.setattr(hosted, "put_down", full)
    with pytest.raises(Ended):
        setup_or_end(terms, Asking(print), LIVE, arguments(tmp_path / "session"))
    assert "the host can't begin a reconstruction" in caplog.text and "No space left" in caplog.text
    # One that was started otherwise may do, too.
    with pytest.raises(Ended):
        setup_or_end(terms, Asking(print), "os:getcwd", arguments(tmp_path / "session"))
    assert "the host runs no factory 'os:getcwd'" in caplog.text


def test_what_would_be_so_on_any_host_is_for_the_session_to_hear(terms, tmp_path):
    named = replace(terms, factories=["nobody.has:this"])
    with pytest.raises(ConfigError, match="must be one that Python finds"):
        setup_or_end(named, Asking(print), "nobody.has:this", arguments(tmp_path / "session"))


def test_files_that_a_configuration_names_are_carried_and_no_others_opened(tmp_path):
    there, here = tmp_path / "session", tmp_path / "host"
    (there / "library").mkdir(parents=True)
    for name in ("mask.npz", "net.safetensors", "net.json", "library/a.npz", "library/b.npz", "library/notes.txt"):
        (there / name).write_bytes(name.encode())
    config = {
        "detector": {"mask": f"{there}/mask.npz::bad", "dark": "/etc/passwd.npy", "flat": None},
        "probe": {"library": f"{there}/library/", "file": None},
        "reconstructor": {"weights": f"{there}/net.safetensors", "uncertainty_weights": ["halves-small"]},
    }
    files = carry(config)
    assert sorted(files) == [
        f"{there}/{name}" for name in ("library/a.npz", "library/b.npz", "mask.npz", "net.json", "net.safetensors")
    ]
    put_down(config, files, here)
    path, _, inside = config["detector"]["mask"].partition("::")
    assert inside == "bad" and Path(path).read_bytes() == b"mask.npz"
    weights = config["reconstructor"]["weights"]
    assert Path(weights).read_bytes() == b"net.safetensors"
    assert Path(weights.replace(".safetensors", ".json")).read_bytes() == b"net.json"
    assert config["reconstructor"]["uncertainty_weights"] == ["halves-small"]
    named = [path, weights, config["probe"]["library"], config["detector"]["dark"]]
    assert all(each.startswith(f"{here}/") for each in named) and named[3].endswith("/passwd.npy")


def test_files_that_are_too_large_to_be_carried_are_told(tmp_path, monkeypatch):
    (tmp_path / "mask.npy").write_bytes(bytes(11))
    monkeypatch.setattr(carried, "BYTES_MAX", 10)
    with pytest.raises(ConfigError, match=r"must have at most 0 MiB to be sent to a host; with .*mask.npy"):
        carry({"detector": {"mask": str(tmp_path / "mask.npy")}})


def test_a_names_folders_do_not_lead_out_of_where_files_are_put_down(tmp_path):
    config = {"detector": {"mask": "/a/../../x.npy", "dark": "/a/.."}}
    with pytest.raises(OSError):
        put_down(config, {"/a/../../x.npy": b"x", "/a/..": b"y"}, tmp_path / "files")
    assert all(each.is_relative_to(tmp_path / "files") for each in tmp_path.rglob("*") if each.is_file())


class Machine:
    """The session's machine: keeps what it is asked, and answers when it is told to."""

    def __init__(self):
        self.asked = []
        self.asking = Asking(self._take)
        self.came = threading.Condition()

    def _take(self, *message):
        with self.came:
            self.asked.append(message)
            self.came.notify_all()

    def wait_for(self, n):
        with self.came:
            assert self.came.wait_for(lambda: len(self.asked) >= n, SOON_S)

    def tells(self, k, value=None, error=None):
        self.wait_for(k + 1)
        self.asking.told(self.asked[k][1], error, value)


@pytest.fixture
def machine():
    return Machine()


def resource(path):
    return {"uri": f"file://beamline{path}", "mimetype": "application/x-hdf5", "parameters": {"dataset": "d"}, "uid": 1}


def test_files_are_found_under_the_names_that_they_have_here(tmp_path, machine):
    for folder in ("data/run 1", "fast"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "fast" / "out").symlink_to("/etc")
    files = FarFiles(
        SharedFolders.of([("/beamline", f"{tmp_path}/data"), ("/beamline/fast", f"{tmp_path}/fast")]), machine.asking
    )
    assert files.path(resource("/beamline/run%201/a.h5")) == f"{tmp_path}/data/run 1/a.h5"
    assert files.path(resource("/beamline/fast/a.h5")) == f"{tmp_path}/fast/a.h5"
    for unseen in ("/beamline/absent/a.h5", "/beamline2/a.h5", "/beamline/../etc/a.h5", "/etc/a.h5"):
        assert files.path(resource(unseen)) is None
    with pytest.raises(ScanFileError, match=r"here a link leads to /etc/a.h5"):
        files.path(resource("/beamline/fast/out/a.h5"))


def test_rows_are_asked_for_and_why_there_are_none_is_told(machine, beside):
    files = FarFiles(SharedFolders(), machine.asking)
    with beside(lambda: files.rows(resource("/a.h5"), 3, 5, None)) as rows:
        machine.tells(0, np.arange(6.0).reshape(2, 3))
    np.testing.assert_array_equal(rows.result(), np.arange(6.0).reshape(2, 3))
    _, _, what, named, *values = machine.asked[0]
    assert (what, values) == ("rows", [3, 5, None]) and sorted(named) == ["mimetype", "parameters", "uri"]
    with pytest.raises(ScanFileError, match="is not whole"), beside(lambda: files.rows(resource("/a.h5"), 0, 1, None)):
        machine.tells(1, error="a.h5 is not whole")


@pytest.fixture
def recorder(machine, beside, info):
    with beside(lambda: FarRecorder(info, "derived", machine.asking)) as made:
        machine.tells(0)
    return made.result()


def test_results_are_sent_one_at_a_time_the_newest_and_the_last(machine, recorder, make_estimate, beside):
    for seed in range(4):
        recorder.publish(make_estimate(seed, n=seed + 1))
    assert [message[2] for message in machine.asked] == ["record", "publish"]
    with beside(lambda: recorder.close(make_estimate(9, n=9), "success", "")):
        machine.tells(1)
        machine.tells(2)
        machine.tells(3)
    frames = [message[4]["n_frames"] for message in machine.asked[1:]]
    assert frames == [1, 4, 9] and [message[2] for message in machine.asked[1:]] == ["publish", "publish", "end"]


def test_a_result_that_can_not_be_kept_fails_its_run(machine, recorder, make_estimate, beside):
    recorder.publish(make_estimate(1))
    machine.tells(1, error="no room on the disk")
    with pytest.raises(WorkerError, match="no room on the disk"):
        recorder.publish(make_estimate(2))
    with pytest.raises(WorkerError, match="still none"), beside(lambda: recorder.close(None, "fail", "no room")):
        machine.tells(2, error="still none")


@pytest.mark.parametrize("changes", [{}, WINDOW])
def test_runs_and_parts_of_frames_come_as_they_were(info, changes):
    run = RunInfo(info.uid, info.scan_id, info.metadata, info.frame_shape, **changes)
    back = unpack_run(pack_run(run))
    assert (back.uid, back.frame_shape, back.window_m, back.grows) == (
        run.uid,
        run.frame_shape,
        run.window_m,
        run.grows,
    )
    assert unpack_part(None) is pack_part(None) is None


def test_a_device_without_memory_ends_the_process(monkeypatch):
    class OutOfMemoryError(RuntimeError):
        """As PyTorch's."""

    ended = []
    monkeypatch.setattr(hosted.os, "_exit", ended.append)
    end_without_memory(None)
    end_without_memory(ValueError("numbers went wrong"))
    assert not ended
    deep = WorkerError("the reconstruction stopped")
    deep.__cause__ = OutOfMemoryError("CUDA")
    for error in (MemoryError(), OutOfMemoryError("CUDA"), deep):
        end_without_memory(error)
    assert ended == [OUT_OF_MEMORY] * 3
