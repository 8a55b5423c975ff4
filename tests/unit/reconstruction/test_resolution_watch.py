"""A scan that stops at a wanted resolution has it; when it is looked for."""

import pytest

from bluesky_cdi.bench.suites.resolution import adaptive_scan
from bluesky_cdi.config import ReconstructorConfig, load_config
from bluesky_cdi.errors import ConfigError
from bluesky_cdi.evaluation.resolution import KEY, confirmed_resolution_m, with_curve
from bluesky_cdi.models.weights import load_weights
from bluesky_cdi.reconstruction.resolution_watch import ResolutionWatch

PIXEL_M = 28e-9
IDEAL = {"defocus_error_m": 0.0, "position_error_m": 0.0, "coherent_share": 1.0}


def test_when_it_is_looked_for():
    watch = ResolutionWatch(1e-7, PIXEL_M, ReconstructorConfig())
    assert next(n for n in range(40) if watch.is_due(n)) == 16
    watch._looked_at = 40
    assert not watch.is_due(47) and watch.is_due(48)
    watch._looked_at = 400
    assert not watch.is_due(439) and watch.is_due(440)


def ended(scene, frames, interrupted=None, **options):
    reconstructor = scene.reconstructor(**options)
    reconstructor.add(frames)
    estimate = reconstructor.step(60.0)
    return estimate, reconstructor.checked(estimate, interrupted)


def test_every_run_has_the_ring_correlation_of_its_halves_at_its_end(make_scene):
    """The fewer the photons, the coarser is what halves agree on; a network's or an engine's, whose begin in vacuum."""
    found = {}
    for photons in (1e6, 3e3):
        scene = make_scene(photons=photons)
        frames = scene.frames()
        before, estimate = ended(scene, frames, true_probe=True)
        notes = with_curve(estimate.source)
        assert KEY not in before.source and confirmed_resolution_m(estimate.source) is None
        assert notes["target_m"] is None and notes["n_frames"] == [len(frames)]
        found[photons] = notes["resolution_m"][0]
    assert found[1e6] < 0.8 * found[3e3]


def test_halves_that_errors_were_predicted_by_are_not_made_again(scene, frames, monkeypatch):
    monkeypatch.delattr(ResolutionWatch, "_look")
    _, estimate = ended(scene, frames, name="pinn", trained=load_weights())
    assert estimate.source["uncertainty"]["estimator"] == "halves"
    assert with_curve(estimate.source)["n_frames"] == [len(frames)]


def test_an_engines_halves_of_errors_are_no_measure_of_resolution(scene, frames):
    """They go on from the object of all frames, which is in both."""
    reconstructor = scene.reconstructor()
    reconstructor.add(frames)
    reconstructor.checked(reconstructor.step(60.0))
    assert reconstructor._work.halves is None


def test_where_halves_are_not_compared_it_is_said_why(scene, frames):
    _, estimate = ended(scene, frames, lambda: True)
    assert "the time for the end" in estimate.source[KEY]["says"]
    assert with_curve(estimate.source) is None and confirmed_resolution_m(estimate.source) is None
    _, estimate = ended(scene, frames[:1])
    assert estimate.source[KEY] == {"says": "halves of 1 frames have too little in common"}


def test_nothing_is_looked_for_without_a_target(scene, frames):
    assert not ResolutionWatch(0.0, PIXEL_M, ReconstructorConfig()).is_due(10_000)
    reconstructor = scene.reconstructor()
    reconstructor.add(frames)
    assert KEY not in reconstructor.step(60.0).source


def test_a_target_below_two_pixels():
    with pytest.raises(ConfigError, match=r"at least two sample pixels, 5.6e-08 m, .* it is 5e-08 m"):
        ResolutionWatch(5e-8, PIXEL_M, ReconstructorConfig())


def test_an_adaptive_scan_stops_at_the_wanted_resolution_and_has_it():
    config = load_config(
        overrides={
            "simulation": {"sample": "leaves", "photons": 1e4, "seed": 2, **IDEAL},
            "scan": {"extent_um": (1.6, 1.6), "batch": 8},
            "agent": {"target_resolution_m": 1.1e-7, "stop_gain": 0.0},
            # What is wrong with a probe is wrong in both halves, which can't tell.
            "probe": {"modes": 1, "trust": True},
            "reconstructor": {"refine_probe": False},
        }
    )
    row, estimate = adaptive_scan(config, 90)
    assert row["reason"].startswith("resolution of ") and "reached the target of 110 nm" in row["reason"]
    assert 16 < row["frames"] < 90
    last = estimate.source[KEY]["resolution_m"][-2:]
    assert max(last) <= 1.1e-7 and estimate.source[KEY]["n_frames"][-1] == row["frames"] == estimate.n_frames
    # A check scatters by a tenth or two where few frames and few rings are.
    assert row["true_m"] == pytest.approx(row["halves_m"], rel=0.3)
