"""Errors of a finished run: predicted anew with halves of its frames, and told where they differ."""

import dataclasses
import math

import numpy as np
import pytest

from bluesky_cdi.config import ReconstructorConfig
from bluesky_cdi.evaluation import illuminated_mask
from bluesky_cdi.reconstruction.calibration import final_judge, judged_again
from bluesky_cdi.reconstruction.uncertainty import UNKNOWN_STD_RAD


def test_a_chosen_estimator_predicts_the_last_errors_too():
    usual, chosen = (ReconstructorConfig(name="lsqml", uncertainty=name) for name in (None, "photon noise"))
    assert final_judge(usual, None)(lambda: False).estimator.name == "halves"
    assert final_judge(chosen, None) is None
    # Halves of what was not reconstructed don't differ.
    assert final_judge(ReconstructorConfig(name="lsqml", refine_iterations=0), None) is None


def test_in_the_end_errors_come_from_halves_and_the_object_stays(scene, frames):
    reconstructor = scene.reconstructor(name="lsqml", refine_iterations=5)
    reconstructor.add(frames)
    last = reconstructor.step(math.inf)
    checked = reconstructor.checked(last)
    assert (checked.object == last.object).all() and (checked.frame_seq_nums == last.frame_seq_nums).all()
    assert last.source["uncertainty"]["estimator"] == "photon noise"
    told = checked.source["uncertainty"]
    assert told["estimator"] == "halves" and told["calibrated"]
    lit = illuminated_mask(last.coverage)
    ratio = np.median(checked.std_phase_rad[lit] / last.std_phase_rad[lit])
    assert told["check"]["factors"]["phase"] == pytest.approx(ratio)
    # A frame's is the root mean square under its light: between the least and the most of its pixels.
    assert (checked.frame_uncertainty > checked.std_phase_rad.min()).all() and (
        checked.frame_uncertainty <= UNKNOWN_STD_RAD
    ).all()
    assert not np.allclose(checked.frame_uncertainty, last.frame_uncertainty)


def test_interrupted_the_estimate_stays_as_it_is(scene, frames):
    reconstructor = scene.reconstructor(name="lsqml", refine_iterations=5)
    reconstructor.add(frames)
    last = reconstructor.step(math.inf)
    answers = iter([False] + 100 * [True])
    checked = reconstructor.checked(last, lambda: next(answers))
    assert checked.std_phase_rad is last.std_phase_rad and checked.source["uncertainty"] == last.source["uncertainty"]
    kept = reconstructor.estimate()
    assert (kept.std_phase_rad == last.std_phase_rad).all() and (kept.std_amplitude == last.std_amplitude).all()
    assert (kept.frame_uncertainty == last.frame_uncertainty).all()


@pytest.mark.parametrize(("factor", "word"), [(2.0, "widened to 2.00"), (0.5, "narrowed to 0.50"), (1.1, "")])
def test_it_is_told_when_errors_were_another_size(scene, frames, factor, word, caplog):
    reconstructor = scene.reconstructor(name="lsqml", refine_iterations=1)
    reconstructor.add(frames[:4])
    estimate = reconstructor.step(math.inf)
    std = np.full(estimate.std_phase_rad.shape, 0.1, np.float32)
    std[0, 0] = UNKNOWN_STD_RAD
    now = np.where(std < UNKNOWN_STD_RAD, factor * std, std).astype(np.float32)
    before = dataclasses.replace(estimate, std_amplitude=std, std_phase_rad=std)
    with caplog.at_level("INFO", "bluesky_cdi"):
        found = judged_again(before, std, now, estimate.frame_uncertainty, {"estimator": "halves"})
    check = found.source["uncertainty"]["check"]
    assert check["factors"]["phase"] == pytest.approx(factor, rel=1e-5)
    assert check["says"].startswith(word) and (check["says"] in caplog.text)
    assert bool(check["says"]) == bool(word)
