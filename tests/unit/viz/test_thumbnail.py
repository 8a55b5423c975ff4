import base64
import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from bluesky_cdi.protocols import Estimate
from bluesky_cdi.viz import thumbnail_png


def estimate_of(phase_rad, coverage):
    shape = phase_rad.shape
    of_image, of_frames = np.zeros(shape, np.float32), np.zeros(0, np.float32)
    return Estimate(
        n_frames=0,
        object=np.exp(1j * phase_rad).astype(np.complex64),
        origin_m=(0.0, 0.0),
        pixel_m=1e-8,
        probe=np.ones((1, 8, 8), np.complex64),
        std_amplitude=of_image,
        std_phase_rad=of_image,
        coverage=coverage.astype(np.float32),
        frame_seq_nums=np.zeros(0, int),
        positions_m=np.zeros((0, 2)),
        embedding=np.zeros((0, 1), np.float32),
        frame_uncertainty=of_frames,
        residual=of_frames,
        novelty=of_frames,
    )


def drawn(estimate):
    image = Image.open(io.BytesIO(thumbnail_png(estimate)))
    return np.asarray(image), image.info["transparency"]


def test_row_0_is_above_and_what_is_not_measured_is_transparent():
    phase = np.zeros((60, 90))
    phase[:30] = 0.4
    coverage = np.zeros((60, 90))
    coverage[10:50, 20:80] = 5.0
    coverage[10:12, 20:22] = 0.0
    grey, clear = drawn(estimate_of(phase, coverage))
    assert grey.shape == (40, 60)
    assert (grey[:2, :2] == clear).all() and (grey == clear).sum() == 4
    assert (grey[5:20] == 255).all() and (grey[20:] == 1).all()


def test_a_phase_that_wraps_is_averaged_on_the_circle():
    """Of neighbours at 3.0 and -3.0 rad the mean is π, not 0."""
    phase = np.zeros((320, 320))
    phase[:160] = np.where(np.arange(320) % 2, 3.0, -3.0)
    grey, _ = drawn(estimate_of(phase, np.ones((320, 320))))
    assert grey.shape == (160, 160)
    upper, lower = np.unique(grey[:80]), np.unique(grey[80:])
    assert len(upper) == len(lower) == 1 and abs(int(upper[0]) - int(lower[0])) == 254


def test_noise_fits_into_metadata_too():
    rng = np.random.default_rng(1)
    noise = thumbnail_png(estimate_of(rng.normal(size=(700, 500)), np.ones((700, 500))))
    assert len(base64.b64encode(noise)) <= 16384


@pytest.mark.parametrize("change", [{"coverage": np.zeros((4, 4), np.float32)}, {"object": np.full((4, 4), np.nan)}])
def test_nothing_to_see_is_an_empty_picture(change):
    estimate = replace(estimate_of(np.zeros((4, 4)), np.ones((4, 4))), **change)
    grey, clear = drawn(estimate)
    assert (grey == clear).all()
