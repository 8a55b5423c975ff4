"""Estimators of several that can disagree, chosen by name with the weights that they need."""

import logging

import pytest
import torch

from bluesky_cdi.config import ReconstructorConfig
from bluesky_cdi.errors import ConfigError, WeightsError
from bluesky_cdi.models.heads import KINDS, ErrorHeads, HeadsConfig
from bluesky_cdi.models.heads_weights import save_heads
from bluesky_cdi.models.unrolled import UnrolledConfig, UnrolledNet, in_bf16_where_native
from bluesky_cdi.models.weights import load_weights, save_weights
from bluesky_cdi.physics.illumination import summed_illumination
from bluesky_cdi.reconstruction.uncertainty import UNKNOWN_STD_RAD, configured_estimator, uncertainty_estimator
from bluesky_cdi.training.stream import SceneShape, SceneStream

SIZE = UnrolledConfig(stages=2, channels=8, levels=2)


def network(seed):
    torch.manual_seed(seed)
    net = UnrolledNet(SIZE).requires_grad_(False)
    for stage in net.stages:
        # Untrained last layers give changes of the size of an error.
        stage.exit.weight.mul_(0.1)
    return net


def heads_with_weights(members=3, dropout=0.2):
    torch.manual_seed(1)
    heads = ErrorHeads(HeadsConfig(members, dropout, SIZE)).requires_grad_(False).eval()
    for name, parameter in heads.named_parameters():
        if "exit" in name and name.endswith("weight"):
            parameter.normal_(0, 0.02)
    return heads


@pytest.fixture(scope="module")
def scan():
    """An object with what an estimator is told of it; in one corner no light fell."""
    stream = SceneStream(torch.device("cpu"), 2, (1e4, 1e5), pool=2, object_px=64)
    batch = stream.draw(SceneShape(16, 40, (9, 9), 1, 1.0), exact=True)
    light = summed_illumination(batch.probe, batch.data)
    light[:, :4, :4] = 0
    return batch.truth, batch.probe, batch.data, light, torch.ones(9)


@pytest.mark.parametrize("kind", KINDS)
def test_heads_give_all_parts(scan, kind):
    net = network(3)
    judged = uncertainty_estimator(kind, net, heads=heads_with_weights())(*scan)
    for std, epistemic, unknown in (
        (judged.std_amplitude, judged.epistemic_amplitude, 1.0),
        (judged.std_phase_rad, judged.epistemic_phase_rad, UNKNOWN_STD_RAD),
    ):
        assert (std >= epistemic).all() and (epistemic >= 0).all()
        assert epistemic[scan[3][0] > 0].min() > 0
        assert (std[:4, :4] == unknown).all() and not epistemic[:4, :4].any()
    # The critic describes the frames, whoever predicts the errors.
    torch.testing.assert_close(judged.embedding, uncertainty_estimator("critic", net)(*scan).embedding)
    # The same is told of the same.
    again = uncertainty_estimator(kind, net, heads=heads_with_weights())(*scan)
    assert torch.equal(judged.std_phase_rad, again.std_phase_rad)


@pytest.mark.parametrize("kind", KINDS)
def test_heads_predict_in_a_quick_reading_too(scan, kind, monkeypatch):
    """U-Nets compute in bf16 there where the CPU has it; what comes of their outputs stays in single precision."""
    estimator = uncertainty_estimator(kind, network(3), heads=heads_with_weights())
    usual = estimator(*scan)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    with in_bf16_where_native(torch.device("cpu")):
        found = estimator(*scan)
        products = torch.eye(2) @ torch.eye(2)
    assert products.dtype == torch.float32
    for name in ("std_amplitude", "std_phase_rad", "epistemic_phase_rad", "embedding"):
        ours, wanted = getattr(found, name), getattr(usual, name)
        assert ours.dtype == torch.float32 and not torch.equal(ours, wanted)
        torch.testing.assert_close(ours, wanted, rtol=0.1, atol=0.02)


def test_costs_are_told_in_passes():
    net, heads = network(3), heads_with_weights(members=5)
    cost = {kind: uncertainty_estimator(kind, net, heads=heads).passes for kind in KINDS}
    assert cost == {"ensemble": 2.0, "dropout": 2.0, "variational": 1.0}
    assert uncertainty_estimator("deep ensemble", net, members=[net, net]).passes == 3 * 1.5 + 0.75


def test_members_that_are_the_same_do_not_differ(scan):
    heads, net = heads_with_weights(), network(3)
    for member in heads.ensemble[1:]:
        member.load_state_dict(heads.ensemble[0].state_dict())
    for judged in (
        uncertainty_estimator("ensemble", net, heads=heads)(*scan),
        uncertainty_estimator("deep ensemble", net, members=[net, net])(*scan),
    ):
        assert not judged.epistemic_amplitude.any() and not judged.epistemic_phase_rad.any()
        assert judged.std_phase_rad.min() > 0


def test_an_ensemble_of_one_says_that_it_has_no_epistemic_part(scan, caplog):
    net = network(3)
    for name, parts in (("ensemble", {"heads": heads_with_weights(members=1)}), ("deep ensemble", {})):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            judged = uncertainty_estimator(name, net, **parts)(*scan)
        assert "an ensemble of one has nobody to disagree with" in caplog.text
        assert not judged.epistemic_phase_rad.any() and not judged.epistemic_amplitude.any()
        assert judged.std_phase_rad.min() > 0


def test_an_ensemble_of_one_network_judges_its_own_object_as_its_critic(scan):
    net, (_, probe, data, light, deviance) = network(3), scan
    obj = net(probe, data)[-1]
    critic, alone = (
        uncertainty_estimator(n, net)(obj, probe, data, light, deviance) for n in ("critic", "deep ensemble")
    )
    torch.testing.assert_close(alone.std_phase_rad, critic.std_phase_rad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(alone.std_amplitude, critic.std_amplitude, rtol=1e-4, atol=1e-5)


def test_networks_differ_by_what_they_reconstruct(scan):
    """The spread of the objects themselves, brought into the gauge of that which is judged."""
    nets, (_, probe, data, light, deviance) = [network(seed) for seed in (3, 4, 5)], scan
    obj = nets[0](probe, data)[-1]
    judged = uncertainty_estimator("deep ensemble", nets[0], members=nets[1:])(obj, probe, data, light, deviance)
    assert judged.epistemic_phase_rad[12:-12, 12:-12].min() > 0
    # An object turned as a whole is judged the same.
    turned = uncertainty_estimator("deep ensemble", nets[0], members=nets[1:])(obj * 1j, probe, data, light, deviance)
    torch.testing.assert_close(turned.epistemic_phase_rad, judged.epistemic_phase_rad, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(turned.std_phase_rad, judged.std_phase_rad, rtol=1e-3, atol=1e-5)


@pytest.fixture
def files(tmp_path):
    """Two networks and the heads of the first, on disk."""
    for seed in (3, 4):
        save_weights(network(seed), tmp_path / f"net-{seed}.safetensors", {})
    first = load_weights(tmp_path / "net-3.safetensors")
    save_heads(heads_with_weights(), first.sha256, tmp_path / "net-3.heads.safetensors", {})
    return tmp_path


def test_what_is_configured_finds_its_weights(files, scan):
    trained = load_weights(files / "net-3.safetensors")
    weights = str(files / "net-3.safetensors")
    found = configured_estimator(ReconstructorConfig(uncertainty="ensemble", weights=weights), trained)
    # In half precision.
    wanted = uncertainty_estimator("ensemble", network(3), heads=heads_with_weights())
    torch.testing.assert_close(found(*scan).std_phase_rad, wanted(*scan).std_phase_rad, rtol=0.02, atol=1e-3)
    other = (str(files / "net-4.safetensors"),)
    deep = configured_estimator(ReconstructorConfig(uncertainty="deep ensemble", uncertainty_weights=other), trained)
    assert deep.passes == 2 * 1.5 + 0.75
    assert configured_estimator(ReconstructorConfig(name="rpie", uncertainty="halves"), None).name == "halves"


def test_what_is_missing_is_named(files):
    second = load_weights(files / "net-4.safetensors")
    config = ReconstructorConfig(uncertainty="dropout", weights=str(files / "net-4.safetensors"))
    with pytest.raises(WeightsError, match=r"no heads at .*net-4\.heads\.safetensors.*bluesky-cdi train-heads"):
        configured_estimator(config, second)
    with pytest.raises(WeightsError, match="heads of the network with SHA-256"):
        named = (str(files / "net-3.heads.safetensors"),)
        configured_estimator(ReconstructorConfig(uncertainty="dropout", uncertainty_weights=named), second)
    with pytest.raises(ConfigError, match=r"'variational' needs heads .* bluesky-cdi train-heads"):
        uncertainty_estimator("variational", network(3))
    for name in (*KINDS, "deep ensemble"):
        with pytest.raises(ConfigError, match=f"'{name}' needs a network"):
            uncertainty_estimator(name, None)
    with pytest.raises(ValueError, match="uncertainty_weights are of heads and ensembles; the uncertainty is 'critic'"):
        ReconstructorConfig(uncertainty="critic", uncertainty_weights=("some",))
    with pytest.raises(ValueError, match=r"the uncertainty 'dropout' has its heads in one file; .* names 2"):
        ReconstructorConfig(uncertainty="dropout", uncertainty_weights=("some", "others"))
