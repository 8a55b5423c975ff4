"""Judging what was expected of frames: both ratios, their bounds, and which frames are compared when."""

import logging

import numpy as np
import pytest

from bluesky_cdi.agent.audit import GainAudit

CALM = np.ones((10, 3))
HALF = np.full(10, 0.5)


def failing(audit=None):
    """An audit after one bad group: the next decides."""
    audit = audit or GainAudit()
    assert audit.compare(HALF, np.zeros(10), CALM) and not audit.failed
    return audit


@pytest.mark.parametrize(
    ("realised", "square", "is_good"),
    [
        (0.101, 1.0, True),
        (0.099, 1.0, False),
        (1.0, 0.21, True),
        (1.0, 0.19, False),
        (1.0, 4.9, True),
        (1.0, 5.1, False),
        (0.0, 9.0, False),
    ],
)
def test_either_ratio_out_of_a_fifth_to_five_is_bad(realised, square, is_good):
    audit = failing()
    assert audit.compare(HALF, np.full(10, realised), CALM * square**0.5)
    assert audit.failed is not is_good


@pytest.mark.parametrize(("expected", "is_good"), [(0.201, True), (0.199, False)])
def test_more_structure_than_expected_is_bad_too(expected, is_good):
    audit = failing()
    audit.compare(np.full(10, expected), np.ones(10), CALM)
    assert audit.failed is not is_good


def test_vacuum_where_vacuum_was_expected_is_good():
    """Both count as three in a hundred at least, each frame by itself."""
    audit = failing()
    assert audit.compare(np.full(10, 0.14), np.zeros(10), CALM) and not audit.failed  # 0.03 / 0.14
    audit = failing()
    assert audit.compare(np.full(10, 0.16), np.zeros(10), CALM) and audit.failed
    audit = failing()
    assert audit.compare(np.full(10, 1e-9), np.full(10, 0.14), CALM) and not audit.failed
    audit = failing()
    # One frame shows all that was expected of ten; the other nine still count.
    assert audit.compare(np.full(10, 0.03), np.r_[1.25, np.zeros(9)], CALM) and audit.failed


def test_bad_groups_in_a_row_fail_it_for_good(caplog):
    audit, zero = GainAudit(), np.zeros(10)
    with caplog.at_level(logging.WARNING, "bluesky_cdi"):
        for realised in (zero, HALF, zero):
            assert audit.compare(HALF, realised, CALM) and not audit.failed
        assert len(caplog.records) == 2 and "uniform coverage" not in caplog.text
        assert audit.compare(HALF, zero, CALM) and audit.failed
        assert len(caplog.records) == 3 and "uniform coverage" in caplog.records[-1].getMessage()
        # From then on nothing is compared.
        assert not audit.compare(HALF, HALF, CALM) and audit.failed
    message = caplog.records[0].getMessage()
    assert "gain of 10 frames: 0.06 (structure), 1 (surprise), expected within (0.2, 5.0)" in message


@pytest.mark.parametrize(("n", "is_judged"), [(0, False), (7, False), (8, True)])
def test_eight_frames_are_judged(n, is_judged):
    audit = failing()
    assert audit.compare(HALF[:n], np.zeros(n), CALM[:n]) is is_judged
    assert audit.failed is is_judged


def test_only_frames_that_came_and_of_which_something_was_expected_are_compared():
    audit = failing()
    audit.expect(range(5, 15), HALF)
    audit.expect(range(100, 200), np.ones(100))  # these never come
    ids = [None, 2, *range(14, 4, -1), None]  # of these ten something was expected
    seen = np.r_[0.0, 0.0, HALF, 0.0]
    residuals = np.r_[np.full((2, 3), 50.0), CALM, np.full((1, 3), 50.0)]
    audit.review(ids, seen, np.ones(13, bool), residuals)
    assert not audit.failed
    # They were found good: it takes two bad groups again.
    failing(audit)


def test_each_frame_is_reviewed_once_and_valid_ones_only(caplog):
    audit = GainAudit()
    audit.expect(range(20), np.full(20, 0.5))
    n = 24
    ids = [None, None, *range(20), None, None]
    valid = np.ones(n, bool)
    valid[2:16] = False
    bad = np.zeros(n)  # nothing of what was expected is there
    residuals = np.ones((n, 2))
    audit.review(ids, bad, valid, residuals)  # six valid ones of the proposals: too few
    assert not caplog.records
    valid[2:4] = True
    audit.review(ids, bad, valid, residuals)
    assert "gain of 8 frames" in caplog.text and not audit.failed
    valid[:] = True
    for _ in range(5):  # the same frames are not reviewed again, whatever became of their outcomes
        audit.review(ids, bad, valid, residuals)
    assert not audit.failed
    audit.expect(range(20, 30), np.full(10, 0.5))
    ids += list(range(20, 30))
    audit.review(ids, np.zeros(34), np.ones(34, bool), np.ones((34, 2)))
    assert audit.failed


@pytest.mark.parametrize("is_good", [True, False])
def test_each_group_is_judged_by_its_own_frames(is_good):
    """The second group is good or bad, whatever the first was and whatever the frames between them show."""
    audit, ids = GainAudit(), [None, *range(10), *[None] * 5, *range(10, 20)]
    audit.expect(range(20), np.full(20, 0.5))
    first, second = np.zeros(10), np.full(10, 0.5 if is_good else 0.0)
    seen = np.r_[1.0, first, np.ones(5), second]
    residuals = np.r_[np.full((1, 2), 50.0), np.ones((10, 2)), np.full((5, 2), 50.0), np.ones((10, 2))]
    valid = np.ones(26, bool)
    audit.review(ids[:11], seen[:11], valid[:11], residuals[:11])
    assert not audit.failed
    audit.review(ids, seen, valid, residuals)
    assert audit.failed is not is_good
