"""The form of a derived run is documented: key by key, array by array."""

import re
import subprocess
from pathlib import Path

import pytest

from bluesky_cdi.catalog.provenance import commit_of, versions
from bluesky_cdi.catalog.result_file import FRAMES, MAPS, SCALARS, UPDATED
from bluesky_cdi.catalog.schema import NOTED_AT_END, StartNotes, StopNotes, Versions, checked, sample_of, title_of
from bluesky_cdi.errors import DocumentError

PAGE = (Path(__file__).parents[3] / "docs" / "catalog.md").read_text(encoding="utf-8")
KINDS = {"<f4": "float32", "<f8": "float64", "<i8": "int64", "<c8": "complex64"}


def section(head, until):
    return PAGE[PAGE.index(head) : PAGE.index(until)]


def documented(text):
    return {name for row in re.findall(r"^\| (`.+?) \|", text, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)}


@pytest.mark.parametrize(
    ("form", "head", "until"),
    [(StartNotes, "**Start document**", "**Stop document**"), (StopNotes, "**Stop document**", "`exit_status` and")],
)
def test_every_key_is_documented_and_no_other(form, head, until):
    assert documented(section(head, until)) == set(form.model_fields)
    assert all(field.description for field in form.model_fields.values())


def test_every_version_is_documented():
    text = section("**Start document**", "**Stop document**")
    assert {name for name in Versions.model_fields if f"`{name}`" in text} == set(Versions.model_fields)


def test_every_array_is_documented_with_its_type_and_unit():
    text = section("**Stream `reconstruction`**", "**Stream `frames`**")
    assert documented(text) == {*UPDATED, *SCALARS}
    for name, column in UPDATED.items():
        (row,) = (row for row in text.splitlines() if row.startswith("|") and f"`{name}`" in row)
        assert KINDS[column.dtype] in row and (column.units or "") in row
    rest = PAGE[PAGE.index("**Stream `frames`**") :]
    assert {name for name in (*FRAMES, *MAPS) if f"`{name}`" not in rest} == set()


def test_what_is_noted_at_the_end_has_its_key():
    assert set(NOTED_AT_END) < set(StopNotes.model_fields)


@pytest.mark.parametrize(
    ("notes", "match"),
    [
        ({"complete": True, "n_frames": 3, "mood": "fine"}, "mood: Extra inputs"),
        ({"complete": True}, "n_frames: Field required"),
        ({"complete": True, "n_frames": 3, "loss_history": {"iteration": [1]}}, "loss_history.deviance: Field"),
    ],
)
def test_what_is_not_of_the_form_is_refused(notes, match):
    with pytest.raises(DocumentError, match=match):
        checked(StopNotes, notes)


@pytest.mark.parametrize(
    ("start", "sample"),
    [({"sample": "A"}, "A"), ({"sample": {"name": "B", "x": 1}}, "B"), ({"sample_name": 7}, "7"), ({}, None)],
)
def test_the_sample_is_what_beamlines_call_so(start, sample):
    assert sample_of(start) == sample


def test_a_title_tells_what_there_is():
    assert title_of({}) == ""
    assert title_of({"scan_id": 3, "plan_name": "count"}) == "count, scan 3"


def test_the_commit_of_a_checkout(tmp_path):
    assert commit_of(tmp_path) is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "one"], ["tag", "v1"]):
        subprocess.run([*git, *words], check=True)
    (tmp_path / "a").write_text("1")
    subprocess.run([*git, "add", "a"], check=True)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    assert commit_of(tmp_path) == f"{commit}-dirty"


def test_versions_are_those_of_the_form():
    Versions.model_validate(versions())
    assert versions()["bluesky"] and versions()["torch"]
