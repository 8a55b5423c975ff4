"""Reconstructions that go on from a checkpoint's file, and the settings with which they may."""

from dataclasses import fields, replace

import numpy as np
import pytest

from bluesky_cdi.config import Config
from bluesky_cdi.errors import ConfigError
from bluesky_cdi.evaluation import compare_estimate
from bluesky_cdi.io import read_checkpoint
from bluesky_cdi.models.weights import load_weights
from bluesky_cdi.protocols import Estimate, RunInfo
from bluesky_cdi.reconstruction.checkpoint import checkpoint_file, going_on
from bluesky_cdi.reconstruction.frames import BAD_PIXEL_FRAMES

BUDGET_S = 600.0
INFO = RunInfo("raw-1", 1, {}, (64, 64))


def same(a, b):
    """Whether two estimates are the same in every bit but for the time that they took."""
    if (a is None) != (b is None):
        return False
    names = () if a is None else (f.name for f in fields(Estimate) if f.name != "seconds")
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in names)


@pytest.fixture
def through_a_file(tmp_path):
    """Send a reconstructor's state through a file."""

    def pass_on(reconstructor):
        file = checkpoint_file(INFO, "made-1", Config.model_validate({"reconstructor": {"name": "rpie"}}), tmp_path)
        file.save(reconstructor.checkpoint())
        return read_checkpoint(file.path)[1]

    return pass_on


def to_the_end(reconstructor):
    """Everything that a reconstructor still finds."""
    found = []
    while (estimate := reconstructor.step(BUDGET_S)) is not None:
        found.append(estimate)
    return found


@pytest.mark.parametrize("settings", [{}, {"window_px": 128, "refine_iterations": 1}], ids=["whole", "regions"])
def test_resumed_is_uninterrupted_bit_by_bit(make_scene, through_a_file, settings):
    scene = make_scene(extent_um=(0.9, 2.7)) if settings else make_scene()
    frames = scene.frames(0.3e-6 if settings else 0.15e-6)
    original = scene.reconstructor(**settings)
    original.add(frames[:20])
    original.step(BUDGET_S)
    original.add(frames[20:25])
    original.step(0.0)
    resumed = scene.reconstructor(**settings)
    resumed.restore(through_a_file(original), frames)
    original.add(frames[25:])
    a, b = to_the_end(original), to_the_end(resumed)
    assert len(a) == len(b) > 1
    assert all(same(*pair) for pair in zip(a, b, strict=True))


def test_resumed_network_explains_the_frames_as_well(scene, frames, through_a_file):
    settings = {"name": "pinn", "refine_iterations": 3, "trained": load_weights()}
    original, resumed = scene.reconstructor(**settings), scene.reconstructor(**settings)
    original.add(frames)
    original.step(BUDGET_S)
    resumed.restore(through_a_file(original), frames)
    a, b = to_the_end(original)[-1], to_the_end(resumed)[-1]
    assert b.residual.mean() == pytest.approx(a.residual.mean(), rel=0.02)


def test_what_was_known_is_given_without_work(scene, frames, through_a_file):
    original, resumed = scene.reconstructor(), scene.reconstructor()
    assert original.estimate() is None
    original.add(frames[:9])
    assert original.estimate() is None
    last = to_the_end(original)[-1]
    resumed.restore(through_a_file(original), frames[:9])
    assert resumed.step(BUDGET_S) is None
    assert same(resumed.estimate(), last) and same(original.estimate(), last)


@pytest.mark.parametrize("settings", [{}, {"window_px": 128, "refine_iterations": 1}], ids=["whole", "regions"])
def test_frames_that_are_not_there_any_more_are_left_out(make_scene, caplog, settings):
    """The checkpoint is ahead of the catalog; what is left is as good as if it had been alone."""
    scene = make_scene(extent_um=(0.9, 2.7)) if settings else make_scene()
    frames = sorted(scene.frames(0.3e-6 if settings else 0.15e-6), key=lambda frame: frame.position_m[1])
    frames = [replace(frame, seq_num=k + 1) for k, frame in enumerate(frames)]
    kept = frames[: len(frames) // 2]
    original = scene.reconstructor(**settings)
    original.add(frames)
    original.step(BUDGET_S)
    resumed = scene.reconstructor(**settings)
    resumed.restore(original.checkpoint(), kept)
    assert f"{len(frames) - len(kept)} frames of the checkpoint are not there any more" in caplog.text
    estimate = to_the_end(resumed)[-1]
    alone = scene.reconstructor(**settings)
    alone.add(kept)
    wanted = to_the_end(alone)[-1]
    np.testing.assert_array_equal(estimate.frame_seq_nums, wanted.frame_seq_nums)
    np.testing.assert_array_equal(estimate.coverage > 0, wanted.coverage > 0)
    assert len(estimate.embedding) == len(estimate.novelty) == len(kept)
    truth = scene.source.truth
    found, of_these = (
        compare_estimate(each, truth.object, truth.origin_m).numbers["complex_nrmse"] for each in (estimate, wanted)
    )
    assert found <= 1.05 * of_these < 0.5  # vacuum has 1
    if settings:
        np.testing.assert_array_equal(estimate.object[estimate.coverage == 0], 1)
        assert (estimate.coverage == 0).any()


def test_a_mask_that_was_given_is_not_forgotten(scene, frames):
    """So early that bad pixels are looked for again."""
    mask = np.ones((64, 64), bool)
    mask[30:34, 10:20] = False
    assert BAD_PIXEL_FRAMES > 5
    original, resumed = scene.reconstructor(mask=mask), scene.reconstructor()
    original.add(frames[:5])
    original.step(BUDGET_S)
    resumed.restore(original.checkpoint(), frames)
    original.add(frames[5:])
    assert same(original.step(BUDGET_S), resumed.step(BUDGET_S))


def header_of(tmp_path, **sections):
    config = Config.model_validate({"reconstructor": {"name": "rpie"}, **sections})
    file = checkpoint_file(INFO, "made-1", config, tmp_path)
    file.save({})
    return read_checkpoint(file.path)[0]


def test_it_goes_on_with_its_own_settings_and_those_that_are_set(tmp_path):
    header = header_of(
        tmp_path, reconstructor={"name": "rpie", "refine_iterations": 7, "threads": 3}, probe={"modes": 4}
    )
    config = Config.model_validate(
        {"reconstructor": {"threads": 2, "name": "rpie"}, "catalog": {"directory": "/there"}}
    )
    merged = going_on(header, config, (64, 64))
    assert (merged.reconstructor.name, merged.reconstructor.refine_iterations, merged.probe.modes) == ("rpie", 7, 4)
    assert merged.reconstructor.threads == 2 and str(merged.catalog.directory) == "/there"
    # Defaults are not set.
    assert going_on(header, Config(), (64, 64)).reconstructor.threads == 3


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"reconstructor": {"name": "lsqml"}}, r"reconstructor\.name: rpie then, lsqml now"),
        ({"reconstructor": {"window_px": None}}, r"reconstructor\.window_px: 512 then, None now"),
        ({"reconstructor": {"background": 0.5}}, r"reconstructor\.background: 0\.002 then, 0\.5 now"),
        ({"reconstructor": {"refine_probe": False}}, r"refine_probe: True then, False now"),
        ({"probe": {"modes": 5}}, r"probe\.modes: 2 then, 5 now"),
        ({"detector": {"flip_rows": True}}, r"detector: None then, \{.*'flip_rows': True"),
        ({"documents": {"several": "each"}}, r"documents: None then, \{.*'several': 'each'"),
    ],
)
def test_another_reconstruction_is_refused(tmp_path, sections, message):
    with pytest.raises(ConfigError, match=message + r".*\(--anew\)"):
        going_on(header_of(tmp_path), Config.model_validate(sections), (64, 64))


def test_the_frames_are_prepared_as_they_were(tmp_path):
    header = header_of(tmp_path, detector={"beam_centre_px": [30.5, 32], "crop_px": 40, "saturation": 60000})
    merged = going_on(header, Config(), (64, 64))
    assert merged.detector.beam_centre_px == (30.5, 32.0) and merged.detector.crop_px == 40
    with pytest.raises(ConfigError, match=r"'crop_px': 40.* then, .*'crop_px': 20.* now"):
        going_on(header, Config.model_validate({"detector": {"crop_px": 20}}), (64, 64))


def test_a_checkpoint_with_the_earlier_key_of_the_saturation_is_known(tmp_path):
    header = header_of(tmp_path)
    sections = {name: dict(values) for name, values in header.settings.items() if name != "detector"}
    sections["reconstructor"]["saturation"] = None
    fingerprint = {name: value for name, value in header.fingerprint.items() if name != "detector"}
    older = replace(header, settings=sections, fingerprint=fingerprint)
    assert going_on(older, Config(), (64, 64)) == going_on(header, Config(), (64, 64))
    sections["reconstructor"]["saturation"] = 900.0
    with pytest.raises(ConfigError, match="detector: None then"):
        going_on(older, Config(), (64, 64))


def test_frames_of_another_shape_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"shape of the frames: \(64, 64\) then, \(32, 32\) now"):
        going_on(header_of(tmp_path), Config(), (32, 32))


def test_other_weights_under_the_same_name_are_refused(tmp_path):
    header = header_of(tmp_path, reconstructor={"name": "pinn"})
    assert len(header.fingerprint["SHA-256 of reconstructor.weights"]) == 64
    going_on(header, Config(), (64, 64))
    other = replace(header, fingerprint={**header.fingerprint, "SHA-256 of reconstructor.weights": "0" * 64})
    with pytest.raises(ConfigError, match=r"SHA-256 of reconstructor\.weights: 0{64} then, [0-9a-f]{64} now"):
        going_on(other, Config(), (64, 64))


def test_settings_of_another_version_are_refused(tmp_path):
    header = header_of(tmp_path)
    other = replace(header, settings={**header.settings, "probe": {"modes": 2, "colour": "blue"}})
    with pytest.raises(ConfigError, match=r"not those of this version: colour"):
        going_on(other, Config(), (64, 64))
