"""``bench single-shot --encoder``: a network beside random starts."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from bluesky_cdi.bench.reports.single_shot_network import table
from bluesky_cdi.bench.suites import single_shot_network as module
from bluesky_cdi.bench.suites.single_shot import CASES, measure
from bluesky_cdi.bench.suites.single_shot_network import Options, frame_by_all
from bluesky_cdi.cli import main
from bluesky_cdi.errors import FrameError
from bluesky_cdi.models.frame_decoders import MaskedFrameModel
from bluesky_cdi.models.frame_encoder import FrameEncoderConfig
from bluesky_cdi.models.frame_weights import save_frame_model
from bluesky_cdi.single_shot import SingleShotSettings, Stage, reconstruct_single_shot

SIZE = FrameEncoderConfig(
    patch=8, width=16, depth=1, heads=1, neighbours=1, decoder_width=16, decoder_depth=1, decoder_heads=1
)
SHORT = SingleShotSettings(cycle=(Stage("hio", 4), Stage("er", 2)), cycles=2, finish=(Stage("er", 2),), guide_every=0)


@pytest.fixture(autouse=True)
def short_recipe(monkeypatch):
    kinds = {name: replace(CASES[name], settings=SHORT) for name in ("weak phase", "strong phase")}
    kinds["constrained"] = replace(CASES["positive, constrained"])
    kinds["curved"] = CASES["strong phase, curved beam"]
    monkeypatch.setattr(module, "CASES", kinds)
    monkeypatch.setattr(module, "REDUCTION", (Stage("er", 4),))


def test_a_perfect_network_succeeds_at_once_and_stays_there(monkeypatch):
    made = measure(CASES["weak phase"], 1e8, 48, 3)
    monkeypatch.setattr(module, "read_waves", lambda _, counts: made.exit_wave[None].to(torch.complex64))
    found = frame_by_all(None, made, replace(CASES["weak phase"], settings=SHORT), Options(48, 2), 0)
    assert found[module.ALONE]["error"] < 1e-6 and found[module.REDUCED]["error"] < 0.1
    assert found[module.STARTED]["error"] < 0.1 < found["one random start"]["error"]
    assert found["2 random starts"]["seconds"] > 0
    # Light in the box knows nothing of the sample.
    assert found[module.LIGHT]["error"] > 3 * found[module.STARTED]["error"]


def test_rows_are_of_samples_in_darkness(tmp_path, capsys):
    torch.manual_seed(1)
    path, out = tmp_path / "one.encoder.safetensors", tmp_path / "o.json"
    save_frame_model(MaskedFrameModel(SIZE), path, {})
    line = ["bench", "single-shot", "--encoder", str(path), "--size", "32", "--starts", "2", "--seeds", "1"]
    assert main([*line, "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    assert {row["object"] for row in found["rows"]} == {"weak phase", "strong phase"}
    assert len(found["rows"]) == 2 * 2 * 6 and table(found) in capsys.readouterr().out


def test_the_table_counts_what_succeeds():
    same = {"photons": 1e6, "seed": 0, "method": "network", "r_factor": 1.0, "seconds": 2.0}
    rows = [{"object": kind, "error": error, **same} for kind, error in (("a", 0.1), ("a", 0.2), ("b", 0.3))]
    found = {"rows": rows, "settings": {"success_nrmse": 0.15, "seeds": 2, "size": 64}}
    assert "| 1e+06 | network | 0.50 | 0.00 | 0.200 | 1.00 | 2.00 |" in table(found)


def test_given_starts_are_begun_with():
    made = measure(CASES["strong phase"], 1e7, 48, 2)
    nothing = replace(SHORT, cycles=0, finish=())
    turned = 3j * made.exit_wave.to(torch.complex64)[None]
    found = reconstruct_single_shot(made.counts, first=turned, settings=nothing)
    # The modulus is measured, and the scale with it; the phase is that of the start.
    assert made.error(found.objects[0]) < 0.05 and found.iterations == 0
    for wrong in (turned[0], turned[:, :-1], turned * np.nan):
        with pytest.raises(FrameError, match=r"must be finite and \(s, 48, 48\)"):
            reconstruct_single_shot(made.counts, first=wrong, settings=nothing)
