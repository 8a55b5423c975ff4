"""Codecs against what theory says of Poisson's distribution, and the suite on a small scan."""

import json

import numpy as np
import pytest
from scipy import stats

from bluesky_cdi.bench.codecs import PredictedRoot, SquareRoot, adaptive_bits, folded, poisson_bits, smallest
from bluesky_cdi.cli import main

RATES = np.geomspace(0.05, 3000, 30)


@pytest.fixture(scope="module")
def counts():
    return np.random.default_rng(0).poisson(RATES[:, None], (len(RATES), 4000))


@pytest.fixture(scope="module")
def rate(counts):
    return np.broadcast_to(RATES[:, None], counts.shape)


def entropy_bits(rate):
    """Of Poisson's distribution, summed up."""
    n = np.arange(int(rate + 12 * np.sqrt(rate) + 20))
    chance = stats.poisson.pmf(n, rate)
    return -np.sum(chance[chance > 0] * np.log2(chance[chance > 0]))


def test_bounds_are_the_entropy(counts, rate):
    wanted = sum(entropy_bits(each) for each in RATES) * counts.shape[1]
    assert poisson_bits(counts, rate) == pytest.approx(wanted, rel=0.01)
    residual = counts - np.rint(rate).astype(int)
    assert adaptive_bits(residual, rate) == pytest.approx(wanted, rel=0.02)
    # A prediction that is off by half costs Poisson's coder more than one that learns what residuals are like.
    off = rate * 1.5
    assert poisson_bits(counts, off) > 1.1 * adaptive_bits(counts - np.rint(off).astype(int), off)


@pytest.mark.parametrize("step", [1.0, 2.0, 3.0])
def test_square_roots_are_decoded_without_bias(counts, step):
    root = SquareRoot.up_to(2 * int(counts.max()), step)
    codes = root.encode(counts)
    decoded = root.decode(codes).astype(float)
    assert codes.max() < 600 and (decoded[counts == 0] == 0).all()
    assert (np.abs(decoded - counts) <= step * np.sqrt(counts + 1) / 2 + 0.5).all()
    error = (decoded - counts).mean(axis=1) / counts.std(axis=1)
    assert np.abs(error[RATES > 100]).max() < 0.06 * step
    np.testing.assert_array_equal(root.decode(root.encode(decoded.astype(int))), decoded)


def test_residuals_of_a_prediction(counts, rate):
    root = PredictedRoot(1.0)
    decoded = root.decode(root.encode(counts, rate), rate)
    bright = RATES > 30
    error = (decoded - counts).mean(axis=1)[bright] / counts.std(axis=1)[bright]
    assert np.abs(error).max() < 0.06
    np.testing.assert_array_equal(folded(np.array([0, -1, 1, -2, 300])), [0, 1, 2, 3, 600])
    assert smallest(np.array([0, 255])).dtype == np.uint8 and smallest(np.array([256])).dtype == np.uint16


def test_the_command_on_a_small_scan(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("BLUESKY_CDI_DATA", raising=False)
    out = tmp_path / "new" / "compression.json"
    line = ["bench", "compression", "--doses", "1e4", "--frames", "25", "--epochs", "2", "--out", str(out)]
    assert main(line) == 0
    [(name, scan)] = json.loads(out.read_text(encoding="utf-8"))["scans"].items()
    rows, text = scan["rows"], capsys.readouterr().out
    assert name == "leaves, 1e+04 photons" and scan["frames"] == 25 and scan["bytes"] == 64 * 64
    lossless = [way for way, row in rows.items() if row["deviance"] == 0]
    assert {"gzip", "bitshuffle-zstd", "bitshuffle-lz4", "lzf"} <= set(lossless)
    assert rows["gzip"]["encode"] == rows["gzip"]["decode"] == 1
    assert rows["square root, 1"]["bytes"] > rows["square root, 3"]["bytes"]
    assert rows["square root, 1"]["deviance"] < rows["square root, 3"]["deviance"]
    assert rows["square root, 3"]["moved"] > rows["rounded, 1"]["moved"] > 0
    assert rows["and residual, adaptive bound"]["bytes"] < rows["and residual"]["bytes"]
    assert f"{rows['gzip']['bytes']:.0f}" in text and "25 frames of 64x64" in text
