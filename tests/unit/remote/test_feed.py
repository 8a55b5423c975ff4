"""What a process is told, and a new one again."""

from types import SimpleNamespace

import pytest

from bluesky_cdi.journal import Journal
from bluesky_cdi.packing import unpack
from bluesky_cdi.remote.feed import Feed
from bluesky_cdi.remote.process_state import ProcessState
from bluesky_cdi.remote.questions import Questions


@pytest.fixture
def questions():
    return Questions()


@pytest.fixture
def listening():
    return SimpleNamespace(is_wanted=False)


@pytest.fixture
def feed(questions, listening):
    feed = Feed(questions, ProcessState(), listening)
    yield feed
    feed.close()


@pytest.fixture
def run_file(tmp_path):
    journal = Journal(tmp_path)
    journal("start", {"uid": "a", "time": 1.0})
    journal("stop", {"uid": "b", "run_start": "a", "time": 2.0, "exit_status": "success"})
    journal.close()
    (path,) = tmp_path.iterdir()
    return path


def told(tell):
    """What a process is sent: names of documents in place of their records."""
    sent = []
    tell(SimpleNamespace(send=sent.append))
    return [unpack(values[0])[0] if name == "document" else [name, *values] for name, *values in sent]


def test_a_new_process_gets_the_scan_its_run_and_open_questions(feed, questions, listening, run_file):
    begin, request = questions.ask("begin", "area"), questions.ask("request", 4, 0)
    assert told(lambda link: feed.send(link, begin)) == [["begin", 1, "area"]]
    questions.answer(1, "ticket", None)
    assert told(lambda link: feed.send(link, run_file)) == ["start", "stop"]
    assert told(lambda link: feed.send(link, run_file)) == []
    assert told(lambda link: feed.send(link, request)) == [["request", 2, 4, 0]]
    # A scan that was answered has no number any more; one that was not is asked again.
    assert told(feed.send_again) == [["begin", 0, "area"], "start", "stop", ["request", 2, 4, 0]]
    again = questions.ask("begin", "other")
    told(lambda link: feed.send(link, again))
    listening.is_wanted = True
    assert told(feed.send_again) == [["want"], ["begin", 3, "other"], "start", "stop", ["request", 2, 4, 0]]


def test_what_is_left_is_told_no_more(feed, questions, run_file):
    begin = questions.ask("begin", "area")
    assert feed.begins_a_run(begin) and feed.begins_a_run(run_file) and not feed.begins_a_run("want")
    told(lambda link: (feed.send(link, begin), feed.send(link, run_file)))
    questions.answer(1, "ticket", None)
    # Nor after others were left: a run around them may go on.
    feed.leave()
    feed.leave()
    assert not feed.begins_a_run(run_file)
    assert told(lambda link: feed.send(link, run_file)) == told(feed.send_again) == []
