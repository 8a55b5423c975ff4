import logging
import threading

import pytest

from bluesky_cdi.document_buffer import DocumentBuffer

SOON_S = 120.0


def test_documents_arrive_in_order_and_drain_waits_for_the_last():
    got, go = [], threading.Event()

    def target(name, doc):
        assert go.wait(SOON_S)
        got.append((name, doc))

    buffer = DocumentBuffer(target)
    for number in range(5):
        buffer("event", number)
    assert not buffer.drain(0.01)
    go.set()
    assert buffer.drain(SOON_S)
    assert got == [("event", number) for number in range(5)]
    buffer.close()


def test_document_that_the_target_refuses_counts_as_handed_on(caplog):
    got = []

    def target(name, doc):
        if doc == 1:
            raise ValueError("no")
        got.append(doc)

    buffer = DocumentBuffer(target)
    with caplog.at_level(logging.CRITICAL):
        for number in range(3):
            buffer("event", number)
        assert buffer.drain(SOON_S)
    assert got == [0, 2]
    buffer.close()


def test_closing_hands_on_what_waits_and_refuses_what_follows():
    got, go = [], threading.Event()

    def target(name, doc):
        assert go.wait(SOON_S)
        got.append(doc)

    buffer = DocumentBuffer(target)
    buffer("event", 1)
    closing = threading.Thread(target=buffer.close)
    closing.start()
    go.set()
    closing.join(SOON_S)
    assert got == [1]
    with pytest.raises(RuntimeError):
        buffer("event", 2)
    assert buffer.drain(SOON_S)
