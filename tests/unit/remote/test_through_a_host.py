"""A run from its journal through a host that does not see its files, and back: every frame exactly."""

import contextlib
import threading
from pathlib import Path
from urllib.parse import unquote

import h5py
import numpy as np
import pytest

from bluesky_cdi.config import load_config
from bluesky_cdi.journal import Journal, JournalReader, run_files
from bluesky_cdi.plans import ptycho_raster
from bluesky_cdi.remote import WorkerProcess
from bluesky_cdi.remote.host import Host, HostOptions
from bluesky_cdi.remote.keys import make_keys
from bluesky_cdi.remote.setup import live_arguments
from bluesky_cdi.sim_devices import simulated_beamline
from tests.unit.remote.summing_parts import image_of

SOON_S = 240.0
FACTORY = "summing_parts:setup"
SETTINGS = {
    "scan": {"extent_um": (0.6, 0.6), "step_um": 0.2, "exposure_s": 0.0},
    "simulation": {"velocity_m_per_s": 0.02, "photons": 1e3},
    "probe": {"trust": True},
}
RECONSTRUCTOR = {"name": "rpie", "refine_iterations": 1, "final_steps": 0, "device": "cpu", "file_timeout_s": 0.0}


@pytest.fixture
def measured(tmp_path, run_engine):
    """A raster's file in a journal, and the folder of its frames."""
    config = load_config(overrides=SETTINGS)
    beamline, journal = simulated_beamline(config, tmp_path / "frames"), Journal(tmp_path / "journal")
    with run_engine() as engine:
        engine.subscribe(journal)
        geometry = config.geometry.model_dump()
        engine.md["geometry"] = geometry
        window = {"extent_um": config.scan.extent_um, "step_um": config.scan.step_um}
        engine(ptycho_raster([beamline.detector], beamline.stage.y, beamline.stage.x, None, **window))
    journal.close()
    (path,) = run_files(tmp_path / "journal")
    return path, tmp_path / "frames"


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A host with keys, which lets sessions run the factory of these tests."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=":")
    keys = tmp_path / "keys"
    theirs = make_keys(keys, "beamline")
    host = Host(HostOptions(keys=keys, folder=tmp_path / "host", factories=(FACTORY,), devices=("cpu",)))
    thread = threading.Thread(target=host.run)
    thread.start()
    yield {"address": host.address, "keys": str(theirs), "otherwise": "none", "connect_s": SOON_S}
    host.stop()
    thread.join()
    host.close()


def reconstruct(path, directory, host):
    config = load_config(overrides={**SETTINGS, "reconstructor": {**RECONSTRUCTOR, "host": host}})
    seen = []
    worker = WorkerProcess(FACTORY, live_arguments(config, directory), [seen.append], config.reconstructor.host)
    try:
        worker.appended(path)
        # Asked after the documents, and answered after the run.
        while not worker.error and not (directory / "results").exists():
            worker.wait(SOON_S)
        worker.wait(SOON_S)
    finally:
        worker.close(SOON_S)
    return seen


def check(directory, frames):
    """The session's folder holds one result, and it is that of these frames."""
    (path,) = run_files(directory / "journal" / "processed")
    with contextlib.closing(JournalReader(path)) as reader:
        documents = list(reader.documents())
    (start,) = (doc for name, doc in documents if name == "start")
    assert documents[-1][1]["exit_status"] == "success" and documents[-1][1]["complete"]
    uris = [unquote(doc["uri"]) for name, doc in documents if name == "stream_resource"]
    assert uris and all(str(directory / "results") in uri for uri in uris)
    with h5py.File(directory / "results" / f"{start['uid']}.h5") as file:
        found = []
        file.visititems(lambda name, each: found.append(each) if name.endswith("object") else None)
        image = found[-1][-1]
    counts = {number: each for number, each in enumerate(frames, start=1)}
    np.testing.assert_array_equal(image, image_of(counts, image.shape))


def test_every_frame_comes_through_a_host(measured, served, tmp_path):
    path, folder = measured
    (file,) = folder.rglob("*.h5")
    with h5py.File(file) as opened:
        datasets = []
        opened.visititems(lambda _, each: datasets.append(each[:]) if getattr(each, "ndim", 0) == 3 else None)
    (frames,) = datasets
    assert len(frames) == 16 and frames.sum() > 0
    shown = reconstruct(path, tmp_path / "session", served)
    check(tmp_path / "session", frames)
    assert shown[-1].n_frames == 16
