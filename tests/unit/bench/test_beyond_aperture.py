"""``bench beyond-aperture``: what is hidden stays hidden, and what the numbers say."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from bluesky_cdi.bench.cases import Case, simulate
from bluesky_cdi.bench.reports.beyond_aperture import table
from bluesky_cdi.bench.suites import beyond_aperture as module
from bluesky_cdi.bench.suites.beyond_aperture import correlations, cropped, hide, judged, middle_of, solve
from bluesky_cdi.cli import main
from bluesky_cdi.errors import WeightsError
from bluesky_cdi.models.aperture_decoder import ApertureDecoder, DecoderConfig
from bluesky_cdi.physics.forward import to_centre
from bluesky_cdi.training import aperture as training
from bluesky_cdi.training.stream import SceneShape

CPU = torch.device("cpu")
EPOCHS = 4
CASE = Case(dose=1e6, frame_px=32, field=0.6, overlap=0.6)


@pytest.fixture(scope="module")
def hidden():
    return hide(simulate(CASE, 1, CPU), 2 / 3)


@pytest.fixture
def decoder():
    torch.manual_seed(1)
    net = ApertureDecoder(DecoderConfig(channels=8, levels=2))
    torch.nn.init.normal_(net.net.exit.weight, std=0.02)
    return net.requires_grad_(False)


def test_methods_are_given_no_hidden_pixel(hidden, decoder):
    problem, mask = hidden.whole, hidden.inner.data.mask
    changed = torch.where(mask, problem.data.counts, 99.0)
    other = hide(replace(problem, data=replace(problem.data, counts=changed)), 2 / 3)
    one, same = (solve(each, [], {"any": decoder}, 0, EPOCHS) for each in (hidden, other))
    told = {module.WHOLE}
    assert len(one) == 7 and told < set(one)
    for name in one:
        assert torch.equal(one[name].object, same[name].object) == (name not in told), name
    assert not hidden.inner.data.counts[:, ~mask].any() and hidden.inner.held_out is None
    outer = hidden.outer.mask
    assert torch.equal(outer, ~mask) and int(mask.sum()) == 20**2


def test_pixels_that_are_bad_are_neither_given_nor_judged(hidden):
    bad = torch.ones(32, 32, dtype=torch.bool)
    bad[1, 2] = bad[15, 16] = False
    found = hide(replace(hidden.whole, data=replace(hidden.whole.data, mask=bad)), 2 / 3)
    assert int(found.inner.data.mask.sum()) + int(found.outer.mask.sum()) == 32**2 - 2


def test_the_decoder_changes_what_it_marks_and_nothing_else(hidden, decoder):
    found = solve(hidden, [], {"any": decoder}, 0, EPOCHS)
    decoded = found["LSQ-ML, any decoder"]
    assert decoded.unsupported.abs().max() > 1e-3
    torch.testing.assert_close(decoded.object - decoded.unsupported, found[module.LIMITED].object)
    rows = judged(hidden, found)
    shares = {name: row["unsupported"] for name, row in rows.items()}
    assert shares.pop(module.WHOLE) is None and shares.pop(module.TRUTH) is None
    assert all(0 < share < 1 for share in shares.values())
    # The cropped detector's image has nothing at frequencies that it lacks.
    assert shares[module.CROPPED] < 0.5 * shares[module.MASKED]
    with pytest.raises(ValueError, match="rests on more"):
        module.unsupported_map(found[module.WHOLE], hidden.whole)


def test_the_truth_explains_hidden_pixels_to_the_photon_noise_and_whole_frames_are_alike(hidden):
    rows = judged(hidden, solve(hidden, [], {}, 0, EPOCHS))
    truth = rows[module.TRUTH]
    assert truth["deviance"] == pytest.approx(truth["noise"], rel=0.25) and truth["nrmse"] < 1e-6
    assert rows[module.CROPPED]["deviance"] > 1.5 * truth["deviance"]
    assert rows[module.WHOLE]["within"] == rows[module.WHOLE]["beyond"] == pytest.approx(1)
    assert rows[module.CROPPED]["within"] > 0.5 > rows[module.CROPPED]["beyond"]
    assert 0 < truth["measured"] < 0.5


def test_a_cropped_detector_sees_the_same_smooth_object():
    hidden = hide(simulate(replace(CASE, frame_px=64), 1, CPU), 2 / 3)
    made, data = cropped(hidden), hidden.whole.data
    first, side = 11, made.probe.shape[-1]
    assert side == 42
    inner = (slice(None), slice(first, first + side), slice(first, first + side))

    # Without the frequencies that the coarse pixel lacks. A quarter of a coarse pixel aside the rates differ by 0.07.
    def smooth(y, x):
        wave = torch.cos(0.31 * y)[:, None] * torch.sin(0.27 * x)[None]
        return torch.polar(1 - 0.2 * wave, wave)[None].to(torch.complex64)

    fine, coarse = ([torch.arange(n).double() for n in each.object_shape[-2:]] for each in (data, made.data))
    obj = smooth(*((each - module.ROOM_PX) * 64 / side for each in coarse))
    wanted = to_centre(data.rate(data.probes(hidden.whole.probe), data.patches(smooth(*fine))))[inner]
    found = to_centre(made.data.rate(made.data.probes(made.probe), made.data.patches(obj)))
    assert (found - wanted).abs().sum() < 0.01 * wanted.sum()
    assert torch.equal(to_centre(made.data.counts), to_centre(data.counts)[inner])


def test_the_middle_of_a_scan_is_a_scan_of_its_own(hidden):
    whole = hidden.whole
    part = middle_of(whole, 5)
    assert len(part.data) == 5 and part.truth.shape == tuple(part.data.object_shape[1:]) == part.illuminated.shape
    truth = torch.from_numpy(np.asarray(part.truth, np.complex64))[None]
    rows = torch.cat([torch.nonzero((whole.data.counts == each).all(dim=(1, 2)))[0] for each in part.data.counts])
    assert torch.equal(whole.data.counts[rows], part.data.counts)
    wanted = whole.data[rows].patches(torch.from_numpy(np.asarray(whole.truth, np.complex64))[None])
    assert torch.equal(part.data.patches(truth), wanted)
    assert len(middle_of(whole, 10_000).data) == len(whole.data)


def test_correlations_tell_within_from_beyond():
    rng = np.random.default_rng(1)
    noise = [rng.standard_normal((64, 64)) + 1j * rng.standard_normal((64, 64)) for _ in range(2)]
    outside = module._outside((64, 64), 64, 0.5)
    assert outside.mean() == pytest.approx(1 - (33 / 64) ** 2)
    # An even number of pixels is given: 42 of 64, not 42.67.
    assert module._outside((640, 640), 64, 2 / 3).mean() == pytest.approx(1 - (421 / 640) ** 2)
    window = np.ones((64, 64))
    other = np.fft.ifft2(np.where(outside, np.fft.fft2(noise[1]), np.fft.fft2(noise[0])))
    within, beyond = correlations(noise[0], other, window, outside)
    assert within == pytest.approx(1) and abs(beyond) < 0.1
    assert correlations(noise[0], noise[0], window, outside) == pytest.approx((1, 1))


def test_a_near_field_has_no_aperture_to_go_beyond(hidden):
    with pytest.raises(ValueError, match="near field"):
        hide(replace(hidden.whole, propagation="near"), 0.5)


def test_the_command_trains_measures_and_draws(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(training, "CPU_SHAPE", SceneShape(16, 32, (4, 6), 2, 1.0))
    monkeypatch.setattr(training, "CPU_OBJECTS", 8)
    monkeypatch.setattr(module, "Case", lambda dose, sample: replace(CASE, dose=dose, sample=sample))
    weights, out, figure = (tmp_path / name for name in ("d.safetensors", "o.json", "f.png"))
    line = [
        "bench",
        "beyond-aperture",
        str(weights),
        "--samples",
        "star",
        "--doses",
        "1e5",
        "--weights",
        "--epochs",
        "4",
    ]
    assert main([*line, "--steps", "1", "--out", str(out), "--figure", str(figure)]) == 0
    text, found = capsys.readouterr().out, json.loads(out.read_text())
    assert "| star | 1e+05 | LSQ-ML, adversarial decoder |" in text and figure.stat().st_size > 5000
    assert len(found["rows"]) == 8 and table(found) in text
    assert main([*line[:2], str(tmp_path / "absent.safetensors")]) == 1
    assert main([*line[:2], "--seconds", "1"]) == 1
    assert main([*line[:2], "--share", "1.5"]) == 1
    # Neither a simulated scan nor the recorded one.
    assert main([*line[:2], "--samples"]) == 1
    with pytest.raises(WeightsError, match="no decoders"):
        training.load_decoders(tmp_path / "absent.safetensors", CPU)
