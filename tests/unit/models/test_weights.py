import hashlib
import json
import re

import pytest
import torch
from safetensors.torch import save

from bluesky_cdi.errors import WeightsError
from bluesky_cdi.models import weights
from bluesky_cdi.models.unrolled import UnrolledConfig, UnrolledNet
from bluesky_cdi.models.weights import DEFAULT, SHIPPED, SHIPPED_SHA256, load_weights, save_weights, shipped_weights

SMALL = UnrolledConfig(stages=2, channels=8, levels=2, memory=3)


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(6)
    return UnrolledNet(SMALL)


@pytest.fixture
def path(net, tmp_path):
    path = tmp_path / "new folder" / "mine.safetensors"
    save_weights(net, path, {"seed": 6})
    return path


def record_of(path):
    return path.with_suffix(".json")


def reseal(path, blob):
    """Write other bytes with a record that vouches for them."""
    path.write_bytes(blob)
    record_of(path).write_text(json.dumps({"sha256": hashlib.sha256(blob).hexdigest()}))


def test_round_trip(net, path):
    trained = load_weights(path)
    assert trained.net.config == SMALL
    assert trained.name == "mine"
    assert trained.record["seed"] == 6
    assert trained.sha256 == hashlib.sha256(path.read_bytes()).hexdigest() == trained.record["sha256"]
    assert not trained.net.training
    assert not any(p.requires_grad for p in trained.net.parameters())
    loaded = trained.net.state_dict()
    assert loaded.keys() == net.state_dict().keys()
    for name, value in net.state_dict().items():
        assert torch.equal(loaded[name], value.half().float()), name


def test_saving_what_was_loaded_gives_the_same_file(path, tmp_path):
    again = tmp_path / "again.safetensors"
    digest = save_weights(load_weights(path).net, again, {})
    assert again.read_bytes() == path.read_bytes()
    assert digest == load_weights(path).sha256


def test_saving_leaves_nothing_else_behind_and_replaces(net, path):
    save_weights(net, path, {"seed": 7})
    assert sorted(p.name for p in path.parent.iterdir()) == ["mine.json", "mine.safetensors"]
    assert load_weights(str(path)).record["seed"] == 7


def test_shipped_weights_load_and_are_small():
    assert DEFAULT in shipped_weights()
    for name in shipped_weights():
        trained = load_weights(name)
        assert trained.name == name
        assert trained.record["validation"] and trained.record["steps"] > 0
        assert all(torch.isfinite(p).all() for p in trained.net.parameters())
    for file in SHIPPED.iterdir():
        assert file.stat().st_size < 16 * 2**20, file.name
        assert file.suffix in {".safetensors", ".json", ".npz"}


def test_the_shipped_record_says_that_the_network_beats_five_iterations():
    validation = load_weights().record["validation"]
    assert all(row["network"] < row["5 rPIE from vacuum"] for row in validation.values())


def test_the_table_of_checksums_is_that_of_the_shipped_files():
    assert dict(SHIPPED_SHA256) == {
        file.stem: hashlib.sha256(file.read_bytes()).hexdigest() for file in SHIPPED.glob("*.safetensors")
    }


@pytest.mark.parametrize("named", ["canvas-small", "other"])
def test_shipped_weights_that_were_exchanged_with_their_record_are_refused(net, tmp_path, monkeypatch, named):
    monkeypatch.setattr(weights, "SHIPPED", tmp_path)
    save_weights(net, tmp_path / f"{named}.safetensors", {})
    for way in (named, tmp_path / f"{named}.safetensors", f"{tmp_path}/../{tmp_path.name}/{named}.safetensors"):
        with pytest.raises(WeightsError, match=r"is not what came with the package: SHA-256 .* SHIPPED_SHA256 in"):
            load_weights(way)


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(WeightsError, match=r"no weights at .*nonsense\.safetensors; shipped names: .*canvas-small"):
        load_weights("nonsense")


def test_an_absent_file_is_refused(tmp_path):
    with pytest.raises(WeightsError, match=re.escape(str(tmp_path / "gone.safetensors"))):
        load_weights(tmp_path / "gone.safetensors")


@pytest.mark.parametrize("harm", ["flip", "truncate", "empty", "extend"])
def test_a_damaged_file_is_refused(path, harm):
    blob = bytearray(path.read_bytes())
    if harm == "flip":
        blob[-5] ^= 1
    path.write_bytes({"flip": blob, "truncate": blob[: len(blob) // 2], "empty": b"", "extend": blob + b"\0"}[harm])
    with pytest.raises(WeightsError, match="is damaged or not the trained file: SHA-256"):
        load_weights(path)


def test_another_checksum_in_the_record_is_refused(path):
    record_of(path).write_text(json.dumps({"sha256": "0" * 64}))
    with pytest.raises(WeightsError, match=f"its record says {'0' * 64}"):
        load_weights(path)


def test_a_record_without_checksum_is_refused(path):
    record_of(path).write_text("{}")
    with pytest.raises(WeightsError, match="its record says None"):
        load_weights(path)


def test_a_missing_record_is_refused(path):
    record_of(path).unlink()
    with pytest.raises(WeightsError, match=r"training record .*mine\.json is missing or damaged"):
        load_weights(path)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"[]", b'"a"', b"null"])
def test_a_damaged_record_is_refused(path, content):
    record_of(path).write_bytes(content)
    with pytest.raises(WeightsError, match=r"training record .*mine\.json is missing or damaged"):
        load_weights(path)


@pytest.mark.parametrize("keep", [4, 100, -64])
def test_a_truncated_file_whose_record_agrees_is_refused(path, keep):
    reseal(path, path.read_bytes()[:keep])
    with pytest.raises(WeightsError, match="holds no weights of this package's network"):
        load_weights(path)


@pytest.mark.parametrize(
    "config",
    [
        None,
        "{",
        "[2]",
        json.dumps({"stages": 2, "depth": 3}),
        json.dumps({**SMALL.as_dict(), "channels": 12}),
        json.dumps({**SMALL.as_dict(), "stages": 3}),
        json.dumps({**SMALL.as_dict(), "channels": "8"}),
        json.dumps({**SMALL.as_dict(), "levels": 0}),
        json.dumps({**SMALL.as_dict(), "stem": -1}),
    ],
)
def test_weights_of_another_configuration_are_refused(net, path, config):
    blob = save(dict(net.state_dict()), metadata=None if config is None else {"config": config})
    reseal(path, blob)
    with pytest.raises(WeightsError, match="holds no weights of this package's network"):
        load_weights(path)


def test_weights_of_another_network_are_refused(path):
    reseal(path, save({"layer.weight": torch.zeros(2, 2)}, metadata={"config": json.dumps(SMALL.as_dict())}))
    with pytest.raises(WeightsError, match="holds no weights of this package's network"):
        load_weights(path)
