"""Error over size and training compute."""

import json
import math

import pytest
import torch
from torch import nn

from bluesky_cdi.bench.reports.scaling import draw, table
from bluesky_cdi.bench.suites import scaling as suite
from bluesky_cdi.bench.suites.scaling import PASSES_OF_TRAINING, scaling
from bluesky_cdi.errors import BlueskyCDIError
from bluesky_cdi.models.unrolled import UnrolledConfig, UnrolledNet
from bluesky_cdi.models.weights import load_weights, save_weights
from bluesky_cdi.training.pretrain import held_out


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two untrained networks with records of a training."""
    folder, found = tmp_path_factory.mktemp("scaling"), []
    for name, channels, frames in (("narrow", 4, 1000), ("wide", 8, 3000)):
        found.append(folder / f"{name}.json")
        validation = {"1e+04": {"network": 0.4}, "1e+06": {"network": 0.1}}
        net = UnrolledNet(UnrolledConfig(stages=1, channels=channels, levels=2))
        record = {
            "config": {"seconds": 10.0, "model": net.config.as_dict()},
            "frames_seen": frames,
            "validation": validation,
        }
        save_weights(net, folder / f"{name}.safetensors", record)
    return found


@pytest.fixture(scope="module")
def found(files):
    """What is gathered of them, with one scene in place of eight: operations are counted a frame."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(suite, "held_out", lambda device, photons, number, probe: held_out(device, photons, 1, probe))
        yield suite.scaling(files)


def operations_of_convolutions(path):
    """Count them by what goes in and out of each, two for a multiplication and an addition; of one frame's share."""
    net, total = load_weights(path.with_suffix(".safetensors")).unrolled_net, 0

    def count(module, given, came):
        nonlocal total
        if isinstance(module, nn.ConvTranspose2d):
            total += 2 * given[0].numel() * module.weight[0].numel()
        else:
            total += 2 * came.numel() * module.weight[0].numel()

    for module in net.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            module.register_forward_hook(count)
    batch = held_out(torch.device("cpu"), 1e5, 1, None)
    with torch.no_grad():
        net(batch.probe, batch.data)
    return total / len(batch.data)


def test_the_operations_are_those_of_the_convolutions_over_all_frames_seen(files, found):
    narrow, wide = found["rows"]
    for row, path in ((narrow, files[0]), (wide, files[1])):
        expected = PASSES_OF_TRAINING * operations_of_convolutions(path) * row["frames"]
        assert row["flop"] == pytest.approx(expected, rel=0.01)
    assert narrow["parameters"] == sum(
        each.numel() for each in load_weights(files[0].with_suffix(".safetensors")).unrolled_net.parameters()
    )
    assert narrow["error"] == pytest.approx(math.sqrt(0.4 * 0.1))


def test_the_table_and_the_figure(found, tmp_path):
    lines = table(found).splitlines()
    assert len(lines) == 4 and "1 stages, 4 channels" in lines[2] and "| 0.400 | 0.100 | 0.200 |" in lines[2]
    draw(found, tmp_path / "scaling.png")
    assert (tmp_path / "scaling.png").stat().st_size > 5000


def test_records_that_do_not_say_what_a_training_cost_are_refused(files, tmp_path):
    told = json.loads(files[0].read_text())
    path = tmp_path / "second.json"
    path.write_text(json.dumps({**told, "earlier": [{}]}))
    with pytest.raises(BlueskyCDIError, match="went on from other weights"):
        scaling([path])
    path.write_text(json.dumps({"config": told["config"]}))
    with pytest.raises(BlueskyCDIError, match="is no record of a training: it lacks frames_seen, validation"):
        scaling([path])
    with pytest.raises(BlueskyCDIError, match="no record of a training"):
        scaling([files[0].with_suffix(".safetensors")])
