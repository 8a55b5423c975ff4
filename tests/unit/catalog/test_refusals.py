"""What a catalog does not take of a run, and where it is kept."""

import contextlib

import pytest

from bluesky_cdi.catalog.refusals import Refusals
from bluesky_cdi.journal import Journal, JournalReader

DOCUMENTS = [
    ("start", {"uid": "run"}),
    ("descriptor", {"uid": "one", "run_start": "run"}),
    ("event", {"uid": "a", "descriptor": "one"}),
    ("descriptor", {"uid": "other", "run_start": "run"}),
    ("event", {"uid": "b", "descriptor": "other"}),
    ("stop", {"uid": "end", "run_start": "run"}),
]


@pytest.fixture
def reader(tmp_path):
    with contextlib.closing(Journal(tmp_path / "raw")) as journal:
        for name, doc in DOCUMENTS:
            journal(name, doc)
    with contextlib.closing(JournalReader(tmp_path / "raw" / "run.journal")) as opened:
        yield opened


def test_what_refers_to_a_refused_document_is_refused_and_kept_with_it(reader, tmp_path):
    refusals = Refusals(tmp_path / "refused")
    refusals.add(3, ValueError("no such stream"))
    for _ in range(2):
        refusals.begin()
        assert [refusals.cover(k, doc) for k, (_, doc) in enumerate(DOCUMENTS)] == [k in (3, 4) for k in range(6)]
    assert len(refusals) == 2
    path = refusals.keep(reader)
    assert path == tmp_path / "refused" / "run.journal"
    with contextlib.closing(JournalReader(path)) as kept:
        # All but the event that the catalog took.
        assert list(kept.documents()) == [DOCUMENTS[k] for k in (0, 1, 3, 4, 5)]


def test_a_whole_file_is_copied_or_taken_away(reader, tmp_path):
    refusals, before = Refusals(tmp_path / "refused"), reader.path.read_bytes()
    assert refusals.keep_copy(reader.path).read_bytes() == before == reader.path.read_bytes()
    assert refusals.take(reader.path).read_bytes() == before and not reader.path.exists()
