"""The directives ``configuration`` and ``commands``: reference pages from the code that defines what they tell."""

from collections.abc import Callable
from pathlib import Path

from commands import command_lines
from configuration import configuration_lines
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

import bluesky_cdi


def directive(lines: Callable[[], list[str]], code: str) -> type[SphinxDirective]:
    """Make a directive of a function that gives a page in Markdown, from the code that a pattern names."""

    class Generated(SphinxDirective):
        def run(self) -> list[nodes.Node]:
            for path in (*Path(bluesky_cdi.__file__).parent.glob(code), *Path(__file__).parent.glob("*.py")):
                self.env.note_dependency(str(path))
            return self.parse_text_to_nodes("\n".join(lines()), allow_section_headings=True)

    return Generated


def setup(app: Sphinx) -> dict[str, bool]:
    """Add the directives."""
    app.add_directive("configuration", directive(configuration_lines, "config.py"))
    app.add_directive("commands", directive(command_lines, "cli/**/*.py"))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
