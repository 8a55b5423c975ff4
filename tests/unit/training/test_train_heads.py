"""Training of heads: what it changes and what it does not, and that a seed repeats it."""

import json

import pytest
import torch

from bluesky_cdi.cli import main
from bluesky_cdi.errors import WeightsError
from bluesky_cdi.models.heads import KINDS, ErrorHeads, HeadsConfig
from bluesky_cdi.models.heads_weights import load_heads
from bluesky_cdi.models.unrolled import UnrolledConfig, UnrolledNet
from bluesky_cdi.models.weights import load_weights, save_weights
from bluesky_cdi.training import heads as module
from bluesky_cdi.training import pretrain
from bluesky_cdi.training import stream as stream_module
from bluesky_cdi.training.heads import HeadsTraining, head_losses, train_heads
from bluesky_cdi.training.stream import SceneShape, SceneStream

CPU = torch.device("cpu")
SHAPE = SceneShape(16, 32, (6, 9), 72, 1.0)
SIZE = UnrolledConfig(stages=2, channels=8, levels=2)


@pytest.fixture
def tiny_scenes(monkeypatch):
    def stream(device, seed, photons, pool=2, object_px=48, probe=None):
        return SceneStream(device, seed, photons, 2, 48)

    monkeypatch.setattr(stream_module, "SHAPES", (SHAPE,))
    monkeypatch.setattr(module, "DOSES", (1e5,))
    monkeypatch.setattr(pretrain, "VALIDATION_SHAPE", SceneShape(16, 32, (9, 9), 2, 1.0))
    for user in (module, pretrain):
        monkeypatch.setattr(user, "SceneStream", stream)


@pytest.fixture
def trained(tmp_path):
    torch.manual_seed(3)
    path = tmp_path / "net.safetensors"
    save_weights(UnrolledNet(SIZE), path, {})
    return load_weights(path)


def test_a_training_writes_heads_that_load_again(tiny_scenes, trained, tmp_path):
    before = {name: value.clone() for name, value in trained.net.state_dict().items()}
    out = tmp_path / "net.heads.safetensors"
    record = train_heads(HeadsTraining(steps=3, members=2), trained, out, CPU)
    for name, value in trained.net.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert record["steps"] == 3 and record["network_sha256"] == trained.sha256
    assert json.loads(out.with_suffix(".json").read_text())["sha256"] == record["sha256"]
    # Once the same seed again gives the same file, and another seed another.
    again = tmp_path / "again.heads.safetensors"
    assert train_heads(HeadsTraining(steps=3, members=2), trained, again, CPU)["sha256"] == record["sha256"]
    assert again.read_bytes() == out.read_bytes()
    assert train_heads(HeadsTraining(steps=3, members=2, seed=2), trained, again, CPU)["sha256"] != record["sha256"]
    # What was validated before it was written, in half precision.
    heads = load_heads(trained)
    assert heads.config == HeadsConfig(2, 0.1, SIZE)
    heads.reseed(1)
    found = module.validate_heads(heads, trained.net, CPU)
    for dose, row in record["validation"].items():
        assert found[dose] == pytest.approx(row, abs=0.02)
        assert row.keys() == {f"{kind}, {what}" for kind in KINDS for what in ("amplitude", "phase", "epistemic")}


def test_losses_fall_and_reach_every_weight(trained):
    torch.manual_seed(4)
    stream = SceneStream(CPU, 5, (1e4, 1e5), pool=2, object_px=48)
    batch = stream.draw(SceneShape(16, 32, (6, 9), 4, 1.0))
    heads = ErrorHeads(HeadsConfig(2, 0.1, SIZE))
    heads.begin_from(trained.net.critic)
    optimiser = torch.optim.AdamW(heads.parameters(), lr=3e-3)
    values = []
    for _ in range(30):
        stream.draws.reseed(6)
        losses = head_losses(heads, trained.net, batch, stream.draws)
        values.append({name: loss.item() for name, loss in losses.items()})
        optimiser.zero_grad()
        sum(losses.values()).backward()
        optimiser.step()
    for name, parameter in heads.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name
    assert values[0].keys() == set(KINDS)
    for kind in KINDS:
        assert values[-1][kind] < values[0][kind] - 0.5, kind
    assert all(parameter.grad is None for parameter in trained.net.parameters())


def test_members_learn_from_scenes_of_their_own(trained):
    heads = ErrorHeads(HeadsConfig(3, 0.0, SIZE))
    stream = SceneStream(CPU, 7, (1e4, 1e5), pool=2, object_px=48)
    batch = stream.draw(SceneShape(16, 32, (6, 6), 2, 1.0))
    for step in range(3):
        heads.zero_grad()
        head_losses(heads, trained.net, batch, stream.draws, step)["ensemble"].backward()
        # Of two scenes one member has none, another one each time.
        learned = [member.exit.weight.grad is not None for member in heads.ensemble]
        assert learned == [(number + step) % 3 < 2 for number in range(3)]


def test_an_objects_state_is_judged_without_gradients(trained):
    stream = SceneStream(CPU, 8, (1e4, 1e5), pool=2, object_px=48)
    batch = stream.draw(SceneShape(16, 32, (6, 6), 2, 1.0))
    net = UnrolledNet(SIZE)
    weight = pretrain.weight_of(batch)
    states = [module.state_to_judge(net, batch, stream.draws, weight) for _ in range(12)]
    assert not any(state.requires_grad for state in states)
    assert len({round(float(state.abs().sum()), 3) for state in states}) > 4


def test_training_that_diverges_says_so(tiny_scenes, trained, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "gaussian_nll", lambda *_: torch.full((), torch.nan, requires_grad=True))
    with pytest.raises(WeightsError, match=r"training diverged before step 1 .*a lower learning rate than 0\.001"):
        train_heads(HeadsTraining(steps=2), trained, tmp_path / "net.heads.safetensors", CPU)


def test_heads_belong_to_their_network(tiny_scenes, trained, tmp_path):
    out = tmp_path / "net.heads.safetensors"
    train_heads(HeadsTraining(steps=1, members=1), trained, out, CPU)
    torch.manual_seed(9)
    save_weights(UnrolledNet(SIZE), tmp_path / "other.safetensors", {})
    other = load_weights(tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match=r"heads of the network with SHA-256.*not of other.*train-heads"):
        load_heads(other, out)
    with pytest.raises(WeightsError, match=r"no heads at .*other.heads.safetensors.*train-heads other.heads"):
        load_heads(other)
    with pytest.raises(WeightsError, match=r"holds no heads.*they are weights of a network"):
        load_heads(other, other.path)


def test_the_command_trains_on_this_machine(tiny_scenes, trained, tmp_path, capsys):
    out = tmp_path / "net.heads.safetensors"
    net = str(tmp_path / "net.safetensors")
    assert (
        main(["train-heads", str(out), "--weights", net, "--seconds", "0.01", "--device", "cpu", "-q", "--json"]) == 0
    )
    printed = json.loads(capsys.readouterr().out)
    assert printed["steps"] >= 1 and printed["config"]["members"] == 4
    assert load_heads(trained, out).config.members == 4
    assert main(["train-heads", str(tmp_path / "net.safetensors"), "-q"]) == 1
    assert "must end in .heads.safetensors" in capsys.readouterr().err
