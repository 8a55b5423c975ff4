"""Verdicts: what a good scan gets, and what each fault does to it."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from bluesky_cdi.evaluation.missing import with_missing
from bluesky_cdi.evaluation.verdict import Verdict, judge, verdict_said, with_verdict
from bluesky_cdi.physics.likelihood import expected_deviance, poisson_deviance
from bluesky_cdi.plain import as_plain, to_json
from bluesky_cdi.protocols import Estimate

N = 16


@pytest.fixture
def estimate():
    """An image as it should be: a phase under 25 frames of a bright disc, explained to the noise."""
    y, x = np.indices((N, N)) - N // 2
    probe = (np.hypot(y, x) < 5).astype(np.complex64)[None] * 10
    positions = np.stack(np.meshgrid(np.arange(5.0), np.arange(5.0), indexing="ij"), axis=-1).reshape(-1, 2) * 3e-8
    image = np.exp(1j * np.linspace(0, 1, 32 * 32)).reshape(32, 32).astype(np.complex64)
    row = np.ones(25, np.float32)
    return Estimate(
        25, image, (0.0, 0.0), 1e-8, probe, np.ones((32, 32)), np.ones((32, 32)), np.ones((32, 32)), np.arange(1, 26),
        positions, np.zeros((25, 1)), row, row, row, source={
            "ended": "converged", "iterations": 50, "falling": 1e-4, "noise_residual": 0.9, "plain_residual": 6.0,
            "off_centre_px": (0.1, -0.2),
        },
        vacuum_residual=20 * row,
    )  # fmt: skip


def test_a_good_image_is_good(estimate):
    verdict = judge(estimate)
    assert verdict.word == "good" and verdict.says == "good" and not verdict.reasons
    assert verdict.measures.unexplained == pytest.approx(0.1 / 5.1)
    assert verdict.measures.spacing == pytest.approx(0.3, abs=0.03)
    assert verdict.measures.photons == pytest.approx(float(np.square(np.abs(estimate.probe)).sum()))


@pytest.mark.parametrize(
    ("source", "word", "said"),
    [
        ({"ended": "diverged"}, "failed", "the iterations diverged"),
        ({"ended": "diverged", "diverged": 0.6}, "failed", "the iterations diverged"),
        ({"ended": "diverged", "diverged": 0.2}, "doubtful", "the iterations diverged where 20 % of the frames lie"),
        ({"ended": "interrupted", "iterations": 7}, "doubtful", "interrupted after 7 iterations"),
        ({"falling": 0.1}, "doubtful", "still fell by 10.0 % an iteration"),
        ({"plain_residual": 1.3}, "doubtful", "25 % of what the frames differ by unexplained"),
        ({"plain_residual": 1.02}, "failed", "hardly better than their mean does (deviance 1 a pixel against 1.02"),
        ({"plain_residual": 1.02, "falling": 0.5}, "doubtful", "unexplained: there were too few iterations"),
        ({"plain_residual": 1.02, "iterations": 0}, "doubtful", "unexplained: there were too few iterations"),
        ({"plain_residual": 0.9}, "doubtful", "no more than photon noise"),
        ({"noise_residual": 2.5}, "doubtful", "it fits the photons' noise"),
        ({"off_centre_px": (0.0, 3.0)}, "doubtful", "3.0 pixels from the middle"),
        ({"motion": {"median_m": 4.5e-8}}, "doubtful", "the probe moved by 4.5 pixels during an exposure"),
        ({"motion": {"position_error_m": 2e-8}}, "doubtful", "positions between samples are known to 2 pixels only"),
        ({"motion": {"median_m": 1.5e-8}}, "good", "the probe moved by 1.5 pixels during an exposure"),
        ({"motion": {"median_m": 0.9e-8, "position_error_m": 1e-9}}, "good", "good"),
        ({"dropped_frames": 3}, "good", "3 frame(s) were dropped by the detector"),
        ({"dark_frames": list(range(4))}, "doubtful", "14 % of the frames are not in it; 4 frame(s) without light"),
        ({"dark_frames": list(range(30))}, "failed", "55 % of the frames are not in it"),
        ({"other_flux": {"3": 0.2}}, "good", "1 frame(s) were under a flux of their own"),
    ],
)
def test_what_the_reconstruction_tells_is_judged(estimate, source, word, said):
    verdict = judge(replace(estimate, source={**estimate.source, **source}))
    assert verdict.word == word and said in verdict.says


@pytest.mark.parametrize(
    ("change", "word", "said"),
    [
        (lambda e: {"object": e.object * np.nan}, "failed", "100 % of object is not finite"),
        (lambda e: {"residual": e.residual * 30}, "failed", "worse than an empty field"),
        (lambda e: {"object": e.object * 3}, "doubtful", "median modulus is 3"),
        (lambda e: {"probe": e.probe / 1000}, "failed", "hardly any light"),
        (lambda e: {"positions_m": e.positions_m * 10}, "doubtful", "widths of the probe apart"),
    ],
)
def test_the_image_itself_is_judged(estimate, change, word, said):
    verdict = judge(replace(estimate, **change(estimate)))
    assert verdict.word == word and said in verdict.says


@pytest.mark.parametrize(
    ("n", "word", "said"),
    [
        (0, "good", "good"),
        (1, "good", "good: 1 frame(s) are missing: 100 (the first: lost)"),
        (2, "good", "good: 2 frame(s) are missing: 100, 101 (the first: lost)"),
        (10, "doubtful", "29 % of the frames are not in it; 10 frame(s) are missing: 100, 101,"),
        (26, "failed", "109, ... (the first: lost)"),
    ],
)
def test_frames_that_are_missing_count_and_are_told(estimate, n, word, said):
    verdict = judge(with_missing(estimate, dict.fromkeys(range(100, 100 + n), "lost")))
    assert verdict.word == word and said in verdict.says


def test_what_is_noted_of_missing_frames_is_bounded(estimate):
    source = with_missing(estimate, dict.fromkeys(range(10**5), "x" * 10**4)).source
    assert source["missing_frames"]["count"] == 10**5 and len(json.dumps(source["missing_frames"])) < 2e4
    # A later result of the run may have them.
    assert "missing_frames" not in with_missing(replace(estimate, source=source), {}).source


def test_what_is_not_known_is_not_judged(estimate):
    verdict = judge(replace(estimate, source={}, vacuum_residual=None))
    assert verdict.word == "good" and math.isnan(verdict.measures.unexplained)


def test_what_else_speaks_against_it_is_a_doubt(estimate):
    verdict = judge(estimate, doubt="the last image was not good")
    assert verdict.word == "doubtful" and verdict.says == "doubtful: the last image was not good"


def test_frames_of_which_vacuum_is_not_known_do_not_silence_the_others(estimate):
    vacuum = np.where(np.arange(25) == 3, np.nan, 0.5).astype(np.float32)
    assert "worse than an empty field" in judge(replace(estimate, vacuum_residual=vacuum)).says
    source = {**estimate.source, "plain_residual": None}
    unknown = judge(replace(estimate, vacuum_residual=vacuum * np.nan, source=source))
    assert unknown.word == "doubtful" and "nothing is known to compare it with" in unknown.says


def test_a_verdict_is_json_and_comes_back_from_it(estimate):
    judged = with_verdict(replace(estimate, source={**estimate.source, "falling": float("nan"), "ended": "diverged"}))
    notes = json.loads(to_json(judged.source["verdict"]))
    assert notes == judged.source["verdict"] and notes["measures"]["falling"] is None
    assert verdict_said({"verdict": notes}) == judge(judged).says == "failed: " + notes["reasons"][0]
    assert verdict_said({}) == ""
    assert Verdict("good").says == "good"


def test_json_has_no_nan():
    found = as_plain(
        {"a": float("nan"), "b": [np.float32("inf"), np.arange(2)], "c": (1, True, None, "x"), "d": object}
    )
    assert found == {"a": None, "b": [None, [0, 1]], "c": [1, True, None, "x"], "d": str(object)}
    with pytest.raises(TypeError):
        to_json({("no", "text"): 1})


@pytest.mark.parametrize("rate", [1e-3, 0.05, 0.7, 4.0, 60.0, 900.0])
def test_noise_is_that_of_drawn_counts(rate):
    rates = torch.full((400_000,), rate)
    drawn = poisson_deviance(rates, torch.poisson(rates, generator=torch.Generator().manual_seed(1)))
    error = float(drawn.std()) / len(drawn) ** 0.5
    assert float(expected_deviance(rates[:1])) == pytest.approx(float(drawn.mean()), abs=4 * error, rel=0.01)


def test_causes_of_misfit_are_reasons_where_many_frames_show_them_and_remarks_otherwise(estimate):
    dead = {"cause": "detector", "says": "row 3 is dead", "frames": [5, 9], "share": 0.5, "goes_on": True}
    stray = {"cause": "background", "says": "4 % of the light", "frames": None, "share": 1.0, "goes_on": True}
    dark = {"cause": "beam", "says": "no light", "frames": [5, 5], "share": 0.04, "goes_on": False}

    def judged(*causes):
        return judge(replace(estimate, source={**estimate.source, "causes": list(causes)}))

    found = judged(dead, stray)
    assert found.word == "doubtful"
    assert found.reasons == ("frames 5 to 9: detector: row 3 is dead", "background: 4 % of the light")
    found = judged(dead | {"share": 0.1})
    assert found.word == "good" and found.remarks == ("frames 5 to 9: detector: row 3 is dead",)
    # A few dark frames have a remark of their own.
    assert judged(dark).says == "good"
    assert judged(dark | {"share": 0.2}).reasons == ("frame 5: beam: no light",)
