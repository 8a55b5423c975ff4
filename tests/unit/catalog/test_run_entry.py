"""What is written of a run at a time; that it arrives is tested with a server."""

from types import SimpleNamespace

import bluesky_tiled_plugins
import pytest

from bluesky_cdi.catalog import ResultPublisher
from bluesky_cdi.catalog.masks import Masks
from bluesky_cdi.catalog.run_entry import RunEntry

COLUMNS = 9


@pytest.fixture
def written(monkeypatch):
    """What Tiled's writer was given."""
    documents = []
    monkeypatch.setattr(
        bluesky_tiled_plugins, "TiledWriter", lambda *_, **__: lambda name, doc: documents.append((name, doc))
    )
    return documents


def entry_of(uid, gathers):
    return RunEntry(SimpleNamespace(uri="", processed={}), "processed", uid, 1, Masks(), gathers)


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
