"""Adaptive scans with one embedding of frames or another: compared in pairs, and what is not told counts not."""

import json

import numpy as np
import pytest

from bluesky_cdi.bench.suites import agent as suite
from bluesky_cdi.cli import main


def scans_of(courses, seeds=3):
    """Scans with constant errors: of each embedding so many times those of the seed."""
    return [
        {
            "sample": "star",
            "seed": seed,
            "embedding": name,
            "errors": [np.nan] + [times * 2.0**-seed] * 4,
            "seconds": 1.0 + times,
        }
        for seed in range(seeds)
        for name, times in courses.items()
    ]


def test_embeddings_are_compared_seed_by_seed():
    """Seeds differ by a factor of 4; that one way is a tenth better shows all the same, without any spread."""
    first, other = suite.compared(scans_of({"critic": 0.2, "class tokens": 0.18}), "star", ["critic", "class tokens"])
    assert (first["ratio"], first["interval"]) == (1.0, [1.0, 1.0])
    assert other["ratio"] == pytest.approx(0.9)
    assert other["interval"] == pytest.approx([0.9, 0.9])
    assert (other["error"], other["course"]) == (pytest.approx(0.09), pytest.approx(0.09))
    assert other["seconds"] == pytest.approx(1.18)


def test_scans_of_all_ways(capsys, tmp_path):
    options = ["--embeddings", "radial profile", "none", "--samples", "particles", "--seeds", "1", "--budget", "8"]
    small = ["--batch", "4", "--extent", "0.6", "--reconstructor", "rpie", "--out", str(tmp_path / "found.json")]
    assert main(["bench", "agent", *options, *small]) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    profile, none = found["scans"]
    assert profile["frames"][-1] == none["frames"][-1] == 8
    # The first frames, too few to compare, are chosen before anything is known of them.
    assert profile["errors"][0] is None and profile["errors"][1] > 0
    assert profile["frames"][:2] == none["frames"][:2]
    assert "| particles | none |" in capsys.readouterr().out


def test_a_way_without_embedding_tells_none(monkeypatch):
    told = []

    def steps(config, source, budget, tell):
        told.append((config.latents.embedding, tell({"embedding": 1, "novelty": 2})))
        return iter(())

    monkeypatch.setattr(suite, "adaptive_steps", steps)
    options = suite.Options(photons=1e4)
    for name in ("none", "class tokens"):
        suite._scan(suite._config(options, "star", 0, name), name)
    assert told == [(None, {"novelty": 2}), ("class tokens", {"embedding": 1, "novelty": 2})]
