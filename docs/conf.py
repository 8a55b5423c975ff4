"""How Sphinx builds the documentation site: ``make docs``."""

import importlib
import os
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

from bluesky_cdi import __version__

# How wide the usage of a command is.
os.environ["COLUMNS"] = "88"

project = "bluesky_cdi"
release = version = __version__
copyright = "its contributors, BSD-3-Clause"
html_title = f"bluesky_cdi {release}"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.viewcode",
    "numpydoc",
    "navigation",
    "generated",
]
# The front page is README.md under the name that a web server looks for (index.md is a link to it).
root_doc = "index"
exclude_patterns = ["README.md", "_ext", "_static", "_templates"]
templates_path = ["_templates"]

# Markdown: headings down to the third level can be linked, as in other programs that show it.
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3

# Reference from docstrings. `name` in them is a link where it is the name of something that is documented.
default_role = "py:obj"
# Blocks that name no language are commands and what they print.
highlight_language = "text"
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 88
numpydoc_show_class_members = False
numpydoc_class_members_toctree = False

# Nothing is fetched when a page is read: the theme brings its own scripts, and fonts are the reader's.
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False

# A package whose names are loaded when they are used is asked for them once, so that they are found.
for _package in ("bluesky_cdi.catalog",):
    _module = importlib.import_module(_package)
    for _name in _module.__all__:
        setattr(_module, _name, getattr(_module, _name))


# A type of arrays says little at length; shape and type of the numbers are in the docstring.
_NAME = r"~?(?:\w+\.)*"
_ARRAY = re.compile(
    rf"{_NAME}ndarray\[(?:{_NAME}tuple\[{_NAME}Any, \.\.\.\]|{_NAME}Any), {_NAME}dtype\[[~\w.]+(?:\[[~\w.]+\])?\]\]"
)
_OBJECT = re.compile(r"<[\w.]*?(\w+) object(?: at \w+)?>")


def _readable(app, what, name, obj, options, signature, returns):
    """Write arrays and defaults of a signature so that it can be read, with no address in it."""
    plain = [
        _OBJECT.sub(r"\1()", _ARRAY.sub("ndarray", part)).replace("<factory>", "...") if part else part
        for part in (signature, returns)
    ]
    return None if plain == [signature, returns] else tuple(plain)


def setup(app):
    """Connect what is not said above."""
    app.connect("autodoc-process-signature", _readable)
