"""Runs that wait for another catalog than that of their folder."""

import json
import logging
import shutil

import pytest
from event_model import compose_run

from bluesky_cdi import session as session_module
from bluesky_cdi.catalog.destination import destination_of, state_destination
from bluesky_cdi.cli import main
from bluesky_cdi.config import Config
from bluesky_cdi.errors import CatalogError
from bluesky_cdi.journal import Journal
from bluesky_cdi.session import Session


def test_the_address_is_noted_without_its_key(tmp_path):
    journal = tmp_path / "journal"
    assert destination_of(journal) is None
    state_destination(journal, "https://me:word@lab:8000/api/v1/metadata/beamline?api_key=secret")
    assert destination_of(journal) == "https://lab:8000/api/v1/metadata/beamline"
    assert "secret" not in (journal / "catalog.address").read_text()
    state_destination(journal, None)
    assert destination_of(journal) is None


@pytest.fixture
def killed(tmp_path, empty_catalog):
    """The folder of a session on another server, which was killed after a run."""

    def made(uri):
        folder = shutil.copytree(empty_catalog, tmp_path / "killed session")
        run = compose_run(metadata={"scan_id": 1})
        journal = Journal(folder / "journal" / "raw")
        journal("start", run.start_doc)
        journal("stop", run.compose_stop())
        journal.close()
        state_destination(folder / "journal", uri)
        return folder, run.start_doc["uid"]

    return made


def test_runs_go_to_the_catalog_they_are_for_and_no_other(killed, catalog, capsys, caplog):
    """The command that the message says, typed as it stands but for the key."""
    folder, uid = killed(f"{catalog.uri}?api_key=secret")
    assert main(["restore", str(folder)]) == 1
    said = capsys.readouterr().err
    assert "1 run(s) wait in" in said and f"restore '{folder}' --to {catalog.uri} " in said and "secret" not in said
    key = catalog.raw.context.api_key
    settings = folder / "key.yaml"
    settings.write_text(f"catalog: {{api_key: {key}}}\n")
    assert uid not in catalog.raw
    assert main(["restore", str(folder), "--to", catalog.uri, "-c", str(settings), "--json"]) == 0
    (line,) = json.loads(capsys.readouterr().out)["runs"]
    assert line == f"restored: raw run {uid}, 0 events"
    assert uid in catalog.raw


@pytest.mark.parametrize("command", ["browse", "restore"])
def test_a_configured_catalog_gets_no_runs_that_are_for_another(killed, catalog, capsys, caplog, command):
    folder, uid = killed("http://lab:8000")
    settings = folder / "other.yaml"
    key = catalog.raw.context.api_key
    settings.write_text(f"catalog: {{uri: '{catalog.uri}', api_key: {key}, directory: '{folder}'}}\n")
    with caplog.at_level(logging.WARNING, "bluesky_cdi"):
        assert main([command, "-c", str(settings)]) == int(command == "restore")
    assert "for the catalog at http://lab:8000" in caplog.text + capsys.readouterr().err
    assert uid not in catalog.raw
    state_destination(folder / "journal", catalog.uri)
    assert main([command, "-c", str(settings)]) == 0
    assert uid in catalog.raw


@pytest.mark.parametrize("has_catalog", [True, False])
def test_a_folder_is_looked_at_without_them_and_takes_them_where_that_is_wanted(killed, capsys, caplog, has_catalog):
    folder, uid = killed("http://127.0.0.1:9")
    if not has_catalog:
        (folder / "catalog.db").unlink()
    with caplog.at_level(logging.WARNING, "bluesky_cdi"):
        assert main(["browse", str(folder)]) == int(not has_catalog)
    said = caplog.text if has_catalog else capsys.readouterr().err
    assert ("for the catalog at http://127.0.0.1:9" if has_catalog else "sessions wrote to http://127.0.0.1:9") in said
    if not has_catalog:
        assert main(["restore", str(folder), "--to", "own"]) == 0
        assert f"run {uid}" in capsys.readouterr().out


@pytest.mark.parametrize("to", ["own", "http://127.0.0.1:9"])
def test_a_folder_without_a_journal_is_no_session_s(tmp_path, capsys, to):
    """Its name is misspelt, say: that nothing waits in it does not mean that the catalog has all."""
    folder = tmp_path / "sesion"
    assert main(["restore", str(folder), "--to", to]) == 1
    assert f"{folder} holds no journal" in capsys.readouterr().err and not folder.exists()


def test_a_session_tells_of_runs_that_wait_for_another_catalog(killed, caplog):
    folder, _ = killed("http://lab:8000")
    with caplog.at_level(logging.WARNING, "bluesky_cdi"):
        session_module._tell_of_waiting(folder / "journal", "http://lab:8000?api_key=k")
    assert not caplog.records
    with caplog.at_level(logging.WARNING, "bluesky_cdi"):
        session_module._tell_of_waiting(folder / "journal", None)
    assert "1 run(s) that wait in" in caplog.text and "were for http://lab:8000" in caplog.text


def test_only_a_session_that_begins_notes_its_catalog(killed, patient):
    """One whose server can't be reached leaves the runs that wait to the catalog that they were for."""
    folder, _ = killed("http://lab:8000")
    inside = {"in_process": True}
    there = {"catalog": {"uri": "http://127.0.0.1:9", **inside}, "reconstructor": {"name": "rpie", **inside}}
    with pytest.raises(CatalogError, match=r"127\.0\.0\.1:9"), Session(Config.model_validate(there), folder):
        pass
    assert destination_of(folder / "journal") == "http://lab:8000"
    own = {**there, "catalog": inside}
    with Session(Config.model_validate(own), folder):
        assert destination_of(folder / "journal") is None
