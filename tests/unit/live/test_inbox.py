"""The queue before the worker's thread."""

import numpy as np

from bluesky_cdi.live.inbox import Inbox, QueueLimits
from bluesky_cdi.live.messages import End, Start
from bluesky_cdi.protocols import Frame, RunInfo


def frame(number):
    return Frame(number, np.zeros(2), np.zeros((2, 2)))


def test_frames_that_come_while_a_message_is_handled_are_handed_out_together():
    inbox = Inbox(QueueLimits())
    start, end = Start(RunInfo("raw", 1, {}, (2, 2)), "uid"), End("success", "")
    inbox.put(start)
    inbox.put(frame(1))
    handed_out = inbox.batch()
    assert next(handed_out) is start
    inbox.put(frame(2))
    inbox.put(end)
    inbox.put(frame(3))
    assert [each.seq_num for each in next(handed_out)] == [1, 2]
    # What else came meanwhile is of the next time.
    assert list(handed_out) == []
    message, frames = inbox.batch()
    assert message is end and [each.seq_num for each in frames] == [3]
