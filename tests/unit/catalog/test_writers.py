"""Two who write results into one catalog at once, and one who is killed: what is shown as whole is whole."""

import contextlib
import pickle
import subprocess
import sys
import threading

import h5py
import numpy as np
import pytest

from bluesky_cdi.catalog import Feeder, ResultPublisher, load_result
from bluesky_cdi.errors import CatalogError
from bluesky_cdi.journal import Journal

UPDATES = 3
# Tells when it has written all that it writes, and waits to be killed.
WRITES = """
import pickle, sys, time
from pathlib import Path
from bluesky_cdi.catalog.result_file import ResultFile
from bluesky_cdi.catalog.results import ResultPublisher
from bluesky_cdi.journal import Journal

def wait(*_):
    print("written", flush=True)
    time.sleep(600)

folder, until = Path(sys.argv[1]), sys.argv[2]
info, estimate = pickle.load(sys.stdin.buffer)
publisher = ResultPublisher(info, folder / "results", Journal(folder / "journal" / "processed"))
publisher.publish(estimate)
if until == "before the stop document":
    ResultFile.mark_complete = wait
    publisher.close(estimate)
wait()
"""


@pytest.fixture
def write(directory, info):
    """Write a whole result into the journal of the folder."""

    def written(uid, estimate):
        with contextlib.closing(Journal(directory / "journal" / "processed")) as journal:
            publisher = ResultPublisher(info, directory / "results", journal, derived_uid=uid)
            for _ in range(UPDATES):
                publisher.publish(estimate)
            publisher.close(estimate)

    return written


def test_of_two_writers_at_once_each_result_is_whole_when_it_is_found(
    catalog, directory, write, make_estimate, assert_equal, beside
):
    estimates = {"aaaa1111-first": make_estimate(0), "bbbb2222-second": make_estimate(1)}
    done = threading.Event()

    def read():
        found = set()
        while not done.is_set():
            for result in catalog.search():
                if result.uid in found:
                    continue
                found.add(result.uid)
                assert_equal(result.estimate, estimates[result.uid])
                assert result.updates.sizes["update"] == UPDATES
                assert result.thumbnail and result.to_xarray().residual_map.shape == (16, 16)

    with beside(read):
        try:
            with contextlib.ExitStack() as writers:
                for uid, estimate in estimates.items():
                    writers.enter_context(beside(lambda uid=uid, estimate=estimate: write(uid, estimate)))
            Feeder(directory / "journal", catalog).finish(240)
        finally:
            done.set()
    assert {result.uid for result in catalog.search()} == set(estimates)


@pytest.mark.parametrize("until", ["in the middle", "before the stop document"])
def test_what_a_killed_writer_leaves_is_never_taken_for_a_result(catalog, directory, info, make_estimate, until):
    estimate = make_estimate(0)
    process = subprocess.Popen(
        [sys.executable, "-c", WRITES, directory, until], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        process.stdin.write(pickle.dumps((info, estimate)))
        process.stdin.close()
        assert process.stdout.readline() == b"written\n"
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    Feeder(directory / "journal", catalog).finish(240)
    assert len(catalog.search()) == 0
    with pytest.raises(CatalogError, match="holds no complete result"):
        catalog.latest()
    (left,) = catalog.search(complete=False)
    assert (left.summary.complete, left.summary.exit_status, left.thumbnail) == (False, "fail", None)
    assert "not complete" in repr(left) and "not complete" in left._repr_html_()
    for read in (lambda: left.estimate, left.plot, left.to_xarray):
        with pytest.raises(CatalogError, match="ended before the run did"):
            read()
    np.testing.assert_array_equal(load_result(catalog, left.uid, update=0).object, estimate.object)
    with h5py.File(directory / "results" / f"{left.uid}.h5", swmr=True) as file:
        assert not file.attrs["complete"]
