"""The summary of many reconstructions: a table for people, JSON and CSV for programs."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from bluesky_cdi.io import written_whole
from bluesky_cdi.many.rows import Row
from bluesky_cdi.plain import to_json

JSON, CSV = "summary.json", "summary.csv"
STATES = ("done", "failed", "not done")
# Thumbnails are for the page.
COLUMNS = tuple(field.name for field in fields(Row) if field.name != "thumbnail")
# A spreadsheet takes a cell for a formula that begins with one of these.
FORMULA = ("=", "+", "-", "@", "\t", "\r")


def summary_of(rows: Sequence[Row]) -> dict[str, Any]:
    """Count what became of the scans, and list them, in plain values.

    Parameters
    ----------
    rows : sequence of Row
        One a scan.
    """
    counts = {state.replace(" ", "_"): sum(row.state == state for row in rows) for state in STATES}
    verdicts = {word: sum(row.verdict == word for row in rows) for word in ("good", "doubtful", "failed")}
    listed = [{key: value for key, value in asdict(row).items() if key in COLUMNS} for row in rows]
    return {**counts, "earlier": sum(row.earlier for row in rows), "verdicts": verdicts, "scans": listed}


def table(rows: Sequence[Row]) -> str:
    """Lay the scans out in columns, and count them in a last line.

    Parameters
    ----------
    rows : sequence of Row
        One a scan.
    """
    header = ("scan", "state", "verdict", "frames", "iterations", "deviance", "s", "reason")
    lines = [header, *(_cells(row) for row in rows)]
    widths = [max(len(line[k]) for line in lines) for k in range(len(header) - 1)]
    laid = ["  ".join([*(c.ljust(w) for c, w in zip(line, widths, strict=False)), line[-1]]).rstrip() for line in lines]
    return "\n".join([*laid, counted(rows)])


def counted(rows: Sequence[Row]) -> str:
    """Say in one line what became of the scans.

    Parameters
    ----------
    rows : sequence of Row
        One a scan.
    """
    found = summary_of(rows)
    earlier = f" ({found['earlier']} of them earlier)" if found["earlier"] else ""
    verdicts = ", ".join(f"{number} {word}" for word, number in found["verdicts"].items() if number)
    done = f"{found['done']} done{earlier}" + (f": {verdicts}" if verdicts else "")
    return f"{len(rows)} scans: {done}; {found['failed']} failed, {found['not_done']} not done"


def write_summary(folder: Path, rows: Sequence[Row]) -> None:
    """Write the summary as JSON and CSV.

    Parameters
    ----------
    folder : Path
        Where.
    rows : sequence of Row
        One a scan.

    Raises
    ------
    ScanFileError
        If the files can't be written.
    """
    with written_whole(folder / JSON) as partial:
        partial.write_text(to_json(summary_of(rows), indent=1), encoding="utf-8")
    with written_whole(folder / CSV) as partial:
        partial.write_text(_csv(rows), encoding="utf-8", newline="")


def _csv(rows: Sequence[Row]) -> str:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore")
    writer.writeheader()
    for row in rows:
        values = {**asdict(row), "warnings": "; ".join(row.warnings)}
        writer.writerow({key: _harmless(value) for key, value in values.items()})
    return text.getvalue()


def _harmless(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value


def _cells(row: Row) -> tuple[str, ...]:
    state = "earlier" if row.earlier else row.state
    return (
        row.scan,
        state,
        row.verdict or "",
        "" if row.frames is None else str(row.frames),
        "" if row.iterations is None else str(row.iterations),
        "" if row.deviance_per_pixel is None else f"{row.deviance_per_pixel:.3g}",
        "" if row.seconds is None else f"{row.seconds:.1f}",
        " ".join(row.reason.split()),
    )
