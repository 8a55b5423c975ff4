"""The page's own files: libraries as they were published, nothing from elsewhere, and no markup made of data."""

import hashlib
import re
from pathlib import Path

import pytest

from bluesky_cdi.web.application import static_files

STATIC = Path(__file__).parents[3] / "bluesky_cdi" / "web" / "static"
OWN = sorted(path.name for path in STATIC.iterdir() if path.suffix in (".js", ".html", ".css", ".svg"))


def test_libraries_are_those_that_were_published():
    table = (STATIC / "vendor" / "README.md").read_text(encoding="utf-8")
    listed = dict(re.findall(r"^\| `([^`]+)` .* `([0-9a-f]{64})` \|$", table, re.MULTILINE))
    there = {path.name for path in (STATIC / "vendor").iterdir() if path.suffix in (".js", ".css")}
    assert set(listed) == there
    for name, checksum in listed.items():
        assert hashlib.sha256((STATIC / "vendor" / name).read_bytes()).hexdigest() == checksum, name
        licence = re.search(rf"`{re.escape(name)}`.*`([^`]+\.LICENSE)`", table)[1]
        assert "Permission is hereby granted" in (STATIC / "vendor" / licence).read_text(encoding="utf-8")


def test_all_files_are_served_and_small():
    served = static_files()
    assert {name for name in served if "/" not in name} == set(OWN)
    assert sum(map(len, served.values())) < 200_000


@pytest.mark.parametrize("name", OWN)
def test_nothing_comes_from_elsewhere_and_data_becomes_text(name):
    text = (STATIC / name).read_text(encoding="utf-8")
    addresses = set(re.findall(r"https?://[^\s\"'`<>)]+|(?<![:\w])//[a-z][\w.-]+\.[a-z]{2,}", text))
    assert addresses <= {"http://www.w3.org/2000/svg"}
    for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function", "srcdoc"):
        code = re.sub(r"^\s*//.*$", "", text, flags=re.MULTILINE)
        assert word not in code
    # What the policy forbids would silently do nothing.
    assert not re.search(r"<[a-z][^>]*\s(on[a-z]+|style)=", text)


def test_imports_lead_to_files_that_are_there():
    served = static_files()
    for name in OWN:
        text = served[name].decode()
        for other in re.findall(r'from "\./([^"]+)"', text) + re.findall(r'"/page/static/([^"]+)"', text):
            assert other in served, f"{name}: {other}"
