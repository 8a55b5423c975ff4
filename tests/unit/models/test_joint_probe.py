"""Stages that change the probe: what they keep, and what they find."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from bluesky_cdi.models.joint_probe import ABERRATIONS, Pupil, aberration_terms, asked_changes, normal_equations
from bluesky_cdi.models.weights import load_weights
from bluesky_cdi.physics.forward import Diffraction, intensity
from bluesky_cdi.training.stream import SceneShape, SceneStream

CPU = torch.device("cpu")
SHAPE = SceneShape(32, 56, (12, 12), 3, 1.0)


@pytest.fixture(scope="module")
def batch():
    return SceneStream(CPU, 5, (1e5, 1e5), pool=8, object_px=64).draw(SHAPE, exact=True)


@pytest.fixture(scope="module")
def net():
    return load_weights("canvas-small").unrolled_net


def bent_by(probe, coefficients):
    """The probe with known phases at its pupil, and no gauge restored."""
    terms = aberration_terms(intensity(torch.fft.fft2(probe)))
    phase = torch.einsum("bk,bkyx->byx", coefficients, terms)
    return torch.fft.ifft2(torch.fft.fft2(probe) * torch.exp(1j * phase)[:, None])


def test_the_terms_are_zernikes_on_a_disc():
    y, x = np.indices((96, 96)) - 48.0
    rho, theta = np.hypot(y, x) / 30, np.arctan2(y, x)
    disc = torch.from_numpy((rho <= 1).astype(np.float32))
    terms = torch.fft.fftshift(aberration_terms(torch.fft.ifftshift(disc)[None]), dim=(-2, -1))[0].numpy()
    # Noll (1976), table I; the pixels' edge makes a disc of them only nearly.
    known = (
        math.sqrt(3) * (2 * rho**2 - 1),
        math.sqrt(6) * rho**2 * np.cos(2 * theta),
        math.sqrt(6) * rho**2 * np.sin(2 * theta),
        math.sqrt(8) * (3 * rho**3 - 2 * rho) * np.sin(theta),
        math.sqrt(8) * (3 * rho**3 - 2 * rho) * np.cos(theta),
        math.sqrt(5) * (6 * rho**4 - 6 * rho**2 + 1),
    )
    inside = rho <= 1
    for found, wanted in zip(terms, known, strict=True):
        assert np.abs(found - wanted)[inside].max() < 0.1
    gram = np.einsum("kp,lp->kl", terms[:, inside], terms[:, inside]) / inside.sum()
    np.testing.assert_allclose(gram, np.eye(ABERRATIONS), atol=1e-3)


def test_a_changed_probe_keeps_what_no_frame_tells(batch):
    pupil = Pupil.of(batch.probe)
    torch.manual_seed(1)
    changed = pupil.bent(batch.probe, 0.7 * torch.randn(3, ABERRATIONS + batch.probe.shape[1]))
    assert float((changed - batch.probe).abs().max()) > 0.1 * float(batch.probe.abs().max())
    photons = [each.abs().square().sum(dim=(1, 2, 3)) for each in (changed, batch.probe)]
    torch.testing.assert_close(*photons, rtol=1e-4, atol=0)
    for plane in (lambda wave: wave, torch.fft.fft2):
        turns = [np.fft.fft2(intensity(plane(each)).numpy())[:, (1, 0), (0, 1)] for each in (changed, batch.probe)]
        # Where the light is in a window that has no border, as the phase of its first harmonic, in pixels.
        assert np.abs(np.angle(turns[0] / turns[1])).max() * 32 / (2 * np.pi) < 0.15
    same = pupil.bent(batch.probe, torch.zeros(3, ABERRATIONS + batch.probe.shape[1]))
    torch.testing.assert_close(same, batch.probe, rtol=1e-4, atol=1e-3 * float(batch.probe.abs().max()))


def test_a_shift_and_a_ramp_are_taken_back(batch):
    y = torch.arange(32) - 16.0
    ramp = torch.exp(2j * math.pi * 1.5 * y / 32)[:, None]
    moved = 2 * torch.roll(batch.probe, 2, dims=-1) * ramp
    restored = Pupil.of(batch.probe).restored(moved)
    overlap = (restored.conj() * batch.probe).sum(dim=(1, 2, 3)).abs() / batch.probe.abs().square().sum(dim=(1, 2, 3))
    assert float(overlap.min()) > 0.98
    before = (moved.conj() * batch.probe).sum(dim=(1, 2, 3)).abs() / batch.probe.abs().square().sum(dim=(1, 2, 3))
    assert float(before.max()) < 0.9 * 2


def test_the_normal_equations_are_those_of_the_model(batch):
    """Differences of the forward model are the oracle, with invalid pixels and a background."""
    told = bent_by(batch.probe, torch.full((3, ABERRATIONS), 0.1))
    mask = torch.rand(32, 32, generator=torch.Generator().manual_seed(1)) > 0.1
    data = replace(batch.data, mask=mask, background=0.01)
    terms = aberration_terms(intensity(torch.fft.fft2(told)))

    def amplitudes(changes):
        turned = torch.exp(1j * torch.einsum("bk,bkyx->byx", changes[:, :ABERRATIONS], terms))[:, None]
        probe = torch.fft.ifft2(torch.fft.fft2(told) * turned) * changes[:, ABERRATIONS:].exp()[..., None, None]
        return (data.rate(data.probes(probe), data.patches(batch.truth)) + 1e-3).sqrt() * mask

    still, step = torch.zeros(3, ABERRATIONS + told.shape[1]), 0.01
    ways = [still + step * way for way in torch.eye(still.shape[1])]
    slopes = torch.stack([(amplitudes(way) - amplitudes(-way)) / (2 * step) for way in ways], dim=1)  # (n, Q, N, N)
    rest = data.counts.sqrt() * mask - amplitudes(still)
    wanted = still.index_add(0, data.scene, torch.einsum("nqyx,nyx->nq", slopes, rest))
    each = torch.einsum("nqyx,nryx->nqr", slopes, slopes)
    matrix = torch.zeros(3, *each.shape[1:]).index_add(0, data.scene, each)
    found = normal_equations(batch.truth, told, data, Pupil.of(told))
    torch.testing.assert_close(found[0], matrix, rtol=1e-2, atol=2e-3 * float(matrix.max()))
    torch.testing.assert_close(found[1], wanted, rtol=1e-2, atol=2e-3 * float(wanted.abs().max()))


def test_with_the_true_object_the_aberrations_are_found(batch):
    """From frames of many photons: a few steps lead back to the true probe."""
    torch.manual_seed(2)
    # Without coma, which moves the probe: where it is, is kept.
    told = bent_by(batch.probe, 0.3 * torch.randn(3, ABERRATIONS) * torch.tensor([1, 1, 1, 0, 0, 0.3]))

    def overlap(probe):
        return (probe[:, 0].conj() * batch.probe[:, 0]).sum(dim=(1, 2)).abs() / (
            probe[:, 0].abs().square().sum(dim=(1, 2)) * batch.probe[:, 0].abs().square().sum(dim=(1, 2))
        ).sqrt()

    pupil, probe = Pupil.of(told), told
    for _ in range(4):
        probe = pupil.bent(probe, asked_changes(batch.truth, probe, batch.data, pupil))
    assert float(overlap(told).max()) < 0.95
    assert float(overlap(probe).min()) > 0.99
    # The right probe stays: nothing but noise is left to ask.
    rest = asked_changes(batch.truth, batch.probe, batch.data, Pupil.of(batch.probe))
    assert float(rest.abs().max()) < 0.02


def test_the_powers_of_the_modes_are_found():
    stream = SceneStream(CPU, 5, (1e6, 1e6), pool=8, object_px=64)
    true = next(b for b in (stream.draw(SHAPE, exact=True) for _ in range(20)) if b.probe.shape[1] == 3)
    energy = true.probe.abs().square().sum(dim=(-2, -1), keepdim=True)
    told = true.probe * (energy.sum(dim=1, keepdim=True) / 3 / energy).sqrt()
    pupil, probe = Pupil.of(told), told
    for _ in range(5):
        probe = pupil.bent(probe, asked_changes(true.truth, probe, true.data, pupil))
    shares, wanted = (
        (each.abs().square().sum(dim=(-2, -1)) / each.abs().square().sum(dim=(1, 2, 3))[:, None])[:, 0]
        for each in (probe, true.probe)
    )
    assert float((shares - wanted).abs().max()) < 0.25 * float((1 / 3 - wanted).abs().min())


def test_frames_that_ask_for_no_number_change_nothing(batch):
    counts = batch.data.counts.clone()
    counts[batch.data.scene == 1] = float("nan")
    changes = asked_changes(batch.truth, batch.probe, replace(batch.data, counts=counts), Pupil.of(batch.probe))
    assert torch.equal(changes[1], torch.zeros_like(changes[1])) and bool(torch.isfinite(changes).all())


def test_without_steps_of_the_probe_a_pass_is_as_it_was_and_the_probe_stays(net, batch):
    objects, probes = net.solve(batch.probe, batch.data)
    assert all(each is batch.probe for each in probes)
    for found, wanted in zip(objects, net(batch.probe, batch.data), strict=True):
        assert torch.equal(found, wanted)


def test_every_stage_but_the_first_makes_a_whole_step(net, batch):
    told = bent_by(batch.probe, torch.full((3, ABERRATIONS), 0.2))
    objects, probes = net.solve(told, batch.data, finds_probe=True)
    assert probes[0] is told and len(probes) == len(objects) == len(net.stages)
    pupil = Pupil.of(told)
    for obj, before, after in zip(objects[:-1], probes[:-1], probes[1:], strict=True):
        torch.testing.assert_close(after, pupil.bent(before, asked_changes(obj, before, batch.data, pupil)))
    # The first stage knows nothing of it, the second sees what the frames ask of the new probe.
    kept = net(told, batch.data)
    assert torch.equal(kept[0], objects[0]) and not torch.allclose(kept[1], objects[1], rtol=1e-2)


def test_shipped_weights_find_a_probe_that_they_were_not_trained_to_find(net, batch):
    """Nor was any network: the step is the frames' alone, and the U-Nets make the object that it needs."""
    told = bent_by(batch.probe, 0.35 * torch.tensor([[1, -1, 1, 0, 0, 0.5]]).expand(3, -1))

    def overlap(probe):
        return (probe[:, 0].conj() * batch.probe[:, 0]).sum(dim=(1, 2)).abs() / (
            probe[:, 0].abs().square().sum(dim=(1, 2)) * batch.probe[:, 0].abs().square().sum(dim=(1, 2))
        ).sqrt()

    objects, probes = net.solve(told, batch.data, finds_probe=True)
    assert float(overlap(told).max()) < 0.9
    assert float(overlap(probes[-1]).min()) > 0.95

    def misfit(obj, probe):
        return float((data.rate(data.probes(probe), data.patches(obj)).sqrt() - data.counts.sqrt()).square().mean())

    data = batch.data
    assert misfit(objects[-1], probes[-1]) < 0.7 * misfit(net(told, data)[-1], told)


def test_one_scene_without_scene_numbers(batch):
    one = batch.data[batch.data.scene == 0]
    alone = Diffraction(one.counts, one.corner, one.shift_px, (1, *one.object_shape[1:]), propagator=one.propagator)
    changes = asked_changes(batch.truth[:1], batch.probe[:1], alone, Pupil.of(batch.probe[:1]))
    assert changes.shape == (1, ABERRATIONS + batch.probe.shape[1])
