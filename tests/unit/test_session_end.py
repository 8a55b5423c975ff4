"""How long a session waits for the end of its reconstruction."""

import contextlib

import pytest

from bluesky_cdi import session
from bluesky_cdi.config import load_config


@pytest.mark.parametrize("budget_s", [60.0, 600.0])
def test_no_process_is_killed_in_the_time_that_its_last_run_has(tmp_path, monkeypatch, budget_s):
    limits = []

    class Process:
        def __init__(self, *_):
            pass

        def appended(self, path):
            pass

        def close(self, timeout_s=0.0):
            limits.append(timeout_s)

    monkeypatch.setattr(session, "WorkerProcess", Process)
    ours = session.Session.__new__(session.Session)
    ours.config = load_config(overrides={"reconstructor": {"final_budget_s": budget_s, "in_process": False}})
    ours.directory = tmp_path
    with contextlib.ExitStack() as stack:
        ours._live(stack, "a factory", {}, [])
    # For the check of the probe, the last refinements, and what is done after these.
    assert limits[0] > 2 * budget_s
