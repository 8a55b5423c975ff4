"""The ladder of wrong probes, the overlap of probes, and what a check-in is told, against oracles of their own."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from bluesky_cdi.bench import checked, methods
from bluesky_cdi.bench.cases import Case, simulate, true_probe
from bluesky_cdi.bench.checked import overlap
from bluesky_cdi.bench.methods import Network
from bluesky_cdi.bench.suites import quality
from bluesky_cdi.models.unrolled import UnrolledConfig, UnrolledNet

CPU = torch.device("cpu")
SMALL = Case(field=0.5, frame_px=128)


def pupil(probe):
    """Wave at the pupil, of a probe that is centred in its window."""
    return np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(probe)))


def added_phase(wrong, right):
    """Norm of defocus and astigmatism that lead from one pupil to the other, radians rms over the full disc.

    They are fitted to the phase steps between neighbouring pixels, which are small however often the phase itself
    turns. The polynomials are written out here, orthonormal on the disc (Noll 1976, table I).
    """
    wave = pupil(wrong) * pupil(right).conj()
    bright = np.abs(wave) > 0.3 * np.abs(wave).max()
    y, x = (axis - len(wave) // 2 for axis in np.indices(wave.shape))
    radius = np.hypot(y, x)[np.abs(wave) > 0.3 * np.abs(wave).max()].max()
    u, v = x / radius, y / radius
    terms = (
        math.sqrt(3) * (2 * (u**2 + v**2) - 1),
        2 * math.sqrt(6) * u * v,
        math.sqrt(6) * (u**2 - v**2),
        2 * u,
        2 * v,
    )
    rows, steps = [], []
    for axis in (0, 1):
        both = bright & np.roll(bright, -1, axis)
        steps.append(np.angle(np.roll(wave, -1, axis) * wave.conj())[both])
        rows.append(np.stack([(np.roll(term, -1, axis) - term)[both] for term in terms], axis=1))
    found, *_ = np.linalg.lstsq(np.concatenate(rows), np.concatenate(steps), rcond=None)
    return float(np.linalg.norm(found[:3]))


@pytest.mark.parametrize("rung", quality.PROBE_ERRORS_RAD)
def test_the_rungs_of_the_ladder_are_as_wrong_as_they_say(rung):
    case = quality.suites_of(SMALL)["probe"][f"{rung:g} rad"]
    problem = simulate(case, 3, CPU)
    found = added_phase(problem.probe[0, 0].numpy(), true_probe(case)[0].numpy())
    # The pupil's edge lies between pixels, and its radius scales the fit by its square: a twentieth of it.
    assert found == pytest.approx(rung, rel=0.1, abs=1e-3)
    # And nothing but the assumed probe is changed.
    right = simulate(replace(case, probe_error_rad=0.0), 3, CPU)
    assert torch.equal(right.data.counts, problem.data.counts)


def test_the_overlap_of_gaussians_is_the_known_one():
    y, x = np.indices((64, 64)) - 32.0

    def gaussian(width, row=0, column=0):
        wave = np.exp(-((y - row) ** 2 + (x - column) ** 2) / (2 * width**2))
        return torch.from_numpy(wave / np.linalg.norm(wave)).to(torch.complex64)

    # Of widths a and b: 2 a b / (a^2 + b^2), by the integral of two Gaussians, wherever they lie.
    one, other = gaussian(3.0), 1j * gaussian(5.0, 4, -7)
    assert overlap(one[None], other[None]) == pytest.approx(30 / 34, abs=1e-4)
    assert overlap(7 * one[None], one[None]) == pytest.approx(1, abs=1e-5)
    # The brightest mode is the main one, wherever it stands.
    assert overlap(torch.stack([0.1 * other, one]), other[None]) == pytest.approx(30 / 34, abs=1e-4)


def test_methods_of_the_ladder_get_what_a_check_in_finds_that_is_told_no_more_than_they_are(monkeypatch):
    monkeypatch.setattr(methods, "MOST_EPOCHS", 2)
    monkeypatch.setattr(methods, "RPIE_ITERATIONS", (2,))
    monkeypatch.setattr(methods, "REPEATS", 1)
    told, given = [], []

    def check_in(*args, real=checked.check_in, **more):
        told.append((args, more))
        return real(*args, **more)

    def solve(problem, *args, real=methods.solve):
        given.append(problem)
        return real(problem, *args)

    monkeypatch.setattr(checked, "check_in", check_in)
    monkeypatch.setattr(methods, "solve", solve)
    torch.manual_seed(0)
    net = UnrolledNet(UnrolledConfig(stages=1, channels=8, levels=2)).eval()
    base = Case(field=0.6)
    [row] = quality.quality(
        [Network("tiny", net)], quality.Options(("probe",), 1, base, None, torch.device("cpu"), ("0.8 rad",))
    )["suites"]["probe"]
    [((data, assumed), more)], (before, after) = told, given
    assert data is before.data and torch.equal(assumed, before.probe[0]) and set(more) == {"wanted", "finder"}
    true = true_probe(quality.suites_of(base)["probe"]["0.8 rad"])
    assert checked.overlap(before.probe[0], true) < 0.85 < 0.95 < checked.overlap(after.probe[0], true)
    names = [name for name in row["methods"] if not name.startswith(checked.CHECKED)]
    assert names.pop() == "tiny, finding the probe"
    assert [*names, "tiny, finding the probe", *(checked.CHECKED + name for name in names)] == list(row["methods"])
