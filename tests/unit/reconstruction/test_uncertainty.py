"""Uncertainty, structure and novelty of known objects; bad pixels of known frames."""

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch

from bluesky_cdi.config import ReconstructorConfig
from bluesky_cdi.errors import ConfigError
from bluesky_cdi.models.unrolled import UnrolledConfig, UnrolledNet
from bluesky_cdi.physics.forward import Diffraction, to_corner
from bluesky_cdi.protocols import Estimate
from bluesky_cdi.reconstruction.bad_pixels import valid_pixels
from bluesky_cdi.reconstruction.points import points_of
from bluesky_cdi.reconstruction.uncertainty import (
    ESTIMATORS,
    PhotonNoiseEstimator,
    radial_profile,
    structure_under_frames,
    uncertainty_estimator,
    under_frames,
)

N, SIDE = 16, 48


def flat_probe(photons):
    """A probe of `photons` on each pixel, all in one mode, shape (1, 1, N, N)."""
    return torch.full((1, 1, N, N), photons**0.5, dtype=torch.complex64)


def data_at(corners):
    corner = torch.tensor(corners)
    counts = torch.ones(len(corner), N, N)
    return Diffraction(counts, corner, torch.zeros(len(corner), 2), (1, SIDE, SIDE))


@pytest.mark.parametrize("photons", [4.0, 100.0, 1e4])
def test_photon_noise_limits_the_phase(photons):
    """L photons on a pixel: 1 / (2 sqrt(L)); two frames over it: half as many are needed."""
    data = data_at([[8, 8], [8, 16]])
    obj, illumination = torch.ones(1, SIDE, SIDE, dtype=torch.complex64), torch.ones(1, SIDE, SIDE)
    judged = PhotonNoiseEstimator()(obj, flat_probe(photons), data, illumination, torch.ones(2))
    assert judged.std_phase_rad[10, 10].item() == pytest.approx(0.5 / photons**0.5, rel=1e-5)
    assert judged.std_phase_rad[10, 20].item() == pytest.approx(0.5 / (2 * photons) ** 0.5, rel=1e-5)
    assert judged.std_amplitude[10, 10].item() == pytest.approx(0.5 / photons**0.5, rel=1e-5)
    assert judged.std_phase_rad[0, 0].item() == pytest.approx(np.pi / 3**0.5, rel=1e-5)
    assert judged.std_amplitude[0, 0].item() == 1.0


def test_badly_explained_frames_count_less():
    data, illumination = data_at([[8, 8]]), torch.ones(1, SIDE, SIDE)
    obj = torch.ones(1, SIDE, SIDE, dtype=torch.complex64)
    judge = PhotonNoiseEstimator()
    well, badly, better = (
        judge(obj, flat_probe(100.0), data, illumination, torch.tensor([d])).std_phase_rad[10, 10].item()
        for d in (1.0, 4.0, 0.2)
    )
    assert badly == pytest.approx(2 * well, rel=1e-5)
    assert better == pytest.approx(well, rel=1e-5)


def test_estimators_have_the_names_of_the_configuration():
    names, _ = get_args(ReconstructorConfig.model_fields["uncertainty"].annotation)
    assert list(get_args(names)) == list(ESTIMATORS)


def test_an_estimator_is_chosen_by_name():
    net = UnrolledNet(UnrolledConfig(stages=2, channels=8, levels=2))
    assert uncertainty_estimator(None, None).name == uncertainty_estimator("photon noise", net).name == "photon noise"
    assert uncertainty_estimator(None, net).name == uncertainty_estimator("critic", net).name == "critic"
    assert (uncertainty_estimator(None, None).passes, uncertainty_estimator(None, net).passes) == (0, 1.5 / 2)
    with pytest.raises(ConfigError, match="is called 'crystal ball'; there are photon noise, critic"):
        uncertainty_estimator("crystal ball", net)
    with pytest.raises(ConfigError, match=r"'critic' needs a network.*choose 'photon noise'"):
        uncertainty_estimator("critic", None)


def test_radial_profile_of_rings():
    """Frames that are constant on rings come back ring by ring."""
    index = np.arange(32) - 16
    ring = np.minimum((np.hypot(index[:, None], index[None]) * 2 * 16 / 32).astype(int), 15)
    frame = torch.from_numpy((ring**2).astype(np.float32))
    profile = radial_profile(to_corner(frame)[None])
    np.testing.assert_allclose(profile[0].numpy(), np.log1p(np.arange(16) ** 2), rtol=1e-5)


def test_average_under_a_frame():
    image = torch.arange(SIDE * SIDE, dtype=torch.float32).reshape(1, SIDE, SIDE)
    got = under_frames(image, flat_probe(3.0), torch.tensor([[0, 0], [5, 9]]), chunk=1)
    want = [image[0, :N, :N].mean().item(), image[0, 5 : 5 + N, 9 : 9 + N].mean().item()]
    np.testing.assert_allclose(got.numpy(), want, rtol=1e-5)


def test_structure_is_zero_in_vacuum_whatever_its_phase():
    corner = torch.tensor([[0, 0], [20, 20]])
    for phase in (0.0, 1.2):
        obj = torch.full((1, SIDE, SIDE), np.exp(1j * phase), dtype=torch.complex64)
        assert structure_under_frames(obj, flat_probe(10.0), corner).max().item() < 2e-3


def test_structure_of_two_phases():
    """Half at phase 0 and half at phase p: the standard deviation is |sin(p / 2)|."""
    obj = torch.ones(1, SIDE, SIDE, dtype=torch.complex64)
    obj[:, :, 8:] = np.exp(0.8j)
    got = structure_under_frames(obj, flat_probe(10.0), torch.tensor([[0, 0], [0, 24]]))
    assert got[0].item() == pytest.approx(np.sin(0.4), rel=1e-4)
    assert got[1].item() < 2e-3


def test_hot_and_dead_pixels_are_found():
    rng = np.random.default_rng(1)
    y, x = np.indices((32, 32)) - 16
    mean = 400 * np.exp(-(y**2 + x**2) / 60) + 3
    counts = rng.poisson(mean, (12, 32, 32))
    hot, dead = [(3, 4), (20, 28)], [(10, 10), (16, 20)]
    for place in hot:
        counts[(slice(None), *place)] = 65535
    for place in dead:
        counts[(slice(None), *place)] = 0
    wanted = np.ones((32, 32), dtype=bool)
    for place in hot + dead:
        wanted[place] = False
    np.testing.assert_array_equal(valid_pixels(counts), wanted)


def test_good_and_dark_detectors_keep_all_pixels():
    rng = np.random.default_rng(2)
    assert valid_pixels(rng.poisson(5, (8, 32, 32))).all()
    assert valid_pixels(np.zeros((8, 32, 32), dtype=np.uint16)).all()
    # One bright cosmic ray among many frames is no hot pixel.
    counts = rng.poisson(2, (32, 32, 32))
    counts[5, 9, 9] = 500
    assert valid_pixels(counts).all()


def test_points_for_the_agent():
    rng = np.random.default_rng(3)
    pixel = 1e-8
    corner = np.array([[0, 0], [10, 20]])
    image = np.ones((SIDE, SIDE), np.complex64)
    image[:, 24:] = np.exp(0.8j)
    ones = np.ones((SIDE, SIDE), np.float32)
    estimate = Estimate(
        n_frames=2, object=image, origin_m=(-1e-7, 2e-7), pixel_m=pixel, probe=np.asarray(flat_probe(5.0)[0]),
        std_amplitude=ones, std_phase_rad=ones, coverage=ones, frame_seq_nums=np.array([3, 8]),
        positions_m=(corner + N // 2) * pixel + [-1e-7, 2e-7], embedding=rng.random((2, 4)).astype(np.float32),
        frame_uncertainty=np.array([0.1, 0.2], np.float32), residual=np.array([1.0, 2.0], np.float32),
        novelty=np.array([1.0, 5.0], np.float32),
    )  # fmt: skip
    points = points_of(estimate)
    keys = {"seq_num", "y", "x", "embedding", "uncertainty", "structure", "novelty", "residual"}
    assert [set(p) for p in points] == [keys, keys]
    checks = {"resolution_m": [8e-8, 9e-8, 7e-8], "frequency_per_m": [1e6], "target_m": 5e-8}
    looked_for = replace(estimate, source={"resolution": checks})
    assert [p["resolution_m"] for p in points_of(looked_for)] == [9e-8, 9e-8]
    assert [p["seq_num"] for p in points] == [3, 8]
    np.testing.assert_array_equal([[p["y"], p["x"]] for p in points], estimate.positions_m)
    np.testing.assert_array_equal([p["embedding"] for p in points], estimate.embedding)
    expected = {
        "uncertainty": estimate.frame_uncertainty,
        "novelty": estimate.novelty,
        "residual": estimate.residual,
    }
    for name, values in expected.items():
        np.testing.assert_array_equal([p[name] for p in points], values)
    # Columns 20 to 35: 4 of vacuum, 12 beside it.
    weight = 4 / 16
    assert points[0]["structure"] < 2e-3
    assert points[1]["structure"] == pytest.approx(2 * np.sin(0.4) * (weight * (1 - weight)) ** 0.5, rel=1e-3)
