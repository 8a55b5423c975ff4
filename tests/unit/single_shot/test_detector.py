"""From a detector's frame to a square of counts: flags, sums, crops."""

import numpy as np
import pytest

from bluesky_cdi.errors import FrameError, GeometryError
from bluesky_cdi.single_shot import flagged_pixels, prepare_frame, square_window


@pytest.mark.parametrize(
    ("values", "dtype", "flagged"),
    [
        ([0, 7, 65534, 65535], np.uint16, [False, False, False, True]),
        ([0, 7, 65535, 4294967295], np.uint32, [False, False, False, True]),
        ([0, -1, -2, 7], np.int32, [False, True, True, False]),
        ([0, np.nan, 7.5, np.inf], np.float32, [False, True, False, False]),
        ([-0.5, 0, 1, 2], np.float64, [False, False, False, False]),
    ],
)
def test_flags_of_detectors(values, dtype, flagged):
    np.testing.assert_array_equal(flagged_pixels(np.array([values], dtype)), [flagged])


def test_negative_fractions_and_saturation_are_flags_when_stated():
    frame = np.array([[-1.0, 3.0, 10.0, 11.0]])
    np.testing.assert_array_equal(flagged_pixels(frame, mask_negative=True), [[True, False, False, False]])
    np.testing.assert_array_equal(flagged_pixels(frame, saturation=10), [[False, False, True, True]])


def test_a_pixel_flagged_in_one_exposure_is_not_valid_in_the_sum():
    first = np.full((4, 4), 60000, np.uint16)
    second = first.copy()
    second[1, 2] = 65535
    mask = np.ones((4, 4), bool)
    mask[0, 0] = False
    made = prepare_frame([first, second], square_window((4, 4)), mask)
    expected = np.full((4, 4), 120000.0)
    expected[1, 2] = expected[0, 0] = 0
    np.testing.assert_array_equal(made.counts, expected)
    np.testing.assert_array_equal(made.mask, expected > 0)
    assert made.flagged == 1


def test_what_lies_outside_of_the_window_is_not_looked_at():
    frame = np.ones((6, 9))
    frame[0, 0] = -5.0
    made = prepare_frame([frame], square_window((6, 9), size=4))
    np.testing.assert_array_equal(made.counts, np.ones((4, 4)))


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (np.array([[1.0, -0.25], [1, 1]]), r"frame 3 must hold counts, which are not negative; 1 valid pixels are"),
        (np.array([[1.0, np.inf], [1, 1]]), "1 are infinite"),
        (np.array([[0.0, np.nan], [0, 0]]), "frame 3 has no photon in its 3 valid pixels of 4"),
    ],
)
def test_what_can_not_be_counts_is_refused(frame, message):
    with pytest.raises(FrameError, match=message):
        prepare_frame([frame], square_window((2, 2)), name="frame 3")


@pytest.mark.parametrize(
    ("shape", "centre", "size", "rows", "columns"),
    [
        ((8, 8), None, None, (0, 8), (0, 8)),
        ((7, 7), None, None, (0, 7), (0, 7)),
        ((8, 12), None, 6, (1, 7), (3, 9)),
        ((8, 12), None, 5, (2, 7), (4, 9)),
        ((8, 12), (3, 7), None, (0, 6), (4, 10)),
        ((10, 10), (5, 5), None, (0, 10), (0, 10)),
        ((10, 10), (4, 5), None, (0, 8), (1, 9)),
    ],
)
def test_the_direct_beam_is_in_the_middle_of_the_square(shape, centre, size, rows, columns):
    window = square_window(shape, centre, size)
    assert window == (slice(*rows), slice(*columns))
    side = rows[1] - rows[0]
    row, column = centre or (shape[0] // 2, shape[1] // 2)
    assert (row - rows[0], column - columns[0]) == (side // 2, side // 2)


@pytest.mark.parametrize(
    ("shape", "centre", "size", "message"),
    [
        ((8, 12), None, None, "frames must be square; they are 8 x 12.*at most 8 pixels"),
        ((8, 8), None, 9, "a square of 9 pixels around row 4 and column 4"),
        ((8, 8), (7, 4), 4, "a square of 4 pixels around row 7"),
        ((8, 8), (9, 4), None, "correct the centre"),
        ((8, 8), (0, 4), None, "correct the centre"),
        ((8, 8), None, 1, "2 pixels or more"),
    ],
)
def test_squares_that_leave_the_frame_are_refused(shape, centre, size, message):
    with pytest.raises(GeometryError, match=message):
        square_window(shape, centre, size)
