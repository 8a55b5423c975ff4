"""Processes that measure with a simulated detector and are told to end."""

import contextlib
import os
import pty
import signal
import subprocess
import sys
import threading

import pytest

from bluesky_cdi.journal import JournalReader, run_files
from bluesky_cdi.signals import EndingSignals, FirstInterrupt

# It writes a line when it is where the signal is wanted, and another one when all is closed.
SCRIPT = """
import sys, threading, time
from pathlib import Path
import bluesky.plan_stubs as bps
from bluesky import RunEngine
from bluesky.utils import RunEngineInterrupted
from bluesky_cdi.config import Config
from bluesky_cdi.journal import Journal
from bluesky_cdi.plans import ptycho_raster
from bluesky_cdi.signals import EndingSignals, during_task
from bluesky_cdi.sim_devices import simulated_beamline

where, folder = sys.argv[1], Path(sys.argv[2])


def said(line):
    with (folder / "said").open("w") as file:
        file.write(line + "\\n")


def third(name, doc):
    if doc["seq_num"] == 3:
        # Not in this thread, which is the RunEngine's own.
        threading.Thread(target=RE.request_pause).start() if where == "paused" else said("now")


with EndingSignals() as signals:
    RE = RunEngine({}) if where == "theirs" else RunEngine({}, during_task=during_task())
    signals.watch(RE)
    journal = Journal(folder / "journal")
    RE.subscribe(journal)
    RE.subscribe(third, "event")
    beamline = simulated_beamline(Config.model_validate({"scan": {"exposure_s": 0.05}}), folder / "frames")
    try:
        if where != "idle":
            stage = beamline.stage
            RE(ptycho_raster([beamline.detector], stage.y, stage.x, extent_um=[2, 2], step_um=0.05))
    except RunEngineInterrupted:
        pass
    finally:
        if RE.state != "paused":
            journal.close()
            (folder / "closed").touch()
    try:
        said("now")
        time.sleep(600)
    finally:
        (folder / "left").touch()
"""


@pytest.fixture
def started(tmp_path, fork_script):
    """Start the script and wait until it is where it says; whatever is left of it ends with the test."""
    with contextlib.ExitStack() as left:

        def start(where, begin=fork_script):
            (tmp_path / "script.py").write_text(SCRIPT)
            os.mkfifo(tmp_path / "said")
            process = left.enter_context(begin(tmp_path / "script.py", where, tmp_path))
            left.callback(process.kill)
            with (tmp_path / "said").open() as said:
                assert said.readline() == "now\n"
            return process

        yield start


def only_run(tmp_path):
    (path,) = run_files(tmp_path / "journal")
    with contextlib.closing(JournalReader(path)) as reader:
        documents = list(reader.documents())
    return documents, documents[-1][1]


def assert_aborted(tmp_path, name):
    documents, stop = only_run(tmp_path)
    assert [kind for kind, _ in documents].count("stop") == 1
    assert stop["exit_status"] == "abort"
    assert stop["reason"] == f"the process was told to end ({name})"
    assert stop["num_events"]["primary"] == [kind for kind, _ in documents].count("event") >= 3


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
@pytest.mark.parametrize("where", ["running", "paused"])
def test_a_run_is_aborted_before_the_process_ends(started, tmp_path, where, number):
    process = started(where)
    process.send_signal(number)
    assert process.wait() == 128 + number
    assert_aborted(tmp_path, number.name)
    assert (tmp_path / ("closed" if where == "running" else "left")).exists()


def test_a_run_engine_with_a_during_task_of_its_own(started, tmp_path):
    """One that the session did not make hears signals too, whichever thread the kernel gives them to."""
    process = started("theirs")
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 128 + signal.SIGTERM
    assert_aborted(tmp_path, "SIGTERM")


def test_without_a_run_the_process_ends_as_well(started, tmp_path):
    process = started("idle")
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 128 + signal.SIGTERM
    assert (tmp_path / "left").exists()


def test_a_closed_terminal_ends_the_run(started, tmp_path):
    """The kernel sends SIGHUP, and writing to the terminal that is gone raises from then on."""
    master, slave = pty.openpty()

    def controlled():
        import fcntl
        import termios

        # Under nohup a process inherits that it is ignored, and it stays so, as its user wishes.
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        os.setsid()
        fcntl.ioctl(slave, termios.TIOCSCTTY, 0)

    def begin(*command):
        terminal = {"stdin": slave, "stdout": slave, "stderr": slave}
        return subprocess.Popen([sys.executable, *map(str, command)], preexec_fn=controlled, **terminal)

    process = started("running", begin)
    os.close(slave)
    os.close(master)
    assert process.wait() == 128 + signal.SIGHUP
    assert_aborted(tmp_path, "SIGHUP")


def test_two_signals_at_once_are_one_request(started, tmp_path):
    process = started("running")
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGTERM)
    assert process.wait() in (128 + signal.SIGHUP, 128 + signal.SIGTERM)
    _, stop = only_run(tmp_path)
    assert stop["exit_status"] == "abort"


def test_a_run_engine_is_given_back(run_engine):
    with run_engine() as engine:
        before = [*engine.context_managers], [*engine.preprocessors], engine._during_task
        with EndingSignals() as signals:
            signals.watch(engine)
            now = engine.context_managers, engine.preprocessors, engine._during_task
            assert all(each != was for each, was in zip(now, before, strict=True))
        assert (engine.context_managers, engine.preprocessors, engine._during_task) == before


def test_a_run_engine_whose_preprocessors_were_emptied_is_given_back(run_engine):
    before = signal.getsignal(signal.SIGTERM)
    with run_engine() as engine:
        with EndingSignals() as signals:
            signals.watch(engine)
            engine.preprocessors.clear()
        assert engine.preprocessors == []
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize("theirs", [signal.SIG_IGN, lambda *_: None], ids=["ignored", "handled"])
def test_handlers_of_the_application_stay(theirs):
    before = signal.signal(signal.SIGTERM, theirs)
    try:
        with EndingSignals():
            assert signal.getsignal(signal.SIGTERM) is theirs
        assert signal.getsignal(signal.SIGTERM) is theirs
    finally:
        signal.signal(signal.SIGTERM, before)


def test_handlers_are_put_back():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)]
    with EndingSignals() as signals:
        inside = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)]
        assert inside != before and signals.received is None and signals.reason == ""
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)] == before


def test_a_handler_that_was_set_inside_stays():
    before = signal.getsignal(signal.SIGTERM)
    try:
        with EndingSignals():
            signal.signal(signal.SIGTERM, signal.default_int_handler)
        assert signal.getsignal(signal.SIGTERM) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGTERM, before)


def test_other_threads_set_no_handlers(beside):
    before = signal.getsignal(signal.SIGTERM)
    done = threading.Event()

    def open_one():
        with EndingSignals():
            assert signal.getsignal(signal.SIGTERM) is before
        done.set()

    with beside(open_one):
        assert done.wait(60)


def test_the_first_ctrl_c_is_a_wish_and_the_second_an_interrupt(caplog):
    # A shell without job control has its background jobs ignore it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with FirstInterrupt("what there is is written") as ctrl_c:
        assert not ctrl_c.came
        os.kill(os.getpid(), signal.SIGINT)
        assert ctrl_c.came and "interrupted: what there is is written" in caplog.text
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            signal.sigtimedwait([], 1)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_another_handler_of_ctrl_c_stays():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with FirstInterrupt("nothing"):
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
