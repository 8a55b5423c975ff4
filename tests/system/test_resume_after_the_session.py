"""Sessions of their own whose reconstructions are kept: killed, inline, finished."""

import contextlib
import json
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from event_model import compose_run

from bluesky_cdi.catalog import Feeder, find_results, load_result, open_catalog, serve
from bluesky_cdi.cli import main
from bluesky_cdi.config import load_config
from bluesky_cdi.errors import CatalogError
from bluesky_cdi.evaluation import compare_estimate
from bluesky_cdi.io import read_product
from bluesky_cdi.journal import Journal
from bluesky_cdi.plans import ptycho_raster
from bluesky_cdi.resume import checkpoints_folder, list_resumable, resume_run
from bluesky_cdi.sim_devices import SimulatedSource

WINDOW = {"extent_um": (0.4, 0.6), "step_um": 0.2}
SOON_S = 240.0
# A checkpoint after each estimate.
SMALL = """
scan: {extent_um: [1.2, 1.2], step_um: 0.2, exposure_s: 0.0}
simulation: {velocity_m_per_s: 0.02, seed: 2}
probe: {trust: true}
reconstructor: {name: rpie, refine_iterations: 12, threads: 1, device: cpu, checkpoint_s: 1.0e-6, in_process: true}
catalog: {in_process: true}
"""
KILLED = """
import os, signal, sys, time
from bluesky_cdi.config import load_config
from bluesky_cdi.plans import ptycho_raster
from bluesky_cdi.resume import stored_checkpoints
from bluesky_cdi.session import Session
from bluesky_cdi.sim_devices import simulated_beamline

config, directory = load_config([sys.argv[1]]), sys.argv[2]
session = Session(config, directory, monitor_key="i0")
beamline = simulated_beamline(config, session.frames_directory)
measured = []

def die(name, doc):
    measured.append(doc)
    if len(measured) == 40:
        while not stored_checkpoints(directory):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)

session.RE.subscribe(die, "event")
scan = config.scan
session.RE(ptycho_raster([beamline.detector, beamline.monitor], beamline.stage.y, beamline.stage.x, session.live,
                         extent_um=scan.extent_um, step_um=scan.step_um))
"""


@contextlib.contextmanager
def opened(directory):
    with serve(directory, claim_s=240.0) as uri, contextlib.closing(open_catalog(uri)) as catalog:
        yield catalog


@pytest.fixture(scope="module")
def killed(empty_catalog, tmp_path_factory):
    """The folder of the session, and the configuration's file."""
    folder = tmp_path_factory.mktemp("killed")
    directory = shutil.copytree(empty_catalog, folder / "catalog")
    config = folder / "small.yaml"
    config.write_text(SMALL)
    (folder / "scan.py").write_text(KILLED)
    program = [sys.executable, folder / "scan.py", config, directory]
    done = subprocess.run(program, capture_output=True, text=True, check=False, timeout=SOON_S)
    assert done.returncode == -signal.SIGKILL, done.stderr
    return directory, config


@pytest.mark.end_to_end
class TestKilledProcess:
    """A process is killed in the middle of a scan; whoever opens the catalog next ends its run."""

    def say(self, capsys, *line):
        assert main(["resume", *map(str, line), "--json", "-q"]) == 0
        return json.loads(capsys.readouterr().out)

    def test_it_is_resumed_twice_and_as_good_as_uninterrupted(self, killed, capsys, tmp_path):
        directory, config = killed
        at = ["--directory", directory]
        (row,) = self.say(capsys, *at)
        assert (row["scan_id"], row["plan_name"], row["exit_status"]) == (1, "ptycho_raster", "fail")
        assert 0 < row["n_frames"] <= 40

        with opened(directory) as catalog:
            raw = catalog.raw[row["raw_uid"]]
            before = dict(raw.metadata), raw["primary"].read(variables=["stage_y", "stage_x", "diff_total"])
            measured = len(before[1]["stage_y"])
        assert raw.start["monitor"] == "i0" and measured == 40

        # Interrupted again, at once; the settings are the checkpoint's.
        figure = tmp_path / "new" / "image.png"
        cut = self.say(capsys, "-1", *at, "--seconds", "1e-9", "--figure", figure)
        assert cut["continues"] == raw.start["reconstruction_uid"] == row["reconstruction_uid"]
        assert not cut["finished"] and cut["engine"] == "rpie"
        assert 0 < cut["frames_in_checkpoint"] <= measured
        (again,) = self.say(capsys, *at)
        assert again["reconstruction_uid"] == cut["reconstruction_uid"]
        assert figure.read_bytes().startswith(b"\x89PNG")

        out = tmp_path / "object.h5"
        done = self.say(capsys, row["raw_uid"][:8], *at, "--figure", figure, "--out", out)
        assert done["continues"] == cut["reconstruction_uid"] and done["finished"]
        assert done["frames"] == done["frames_in_checkpoint"] == measured
        assert list(checkpoints_folder(directory).iterdir()) == []

        whole = self.say(capsys, "1", *at, "--anew", "-c", config, "--figure", figure)
        assert (whole["continues"], whole["frames"], whole["frames_in_checkpoint"]) == (None, measured, 0)
        assert done["deviance_per_pixel"] == pytest.approx(whole["deviance_per_pixel"], rel=0.1)

        with opened(directory) as catalog:
            raw = catalog.raw[row["raw_uid"]]
            after = dict(raw.metadata), raw["primary"].read(variables=["stage_y", "stage_x", "diff_total"])
            assert before[0] == after[0] and before[1].identical(after[1])
            assert list_resumable(catalog, directory) == []
            results = find_results(catalog, row["raw_uid"])
            assert [(each.exit_status, each.complete) for each in results] == [("fail", False)] + 3 * [("abort", True)]
            starts = [catalog.processed[each.uid].start for each in results]
            assert [start.get("continues") for start in starts] == [
                None, row["reconstruction_uid"], cut["reconstruction_uid"], None
            ]  # fmt: skip
            truth = SimulatedSource(load_config([config])).truth
            found, wanted = (
                compare_estimate(load_result(catalog, uid), truth.object, truth.origin_m).numbers["complex_nrmse"]
                for uid in (done["reconstruction_uid"], whole["reconstruction_uid"])
            )
            np.testing.assert_array_equal(
                read_product(out).object, load_result(catalog, done["reconstruction_uid"]).object
            )
        assert found == pytest.approx(wanted, rel=0.1)
        assert found < 0.5  # vacuum has 1


def test_it_may_still_be_measured(empty_catalog, tmp_path, make_config):
    """A process that shares the catalog may be at it: who resumes must say that it is gone."""
    directory = shutil.copytree(empty_catalog, tmp_path / "catalog")
    run = compose_run(metadata={"scan_id": 1})
    with (
        opened(directory) as catalog,
        contextlib.closing(Journal(directory / "journal" / "raw")) as journal,
        contextlib.closing(Feeder(directory / "journal", catalog)) as feeder,
    ):
        journal("start", run.start_doc)
        feeder.feed()
        with pytest.raises(CatalogError, match=r"no stop document.*\(--unfinished\)"):
            resume_run(catalog, -1, make_config(), directory)


def test_frames_in_events_come_back(open_lab, make_config):
    config = make_config(reconstructor={"name": "rpie"}, simulation={"frames": "inline"})
    with open_lab(config) as lab:
        lab.run(ptycho_raster(*lab.devices, extent_um=(1.2, 1.2), step_um=0.14))
        lab.session.wait(SOON_S)
        assert lab.check_frames_of_the_catalog(lab.session.catalog.raw.values().last(), lab.docs) > 64


def test_a_session_keeps_checkpoints_until_it_has_finished(open_lab, make_config):
    config = make_config(reconstructor={"name": "rpie", "refine_iterations": 1, "checkpoint_s": 1e-6})
    with open_lab(config) as lab:
        folder, seen = checkpoints_folder(lab.session.directory), set()

        class Looking(list):
            """A history of estimates that looks at the folder with each."""

            def append(self, estimate):
                super().append(estimate)
                seen.update(path.name for path in folder.glob("*"))

        lab.history = Looking()
        lab.run(ptycho_raster(*lab.devices, lab.session.live, **WINDOW))
        lab.session.wait(SOON_S)
        (start,) = lab.docs.of("start")
    assert len(lab.history) >= 2 and seen == {f"{start['reconstruction_uid']}.npz"}
    assert list(folder.iterdir()) == []
