import contextlib
import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from bluesky_cdi.catalog import Feeder, open_catalog, serve
from bluesky_cdi.catalog.feeder import ended_files
from bluesky_cdi.journal import Journal
from bluesky_cdi.protocols import Estimate, RunInfo


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
def info():
    geometry = {"energy_ev": 8000.0, "distance_m": 2.0, "detector_pixel_m": 172e-6}
    return RunInfo("0a0a0a0a-raw", 7, {"uid": "0a0a0a0a-raw", "scan_id": 7, "geometry": geometry}, (8, 8))


@pytest.fixture(scope="session")
def make_estimate():
    """Square images, and as many frames as embedding components: sizes that tell no axes apart."""

    def make(seed, n=6, grid=(16, 16), d=6):
        rng = np.random.default_rng(seed)

        def real(*shape):
            return rng.random(shape).astype(np.float32)

        def complex_(*shape):
            return (rng.normal(size=shape) + 1j * rng.normal(size=shape)).astype(np.complex64)

        return Estimate(
            n_frames=n,
            object=complex_(*grid),
            origin_m=(-1.1e-6 / 3, 2.3e-6 / 7),
            pixel_m=2.8e-8 / 3,
            probe=complex_(2, 8, 8),
            std_amplitude=real(*grid),
            std_phase_rad=real(*grid),
            coverage=real(*grid),
            frame_seq_nums=np.arange(1, n + 1) * 2,
            positions_m=rng.normal(size=(n, 2)) * 1e-6,
            embedding=real(n, d),
            frame_uncertainty=real(n),
            residual=real(n),
            novelty=real(n),
            seconds=0.25,
            source={"name": "pinn", "version": "1", "scale": 0.5},
        )

    return make


@pytest.fixture(scope="session")
def assert_equal():
    """Compare two estimates bit by bit."""

    def check(found, wanted):
        for name in Estimate.__dataclass_fields__:
            a, b = getattr(found, name), getattr(wanted, name)
            if isinstance(b, np.ndarray):
                assert a.dtype == b.dtype, name
                np.testing.assert_array_equal(a, b, err_msg=name, strict=True)
            else:
                assert a == b, name

    return check


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
