"""Reconstructions that are interrupted, and go on."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bluesky.plans import count
from bluesky.preprocessors import plan_mutator
from bluesky.utils import Msg, RunEngineInterrupted

from bluesky_cdi.callbacks import collect_frames
from bluesky_cdi.catalog import find_results, load_result, run_documents
from bluesky_cdi.config import load_config
from bluesky_cdi.errors import CatalogError, ConfigError, DocumentError, ScanFileError
from bluesky_cdi.io import CheckpointFile, CheckpointHeader, read_checkpoint, read_scan, write_scan
from bluesky_cdi.plans import ptycho_raster
from bluesky_cdi.reconstruction.batch import reconstruct
from bluesky_cdi.reconstruction.build import build_reconstructor
from bluesky_cdi.reconstruction.checkpoint import checkpoint_file
from bluesky_cdi.recorded_run import keep_result, recorded_run, with_known_probe
from bluesky_cdi.resume import checkpoints_folder, list_resumable, resume_run

WINDOW = {"extent_um": (0.4, 0.6), "step_um": 0.2}
SOON_S = 240.0


class TestDocuments:
    """The catalog gives back the frames that the live reconstruction had."""

    def test_frames_in_files(self, finished, shared_lab):
        assert shared_lab.check_frames_of_the_catalog(finished.run, finished.documents) == 12

    def test_a_point_that_was_taken_twice(self, lab):
        """Paused between an event and the checkpoint after it, the RunEngine takes the event again."""
        seen = []

        def pause(message):
            if message.command == "save":
                seen.append(message)
                if len(seen) == 5:
                    return None, (m for m in [Msg("pause")])
            return None, None

        with pytest.raises(RunEngineInterrupted):
            lab.session.RE(plan_mutator(ptycho_raster(*lab.devices, **WINDOW), pause))
        lab.session.RE.resume()
        lab.session.wait(SOON_S)
        numbers = [event["seq_num"] for event in lab.docs.of("event", "primary")]
        assert numbers == [1, 2, 3, 4, 5, *range(5, 13)]
        run = lab.session.catalog.raw[lab.docs.of("start")[0]["uid"]]
        assert lab.check_frames_of_the_catalog(run, lab.docs) == 12

    def test_a_run_without_frames(self, lab):
        lab.run(count([lab.beamline.monitor]))
        lab.settle()
        run = lab.session.catalog.raw[lab.docs.of("start")[0]["uid"]]
        with pytest.raises(DocumentError, match="the run's stream 'primary' has no 2-D frames"):
            collect_frames(run_documents(lab.session.catalog, run))
        with pytest.raises(DocumentError, match="no frames with their positions"):
            collect_frames(run_documents(lab.session.catalog, run, stream="other"))


@dataclass(frozen=True)
class Finished:
    """A run in the catalog, its documents, and what was kept of its first 8 frames: a checkpoint's path and bytes."""

    run: Any
    documents: list
    path: Path
    content: bytes


@pytest.fixture(scope="module")
def finished(shared_lab):
    shared_lab.settle()
    shared_lab.clear()
    session = shared_lab.session
    shared_lab.run(ptycho_raster(*shared_lab.devices, session.live, **WINDOW))
    session.wait(SOON_S)
    documents = list(shared_lab.docs)
    run = session.catalog.raw[shared_lab.docs.of("start")[0]["uid"]]
    info, frames = collect_frames(documents)
    reconstructor = build_reconstructor(info, session.config)
    reconstructor.add(frames[:8])
    reconstructor.step(SOON_S)
    uid = run.start["reconstruction_uid"]
    file = checkpoint_file(info, uid, session.config, checkpoints_folder(session.directory))
    file.save(reconstructor.checkpoint())
    content = file.path.read_bytes()
    file.path.unlink()
    return Finished(run, documents, file.path, content)


class TestCheckpointsOfARun:
    """A finished run with a checkpoint, as a worker leaves it that was handed another run."""

    @pytest.fixture
    def left(self, finished, shared_lab):
        """The run, the path of its checkpoint, and the session's parts as `resume_run` takes them."""
        run, path = finished.run, finished.path
        path.write_bytes(finished.content)
        session = shared_lab.session
        yield run, path, (session.catalog, run.start["uid"], session.config, session.directory)
        for each in path.parent.iterdir():
            each.unlink()

    def test_frames_that_it_did_not_know_are_new(self, left):
        run, path, where = left
        catalog = where[0]
        before = [each.uid for each in find_results(catalog, run.start["uid"])]
        done = resume_run(*where)
        assert (done.continues, done.n_restored, done.estimate.n_frames) == (run.start["reconstruction_uid"], 8, 12)
        assert done.finished and not path.exists()
        *others, last = find_results(catalog, run.start["uid"])
        assert [each.uid for each in others] == before
        assert (last.uid, last.exit_status, last.complete) == (done.uid, "success", True)
        np.testing.assert_array_equal(load_result(catalog, done.uid).object, done.estimate.object)

    def test_nothing_left_to_improve_is_a_result_too(self, left):
        run, path, where = left
        info, frames = collect_frames(run_documents(where[0], run))
        header, _ = read_checkpoint(path)
        reconstructor = build_reconstructor(info, where[2])
        reconstructor.add(frames)
        while (estimate := reconstructor.step(SOON_S)) is not None:
            last = estimate
        CheckpointFile(path.parent, header).save(reconstructor.checkpoint())
        done = resume_run(*where)
        assert done.finished and done.n_restored == 12
        np.testing.assert_array_equal(done.estimate.object, last.object)
        np.testing.assert_array_equal(load_result(where[0], done.uid).residual, last.residual)

    def test_damage_is_told_and_anew_helps(self, left):
        _, path, where = left
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(ScanFileError, match=r"can't read .* as a checkpoint.*\(--anew\)"):
            resume_run(*where)
        done = resume_run(*where, anew=True)
        assert (done.continues, done.n_restored, done.estimate.n_frames) == (None, 0, 12)
        assert not path.exists()

    def test_another_runs_file(self, left):
        run, path, where = left
        header, state = read_checkpoint(path)
        other = CheckpointHeader("another-run", header.reconstruction_uid, header.frame_shape)
        CheckpointFile(path.parent, other).save(state)
        with pytest.raises(ScanFileError, match=rf"of the run {run.start['uid']}, and is of another-run"):
            resume_run(*where)

    def test_a_state_that_lacks_something(self, left):
        _, path, where = left
        header, state = read_checkpoint(path)
        CheckpointFile(path.parent, header).save({k: v for k, v in state.items() if k != "probe/published"})
        with pytest.raises(ScanFileError, match=r"lacks 'published'.*\(--anew\)"):
            resume_run(*where)

    def test_another_engine(self, left):
        _, path, (catalog, uid, _, directory) = left
        config = load_config(overrides={"reconstructor": {"name": "epie"}})
        with pytest.raises(ConfigError, match=r"reconstructor\.name: rpie then, epie now"):
            resume_run(catalog, uid, config, directory)
        assert path.exists()

    def test_ctrl_c_keeps_the_checkpoint(self, left):
        run, path, where = left

        def stop(done, deviance):
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            resume_run(*where, on_progress=stop)
        assert path.exists()
        last = find_results(where[0], run.start["uid"])[-1]
        assert (last.exit_status, last.complete) == ("abort", False)

    def test_list(self, left, caplog):
        run, path, (catalog, _, _, directory) = left
        (path.parent / "broken.npz").write_bytes(b"PK")
        header, state = read_checkpoint(path)
        CheckpointFile(path.parent, CheckpointHeader("elsewhere", "made-elsewhere", (64, 64))).save(state)
        rows = list_resumable(catalog, directory)
        assert [(row.raw_uid, row.in_catalog, row.n_frames) for row in rows] == [
            (run.start["uid"], True, 8), ("elsewhere", False, 8)
        ]  # fmt: skip
        assert (rows[0].n_measured, rows[0].exit_status, rows[0].saved_at) == (12, "success", header.saved_at)
        assert "broken.npz" in caplog.text


class TestReconstructedAgain:
    """A run of the catalog as a recorded scan: for another engine, and for a file."""

    def test_the_scan_is_what_the_documents_gave(self, finished, shared_lab, tmp_path):
        catalog, config = shared_lab.session.catalog, shared_lab.session.config
        uid = finished.run.start["uid"]
        run = recorded_run(catalog, uid, config)
        info, frames = collect_frames(finished.documents)
        assert (run.info.uid, run.numbers) == (info.uid, tuple(range(1, 13)))
        np.testing.assert_array_equal(run.scan.counts, [frame.counts for frame in frames])
        # The hot pixels of the simulated detector read its saturation, 65535, in each frame.
        np.testing.assert_array_equal(~run.scan.mask, (run.scan.counts == 65535).all(axis=0))
        assert (~run.scan.mask).sum() == 3
        np.testing.assert_array_equal(run.scan.positions_m, [frame.position_m for frame in frames])
        np.testing.assert_array_equal(run.scan.flux, [frame.flux for frame in frames])
        write_scan(tmp_path / "scan.npz", run.scan)
        back = read_scan(tmp_path / "scan.npz")
        np.testing.assert_array_equal(back.counts, run.scan.counts)
        np.testing.assert_allclose(back.positions_m, run.scan.positions_m, rtol=1e-12)
        np.testing.assert_array_equal(back.flux, run.scan.flux)
        assert back.geometry == run.scan.geometry and back.source["run"] == uid

    def test_the_result_stands_beside_those_that_are_there(self, finished, shared_lab):
        session = shared_lab.session
        catalog, uid = session.catalog, finished.run.start["uid"]
        found = find_results(catalog, uid)
        before, usable = [each.uid for each in found], [each.uid for each in found if each.complete]
        run = recorded_run(catalog, uid, session.config)
        probe, found = with_known_probe(catalog, run).scan.probe, load_result(catalog, usable[-1]).probe
        assert (abs(probe) ** 2).sum() == pytest.approx(run.scan.mean_photons, rel=1e-4)
        np.testing.assert_allclose(probe / np.linalg.norm(probe), found / np.linalg.norm(found), atol=1e-6)
        config = load_config(overrides={"reconstructor": {"name": "epie", "threads": 1}, "probe": {"modes": 1}})
        estimate = reconstruct(run.scan, config, 2, numbers=run.numbers)
        made = keep_result(catalog, run, estimate, session.directory)
        *others, last = find_results(catalog, uid)
        assert [each.uid for each in others] == before
        assert (last.uid, last.complete, last.exit_status) == (made, True, "success")
        assert last.verdict == estimate.source["verdict"]["word"]
        np.testing.assert_array_equal(load_result(catalog, made).object, estimate.object)


def test_a_run_without_a_checkpoint_is_told_of(finished, shared_lab, caplog):
    session = shared_lab.session
    done = resume_run(session.catalog, finished.run.start["scan_id"], session.config, session.directory)
    assert "there is no checkpoint of the run" in caplog.text
    assert (done.continues, done.estimate.n_frames) == (None, 12)
    with pytest.raises(CatalogError, match="no run of scan 4711"):
        resume_run(session.catalog, 4711, session.config, session.directory)
