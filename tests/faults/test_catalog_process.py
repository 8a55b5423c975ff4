"""Whatever becomes of the catalog's process, the scan measures all, and all is in the catalog afterwards."""

import gc
import logging
import os
import signal

import pytest

from bluesky_cdi.catalog import keeper, serve
from bluesky_cdi.errors import CatalogError
from tests.faults.bench import N_RASTER


def test_a_process_that_is_killed_is_started_again(bench, caplog):
    pid = bench.session.keeper.pid
    bench.when_measured = 20, lambda: os.kill(pid, signal.SIGKILL)
    with caplog.at_level(logging.WARNING, "bluesky_cdi"):
        bench.run(bench.raster())
        assert bench.settle() is None
    assert "the catalog's process ended (killed by signal 9; out of memory?); it is started again" in caplog.text
    assert bench.session.keeper.pid != pid
    bench.check_measured(N_RASTER)
    bench.check_image(N_RASTER)


def test_a_process_that_is_stopped_and_goes_on_costs_nothing(bench):
    pid = bench.session.keeper.pid
    bench.when_measured = 10, lambda: os.kill(pid, signal.SIGSTOP)
    bench.run(bench.adaptive(budget=24))
    assert len(bench.events) == 24
    os.kill(pid, signal.SIGCONT)
    assert bench.settle() is None
    bench.check_measured(24)


def test_a_process_that_hangs_is_killed_and_started_again(bench, monkeypatch, caplog):
    monkeypatch.setattr(keeper, "SILENT_S", 4.0)
    pid = bench.session.keeper.pid
    bench.when_measured = 10, lambda: os.kill(pid, signal.SIGSTOP)
    with caplog.at_level(logging.WARNING, "bluesky_cdi"):
        bench.run(bench.raster())
        assert bench.settle() is None
    assert "the catalog's server does not answer; what is measured waits in the journal" in caplog.text
    assert bench.session.keeper.pid != pid
    bench.check_measured(N_RASTER)


def test_ten_runs_leave_nothing_behind(bench):
    """Threads, open files, objects in memory and the journal are after ten runs what they were after two."""
    seen, objects = [], []
    for _ in range(10):
        bench.run(bench.raster(extent_um=(0.2, 0.2)))
        assert bench.settle() is None
        seen.append((len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))))
        gc.collect()
        objects.append(len(gc.get_objects()))
    assert not [path for path in bench.session.directory.glob("journal/*/*.journal")]
    files, threads = zip(*seen[2:], strict=True)
    assert max(files) - min(files) <= 4 and max(threads) - min(threads) <= 4
    # Ten that stay of each run would be 70; with threads come and go some 15.
    assert objects[-1] - objects[2] < 70


def test_a_second_session_on_the_folder_is_refused_and_the_first_goes_on(bench):
    with pytest.raises(CatalogError, match="can't take the catalog"), serve(bench.session.directory):
        pass
    bench.run(bench.raster(extent_um=(0.4, 0.4)))
    assert bench.settle() is None
