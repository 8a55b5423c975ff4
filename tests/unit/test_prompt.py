"""What a session gives to whoever sits at its prompt, and where tracebacks go."""

import io
import logging
import sys
from types import SimpleNamespace

import pytest
from bluesky.utils import RunEngineInterrupted
from event_model import compose_run

from bluesky_cdi import cli
from bluesky_cdi.cli import main
from bluesky_cdi.config import Config
from bluesky_cdi.errors import CatalogError
from bluesky_cdi.log import FILE_MAX, configure_logging, keep_traceback
from bluesky_cdi.prompt import Progress, _told_in_one_line, at_prompt, errors_in_one_line, greeting


@pytest.fixture
def log(tmp_path, monkeypatch):
    path = tmp_path / "state" / "log"
    monkeypatch.setenv("BLUESKY_CDI_LOG", str(path))
    return path


def test_a_record_is_one_line_and_its_traceback_is_in_the_file(log, monkeypatch):
    shown = io.StringIO()
    monkeypatch.setattr("sys.stderr", shown)
    configure_logging()
    try:
        raise ValueError("the cause")
    except ValueError:
        logging.getLogger("bluesky_cdi.live").exception("it failed")
    assert shown.getvalue() == f"ERROR bluesky_cdi.live: it failed (the traceback is in {log})\n"
    kept = log.read_text()
    assert "it failed\nTraceback" in kept and 'raise ValueError("the cause")' in kept


def test_a_profile_keeps_the_level_of_the_command_line(log, monkeypatch):
    """`shell -v` sets it; the profile's files come later."""
    root = logging.getLogger("bluesky_cdi")
    configure_logging()
    assert root.level == logging.WARNING
    configure_logging(logging.INFO)
    monkeypatch.setattr("sys.stderr", io.StringIO())  # no terminal, so no bar
    at_prompt(SimpleNamespace(close=lambda: None), {}, title="sim")
    assert root.level == logging.INFO


def test_a_long_file_is_begun_anew(log):
    log.parent.mkdir()
    log.write_text("x" * (FILE_MAX + 1))
    keep_traceback(ValueError("new"))
    assert "new" in log.read_text() and log.stat().st_size < 1000
    assert log.with_name("log.1").stat().st_size == FILE_MAX + 1


def test_where_no_file_can_be_written_the_traceback_is_said(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BLUESKY_CDI_LOG", str(tmp_path / "file" / "log"))
    told = keep_traceback(ValueError("the cause"))
    assert "can't be written" in told and "ValueError: the cause" in told


def test_an_error_that_was_not_foreseen_is_one_line_of_a_command(log, tmp_path, monkeypatch, capsys):
    def fail(*_):
        raise ZeroDivisionError("by 0")

    monkeypatch.setattr(cli.browse, "configured", fail)
    assert main(["browse", str(tmp_path)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"bluesky-cdi: ZeroDivisionError: by 0 (not foreseen here: the traceback is in {log})"
    assert "in fail" in log.read_text()


@pytest.mark.parametrize(
    ("error", "kept"), [(CatalogError("no server"), True), (RunEngineInterrupted("paused"), False)]
)
def test_ipython_tells_in_one_line(log, capsys, error, kept):
    shell = SimpleNamespace(InteractiveTB=SimpleNamespace(structured_traceback=lambda *_: ["whole"]))
    assert _told_in_one_line(shell, type(error), error, None) == ["whole"]
    told = capsys.readouterr().err
    assert str(error) in told and "Traceback" not in told
    assert log.exists() is kept


@pytest.mark.parametrize(
    ("error", "kept"), [(CatalogError("no server"), True), (RunEngineInterrupted("paused"), False)]
)
def test_a_script_tells_in_one_line(log, monkeypatch, capsys, error, kept):
    others = []
    monkeypatch.setattr("sys.excepthook", lambda *raised: others.append(raised))
    errors_in_one_line()
    sys.excepthook(type(error), error, None)
    told = capsys.readouterr().err
    assert str(error) in told and "Traceback" not in told
    assert log.exists() is kept and not others
    stranger = ValueError("of somebody else")
    sys.excepthook(ValueError, stranger, None)
    assert others == [(ValueError, stranger, None)]


def test_the_greeting_names_results_pixel_and_commands(tmp_path):
    session = SimpleNamespace(config=Config(), directory=tmp_path)
    lines = greeting(session, {"show()": "draw it"}, "test").splitlines()
    assert lines[0].endswith(", test")
    # wavelength 154.98 pm (8 keV), 2 m, 64 pixels of 172 um
    assert any("28.2 nm a pixel" in line for line in lines)
    assert any(str(tmp_path) in line for line in lines) and "  show()  # draw it" in lines


def test_points_are_counted_and_moves_shown_outside_of_runs_only():
    progress, shown = Progress(), []
    progress._moves = lambda statuses: shown.append(statuses)
    progress._moves.pbar = None
    progress.waiting("move")
    run = compose_run(metadata={"num_points": 3, "plan_name": "p", "scan_id": 7})
    key = {"x": {"source": "test", "dtype": "number", "shape": []}}
    primary, other = (run.compose_descriptor(name=name, data_keys=key) for name in ("primary", "baseline"))
    progress("start", run.start_doc)
    progress.waiting("point")
    for described in (other, primary, primary):
        progress("descriptor", described.descriptor_doc)
        progress("event", described.compose_event(data={"x": 0.0}, timestamps={"x": 0.0}))
    bar = progress._bar
    assert (bar.n, bar.total, bar.desc) == (2, 3, "scan 7 p") and shown == ["move"]
    progress("stop", run.compose_stop())
    assert progress._bar is None


@pytest.mark.parametrize("stated", ["many", [5, 5], {"a": 1}, -3, True])
def test_no_metadata_of_a_plan_ends_a_scan_by_its_bar(stated):
    progress = Progress()
    run = compose_run(metadata={"num_points": stated})
    progress("start", run.start_doc)
    assert progress._bar.total is None
    progress("stop", run.compose_stop())


def test_a_bar_that_cannot_be_drawn_is_told_once_and_the_scan_goes_on(monkeypatch, caplog):
    progress = Progress()
    monkeypatch.setattr(progress, "_begin", lambda doc: 1 / 0)
    for _ in range(2):
        progress("start", compose_run().start_doc)
        progress.waiting(None)
    assert [record.getMessage() for record in caplog.records] == ["progress can't be shown, and is not any more"]
