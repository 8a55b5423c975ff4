"""Sessions as at a beamline, with faults."""

import contextlib
import shutil
from pathlib import Path

import pytest

from tests.faults.bench import Bench


@pytest.fixture(scope="module", autouse=True)
def patience(patient):
    """Every test here talks to a server."""


@pytest.fixture(scope="session")
def open_bench(empty_catalog, tmp_path_factory):
    """Open a session with faults on a fresh catalog, and close it in the end."""

    @contextlib.contextmanager
    def opened(**options):
        folder = tmp_path_factory.mktemp("faults")
        directory = shutil.copytree(empty_catalog, folder / "catalog")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("FAULT", str(folder / "fault.json"))
            patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=":")
            patch.syspath_prepend(str(Path(__file__).parent))
            bench = Bench(directory, folder / "fault.json", **{"factory": "faulty_parts:setup", **options})
            with contextlib.closing(bench.session):
                yield bench

    return opened


@pytest.fixture(scope="module")
def shared(open_bench):
    with open_bench() as bench:
        yield bench


@pytest.fixture
def bench(shared):
    """The module's session, with a reconstructor that works, and nothing going on."""
    shared.misbehave()
    shared.settle()
    return shared
