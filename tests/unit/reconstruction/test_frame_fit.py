import numpy as np
import pytest

from bluesky_cdi.errors import FrameError, GeometryError
from bluesky_cdi.physics.geometry import HC_EV_M, Geometry
from bluesky_cdi.protocols import Estimate
from bluesky_cdi.reconstruction.frame_fit import fitted_frame

N, PIXEL_M, BACKGROUND = 16, 1e-8, 0.5
# Its sample pixel is the estimate's.
GEOMETRY = Geometry(8000.0, 2.0, HC_EV_M / 8000.0 * 2.0 / (N * PIXEL_M), N)


@pytest.fixture(scope="module")
def estimate():
    """Two frames on whole pixels of an object that is nowhere the same."""
    rng = np.random.default_rng(2)

    def waves(*shape):
        return (rng.normal(size=shape) + 1j * rng.normal(size=shape)).astype(np.complex64)

    shape, positions_m = (30, 34), PIXEL_M * np.array([[9, 10], [20, 23]]) + (3e-6, -1e-6)
    of_image, of_frames = np.ones(shape, np.float32), np.ones(2, np.float32)
    return Estimate(
        n_frames=2,
        object=waves(*shape),
        origin_m=(3e-6, -1e-6),
        pixel_m=PIXEL_M,
        probe=20 * waves(2, N, N),
        std_amplitude=of_image,
        std_phase_rad=of_image,
        coverage=of_image,
        frame_seq_nums=np.array([3, 5]),
        positions_m=positions_m,
        embedding=np.zeros((2, 1), np.float32),
        frame_uncertainty=of_frames,
        residual=of_frames,
        novelty=of_frames,
        source={"settings": {"background": BACKGROUND}},
    )


def expected(estimate, row, column, flux):
    """The same by NumPy's transform, of the patch around a pixel."""
    half = N // 2
    patch = estimate.object[row - half : row + half, column - half : column + half]
    waves = np.fft.fft2(np.fft.ifftshift(estimate.probe * patch, axes=(1, 2)), norm="ortho")
    return flux * np.fft.fftshift((abs(waves) ** 2).sum(axis=0)) + BACKGROUND


@pytest.mark.parametrize(("seq_num", "centre"), [(3, (9, 10)), (5, (20, 23))])
def test_a_frame_that_is_what_the_result_expects_is_fitted_at_its_own_flux(estimate, seq_num, centre):
    counts, valid = expected(estimate, *centre, flux=1.7), np.ones((N, N), bool)
    valid[2, 5] = False
    measured = np.where(valid, counts, 1e9)
    found = fitted_frame(estimate, GEOMETRY, seq_num, measured, valid)
    assert found.flux == pytest.approx(1.7, rel=1e-4)
    np.testing.assert_allclose(found.fit, counts, rtol=1e-3)
    assert found.deviance < 1e-3
    np.testing.assert_array_equal(found.counts, measured.astype(np.float32))


def test_another_frame_is_not(estimate):
    assert fitted_frame(estimate, GEOMETRY, 5, expected(estimate, 9, 10, 1.0)).deviance > 10


def test_frames_that_the_result_has_not(estimate):
    with pytest.raises(FrameError, match="does not rest on a frame 4: of its 2 frames, they are numbered 3 to 5"):
        fitted_frame(estimate, GEOMETRY, 4, np.ones((N, N)))
    with pytest.raises(GeometryError, match="16 x 16 pixels, and this one has"):
        fitted_frame(estimate, GEOMETRY, 3, np.ones((N, N + 1)))
