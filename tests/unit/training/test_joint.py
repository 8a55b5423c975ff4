"""Training of stages that change the probe: wrong probes as stated, the losses, and a run that is interrupted."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from bluesky_cdi.cli import main
from bluesky_cdi.config import ReconstructorConfig
from bluesky_cdi.errors import WeightsError
from bluesky_cdi.models.joint_probe import ABERRATIONS
from bluesky_cdi.models.unrolled import UnrolledConfig, UnrolledNet
from bluesky_cdi.models.weights import load_weights, save_weights
from bluesky_cdi.physics.forward import intensity
from bluesky_cdi.physics.geometry import ObjectGrid
from bluesky_cdi.reconstruction.online import PtychoReconstructor
from bluesky_cdi.training import pretrain as module
from bluesky_cdi.training import probes, stream
from bluesky_cdi.training.draws import Draws
from bluesky_cdi.training.joint import lost_overlap, with_unread
from bluesky_cdi.training.losses import probe_overlap, relative_deviance
from bluesky_cdi.training.pretrain import PretrainConfig, held_out, scene_losses
from bluesky_cdi.training.process_group import ProcessGroup
from bluesky_cdi.training.stream import SceneShape, SceneStream

CPU = torch.device("cpu")
SHAPE = SceneShape(32, 48, (9, 9), 3, 1.0)
MODEL = UnrolledConfig(stages=2, channels=8, levels=2, joint=1)


def wide(seed=5, shape=SHAPE):
    return SceneStream(CPU, seed, (1e4, 1e5), pool=8, object_px=64, wide=True).draw(shape)


def true_probes(modes, number=4, size=64):
    return 100 * probes.draw_probes(Draws(CPU, 3), number, size, modes)


def test_added_aberrations_have_the_stated_rms():
    right = true_probes(1)
    coefficients = torch.zeros(4, ABERRATIONS)
    coefficients[:, 0] = torch.tensor([0.0, 0.4, 0.2, 0.5])
    coefficients[3, 1] = 0.5
    wrong = probes.aberrated(right, coefficients)
    for before, after, wanted in zip(right[:, 0], wrong[:, 0], coefficients.norm(dim=1), strict=True):
        waves = [torch.fft.fft2(each).numpy() for each in (before, after)]
        weight = np.abs(waves[0]) ** 2
        phase = np.angle(waves[1] * waves[0].conj())
        assert math.sqrt(np.average(phase**2, weights=weight)) == pytest.approx(float(wanted), abs=0.02)
        np.testing.assert_allclose(np.abs(waves[1]), np.abs(waves[0]), atol=1e-3 * np.abs(waves[0]).max())
    # To first order an overlap falls by half the mean square of the phase.
    assert float(probe_overlap(wrong, right)[2]) == pytest.approx(1 - 0.2**2 / 2, abs=2e-3)


def test_a_stretched_pupil_is_as_much_larger():
    right = true_probes(1)
    factor = torch.tensor([1.0, 1.3, 1 / 1.3, 1.05])
    wrong = probes.stretched(right, factor)
    torch.testing.assert_close(wrong[0], right[0], rtol=1e-3, atol=1e-3)

    def extent(probe):
        power = torch.fft.fftshift(intensity(torch.fft.fft2(probe)), dim=(-2, -1))
        index = torch.arange(64.0) - 32
        y = (power.sum(dim=-1) * index.square()).sum(dim=-1) + (power.sum(dim=-2) * index.square()).sum(dim=-1)
        return (y / power.sum(dim=(-2, -1))).sqrt()

    torch.testing.assert_close(extent(wrong) / extent(right), factor, rtol=0.06, atol=0)


def test_wrong_guesses_are_of_every_kind_and_keep_their_photons_nearly(monkeypatch):
    draws, seen = Draws(CPU, 8), set()
    for modes in (1, 3):
        right = true_probes(modes)
        for _ in range(40):
            told = probes.misjudge_widely(draws, right)
            assert bool(torch.isfinite(told.abs()).all())
            seen.add((modes, told.shape[1]))
            ratio = told.abs().square().sum(dim=(1, 2, 3)) / right.abs().square().sum(dim=(1, 2, 3))
            assert float((ratio - 1).abs().max()) < 0.8
    assert seen == {(1, 1), (1, 3), (3, 1), (3, 3)}
    # Some are right but for their photons, some further off than aberrations of 1 rad.
    overlaps = torch.cat([probe_overlap(probes.misjudge_widely(draws, right), right) for _ in range(40)])
    assert float(overlaps.max()) > 0.999 and float(overlaps.min()) < 0.4


def test_aberrations_are_no_larger_than_stated():
    sizes = torch.cat([probes._mixtures(Draws(CPU, seed), 50).norm(dim=1) for seed in range(10)])
    assert float(sizes.max()) <= 2.5 and float(sizes.max()) > 2.2 and float(sizes.min()) < 0.2


def test_a_wrong_pixel_moves_positions_about_the_middle_and_widens_the_pupil(monkeypatch):
    monkeypatch.setattr(stream, "PIXEL_SHARE", 1.0)
    monkeypatch.setattr(probes, "ABERRATED_SHARE", 0.0)
    found = []
    for seed in range(6):
        batch = wide(seed)
        told, true = (data.corner + data.shift_px - 24 + 16 for data in (batch.data, batch.true_data))
        # Least squares through the middle; errors of single positions average out.
        found.append(float((told * true).sum() / true.square().sum()))
    assert all(1 / 1.06 < each < 1.06 for each in found) and max(abs(each - 1) for each in found) > 0.015


def test_thick_and_gentle_objects_are_as_many():
    assert stream.WIDE_THICK_SHARE == 0.5
    shares = []
    for thick in (0.0, stream.WIDE_THICK_SHARE, 1.0):
        objects = stream.ObjectPool(Draws(CPU, 2), 160, 48, thick).parts
        steps = torch.cat([(part[:, 1:] * part[:, :-1].conj()).angle().abs().amax(dim=(1, 2)) for part in objects])
        shares.append(float((steps > 1.5).float().mean()))
    assert shares[1] == pytest.approx((shares[0] + shares[2]) / 2, abs=0.1) and shares[2] > shares[0] + 0.3


def test_frames_that_are_not_read_are_the_others():
    batch = wide()
    read, unread = with_unread(batch)
    assert len(read.data) == len(read.true_data) == 3 * 8 and len(unread) == 3
    assert torch.equal(unread.counts, batch.true_data.counts[3::9]) and unread.scene.tolist() == [0, 1, 2]
    both = torch.cat([read.data.counts, unread.counts]).sum()
    torch.testing.assert_close(both, batch.data.counts.sum())
    few, all_of_them = with_unread(wide(shape=replace(SHAPE, frames=(2, 2))))
    assert len(few.data) == len(all_of_them) == 6


def test_the_overlap_is_that_of_the_main_modes():
    """Computed here with NumPy, mode by mode."""
    rng = np.random.default_rng(4)
    first, second = (rng.normal(size=(2, m, 8, 8)) + 1j * rng.normal(size=(2, m, 8, 8)) for m in (3, 2))
    first[0, 1] *= 3
    second[1, 1] *= 5
    found = probe_overlap(torch.from_numpy(first), torch.from_numpy(second))
    for scene in range(2):
        a, b = (max(each[scene], key=np.linalg.norm) for each in (first, second))
        wanted = abs(np.vdot(a, b)) / np.linalg.norm(a) / np.linalg.norm(b)
        assert float(found[scene]) == pytest.approx(wanted)
    same = torch.from_numpy(first)
    assert float(lost_overlap([same, 2j * same], same, 1)) == pytest.approx(0, abs=1e-12)
    assert float(lost_overlap([torch.from_numpy(second), same, same], same, 2)) == pytest.approx(0, abs=1e-12)


def test_losses_reach_the_lengths_of_the_steps_of_the_probe():
    batch = wide()
    torch.manual_seed(1)
    net = UnrolledNet(MODEL)
    losses = scene_losses(net, batch, PretrainConfig(model=MODEL), Draws(CPU, 1))
    assert set(losses) == {"truth", "physics", "critic", "probe"}
    with torch.no_grad():
        wanted = 1 - probe_overlap(net.solve(batch.probe, with_unread(batch)[0].data)[1][-1], batch.true_probe).mean()
    assert losses["probe"].item() == pytest.approx(wanted.item(), abs=1e-5)
    losses["probe"].backward()
    assert bool((net.probe_step.grad != 0).any()) and bool(torch.isfinite(net.probe_step.grad).all())
    # Without labels nothing but frames teaches.
    unlabelled = scene_losses(net, batch, PretrainConfig(model=MODEL, supervised=0.0), Draws(CPU, 1))
    assert unlabelled["probe"].item() == 0 == unlabelled["truth"].item() < unlabelled["physics"].item()


def test_the_deviance_is_that_of_unread_frames_under_the_network_s_own_probe(monkeypatch):
    batch = wide()
    net = UnrolledNet(MODEL)
    seen = []
    monkeypatch.setattr(module, "relative_deviance", lambda *told: (seen.append(told), relative_deviance(*told))[1])
    scene_losses(net, batch, PretrainConfig(model=MODEL), Draws(CPU, 1))
    for _, probe, data in seen:
        assert len(data) == 3 and torch.equal(data.corner, batch.true_data.corner[3::9])
        assert probe.shape == batch.probe.shape and not torch.equal(probe, batch.true_probe)


@pytest.fixture
def tiny(monkeypatch):
    """Small scenes, from a small pool, and nothing after the training."""
    monkeypatch.setattr(stream, "SHAPES", (SHAPE,))
    monkeypatch.setattr(module, "VALIDATION_SHAPE", SceneShape(32, 48, (9, 9), 2, 1.0))
    real = SceneStream.__init__

    def small(self, device, seed, photons, pool=8, object_px=64, probe=None, decisions=None, wide=False):
        real(self, device, seed, photons, 8, 64, probe, decisions, wide)

    monkeypatch.setattr(SceneStream, "__init__", small)
    monkeypatch.setattr(module, "validate", lambda net, device, probe, share: {})
    monkeypatch.setattr(module, "calibrate", lambda net, device, batches, probe: net.log_std_offset)


def run(tmp_path, config):
    torch.manual_seed(config.seed)
    return module._Run(UnrolledNet(config.model), config, ProcessGroup(CPU), tmp_path / "run.resume", None, {})


def test_a_run_that_goes_on_makes_the_same_steps_bit_for_bit(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "draw_start", lambda net, batch, *_: torch.ones_like(batch.truth))
    config = PretrainConfig(seconds=60.0, seed=4, learning_rate=3e-3, model=MODEL)
    first = run(tmp_path, config)
    for _ in range(3):
        first._one_step(0.2)
    first._save()
    again = run(tmp_path, config)
    again.resume()
    # The first run begins the scenes that follow as a resumed one does; all else it has in memory.
    for each in (first, again):
        each._stream = SceneStream(CPU, config.seed, config.photons, wide=True)
        for _ in range(2):
            each._one_step(0.3)
    for (name, value), other in zip(first._net.state_dict().items(), again._net.state_dict().values(), strict=True):
        assert torch.equal(value, other), name
    assert again._step == first._step == 5


def test_the_command_trains_and_its_weights_are_measured(tiny, tmp_path, capsys):
    out = tmp_path / "joint.safetensors"
    options = ["--model", "tiny", "--joint", "2", "--seconds", "0.01", "--device", "cpu", "--seed", "3"]
    assert main(["train", str(out), *options, "-q", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    curve = record["curve"][-1]
    assert 0 < curve["overlap_assumed"] < 1 and 0 < curve["overlap_found"] <= 1 and math.isfinite(curve["probe"])
    trained = load_weights(out)
    assert trained.unrolled_net.config.joint == 2 and trained.unrolled_net.probe_step.shape == (2, 2)
    assert main(["train", str(out), "--model", "tiny", "--joint", "5", "--device", "cpu"]) == 1
    assert "0 to 4 of 5 stages" in capsys.readouterr().err


def test_held_out_scenes_may_be_misjudged(tiny):
    right, wrong = (held_out(CPU, 1e5, 8, None, misjudged=each) for each in (False, True))
    assert torch.equal(right.probe, right.true_probe) and not torch.equal(wrong.probe, wrong.true_probe)


def test_a_reconstructor_refuses_weights_that_change_the_probe(tmp_path):
    path = tmp_path / "joint.safetensors"
    save_weights(UnrolledNet(MODEL), path, {})
    grid = ObjectGrid.covering(np.zeros(2), np.full(2, 1e-6), 1e-7, 32, 4)
    with pytest.raises(WeightsError, match="these weights change the probe"):
        PtychoReconstructor(grid, np.ones((1, 32, 32), complex), ReconstructorConfig(), trained=load_weights(path))
