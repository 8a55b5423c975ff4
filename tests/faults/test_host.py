"""A session whose reconstruction is on a host: that is killed, comes late, or is not there."""

import logging
import os
import signal
import socket
import subprocess
import sys

import pytest

from tests.faults import bench as benches
from tests.faults.bench import N_RASTER, SOON_S

FACTORY = "faulty_parts:setup"


@pytest.fixture
def address():
    with socket.create_server(("127.0.0.1", 0)) as free:
        return f"127.0.0.1:{free.getsockname()[1]}"


@pytest.fixture
def start(address, tmp_path):
    """Start a host in a process of its own."""
    started = []

    def begin():
        options = ["--port", address.rpartition(":")[2], "--folder", tmp_path / "host", "--factory", FACTORY]
        command = [sys.executable, "-m", "bluesky_cdi", "serve-reconstructor", *map(str, options)]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=dict(os.environ)))
        assert started[-1].stdout.readline().split() == ["address", address]
        return started[-1]

    yield begin
    for process in started:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=SOON_S)


@pytest.fixture
def with_host(open_bench, monkeypatch, address):
    def opened(otherwise):
        host = {"address": address, "otherwise": otherwise, "retry_s": 0.2}
        reconstructor = {**benches.SETTINGS["reconstructor"], "host": host}
        monkeypatch.setattr(benches, "SETTINGS", {**benches.SETTINGS, "reconstructor": reconstructor})
        return open_bench()

    return opened


def test_a_host_that_is_killed_in_the_middle_and_started_again_has_the_whole_run(
    start, with_host, caplog, monkeypatch, until
):
    """Its device has no memory left in the end; sessions hear of the host's Ctrl-C."""
    with with_host("none") as bench:
        # Not there yet: the scan is measured, and reconstructed when it is.
        bench.run(bench.raster())
        assert "Runs are recorded without a reconstruction until one answers" in bench.settle()
        bench.check_measured(N_RASTER)
        monkeypatch.setenv("FAULT", str(bench._fault))
        first = start()
        until(lambda: bench.session.live.error is None)
        assert bench.settle() is None
        bench.check_image(N_RASTER)

        def kill():
            bench.image_came.wait(SOON_S)
            first.kill()
            until(lambda: bench.session.live.error is not None)
            hosts.append(start())

        hosts = []
        bench.when_measured = 20, kill
        bench.run(bench.raster())
        until(lambda: bench.session.live.error is None)
        assert bench.settle() is None
        bench.check_measured(N_RASTER)
        bench.check_image(N_RASTER)
        broken, whole = bench.results()
        assert (broken.exit_status, broken.complete) == ("fail", False)
        assert bench.session.catalog.processed[whole.uid].start["continues"] == broken.uid

        bench.misbehave(kind="memory")
        with caplog.at_level(logging.ERROR, "bluesky_cdi"):
            bench.run(bench.raster())
            assert bench.settle() is None
        assert "the device is out of memory); it is started again" in caplog.text
        bench.check_image(N_RASTER)

        hosts[0].send_signal(signal.SIGINT)
        until(lambda: bench.session.live.error is not None)
        assert "the host was stopped); it is started again" in caplog.text or "nobody listens" in bench.settle()


def test_without_a_host_this_machine_reconstructs_until_one_comes(start, with_host, monkeypatch, tmp_path, until):
    with with_host("local") as bench:
        bench.run(bench.raster())
        assert bench.settle() is None
        bench.check_measured(N_RASTER)
        bench.check_image(N_RASTER)
        monkeypatch.setenv("FAULT", str(bench._fault))
        start()
        where = bench.session.live._supervisor._where
        until(lambda: where.is_found)
        assert list((tmp_path / "host").iterdir()) == []
        bench.run(bench.raster())
        assert len(list((tmp_path / "host").iterdir())) == 1
        assert bench.settle() is None
        bench.check_image(N_RASTER)
