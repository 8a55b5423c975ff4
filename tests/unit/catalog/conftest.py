import contextlib
import shutil
from types import SimpleNamespace

import pytest

from bluesky_cdi.catalog import Feeder, open_catalog, serve
from bluesky_cdi.catalog.feeder import ended_files
from bluesky_cdi.journal import Journal


@pytest.fixture(scope="module", autouse=True)
def patience(patient):
    """Every test here talks to a server."""


@pytest.fixture(scope="session")
def session():
    """Serve a catalog's folder and connect to it."""

    @contextlib.contextmanager
    def opened(directory, **options):
        with serve(directory, **options) as uri, contextlib.closing(open_catalog(uri)) as catalog:
            yield catalog

    return opened


@pytest.fixture
def directory(empty_catalog, tmp_path):
    return shutil.copytree(empty_catalog, tmp_path / "cata logue")


@pytest.fixture
def catalog(session, directory):
    with session(directory) as opened:
        yield opened


@pytest.fixture(scope="session")
def journals():
    """Open the journals of a folder and what feeds a catalog from them; at the end all that has ended is in it."""

    @contextlib.contextmanager
    def opened(catalog, folder):
        journal = folder / "journal"
        with contextlib.ExitStack() as stack:
            feeder = stack.enter_context(contextlib.closing(Feeder(journal, catalog)))
            raw, processed = (
                stack.enter_context(contextlib.closing(Journal(journal / name))) for name in ("raw", "processed")
            )
            yield SimpleNamespace(raw=raw, processed=processed, feed=feeder.feed)
            feeder.finish(240)
            assert not ended_files(journal) and not list(journal.glob("refused/*"))

    return opened
