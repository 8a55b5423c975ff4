"""Recorded scans, reconstructed from their files, and the check of which way round their frames lie."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bluesky_cdi.config import load_config
from bluesky_cdi.engines import PTYCHOGRAPHY
from bluesky_cdi.evaluation import compare, compare_estimate, illuminated_mask
from bluesky_cdi.io import Scan, read_cxi, read_scan
from bluesky_cdi.models.unrolled import UnrolledNet
from bluesky_cdi.physics.forward import Diffraction
from bluesky_cdi.physics.geometry import Geometry, ObjectGrid
from bluesky_cdi.physics.objects import make_sample
from bluesky_cdi.physics.probes import focused_probe
from bluesky_cdi.physics.propagators import propagator_of
from bluesky_cdi.reconstruction.batch import reconstruct
from bluesky_cdi.reconstruction.middle import nearest_to_middle
from bluesky_cdi.reconstruction.orientation import ALL, AS_STATED, Orientation, OrientationCheck, check_orientation
from bluesky_cdi.reconstruction.probe_guess import first_guess

FAR = Geometry(8000.0, 2.0, 172e-6, 32)
NEAR = Geometry(8000.0, 2e-3, 1.05e-6, 32, "near", 1e-4)
DATA = os.environ.get("BLUESKY_CDI_DATA")


def diffuser():
    """A broad, uneven beam, (1, 32, 32)."""
    generator = torch.Generator().manual_seed(8)
    noise = torch.randn(2, 32, 32, generator=generator, dtype=torch.float64)
    frequency = torch.fft.fftfreq(32).square()
    field = torch.fft.ifft2(torch.complex(*noise) * torch.exp(-(frequency[:, None] + frequency) / 0.03))
    axis = (torch.arange(32) - 16.0).square()
    field = field * torch.exp(-(axis[:, None] + axis) / (2 * 7.0**2))
    return (field * (1e6 / field.abs().square().sum()).sqrt()).to(torch.complex64)[None]


def measure(geometry, *, known_probe=True, side=8):
    """A scan of dense texture, with its truth and the truth's place."""
    rng = np.random.default_rng(12)
    grid = np.stack(np.meshgrid(*(np.arange(side) * 2.5,) * 2, indexing="ij"), axis=-1).reshape(-1, 2)
    # A window that is no square, so that exchanged axes are another window.
    positions = (grid * [1.0, 1.3] + rng.uniform(-0.8, 0.8, grid.shape)) * geometry.pixel_m
    grid = ObjectGrid.covering(positions.min(axis=0), positions.max(axis=0), geometry.pixel_m, 32, margin_px=8)
    corner, shift = (torch.from_numpy(a) for a in grid.place(positions))
    probe = (
        diffuser()
        if geometry.propagation == "near"
        else focused_probe(FAR, numerical_aperture=0.6e-3, defocus_m=0.45e-3, photons=1e6)
    )
    truth = make_sample("cells", grid.shape, seed=3)
    propagator = propagator_of(geometry)
    data = Diffraction(
        torch.zeros(len(positions), 32, 32), corner, shift.float(), (1, *grid.shape), propagator=propagator
    )
    rate = data.rate(data.probes(probe[None]), data.patches(torch.from_numpy(truth)[None]))
    counts = torch.poisson(propagator.to_detector(rate), generator=torch.Generator().manual_seed(4)).numpy()
    guess = probe.numpy() if known_probe else None
    return Scan(counts.astype(np.uint32), positions, geometry, guess, name="made"), truth, grid.origin_m


@pytest.fixture(scope="module")
def far():
    return measure(FAR)


def settings(engine, **more):
    chosen = {"name": engine, "background": 0.0, "threads": 1, **more}
    return load_config(overrides={"reconstructor": chosen, "probe": {"modes": 1}})


def error(estimate, truth, origin_m):
    return compare_estimate(estimate, truth, origin_m).numbers["complex_nrmse"]


@pytest.mark.parametrize("engine", PTYCHOGRAPHY)
def test_every_engine_reconstructs_a_scan(far, engine):
    scan, truth, origin_m = far
    reported = []
    estimate = reconstruct(scan, settings(engine), 30, lambda *news: reported.append(news))
    assert error(estimate, truth, origin_m) < {"epie": 0.4, "dm": 0.25}.get(engine, 0.12)
    assert [done for done, _ in reported] == list(range(1, 31))
    assert estimate.source["ended"] == "epochs" and estimate.source["iterations"] == 30
    assert estimate.source["reconstructor"] == engine
    assert reported[-1][1] == pytest.approx(estimate.residual.mean(), rel=0.3)


def test_a_run_ends_when_it_gains_no_more(far):
    estimate = reconstruct(far[0], settings("lsqml", tolerance=1e-3), 500)
    assert estimate.source["ended"] == "converged"
    assert estimate.source["iterations"] < 200


def test_a_recorded_scan_is_one_region():
    """Iterations of the whole converge further, however small the windows of a live run are."""
    scan = measure(FAR, side=10)[0]
    config = settings("rpie", window_px=64)
    whole = reconstruct(scan, settings("rpie"), 2)
    np.testing.assert_array_equal(reconstruct(scan, config, 2).object, whole.object)


def test_positions_come_back_refined(far):
    scan, truth, origin_m = far
    off = np.random.default_rng(5).normal(0, 0.5, scan.positions_m.shape) * FAR.pixel_m
    off -= off.mean(axis=0)
    wrong = replace(scan, positions_m=scan.positions_m + off)
    kept, refined = (reconstruct(wrong, settings("lsqml", refine_positions=p), 50) for p in (False, True))
    np.testing.assert_allclose(kept.positions_m, wrong.positions_m, rtol=0, atol=1e-12)
    left = refined.positions_m - scan.positions_m
    assert np.sqrt(np.square(left - left.mean(axis=0)).mean()) < 0.15 * FAR.pixel_m
    assert error(refined, truth, origin_m) < 0.8 * error(kept, truth, origin_m)


def test_a_near_field_needs_no_probe():
    scan, truth, origin_m = measure(NEAR, known_probe=False, side=8)
    guess = first_guess(scan, settings("lsqml"))
    # The mean frame, taken back: at the detector it is that again.
    again = propagator_of(NEAR).forward(torch.from_numpy(guess)[None])[0].abs().square().numpy()
    np.testing.assert_allclose(again[0], scan.counts.mean(axis=0), rtol=1e-3, atol=1)
    reported = []
    estimate = reconstruct(scan, settings("lsqml"), 100, lambda *news: reported.append(news[1]))
    assert np.mean(estimate.residual) < 0.3 * reported[0]
    flat = replace(estimate, object=np.ones_like(estimate.object))
    assert error(estimate, truth, origin_m) < 0.3 * error(flat, truth, origin_m)


def test_the_network_predicts_from_a_near_field():
    scan, truth, origin_m = measure(NEAR, side=9)
    flat = reconstruct(scan, settings("rpie"), 0)
    predicted = reconstruct(scan, settings("pinn"), 0)
    assert error(predicted, truth, origin_m) < 0.9 * error(flat, truth, origin_m)


def test_the_network_predicts_again_between_sets_of_iterations(far, monkeypatch):
    scan, _, _ = far
    passes, reported = [], []
    forward = UnrolledNet.forward
    monkeypatch.setattr(UnrolledNet, "forward", lambda *args: passes.append(1) or forward(*args))
    # A probe that is far from known changes with each set.
    wrong = replace(scan, probe=scan.probe * np.exp(1j * np.linspace(-2, 2, scan.geometry.frame_px) ** 2))
    estimate = reconstruct(wrong, settings("pinn"), 25, lambda done, _: reported.append(done))
    # And once from each half of the frames, for the errors that are predicted in the end.
    assert 1 < len(passes) - 2 <= 3
    assert reported[-1] == estimate.source["iterations"] <= 25


@pytest.mark.parametrize("stated", [ALL[0], ALL[1], ALL[4], ALL[7]], ids=str)
def test_the_right_orientation_is_found(far, stated):
    scan, _, _ = far
    # `stated` undone: turning by it brings the right positions back.
    undone = scan.positions_m * np.where([stated.flip_y, stated.flip_x], -1.0, 1.0)
    wrong = replace(scan, positions_m=undone[:, ::-1] if stated.swap else undone)
    check = check_orientation(wrong, scan.probe, frames=36, epochs=8)
    assert check.best == stated
    assert check.better == (None if stated == AS_STATED else stated)


def test_frames_in_the_middle_are_checked(far):
    scan, _, _ = far
    seen = []
    check = check_orientation(scan, scan.probe, frames=9, epochs=1, on_progress=seen.append)
    assert seen == list(ALL) and set(check.deviance) == set(ALL)


def test_a_little_better_is_not_better():
    deviance = dict.fromkeys(ALL, 3.0) | {AS_STATED: 2.0, Orientation(swap=True): 1.9}
    assert OrientationCheck(deviance).better is None
    assert str(Orientation(True, False, True)) == "y and x exchanged and x's sign turned"


def recorded(*parts):
    path = Path(DATA or "", *parts)
    if not DATA or not path.is_file():
        pytest.skip(f"BLUESKY_CDI_DATA names no folder with {'/'.join(parts)}")
    return path


def test_the_recorded_scans_lie_as_their_readers_say():
    star = read_scan(recorded("siemens_velociprobe", "canonical.npz"))
    near = read_cxi(recorded("petra_p25_nearfield", "PETRAIII_P25_Near_Field_Ptycho.cxi"), focus_to_sample_m=3.65e-3)
    for scan in (star, near):
        check = check_orientation(scan, first_guess(scan, settings("lsqml")), frames=16, epochs=4)
        assert check.best == AS_STATED


def test_the_recorded_near_field_shows_its_star():
    """Half of its frames, those in the middle, against the reference that cdtools made of all."""
    folder = recorded("petra_p25_nearfield", "PETRAIII_P25_Near_Field_Ptycho.cxi").parent
    scan = read_cxi(folder / "PETRAIII_P25_Near_Field_Ptycho.cxi", focus_to_sample_m=3.65e-3)
    low, high = scan.positions_m.min(axis=0), scan.positions_m.max(axis=0)
    whole = ObjectGrid.covering(low, high, scan.geometry.pixel_m, scan.geometry.frame_px)
    middle = scan.subset(nearest_to_middle(scan.positions_m, 100))
    estimate = reconstruct(middle, settings("lsqml", refine_positions=True), 18)
    with np.load(recorded("petra_p25_nearfield", "reference.npz")) as file:
        # Its object has 200 pixels more than the frames need on every side.
        reference = file["obj"][200:-200, 200:-200]
    y, x = np.rint((np.array(estimate.origin_m) - whole.origin_m) / whole.pixel_m).astype(int)
    reference = reference[y:, x:]
    rows, columns = (min(a, b) for a, b in zip(reference.shape, estimate.object.shape, strict=True))
    numbers = compare(
        estimate.object[:rows, :columns],
        reference[:rows, :columns],
        illuminated_mask(estimate.coverage, 0.2)[:rows, :columns],
    ).numbers
    assert numbers["phase_mae_rad"] < 0.09
