"""What ``bluesky-cdi follow`` makes of its options."""

import contextlib
import json

import pytest

import bluesky_cdi.follow
from bluesky_cdi.callbacks import SharedFolders
from bluesky_cdi.cli import main
from bluesky_cdi.follow import Finished, Selection
from bluesky_cdi.follow.kafka_source import KafkaSource
from bluesky_cdi.follow.zmq_source import ZmqSource


@pytest.fixture
def called(monkeypatch):
    """What a follower is made from; it tells of two runs."""
    made = {}

    class Follower:
        def __init__(self, config, source, directory, *, tell, **options):
            made.update(config=config, source=source, directory=directory, **options)
            self._tell = tell

        def __enter__(self):
            return self

        def __exit__(self, *_):
            made["source"].close()

        def run(self, is_told_to_end):
            assert not is_told_to_end()
            self._tell(Finished("0123456789", 4, "result", 81, 2, "doubtful", "doubtful: so it is"))
            self._tell(Finished("9876543210", 5, said="there is no image of it"))

    monkeypatch.setattr(bluesky_cdi.follow, "Follower", Follower)
    return made


def test_a_proxy(called, capsys, tmp_path):
    options = [
        "--paths",
        f"/a={tmp_path}",
        "--only",
        "x=y",
        "--share",
        "1/2",
        "--at-once",
        "3",
        "--prefix",
        "p",
        "--silent-s",
        "9",
    ]
    where = ["--zmq", "127.0.0.1:9", "--publish", "host:8", "--images", str(tmp_path / "images")]
    assert main(["follow", *where, *options, "folder"]) == 0
    assert isinstance(called["source"], ZmqSource) and called["source"].address == "tcp://127.0.0.1:9"
    assert called["paths"] == SharedFolders.parse([f"/a={tmp_path}"])
    assert called["selection"] == Selection((("x", "y"),), (1, 2))
    assert (called["at_once"], called["silent_s"], str(called["directory"])) == (3, 9.0, "folder")
    assert called["publish"] == {"zmq": {"address": "tcp://host:8", "prefix": "p", "curve": None}}
    assert (tmp_path / "images").is_dir()
    assert capsys.readouterr().out.splitlines() == [
        "run 4 (01234567): 81 frames in result: doubtful: so it is",
        "run 5 (98765432): no image: there is no image of it",
    ]


def test_brokers(called, capsys, tmp_path):
    pytest.importorskip("confluent_kafka")
    (tmp_path / "k.yaml").write_text("client.id: here\n")
    options = ["--topic", "t", "--group", "g", "--kafka-settings", str(tmp_path / "k.yaml"), "--publish", "results"]
    assert main(["follow", "--kafka", "127.0.0.1:9", *options, "--json"]) == 0
    assert isinstance(called["source"], KafkaSource)
    settings = {"client.id": "here", "bootstrap.servers": "127.0.0.1:9"}
    assert called["publish"] == {"kafka": {"settings": settings, "topic": "results"}}
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert (first["scan_id"], first["n_missing"], second["result_uid"]) == (4, 2, None)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--kafka", "a:1"], "--topic NAME"),
        (["--kafka", "a:1", "--topic", "t", "--trust-pickle"], "belong to --zmq"),
        (["--kafka", "a:1", "--topic", "t", "--prefix", "p"], "belong to --zmq"),
        (["--zmq", "a"], "HOST:PORT"),
        (["--zmq", "a:1", "--trust-pickle"], "by CURVE"),
        (["--zmq", "a:1", "--curve-server", "x"], "CURVE needs two keys"),
        (["--zmq", "a:1", "--publish", "x"], "HOST:PORT"),
        (["--zmq", "a:1", "--share", "3/2"], "a share is K/N"),
        (["--zmq", "a:1", "--paths", "x"], "absolute"),
    ],
)
def test_options_that_are_of_no_use(called, capsys, options, why):
    assert main(["follow", *options]) == 1
    assert why in capsys.readouterr().err
    assert not called


def test_options_that_exclude_each_other(capsys):
    for options in ([], ["--zmq", "a:1", "--kafka", "b:1"]):
        with pytest.raises(SystemExit) as ended, contextlib.redirect_stderr(None):
            main(["follow", *options])
        assert ended.value.code == 2
