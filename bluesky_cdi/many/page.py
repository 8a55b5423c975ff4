"""A page of thumbnails: one HTML file that fetches nothing, runs nothing, and can be sent on by itself."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from html import escape
from pathlib import Path
from urllib.parse import quote

from bluesky_cdi import __version__
from bluesky_cdi.io import written_whole
from bluesky_cdi.many.rows import Row
from bluesky_cdi.many.summary import CSV, JSON, counted

PAGE = "index.html"
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
STYLE = """
body { font: 15px/1.4 system-ui, sans-serif; margin: 2rem; color: #1a1a1a; background: #fff; }
ul { list-style: none; padding: 0; display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: 1rem; }
li { border: 1px solid #ccc; border-left: .4rem solid #767676; padding: .6rem .8rem; overflow-wrap: anywhere; }
li.good { border-left-color: #1b7f3b; } li.doubtful { border-left-color: #b07400; } li.failed { border-left-color: #b3261e; }
h2 { font-size: 1rem; margin: 0 0 .4rem; } p { margin: .3rem 0; } .of { color: #555; font-size: .85rem; }
img { display: block; width: 160px; height: 160px; object-fit: contain; background: #f2f2f2; image-rendering: pixelated; }
"""  # noqa: E501 (a rule a line)
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def write_page(folder: Path, rows: Sequence[Row], title: str) -> Path:
    """Write the page.

    Parameters
    ----------
    folder : Path
        Where; results that it links to lie there too.
    rows : sequence of Row
        One a scan.
    title : str
        What the page is called.

    Returns
    -------
    Path
        The page.

    Raises
    ------
    ScanFileError
        If it can't be written.
    """
    path = folder / PAGE
    with written_whole(path) as partial:
        partial.write_text(page(rows, title), encoding="utf-8")
    return path


def page(rows: Sequence[Row], title: str) -> str:
    """Make the page's HTML; all that comes from files is escaped.

    Parameters
    ----------
    rows : sequence of Row
        One a scan.
    title : str
        What the page is called.
    """
    items = "\n".join(_item(row) for row in rows)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{escape(POLICY)}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<h1>{escape(title)}</h1>
<p>{escape(counted(rows))}</p>
<p class="of">Phase in grey. The same as a table: <a href="{CSV}">{CSV}</a>, <a href="{JSON}">{JSON}</a>.
bluesky_cdi {escape(__version__)}</p>
<ul>
{items}
</ul>
</body>
</html>
"""


def _item(row: Row) -> str:
    kind = row.verdict if row.state == "done" and row.verdict in ("good", "doubtful", "failed") else row.state
    said = [row.verdict or row.state]
    said += [] if row.frames is None else [f"{row.frames} frames"]
    said += [] if row.iterations is None else [f"{row.iterations} iterations of {row.engine}"]
    said += [] if row.deviance_per_pixel is None else [f"deviance {row.deviance_per_pixel:.3g} a pixel"]
    said += [] if row.pixel_m is None else [f"pixel {row.pixel_m * 1e9:.3g} nm"]
    lines = [f"<p>{escape(', '.join(said))}</p>"]
    lines += [f"<p>{escape(text)}</p>" for text in (row.reason, row.probe, *row.warnings) if text]
    lines.append(f'<p class="of">{escape(row.source)}</p>')
    return f'<li class="{escape(kind.replace(" ", "-"))}"><h2>{_title(row)}</h2>{_image(row)}{"".join(lines)}</li>'


def _title(row: Row) -> str:
    if row.result is None:
        return escape(row.scan)
    return f'<a href="{escape(quote("./" + Path(row.result).name))}">{escape(row.scan)}</a>'


def _image(row: Row) -> str:
    """Show a thumbnail, if it is a PNG: the text comes from a file."""
    try:
        drawn = base64.b64decode(row.thumbnail or "", validate=True)
    except (binascii.Error, ValueError):
        drawn = b""
    if not drawn.startswith(PNG_SIGNATURE):
        return ""
    text = base64.b64encode(drawn).decode("ascii")
    return f'<img alt="phase of {escape(row.scan)}" src="data:image/png;base64,{text}">'
