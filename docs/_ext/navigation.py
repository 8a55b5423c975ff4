"""The navigation of the site is the front page's own lists: a page that has a line there is found in the side bar."""

import re

from sphinx.application import Sphinx

LISTS = ("index", "decisions/README")
SECTION = re.compile(r"^(?=## )", re.MULTILINE)
# A link to a page, perhaps to one of its headings.
PAGE = re.compile(r"\[([^\]]+)\]\((?!https?:|\.\./)([^)#\s]+)\.(?:md|rst)(?:#[^)\s]*)?\)")
# Files beside the folder of the documentation, which has a page that includes each of them.
OUTSIDE = re.compile(r"\]\(((?:\.\./)*)\.\./(CHANGELOG|CONTRIBUTING)\.md")
BESIDE = re.compile(r"\]\((CHANGELOG|CONTRIBUTING)\.md")


def with_navigation(text: str) -> str:
    """Add to each section of a page a hidden table of contents: the pages that it links, in their order.

    What stands before the first section counts only where there is none.
    """
    before, *sections = SECTION.split(text)
    seen: set[str] = set()
    return before + "".join(_with_table(each, seen) for each in sections) if sections else _with_table(text, seen)


def _with_table(section: str, seen: set[str]) -> str:
    # Of several links to a page the first one counts; what has a number for its text is called as it calls itself.
    pages = {page: text for text, page in reversed(PAGE.findall(section)) if page not in seen}
    seen.update(pages)
    if not pages:
        return section
    entries = [page if text.isdigit() else f"{text} <{page}>" for page, text in reversed(pages.items())]
    heading = re.match(r"## (.*)", section)
    options = [":hidden:", *([f":caption: {heading[1]}"] if heading else [])]
    return "\n".join([section.rstrip("\n"), "", ":::{toctree}", *options, "", *entries, ":::", "", ""])


def _read(app: Sphinx, docname: str, source: list[str]) -> None:
    source[0] = OUTSIDE.sub(lambda link: f"]({link[1]}{link[2].lower()}.md", source[0])
    if docname in LISTS:
        app.env.note_dependency(__file__)
        source[0] = with_navigation(source[0])


def _read_included(app: Sphinx, path: object, docname: str, source: list[str]) -> None:
    source[0] = BESIDE.sub(lambda link: f"](docs/{link[1].lower()}.md", source[0])


def setup(app: Sphinx) -> dict[str, bool]:
    """Have pages read so."""
    app.connect("source-read", _read)
    app.connect("include-read", _read_included)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
