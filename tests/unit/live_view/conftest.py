"""Scenes of a small run, for whatever draws or sends them."""

import numpy as np
import pytest

from bluesky_cdi.live_view.scene import Scene
from bluesky_cdi.live_view.sight import Sight
from bluesky_cdi.physics.geometry import HC_EV_M
from bluesky_cdi.protocols import RAW_UID, Estimate

N, PIXEL_M = 32, 2e-8
GEOMETRY = {
    "energy_ev": 8000.0, "distance_m": 2.0, "detector_pixel_m": HC_EV_M / 8000.0 * 2.0 / (N * PIXEL_M), "frame_px": N,
    "propagation": "far", "focus_to_sample_m": None,
}  # fmt: skip
UID = "raw-run"


@pytest.fixture
def make_estimate():
    def make(n=9, uid=UID, shape=(60, 80), **notes):
        rng = np.random.default_rng(n)
        y, x = np.indices(shape)
        disc = np.hypot(y - 30, x - 40) < 12
        beam = np.exp(-np.sum((np.indices((N, N)) - N // 2) ** 2, axis=0) / 30)
        path = 2e-7 * np.array([(k // 5 - 1, k % 5 - 2) for k in range(n)])
        return Estimate(
            n_frames=n,
            object=np.where(disc, 0.8 * np.exp(-0.6j), np.exp(0.3j)).astype(np.complex64),
            origin_m=(-30 * PIXEL_M, -40 * PIXEL_M),
            pixel_m=PIXEL_M,
            probe=np.stack([30 * beam, 5 * np.roll(beam, 3, 0)]).astype(np.complex64),
            std_amplitude=np.full(shape, 0.05, np.float32),
            std_phase_rad=np.full(shape, 0.05, np.float32),
            coverage=np.where((abs(y - 30) < 25) & (abs(x - 40) < 30), 500.0, 0.0).astype(np.float32),
            frame_seq_nums=np.arange(1, n + 1),
            positions_m=path,
            embedding=np.zeros((n, 2), np.float32),
            frame_uncertainty=np.ones(n, np.float32),
            residual=rng.uniform(0.9, 1.1, n).astype(np.float32),
            novelty=np.ones(n, np.float32),
            source={RAW_UID: uid, **notes},
        )

    return make


@pytest.fixture
def make_sight():
    def make(number=1, n=12, uid=UID, fit=True, **changed):
        rng = np.random.default_rng(number)
        counts = rng.poisson(20 * np.exp(-np.sum((np.indices((N, N)) - N // 2) ** 2, axis=0) / 40)).astype(np.float32)
        valid = np.ones((N, N), bool)
        valid[3, 4] = False
        fields = {
            "number": number, "uid": uid, "scan_id": 7, "plan": "ptycho_raster", "geometry": GEOMETRY, "received": n,
            "rate_hz": 12.5, "ended": "", "seq_nums": np.arange(1, n + 1),
            "positions_m": 2e-7 * np.array([(k // 5 - 1, k % 5 - 2) for k in range(n)]),
            "photons": rng.uniform(900, 1000, n).astype(np.float32),
            "dark_photons": rng.uniform(20, 50, n).astype(np.float32),
            "gradient_rad_per_m": rng.uniform(-1e6, 1e6, (n, 2)).astype(np.float32),
            "frame_seq_num": n, "counts": counts, "valid": valid,
            "fit": counts + 1 if fit else None, "deviance": 1.25 if fit else float("nan"),
        }  # fmt: skip
        return Sight(**{**fields, **changed})

    return make


@pytest.fixture
def make_scene(make_sight, make_estimate):
    def make(number=1, **kept):
        proposed = np.array([[4e-7, 0.0], [4e-7, 2e-7]])
        return Scene(make_sight(number), make_estimate(**kept), proposed, "adapt", 4.0)

    return make
