"""What is loaded is kept out of collections of garbage, and nothing else."""

import gc
import weakref

import pytest

from bluesky_cdi.memory import keep_loaded
from bluesky_cdi.remote import child


class Node:
    pass


def cycle():
    node = Node()
    node.itself = node
    return node


def test_what_is_kept_is_not_looked_through_and_garbage_is_still_found():
    before = cycle()
    dropped = weakref.ref(cycle())
    try:
        kept = keep_loaded()
        looked_through = {id(each) for each in gc.get_objects()}
        assert kept > len(looked_through) and id(before) not in looked_through
        # What was garbage before is none of it, and what becomes garbage is collected.
        assert dropped() is None
        after = cycle()
        assert id(after) in {id(each) for each in gc.get_objects()}
        reference = weakref.ref(after)
        del after
        gc.collect()
        assert reference() is None
    finally:
        # As it is for all tests.
        gc.unfreeze()
        gc.collect()
        gc.freeze()


def test_the_reconstruction_s_process_keeps_what_it_has_loaded_before_it_is_ready(monkeypatch):
    told = []

    class Session:
        def __init__(self, connection):
            pass

        def send(self, name, *values):
            told.append(name)

        def receive(self):
            if "ready" in told:
                raise EOFError
            return "setup", "factory", {}

    class Made:
        def start(self, listeners):
            told.append("started")
            return None, None

    def leave(code):
        raise SystemExit(code)

    monkeypatch.setattr(child, "Channel", Session)
    monkeypatch.setattr(child, "Connection", lambda number: number)
    monkeypatch.setattr(child, "ROOT_NAME", "a process of a test")
    monkeypatch.setattr("faulthandler.enable", lambda: None)
    monkeypatch.setattr(child, "keep_loaded", lambda: told.append("kept"))
    monkeypatch.setattr("bluesky_cdi.remote.child.os._exit", leave)
    monkeypatch.setattr(child.Served, "_beat", lambda self: None)
    with pytest.raises(SystemExit):
        child.serve(0, lambda channel, factory, arguments: Made())
    assert told == ["started", "kept", "ready"]
