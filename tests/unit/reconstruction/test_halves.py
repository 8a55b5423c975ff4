"""Two halves of the frames: how they lie, and what noise their difference shows."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree

from bluesky_cdi.errors import FrameError
from bluesky_cdi.models.unrolled import UnrolledConfig, UnrolledNet
from bluesky_cdi.physics.forward import Diffraction, accumulate
from bluesky_cdi.physics.illumination import summed_illumination
from bluesky_cdi.reconstruction.calibration import half_pixels
from bluesky_cdi.reconstruction.uncertainty import (
    UNKNOWN_STD_RAD,
    PhotonNoiseEstimator,
    half_objects,
    is_second_half,
    noise_of,
    uncertainty_estimator,
)
from bluesky_cdi.reconstruction.uncertainty.halves import HalfObjects, in_gauge_of, split, window_of
from bluesky_cdi.reconstruction.uncertainty.halves_estimator import reconstructed
from bluesky_cdi.training.stream import SceneShape, SceneStream

N, SIDE = 24, 80
CPU = torch.device("cpu")


def grid_of(rows, columns):
    return np.stack(np.indices((rows, columns)), axis=-1).reshape(-1, 2).astype(float)


def test_halves_of_a_square_grid_are_a_checkerboard():
    positions = grid_of(16, 16)
    order = np.random.default_rng(1).permutation(len(positions))
    second = np.zeros(len(positions), bool)
    second[order] = is_second_half(3e-7 * positions[order] - 1e-5)
    parity = positions.sum(axis=1) % 2 == 1
    assert (second == parity).all() or (second == ~parity).all()


@pytest.mark.parametrize("case", ["odd grid", "long rows", "random", "one line", "one place"])
def test_both_halves_cover_what_all_frames_cover(case):
    positions = {
        "odd grid": grid_of(7, 9),
        "long rows": grid_of(5, 21),
        "random": np.random.default_rng(2).uniform(0, 10, (101, 2)),
        "one line": np.stack([np.zeros(40), np.arange(40)], axis=1),
        "one place": np.zeros((12, 2)),
    }[case]
    second = is_second_half(positions)
    assert second.sum() == len(positions) // 2
    spacing = np.median(cKDTree(positions).query(positions, k=5)[0][:, -1])
    for half, other in ((second, ~second), (~second, second)):
        # Nowhere is the nearest frame of the other half further than a frame's neighbours are.
        assert cKDTree(positions[half]).query(positions[other])[0].max() <= 2 * spacing


def test_a_single_frame_has_no_halves():
    data = scan_at(np.zeros((1, 2)))
    with pytest.raises(FrameError, match="two halves need 2 frames or more; there are 1"):
        split(data)
    probe, obj = torch.ones(1, 1, N, N, dtype=torch.complex64), torch.ones(1, SIDE, SIDE, dtype=torch.complex64)
    assert half_objects(data, probe, lambda _: obj) is None
    light = summed_illumination(probe, data)
    judged = uncertainty_estimator("halves", None)(obj, probe, data, light, torch.ones(1))
    assert judged.std_phase_rad.eq(UNKNOWN_STD_RAD).all() and judged.std_amplitude.eq(1).all()


@pytest.mark.parametrize("runs_away", ["a half", "all frames"])
def test_objects_that_have_run_away_tell_nothing(runs_away):
    data = scan_at(np.array([[0, 0], [4, 4], [8, 0], [4, 8]]))
    probe, obj = torch.ones(1, 1, N, N, dtype=torch.complex64), torch.ones(1, SIDE, SIDE, dtype=torch.complex64)
    gone = torch.full_like(obj, torch.nan)
    half, whole = (gone, obj) if runs_away == "a half" else (obj, gone)
    assert half_objects(data, probe, lambda _: obj, obj) is not None
    assert half_objects(data, probe, lambda _: half, whole) is None


def scan_at(positions):
    corner = torch.from_numpy(positions).long()
    return Diffraction(torch.zeros(len(corner), N, N), corner, torch.zeros(len(corner), 2), (1, SIDE, SIDE))


def test_noise_of_a_linear_reconstruction():
    """Exit waves with white noise of variance 2 s^2: by least squares the object's parts have s / sqrt(light) each.

    The halves come in other gauges, and some phases are near pi, where they wrap.
    """
    rng = np.random.default_rng(4)
    data, s = scan_at(4 * grid_of(14, 14)), 0.4
    y, x = np.indices((N, N)) - N // 2
    probe = torch.from_numpy(3 * np.exp(-(y**2 + x**2) / 90 + 0.01j * y * x)).to(torch.complex64)[None, None]
    rows, columns = np.indices((SIDE, SIDE))
    truth = torch.from_numpy(0.8 * np.exp(3j * np.sin(rows / 9) * np.cos(columns / 7)))[None].to(torch.complex64)
    noise = s * torch.from_numpy(rng.normal(size=(len(data), N, N)) + 1j * rng.normal(size=(len(data), N, N)))
    # Found again for the frames of a half by where they lie.
    by_place = {tuple(corner): each for corner, each in zip(data.corner.tolist(), noise, strict=True)}
    gauges = iter((np.exp(2.9j), 0.7 * np.exp(-1j + 0.02j * rows - 0.03j * columns)))

    def solve(part):
        waves = part.patches(truth) * probe[0] + torch.stack([by_place[tuple(c)] for c in part.corner.tolist()])
        numerator = accumulate((probe[0].conj() * waves).to(torch.complex64), part.corner, part.object_shape)
        light = summed_illumination(probe, part)
        return numerator / light.clamp_min(1e-6) * torch.from_numpy(np.asarray(next(gauges))).to(torch.complex64)

    halves = half_objects(data, probe, solve, truth)
    light = summed_illumination(probe, data)[0]
    measured = halves.both & (light > 0.3 * light.max())
    found = noise_of(halves, window_of(64))
    for std, modulus in zip(found, (1.0, 0.8), strict=True):
        ratio = (std * modulus * light.sqrt() / s)[measured]
        assert float(ratio.square().mean().sqrt()) == pytest.approx(1, abs=0.05)
        assert float(ratio.std()) < 0.15


def test_phases_differ_on_the_circle():
    """A wrapped normal distribution of large variance is told by its cosine; without anything in common: unknown."""
    rng = np.random.default_rng(5)
    ones, light = torch.ones(400, 400), torch.ones(2, 400, 400)

    def found(phase):
        turned = torch.polar(ones, torch.from_numpy(phase).float())
        halves = HalfObjects(torch.polar(ones, 3.1 * ones), turned * np.exp(3.1j), light, ones.bool(), 2)
        return noise_of(halves, 31)

    amplitude, phase = found(rng.normal(0, 1.5, (400, 400)))
    assert float(phase.mean()) == pytest.approx(1.5 / 2, rel=0.03)
    assert float(amplitude.max()) < 1e-3
    assert float(found(rng.uniform(-np.pi, np.pi, (400, 400)))[1].median()) > 1.2


def test_the_difference_of_halves_shows_the_noise_of_a_dense_scan():
    """One measurement tells how objects scatter over several of the same scan, which noise alone makes."""
    stream = SceneStream(CPU, 9, (1e5, 1.001e5), pool=4, object_px=96)
    batch = stream.draw(SceneShape(24, 48, (64, 64), 1, 1.0), exact=True)
    rate = batch.data.rate(batch.data.probes(batch.probe), batch.data.patches(batch.truth))

    def measured(seed):
        return replace(batch.data, counts=torch.poisson(rate, generator=torch.Generator().manual_seed(seed)))

    def solve(data, start):
        return reconstructed(None, start, batch.probe, data, 10)

    objects = [solve(measured(seed), torch.ones_like(batch.truth)) for seed in range(4)]
    light = summed_illumination(batch.probe, batch.data)[0]
    halves = half_objects(measured(0), batch.probe, lambda half: solve(half, objects[0]), objects[0])
    mean = torch.cat(objects).mean(dim=0)
    alike = torch.stack([in_gauge_of(mean, each[0], light * halves.both) for each in objects])
    mean = alike.mean(dim=0)
    scatter = torch.stack([alike.abs() - mean.abs(), torch.angle(alike * mean.conj())]).square().sum(dim=1) / 3
    bright = light > 0.2 * light.max()
    for actual, found in zip(scatter, noise_of(halves, window_of(24)).square(), strict=True):
        assert float((found[bright].mean() / actual[bright].mean()).sqrt()) == pytest.approx(1, abs=0.2)


def test_halves_reconstruct_with_the_network_where_there_is_one():
    torch.manual_seed(9)
    net = UnrolledNet(UnrolledConfig(stages=2, channels=8, levels=2)).requires_grad_(False)
    batch = SceneStream(CPU, 10, (1e4, 1e4 + 1), pool=4, object_px=48).draw(
        SceneShape(16, 32, (9, 9), 1, 1.0), exact=True
    )
    light = summed_illumination(batch.probe, batch.data)
    with_net, obj = uncertainty_estimator("halves", net), net(batch.probe, batch.data)[-1]
    assert with_net.passes == 2.75
    judged = with_net(obj, batch.probe, batch.data, light, torch.ones(9))
    assert [len(half) for half in split(batch.data)] == [5, 4]
    assert judged.embedding.shape == (9, 8)
    halves = half_objects(batch.data, batch.probe, lambda half: net(batch.probe, half)[-1], obj)
    torch.testing.assert_close(judged.std_phase_rad, noise_of(halves, window_of(16))[1].clamp_max(UNKNOWN_STD_RAD))
    # Without a network frames are described as the photon noise does it.
    given = (torch.ones_like(batch.truth), batch.probe, batch.data, light, torch.ones(9))
    described = [uncertainty_estimator(name, None)(*given).embedding for name in ("halves", "photon noise")]
    torch.testing.assert_close(*described, equal_nan=True)


def test_an_interrupted_check_of_halves_tells_nothing_and_makes_one_iteration_of_each():
    batch = SceneStream(CPU, 10, (1e4, 1e4 + 1), pool=4, object_px=48).draw(
        SceneShape(16, 32, (9, 9), 1, 1.0), exact=True
    )
    asked = []

    def interrupted():
        asked.append(True)
        return True

    given = torch.ones_like(batch.truth), batch.probe, batch.data, None, PhotonNoiseEstimator(), 5
    assert half_pixels(*given, interrupted=interrupted) is None
    assert len(asked) == 3
    assert half_pixels(*given) is not None
