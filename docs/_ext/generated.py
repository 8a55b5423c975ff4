"""The directives ``configuration`` and ``commands``: reference pages from the code that defines what they tell."""

from collections.abc import Callable

from commands import command_lines
from configuration import configuration_lines
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


def directive(lines: Callable[[], list[str]]) -> type[SphinxDirective]:
    """Make a directive of a function that gives the lines of a page, in Markdown."""

    class Generated(SphinxDirective):
        def run(self) -> list[nodes.Node]:
            return self.parse_text_to_nodes("\n".join(lines()), allow_section_headings=True)

    return Generated


def setup(app: Sphinx) -> dict[str, bool]:
    """Add the directives."""
    app.add_directive("configuration", directive(configuration_lines))
    app.add_directive("commands", directive(command_lines))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
