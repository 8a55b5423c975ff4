"""Which tiles come when."""

import numpy as np
import pytest

from bluesky_cdi.reconstruction.tile_scheduler import Predictions, TileScheduler


def scheduler(tiles=5, touched=()):
    out = TileScheduler(tiles, least_gain=0.1)
    out.touch(touched)
    return out


def test_predictions_are_outdated_until_they_are_made_again():
    predictions = Predictions(4)
    predictions.make([0, 1, 2])
    assert not predictions.are_outdated.any()
    predictions.outdate()
    predictions.make([1])
    predictions.forget([2])
    copy = Predictions(4)
    copy.restore(predictions.checkpoint())
    for either in (predictions, copy):
        assert either.are_outdated.tolist() == [True, False, False, False]
        either.accept()
        assert not either.are_outdated.any()
        either.outdate()
        assert either.are_outdated.tolist() == [True, True, False, False]


MISFIT = np.array([1.0, 5.0, 3.0, 2.0, 4.0])


def test_new_frames_come_first_in_their_order():
    work = scheduler(touched=[3, 1])
    work.touch([1, 4, 3])
    assert work.due(MISFIT) == [3, 1, 4]
    work.done([3], settled=False)
    assert work.due(MISFIT) == [1, 4]


def test_then_the_worst_explained_once_a_round():
    work = scheduler(touched=[0, 1, 2, 4])
    work.done([0, 1, 2, 4], settled=False)
    assert work.due(MISFIT) == [1, 4, 2, 0]
    work.done([1, 4], settled=False)
    assert work.due(MISFIT) == [2, 0]
    work.done([2], settled=True)
    work.done([0], settled=False)
    # The round has paid: the next begins, without what is settled.
    assert work.due(0.8 * MISFIT) == [1, 4, 0]


def test_a_round_that_does_not_pay_is_the_last():
    work = scheduler(touched=[0, 1])
    work.done([0, 1], settled=False)
    assert work.due(MISFIT) == [1, 0]
    work.done([1], settled=False)
    work.done([0], settled=False)
    assert work.due(0.95 * MISFIT) == []
    work.touch([2])
    work.done([2], settled=False)
    assert work.due(MISFIT) == [2]


def test_a_tile_alone_goes_on_while_refining_pays():
    work = scheduler(1, [0])
    work.done([0], settled=False)
    for _ in range(3):
        assert work.due(np.ones(1)) == [0]
        work.done([0], settled=False)
    work.done([0], settled=True)
    assert work.due(np.ones(1)) == []


def test_tiles_read_with_another_probe_are_read_again():
    work = scheduler(touched=[0, 1])
    work.done([0], settled=True)
    work.outdate()
    work.done([1], settled=True)
    assert work.due(MISFIT) == [0]
    assert work.must_predict([0, 1]) and not work.must_predict([1, 2])
    work.done([0], settled=True)
    assert work.due(MISFIT) == []


def test_forgotten_tiles_wait_for_new_frames():
    work = scheduler(touched=[0, 1])
    work.done([0], settled=False)
    work.forget([0, 1])
    work.outdate()
    assert work.due(MISFIT) == []


def test_state_comes_back():
    work = scheduler(touched=[3, 1, 2])
    work.done([2], settled=False)
    copy = scheduler()
    copy.restore(work.checkpoint())
    for either in (work, copy):
        assert either.due(MISFIT) == [3, 1]
        either.done([1, 3], settled=True)
        assert either.due(MISFIT) == [2]


@pytest.mark.parametrize("outdated", [False, True])
def test_tiles_of_another_grid_are_open_and_can_be_outdated(outdated):
    work = scheduler()
    work.take_over([1, 3], outdated)
    assert work.due(MISFIT) == [3, 1] or work.due(MISFIT) == [1, 3]
    assert work.has_outdated is work.must_predict([1]) is work.are_outdated([1, 0]) is outdated
    work.done([1, 3], settled=True)
    assert not work.has_outdated and work.due(MISFIT) == []
    work.outdate()
    assert sorted(work.due(MISFIT)) == [1, 3] and work.are_outdated([3]) and not work.are_outdated([0])
