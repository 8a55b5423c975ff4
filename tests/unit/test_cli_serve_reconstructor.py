"""``serve-reconstructor``: keys and what it refuses; that it serves is tested in tests/faults."""

import json

import pytest

from bluesky_cdi.cli import main


def test_keys_for_a_machine_are_made(tmp_path, capsys):
    assert main(["serve-reconstructor", "--keys", str(tmp_path / "keys"), "--new-client", "beamline", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)["keys"]
    assert made == str(tmp_path / "keys" / "for-beamline")
    assert sorted(each.name for each in (tmp_path / "keys" / "for-beamline").iterdir()) == [
        "client.key_secret",
        "host.key",
    ]


def test_a_file_among_the_clients_that_is_no_key_is_told(tmp_path, capsys):
    assert main(["serve-reconstructor", "--keys", str(tmp_path), "--new-client", "beamline"]) == 0
    (tmp_path / "clients" / "notes.key").write_text("not a key")
    assert main(["serve-reconstructor", "--port", "0", "--keys", str(tmp_path)]) == 1
    assert "notes.key must be a key that" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--new-client", "beamline"], "--new-client needs the folder of the keys: --keys FOLDER"),
        (["--host", "0.0.0.0"], "must have keys"),
        (["--paths", "/beamline=/not/there"], "Is /not/there mounted here?"),
        (["--paths", "beamline"], "--paths takes an absolute folder"),
        (["--keys", "/not/there"], "must be a key that"),
        (["--device", "cpu", "cuda:99"], "got cuda:99"),
    ],
)
def test_what_can_not_be_served_is_told(options, told, capsys):
    assert main(["serve-reconstructor", "--port", "0", *options]) == 1
    assert told in capsys.readouterr().err
