"""Two reconstructions on the area that they share: cases whose answer is known."""

from dataclasses import replace

import numpy as np
import pytest

from bluesky_cdi.errors import GeometryError
from bluesky_cdi.evaluation.products import compare_products, coverage_of
from bluesky_cdi.io import Product
from bluesky_cdi.physics.geometry import Geometry

FRAME_PX = 32
GEOMETRY = Geometry(9000.0, 1.9, 75e-6, FRAME_PX)
PIXEL_M = GEOMETRY.pixel_m
SIDE = 192


def band_limited(seed=0, cutoff=0.2, side=SIDE):
    """A periodic, complex noise of unit variance without frequencies above `cutoff`, cycles per pixel."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(side, side)) + 1j * rng.normal(size=(side, side))
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(side), np.fft.fftfreq(side), indexing="ij"))
    image = np.fft.ifft2(np.fft.fft2(noise) * (frequency <= cutoff))
    return image / image.std()


def sample(seed=0):
    return 1 + 0.2 * band_limited(seed)


def moved(image, shift_px):
    """A periodic image displaced by a real number of pixels (y, x)."""
    turn = [np.exp(-2j * np.pi * s * np.fft.fftfreq(n)) for s, n in zip(shift_px, image.shape, strict=True)]
    return np.fft.ifft2(np.fft.fft2(image) * turn[0][:, None] * turn[1])


def product(image, first=(0, 0), shape=(120, 140), centres=None, probe=None, name=""):
    """A product cut out of an image that begins at 0 m; by default it is illuminated but for a margin of 10 pixels."""
    (y, x), (rows, columns) = first, shape
    if centres is None:
        down, right = (np.arange(26, n - 25, 8) for n in shape)
        centres = [(y + a, x + b) for a in [*down, rows - 26] for b in [*right, columns - 26]]
    centres = np.asarray(centres, float).reshape(-1, 2)
    return Product(
        name=name,
        geometry=GEOMETRY,
        indexes=np.arange(len(centres)),
        positions_m=centres * PIXEL_M,
        probe=np.ones((1, FRAME_PX, FRAME_PX), np.complex64) if probe is None else probe,
        object=image[y : y + rows, x : x + columns].astype(np.complex64),
        origin_m=(y * PIXEL_M, x * PIXEL_M),
    )


class TestCoverage:
    def test_a_probe_lies_around_its_position(self):
        rng = np.random.default_rng(1)
        probe = (rng.normal(size=(2, 32, 32)) + 1j * rng.normal(size=(2, 32, 32))).astype(np.complex64)
        one = product(sample(), first=(3, 5), shape=(60, 70), centres=[(3 + 20.4, 5 + 30.4)], probe=probe)
        found = coverage_of(one)
        expected = np.zeros((60, 70))
        expected[4:36, 14:46] = (abs(probe) ** 2).sum(axis=0)
        np.testing.assert_allclose(found, expected, rtol=1e-5)

    def test_frames_add_up(self):
        found = coverage_of(product(sample(), shape=(60, 70), centres=[(20, 30), (20, 30), (24, 30)]))
        assert found.sum() == 3 * 32 * 32
        assert found.max() == 3

    @pytest.mark.parametrize(
        ("centre", "rows", "columns"),
        [((-10, 20), (0, 6), (4, 36)), ((59, 69), (43, 60), (53, 70)), ((20, -15), (4, 36), (0, 1))],
    )
    def test_what_lies_outside_is_left_out(self, centre, rows, columns):
        probe = np.sqrt(np.arange(1, 1 + 32 * 32)).reshape(1, 32, 32).astype(np.complex64)
        found = coverage_of(product(sample(), shape=(60, 70), centres=[centre], probe=probe))
        whole = np.zeros((160, 170))  # 50 pixels more on each side
        y, x = np.array(centre) + 50 - 16
        whole[y : y + 32, x : x + 32] = abs(probe[0]) ** 2
        expected = whole[50:-50, 50:-50]
        np.testing.assert_allclose(found, expected, rtol=1e-6)
        illuminated = np.argwhere(expected)
        assert [*illuminated.min(axis=0), *illuminated.max(axis=0) + 1] == [rows[0], columns[0], rows[1], columns[1]]

    @pytest.mark.parametrize("centre", [(-17, 20), (20, 86), (1e7, 1e7), (-1e7, 20)])
    def test_positions_off_the_object(self, centre):
        with pytest.raises(GeometryError, match="none of the 1 positions lies on it"):
            coverage_of(product(sample(), shape=(60, 70), centres=[centre]))


class TestSame:
    def test_everything_is_perfect(self):
        one = product(sample())
        found = compare_products(one, one)
        assert found.images.numbers["complex_nrmse"] < 1e-6 and found.images.numbers["phase_mae_rad"] < 1e-6
        numbers = found.images.numbers
        assert numbers["ssim_amplitude"] == pytest.approx(1) and numbers["ssim_phase"] == pytest.approx(1)
        assert found.images.numbers["psnr_amplitude_db"] > 100 and found.images.numbers["psnr_phase_db"] > 100
        assert found.shift_m == (0, 0)
        np.testing.assert_allclose(found.frc.correlation, 1)
        assert found.frc.resolution_half_bit_m is None and found.frc.resolution_one_bit_m is None

    def test_what_counts_is_what_is_illuminated(self):
        one = product(sample(), first=(7, 4))
        found = compare_products(one, one)
        illuminated = np.zeros((120, 140), bool)
        illuminated[10:110, 10:130] = True
        np.testing.assert_array_equal(found.images.mask, illuminated)
        assert found.origin_m == pytest.approx((7 * PIXEL_M, 4 * PIXEL_M))
        assert found.square.side == 100 and found.square.row == 10
        assert len(found.frc.frequency_per_m) == 50

    def test_of_several_squares_the_best_illuminated_is_taken(self):
        at = [(26, x) for x in range(26, 120, 4)]
        for extra in (30, 100):
            bright = product(sample(), shape=(52, 140), centres=[*at, *[(26, extra)] * 30])
            square = compare_products(bright, bright).square
            assert (square.row, square.column, square.side) == (10, extra - 16, 32)


class TestKnownDifferences:
    def test_shift_ramp_and_scale_come_back_out(self):
        image, shift, slope, scale = sample(), (1.37, -2.6), (0.004, -0.011), 0.7 * np.exp(0.9j)
        y, x = np.indices(image.shape)
        a = moved(image, shift) * np.exp(1j * (slope[0] * y + slope[1] * x)) / scale
        found = compare_products(product(a), product(image))
        np.testing.assert_allclose(np.array(found.shift_m) / PIXEL_M, shift, atol=0.011)
        np.testing.assert_allclose(found.images.aligned.ramp_rad_per_px, slope, atol=1e-5)
        assert abs(found.images.aligned.scale) == pytest.approx(0.7, rel=1e-3)
        # Half a step of the registration, 0.005 pixel, and the mirrored border of what is moved remain.
        assert found.images.numbers["complex_nrmse"] < 0.02 and found.images.numbers["phase_mae_rad"] < 0.003
        assert found.frc.correlation[:20].min() > 0.999

    def test_what_a_shift_brings_in_from_outside_is_not_counted(self):
        image = sample()
        at = [(y, x) for y in range(16, 105, 8) for x in range(16, 121, 8)]  # illuminated: columns 0 to 135
        found = compare_products(product(moved(image, (8, -6)), centres=at), product(image, centres=at))
        np.testing.assert_allclose(np.array(found.shift_m) / PIXEL_M, (8, -6), atol=0.011)
        illuminated = np.zeros((120, 140), bool)
        illuminated[8:, :130] = True
        np.testing.assert_array_equal(found.images.mask, illuminated)
        assert found.images.numbers["complex_nrmse"] < 1e-4

    def test_noise_has_its_size(self):
        rng = np.random.default_rng(3)
        image = np.exp(0.3j * band_limited(1).real)
        noisy = image * np.exp(0.05j * rng.normal(size=image.shape))
        found = compare_products(product(noisy), product(image))
        assert found.images.numbers["phase_mae_rad"] == pytest.approx(0.05 * np.sqrt(2 / np.pi), rel=0.03)
        span = np.ptp(np.angle(found.images.truth[found.images.mask]))
        assert found.images.numbers["psnr_phase_db"] == pytest.approx(20 * np.log10(span / 0.05), abs=0.3)
        assert 0.3 < found.images.numbers["ssim_phase"] < 0.99

    def test_a_phase_at_the_edge_of_the_circle_is_no_error(self):
        # A fifth lies opposite to the mean: noise takes it over the edge.
        phase = np.where(np.indices((SIDE, SIDE)).sum(axis=0) % 40 < 8, 3.1, 0.0)
        rng = np.random.default_rng(4)
        a = np.exp(1j * (phase + 0.1 * rng.normal(size=phase.shape)))
        found = compare_products(product(a), product(np.exp(1j * phase)))
        truth, mask = found.images.truth, found.images.mask
        span = np.ptp(np.angle(truth * np.conj(truth[mask].sum()))[mask])
        assert found.images.numbers["psnr_phase_db"] == pytest.approx(20 * np.log10(span / 0.1), abs=0.3)

    def test_a_truth_without_contrast_has_no_measure(self):
        found = compare_products(product(sample()), product(np.ones((SIDE, SIDE))))
        names = ("complex_nrmse", "ssim_amplitude", "ssim_phase", "psnr_phase_db")
        values = [found.images.numbers[name] for name in names]
        assert np.isnan(values).all()
        assert found.frc.resolution_half_bit_m == np.inf


class TestAreas:
    @pytest.mark.parametrize("first", [(7, 11), (0, 0), (40, 25)])
    def test_origins_place_the_images(self, first):
        image = sample()
        a, b = product(image, first=(20, 15)), product(image, first=first, shape=(130, 110))
        found = compare_products(a, b)
        low = np.maximum(first, (20, 15))
        assert found.origin_m == pytest.approx(low * PIXEL_M)
        high = np.minimum(np.add(first, (130, 110)), (140, 155))
        assert found.images.object.shape == tuple(high - low)
        np.testing.assert_allclose(found.shift_m, 0, atol=1e-3 * PIXEL_M)
        assert found.images.numbers["complex_nrmse"] < 1e-6
        np.testing.assert_allclose(found.images.truth, image[low[0] : high[0], low[1] : high[1]], rtol=1e-6)

    @pytest.mark.parametrize("part", [(0.3, -0.2), (3.4, 1.5), (-2.3, 0.75)])
    def test_origins_off_the_pixels(self, part):
        """The same arrays, B's said to lie elsewhere: A lies off B by the opposite."""
        a = product(sample())
        origin_m = tuple(np.array(part) * PIXEL_M)
        b = replace(a, origin_m=origin_m, positions_m=a.positions_m + origin_m)
        found = compare_products(a, b)
        np.testing.assert_allclose(np.array(found.shift_m) / PIXEL_M, -np.array(part), atol=0.011)
        assert found.images.numbers["complex_nrmse"] < 1e-5

    def test_no_overlap_of_the_images(self):
        image = sample()
        far = replace(product(image, name="far"), origin_m=(1e-3, 0.0))
        with pytest.raises(GeometryError, match=r"share an illuminated square of 16 pixels.*far at y 1000 to"):
            compare_products(product(image), far)

    def test_no_overlap_of_what_is_illuminated(self):
        image = sample()
        a, b = (product(image, shape=(60, 140), centres=[(30, x)]) for x in (30, 110))
        with pytest.raises(GeometryError, match="share an illuminated square"):
            compare_products(a, b)

    def test_an_overlap_too_narrow_for_a_ring_correlation(self):
        image = sample()
        a, b = (product(image, shape=(60, 140), centres=[(30, x)]) for x in (50, 67))
        with pytest.raises(GeometryError, match="share an illuminated square of 16 pixels"):
            compare_products(a, b)
        wider = product(image, shape=(60, 140), centres=[(30, 66)])
        assert compare_products(a, wider).square.side == 16

    def test_pixels_that_differ(self):
        a = product(sample(), name="mine")
        b = replace(a, geometry=replace(GEOMETRY, distance_m=1.9 * 1.002), name="yours")
        with pytest.raises(GeometryError, match=r"mine has 1\.\d+e-07 m and yours 1\.\d+e-07 m"):
            compare_products(a, b)
        compare_products(a, replace(b, geometry=replace(GEOMETRY, distance_m=1.9 * 1.0005)))


class TestResolution:
    @pytest.mark.parametrize("cutoff", [0.1, 0.2, 0.35])
    def test_crossing_is_where_the_signal_ends(self, cutoff):
        """Both hold one signal up to a frequency, and noises of their own above."""
        signal, frequency = band_limited(5, cutoff=1.0), np.fft.fftfreq(SIDE)
        keep = np.hypot(*np.meshgrid(frequency, frequency, indexing="ij")) <= cutoff

        def half(seed):
            spectrum = np.where(keep, np.fft.fft2(signal), np.fft.fft2(band_limited(seed, cutoff=1.0)))
            return 1 + 0.2 * np.fft.ifft2(spectrum)

        found = compare_products(product(half(6)), product(half(7)))
        ring = 1 / (found.square.side * PIXEL_M)
        for period_m in (found.frc.resolution_half_bit_m, found.frc.resolution_one_bit_m):
            assert 1 / period_m == pytest.approx(cutoff / PIXEL_M, abs=1.5 * ring)

    def test_two_samples_have_nothing_in_common(self):
        found = compare_products(product(sample(8)), product(sample(9)), max_shift_px=0)
        # Contrasts of one size that have nothing in common add in squares.
        assert found.images.numbers["complex_nrmse"] == pytest.approx(np.sqrt(2), rel=0.05)
        assert found.frc.resolution_one_bit_m == np.inf
