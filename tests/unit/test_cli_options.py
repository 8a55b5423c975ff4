"""The options that every command has may stand before it and after it."""

import logging

import pytest

from bluesky_cdi import log
from bluesky_cdi.cli import main


@pytest.fixture
def level(monkeypatch):
    """The level at which a command logs."""
    found = []
    monkeypatch.setattr(log, "configure_logging", found.append)
    return found


@pytest.mark.parametrize(
    ("before", "after", "wanted"),
    [
        ([], [], logging.WARNING),
        (["-q"], [], logging.ERROR),
        ([], ["-q"], logging.ERROR),
        (["-q"], ["-q"], logging.CRITICAL),
        (["-v"], ["-v"], logging.DEBUG),
    ],
)
def test_quiet_and_verbose(level, tmp_path, before, after, wanted):
    assert main([*before, "browse", str(tmp_path / "none"), *after]) == 1
    assert level == [wanted]


def test_configuration_files_keep_their_order(level, tmp_path, capsys):
    (tmp_path / "first.yaml").write_text("scan: {budget: 0}\n")
    (tmp_path / "second.yaml").write_text("scan: {budget: -7}\n")
    files = ["-c", str(tmp_path / "first.yaml"), "demo", "-c", str(tmp_path / "second.yaml")]
    assert main(files) == 1
    told = capsys.readouterr().err
    assert f"{tmp_path / 'first.yaml'}, {tmp_path / 'second.yaml'} is not valid" in told and "-7" in told
