"""What is written of a run at a time; that it arrives is tested with a server."""

from types import SimpleNamespace

import pytest

from bluesky_cdi.catalog import ResultPublisher, run_entry
from bluesky_cdi.catalog.masks import Masks
from bluesky_cdi.catalog.run_entry import RunEntry
from bluesky_cdi.catalog.waiting_documents import SPARED, Patience, WaitingDocuments, rows_of_page

COLUMNS = 9


@pytest.fixture
def written(monkeypatch):
    """What Tiled's writer was given."""
    documents = []

    class Writer:
        def __init__(self, container):
            pass

        def write(self, name, docs):
            documents.extend((name, doc) for doc in docs)

    monkeypatch.setattr(run_entry, "RunWriter", Writer)
    return documents


def entry_of(uid, gathers):
    catalog = SimpleNamespace(uri="", processed={})
    return RunEntry(catalog, "processed", uid, Masks(), Patience(16) if gathers else None)


def spans(documents):
    return [(doc["indices"], doc["seq_nums"]) for name, doc in documents if name == "stream_datum"]


def span(start, stop):
    return {"start": start, "stop": stop}, {"start": start + 1, "stop": stop + 1}


@pytest.mark.parametrize("gathers", [True, False])
def test_rows_of_several_updates_go_out_together_and_before_their_events(
    written, info, make_estimate, tmp_path, gathers
):
    entry, came = entry_of("derived", gathers), []

    def write():
        for name, doc in came:
            entry.write(name, entry.meet(name, doc))
        came.clear()

    publisher = ResultPublisher(info, tmp_path, lambda *document: came.append(document), derived_uid="derived")
    publisher.publish(make_estimate(0))
    write()
    assert gathers == (not spans(written))
    entry.flush()
    publisher.publish(make_estimate(1))
    publisher.publish(make_estimate(2))
    write()
    publisher.close(None, "abort")
    # The end comes behind all that waited.
    write()
    rows, event = COLUMNS * ["stream_datum"], ["event"]
    kinds = [name for name, _ in written if name in ("stream_datum", "event", "stop")]
    if gathers:
        assert kinds == [*rows, *event, *rows, *event, *event, "stop"]
        assert spans(written) == COLUMNS * [span(0, 1)] + COLUMNS * [span(1, 3)]
    else:
        assert kinds == 3 * [*rows, *event] + ["stop"]
        assert spans(written) == [span(k, k + 1) for k in range(3) for _ in range(COLUMNS)]
    assert [doc["seq_num"] for name, doc in written if name == "event"] == [1, 2, 3]
    assert entry.events == {"reconstruction": 3} and entry.has_ended


def test_rows_that_do_not_follow_are_written_on_their_own(written):
    entry = entry_of("derived", True)
    for first, last in ((0, 1), (1, 2), (4, 5), (5, 7)):
        indices, numbers = span(first, last)
        entry.write("stream_datum", {"stream_resource": "a", "indices": indices, "seq_nums": numbers})
    entry.flush()
    entry.flush()
    assert spans(written) == [span(0, 2), span(4, 7)]


def event(stream, number):
    return {"descriptor": stream, "seq_num": number}


def test_events_wait_for_others_and_none_for_long():
    now = [0.0]
    waiting = WaitingDocuments(Patience(3, 0.5), lambda: now[0])
    assert not waiting.are_due
    waiting.add_event(event("agent", 1))
    now[0] = 0.49
    waiting.add_event(event("frames", 1))
    assert not waiting.are_due and not waiting.are_enough
    now[0] = 0.5
    assert waiting.are_due
    waiting.add_event(event("frames", 2))
    assert waiting.are_enough
    assert list(waiting.take()) == [
        ("event", [event("agent", 1)]), ("event", [event("frames", 1), event("frames", 2)])
    ]  # fmt: skip
    assert not waiting.are_due and not waiting.are_enough and list(waiting.take()) == []


def test_a_slow_server_is_asked_less_often():
    """Writing what did not wait for its full number takes a fifth of the time at most."""
    now = [0.0]
    waiting = WaitingDocuments(Patience(16, 0.5), lambda: now[0])
    waiting.add_event(event("frames", 1))
    for _ in waiting.take():
        now[0] += 2.0
    waiting.add_event(event("frames", 2))
    now[0] += 2.0 * SPARED - 0.1
    assert not waiting.are_due
    now[0] += 0.2
    assert waiting.are_due


def test_a_page_of_events_is_its_events():
    page = {
        "uid": ["a", "b"], "descriptor": "d", "seq_num": [1, 2], "time": [0.0, 1.0], "data": {"x": [3, 4]},
        "timestamps": {"x": [0.0, 1.0]}, "filled": {},
    }  # fmt: skip
    assert [(each["seq_num"], each["data"]) for each in rows_of_page(page)] == [(1, {"x": 3}), (2, {"x": 4})]
