"""A scan that stops at a wanted resolution has it; when it is looked for."""

import pytest

from bluesky_cdi.bench.suites.resolution import adaptive_scan
from bluesky_cdi.config import ReconstructorConfig, load_config
from bluesky_cdi.errors import ConfigError
from bluesky_cdi.evaluation.resolution import KEY
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
