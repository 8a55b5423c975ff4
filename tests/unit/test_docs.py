"""The documents: links, commands, configuration keys, environment variables, and their forms."""

import importlib
import re
import shlex
from functools import cache
from operator import attrgetter
from pathlib import Path

import pytest
import yaml

from bluesky_cdi.cli import main
from bluesky_cdi.config import RENAMED_KEYS, Config, Section, load_config

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
# The front page of the site is a link to that of the folder.
PAGES = [page for page in (*ROOT.glob("*.md"), *DOCS.rglob("*.md")) if not page.is_symlink()]
RECORDS = sorted((DOCS / "decisions").glob("0*.md"))
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"^ {4}(\S.*)$", re.MULTILINE)
SPAN = re.compile(r"`([^`]+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
VARIABLE = re.compile(r"BLUESKY_CDI_[A-Z]+")
README_LINES = 150
README_RESULTS = 6


def name_of(path):
    return str(path.relative_to(ROOT))


def prose(path):
    """A page without its code blocks."""
    return FENCED.sub("", path.read_text(encoding="utf-8"))


def spans(path):
    return [" ".join(span.split()) for span in SPAN.findall(INDENTED.sub("", prose(path)))]


def blocks(path, language):
    return [code for kind, code in FENCED.findall(path.read_text(encoding="utf-8")) if kind == language]


def headings(text, level):
    return re.findall(rf"^{'#' * level} (.+)$", text, re.MULTILINE)


@cache
def anchors(path):
    """The names under which a page's headings can be linked: lower case, no punctuation, hyphens for spaces."""
    titles = [title.replace("`", "") for title in re.findall(r"^#+ (.+)$", prose(path), re.MULTILINE)]
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def tables(text):
    """Each table's rows, with the line of text before it."""
    found = re.findall(r"([^\n]*)\n\n((?:\|[^\n]*\n)+)", text)
    return [
        (before, [[cell.strip() for cell in row.strip("|").split("|")] for row in rows.splitlines()])
        for before, rows in found
    ]


def commands_of(path):
    """What a page tells to type: lines of its code blocks, and code in its sentences."""
    text = path.read_text(encoding="utf-8")
    lines = [line for _, code in FENCED.findall(text) for line in code.splitlines()]
    lines += INDENTED.findall(FENCED.sub("", text)) + spans(path)
    return [
        (name_of(path), "bluesky-cdi" + line.split("#")[0].split("bluesky-cdi", 1)[1])
        for line in lines
        if re.search(r"(^|[\s/(])bluesky-cdi( |$)", line.split("#")[0])
    ]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    for target in LINK.findall(SPAN.sub("", prose(page))):
        if target.startswith("https://"):
            continue
        file, _, anchor = target.partition("#")
        there = (page.parent / file).resolve() if file else page
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), target


@pytest.mark.parametrize(("page", "command"), sorted({c for page in PAGES for c in commands_of(page)}))
def test_commands_and_their_options_exist(page, command, capsys):
    words = shlex.split(command)[1:]
    parts = [] if not words or words[0].startswith("-") else words[: 2 if words[0] == "bench" else 1]
    with pytest.raises(SystemExit) as ended:
        main([*parts, "--help"])
    assert ended.value.code == 0
    known = set(re.findall(r"(?<!\w)-{1,2}[a-z][a-z-]*", capsys.readouterr().out))
    assert {word for word in words if re.fullmatch(r"-{1,2}[a-z][a-z-]*", word)} <= known


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_scripts_that_are_named_exist(page):
    for script in re.findall(r"\bpython ([\w/]+\.py)\b", page.read_text(encoding="utf-8")):
        # Or the page shows the file itself, its name in the first line.
        assert (ROOT / script).is_file() or f"\n# {script}\n" in page.read_text(encoding="utf-8"), script


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_configuration_keys_exist(page):
    for span in spans(page):
        section, _, key = span.partition(".")
        if section in Config.model_fields and re.fullmatch(r"[a-z_]+", key) and span not in RENAMED_KEYS:
            assert key in Config.model_fields[section].annotation.model_fields, span


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_examples_are_sound(page):
    for code in blocks(page, "python"):
        compile(code, name_of(page), "exec")
    for code in blocks(page, "yaml"):
        load_config(overrides=yaml.safe_load(code))


def test_every_environment_variable_is_explained():
    code = [ROOT / "Makefile", *(p for d in ("bluesky_cdi", "profiles", "tests") for p in (ROOT / d).rglob("*.py"))]
    read = {name for path in code for name in VARIABLE.findall(path.read_text(encoding="utf-8"))}
    assert read == set(VARIABLE.findall((DOCS / "environment.md").read_text(encoding="utf-8")))


def test_the_readme_is_short_and_has_few_results():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= README_LINES
    ((_, (_, _, *rows)),) = tables(text)
    assert len(rows) == README_RESULTS
    for _, result, baseline, command in rows:
        assert re.match(r"\*{0,2}[\d.,]+\*{0,2}$", result)
        assert re.match(r"\*{0,2}[\d.,]+\*{0,2} \(.+\)$", baseline)
        assert SPAN.fullmatch(command)


def test_results_have_a_line_before_each_table():
    found = tables((DOCS / "results.md").read_text(encoding="utf-8"))
    assert found
    for before, (header, _, *rows) in found:
        assert before.endswith(":"), header
        for row in rows:
            assert re.fullmatch(r"[\d.,]*", row[-1]), row


@pytest.mark.parametrize("record", RECORDS, ids=name_of)
def test_decision_records_have_one_form(record):
    text = record.read_text(encoding="utf-8")
    assert headings(text, 2) == ["Status", "Context", "Decision", "Consequences"]
    (title,) = headings(text, 1)
    assert title.startswith(f"{record.name[:4]}: ")


def test_decision_records_are_numbered_and_listed():
    assert [record.name[:4] for record in RECORDS] == [f"{n:04}" for n in range(1, len(RECORDS) + 1)]
    index = LINK.findall((DOCS / "decisions/README.md").read_text(encoding="utf-8"))
    assert [target for target in index if target.startswith("0")] == [record.name for record in RECORDS]


def test_every_page_is_listed():
    listed = {(DOCS / target.partition("#")[0]).resolve() for target in LINK.findall(prose(DOCS / "README.md"))}
    # Two pages of the site include a file beside the folder, which is listed itself.
    own = {page for page in DOCS.glob("*.md") if page.name not in ("README.md", "index.md")}
    assert {page for page in own if not page.read_text(encoding="utf-8").startswith(":::{include} ../")} <= listed


@pytest.fixture
def extension(monkeypatch):
    """Import a module that the build of the site uses."""
    monkeypatch.syspath_prepend(DOCS / "_ext")
    return importlib.import_module


def entries(lines, directive):
    """From the argument of each directive in the lines to all that is said in it."""
    return dict(re.findall(rf"^:::{{{directive}}} (.*?)\n(.*?)^:::$", "\n".join(lines), re.MULTILINE | re.DOTALL))


def keys_of(section, before=""):
    """The keys of a section and of those inside it, with dots."""
    found = []
    for name, field in section.model_fields.items():
        is_section = isinstance(field.annotation, type) and issubclass(field.annotation, Section)
        found += keys_of(field.annotation, f"{before}{name}.") if is_section else [f"{before}{name}"]
    return found


def test_the_configuration_page_has_each_key_with_bounds_unit_and_default(extension):
    told = entries(extension("configuration").configuration_lines(), "confval")
    keys = keys_of(Config)
    assert list(told) == keys and "documents.time_stamps.offset_s" in keys
    assert ":type: number, > 0; electronvolts\n:default: `8000.0`\n\nPhoton energy, eV." in told["geometry.energy_ev"]
    assert ":type: integer, ≥ 16, ≤ 1024, a multiple of 2; pixels" in told["geometry.frame_px"]
    assert ":type: `far` | `near`\n:default: `far`" in told["geometry.propagation"]
    assert ":type: list of 2 texts or null\n:default: `null`" in told["documents.position_keys"]
    assert ":type: list of 4 integers or null; pixels" in told["detector.region_px"]
    assert ":default: `[3.6, 3.6]`" in told["scan.extent_um"]
    for key in keys:
        default = re.search(r":default: `(.*)`", told[key])[1]
        stated = yaml.safe_load(default)
        for name in reversed(key.split(".")):
            stated = {name: stated}
        assert attrgetter(key)(load_config(overrides=stated)) == attrgetter(key)(Config()), key


def test_the_page_of_commands_has_each_command_and_option(extension, capsys):
    lines = extension("commands").command_lines()
    headings = [line.lstrip("# ") for line in lines if line.startswith("##")]
    assert {"bluesky-cdi demo", "bluesky-cdi bench quality", "bluesky-cdi reconstruct"} <= set(headings)
    with pytest.raises(SystemExit):
        main(["reconstruct", "--help"])
    start = lines.index("## bluesky-cdi reconstruct")
    end = next(k for k in range(start + 1, len(lines)) if lines[k].startswith("## "))
    told = " ".join(entries([*lines[:start], *lines[start:end]], "option"))
    printed = re.findall(r"^  (?:-\w(?: \w+)?, )?(--[\w-]+)", capsys.readouterr().out, re.MULTILINE)
    assert len(printed) > 20
    assert {option for option in printed if option not in told} == set()


def test_the_side_bar_has_what_the_front_page_lists(extension):
    item = "- [Two *x*](two.md#part): [again](one.md), [file](../CHANGELOG.md)"
    page = f"# Title\n\n[Begin](one.md).\n\n## How to\n\n{item}\n"
    before, after = extension("navigation").with_navigation(page).split("## How to")
    assert "toctree" not in before
    assert after.endswith(":::{toctree}\n:hidden:\n:caption: How to\n\nTwo *x* <two>\nagain <one>\n:::\n\n")
    alone = extension("navigation").with_navigation("| [0001](0001-first.md) | [it](0001-first.md) |\n")
    assert alone.endswith(":::{toctree}\n:hidden:\n\n0001-first\n:::\n\n")
