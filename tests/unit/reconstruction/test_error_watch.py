"""Predicted errors of a scan that stops at one: the size that halves of its frames tell, while it goes on."""

import math

import numpy as np
import pytest

from bluesky_cdi.evaluation import illuminated_mask
from bluesky_cdi.reconstruction.error_watch import NEAR, ErrorWatch
from bluesky_cdi.reconstruction.targets import Targets, are_enough

ENGINE = {"name": "lsqml", "refine_iterations": 5}


def test_it_looks_once_errors_are_near_the_target():
    watch = ErrorWatch(0.1)
    assert watch.is_due(np.full(16, 0.1 * NEAR)) and not watch.is_due(np.full(15, 0.1))
    assert not watch.is_due(np.full(16, 0.11 * NEAR))
    assert not ErrorWatch(0.0).is_due(np.zeros(100))


def test_errors_have_the_size_of_the_halves_and_the_shape_of_what_predicts_them(scene, frames):
    plain, watched = scene.reconstructor(**ENGINE), scene.reconstructor(**ENGINE, targets=Targets(std_rad=10.0))
    for each in (plain, watched):
        each.add(frames[:-4])
    before, scaled = plain.step(math.inf), watched.step(math.inf)
    ended = plain.checked(before)
    lit = illuminated_mask(before.coverage)
    assert (scaled.object == before.object).all()
    for part in ("amplitude", "phase"):
        name = "std_amplitude" if part == "amplitude" else "std_phase_rad"
        was, now, halves = (getattr(each, name)[lit] for each in (before, scaled, ended))
        factor = scaled.source["uncertainty"]["scale"][part]
        assert factor == pytest.approx(np.median(halves / was), rel=1e-3)
        below = now < now.max()
        np.testing.assert_allclose(now[below], factor * was[below], rtol=1e-4)
        assert not 0.99 < factor < 1.01
    assert scaled.frame_uncertainty == pytest.approx(
        scaled.source["uncertainty"]["scale"]["phase"] * before.frame_uncertainty, rel=0.02
    )
    assert "scale" not in before.source["uncertainty"]
    # Too few new frames for another look: those to come have the same factor.
    for each in (plain, watched):
        each.add(frames[-4:])
    before, scaled = plain.step(math.inf), watched.step(math.inf)
    assert scaled.frame_uncertainty == pytest.approx(
        scaled.source["uncertainty"]["scale"]["phase"] * before.frame_uncertainty, rel=0.02
    )


def test_the_size_is_kept_in_a_checkpoint(scene, frames):
    original, resumed = (scene.reconstructor(**ENGINE, targets=Targets(std_rad=10.0)) for _ in range(2))
    original.add(frames)
    scaled = original.step(math.inf)
    resumed.restore(original.checkpoint(), frames)
    assert resumed.estimate().source["uncertainty"]["scale"] == scaled.source["uncertainty"]["scale"]
    old = {name: array for name, array in original.checkpoint().items() if not name.startswith("judge/")}
    before = scene.reconstructor(**ENGINE)
    before.restore(old, frames)
    assert "scale" not in before.estimate().source["uncertainty"]


def test_nothing_is_told_from_frames_that_no_step_has_seen(scene, frames):
    reconstructor = scene.reconstructor(**ENGINE)
    reconstructor.add(frames)
    assert reconstructor._work.rescale(reconstructor._tiled, lambda: False) is None


def test_frames_of_another_beam_are_looked_at_anew():
    assert not are_enough(100, 96) and are_enough(20, 96) and not are_enough(15, 96)


def test_a_second_look_changes_little(scene, frames):
    reconstructor = scene.reconstructor(**ENGINE, targets=Targets(std_rad=10.0))
    reconstructor.add(frames[:-8])
    first = reconstructor.step(math.inf).source["uncertainty"]["scale"]["phase"]
    reconstructor.add(frames[-8:])
    second = reconstructor.step(math.inf).source["uncertainty"]["scale"]["phase"]
    assert second == pytest.approx(first, rel=0.3)
