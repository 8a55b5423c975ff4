"""What frames ask for: against noise of a known distribution, and changes of a known size."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from bluesky_cdi.physics.objects import make_sample
from bluesky_cdi.reconstruction.probe_checkin.pupil import Pupil
from bluesky_cdi.reconstruction.scores import DETECTED, PLACE, Scores, scores_of
from tests.unit.reconstruction.star_scans import FAR, NEAR, lens, measure

ALL = ("defocus", "astigmatism", "oblique astigmatism", *PLACE, *DETECTED)


def scene(geometry=FAR, seed=0, **options):
    made = measure(lens(**options), geometry, seed, side=(10, 10), step=3.0)
    return made, torch.from_numpy(make_sample("star", made.data.object_shape[1:], seed))[None]


def expected(made, obj, data=None):
    """The frames without noise."""
    data = made.data if data is None else data
    return replace(made.data, counts=data.rate(data.probes(made.probe[None]), data.patches(obj)))


def scored(made, obj, data):
    return scores_of(obj, made.probe[None], data, Pupil(made.probe, made.data).derivatives(3))


@pytest.mark.parametrize("photons", [1e3, 1e6])
@pytest.mark.parametrize("masked", [False, True])
def test_scores_of_a_true_model_have_the_covariance_of_photon_noise(photons, masked):
    """``score^T covariance^-1 score`` is chi-squared: its mean is the number of directions, its variance twice that."""
    made, obj = scene(photons=photons)
    mask = torch.ones(40, 40, dtype=torch.bool)
    mask[:, 3:5] = not masked
    data = replace(made.data, mask=mask)
    assert tuple(scored(made, obj, data)[0].names) == ALL
    values = []
    for seed in range(4):
        counts = torch.poisson(expected(made, obj).counts, generator=torch.Generator().manual_seed(seed))
        # What a masked pixel holds isn't looked at.
        scores, _ = scored(made, obj, replace(data, counts=torch.where(mask, counts, torch.nan)))
        values.append(np.einsum("np,npq,nq->n", scores.score, np.linalg.inv(scores.covariance), scores.score))
        assert abs(scores.excess.mean()) < 5 * scores.excess.std() / np.sqrt(len(scores))
    values, p = np.concatenate(values), len(ALL)
    assert values.mean() == pytest.approx(p, abs=4 * np.sqrt(2 * p / len(values)))
    assert values.var() == pytest.approx(2 * p, rel=0.4)


@pytest.mark.parametrize("geometry", [FAR, NEAR])
def test_places_come_back(geometry):
    """In the near field too, where the frame moves along with the probe."""
    made, obj = scene(geometry)
    off = torch.tensor([0.04, -0.03])
    there = replace(made.data, shift_px=made.data.shift_px + off)
    scores, _ = scored(made, obj, expected(made, obj, there))
    asked, noise = scores.asked_each(*PLACE)
    np.testing.assert_allclose(asked.mean(axis=0), off, rtol=0.05)
    assert (np.diagonal(noise, axis1=1, axis2=2) > 0).all()


def test_what_is_detected_comes_back_and_nothing_is_blamed_for_another():
    made, obj = scene(photons=1e5)
    rate = expected(made, obj).counts
    smeared = sum((torch.roll(rate, step, axis) for axis in (-2, -1) for step in (-1, 1)), -4 * rate)
    changed = replace(made.data, counts=1.02 * rate + 0.5 + 0.01 * smeared)
    scores, sums = scored(made, obj, changed)
    asked, error = scores.asked(*ALL)
    found = dict(zip(ALL, asked, strict=True))
    assert found["flux"] == pytest.approx(0.02, rel=0.02)
    assert found["background"] == pytest.approx(0.5, rel=0.02)
    assert found["blur"] == pytest.approx(0.01, rel=0.05)
    assert abs(found["defocus"]) < 1e-3 and abs(found["row"]) < 1e-2
    assert (np.diag(error) >= 0).all()
    torch.testing.assert_close(sums, torch.stack([changed.counts.sum(dim=0), rate.sum(dim=0)]))


def test_scores_of_parts_are_those_of_the_whole():
    made, obj = scene()
    whole, _ = scored(made, obj, made.data)
    joined = Scores.joined([scored(made, obj, made.data[part])[0] for part in (slice(0, 30), slice(30, None))])
    assert len(joined) == len(whole) == 100
    np.testing.assert_allclose(joined.excess, whole.excess, rtol=1e-5)


def test_a_frame_of_which_nothing_is_known_asks_for_nothing():
    made, obj = scene()
    dark = replace(made.data[:2], mask=torch.zeros(40, 40, dtype=torch.bool))
    scores, _ = scored(made, obj, dark)
    asked, error = scores.asked(*ALL)
    assert not asked.any() and not error.any() and not scores.asked_each(*PLACE)[0].any()
