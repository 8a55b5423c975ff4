"""Results found by what was measured, how, when, and how good they are."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date, datetime, time
from fnmatch import fnmatch
from typing import TYPE_CHECKING

from bluesky_cdi.catalog.listing import ResultSummary, list_results
from bluesky_cdi.catalog.result import Result, Results
from bluesky_cdi.errors import CatalogError

if TYPE_CHECKING:
    from bluesky_cdi.catalog.connect import Catalog

When = str | date | datetime
QUALITIES = ("good", "doubtful", "failed")


def search(
    catalog: Catalog,
    *,
    sample: str | None = None,
    plan: str | None = None,
    since: When | None = None,
    until: When | None = None,
    quality: str | Iterable[str] | None = None,
    complete: bool = True,
) -> Results:
    """Find results, the oldest first; all that is given must fit.

    Parameters
    ----------
    catalog : Catalog
        Where to look.
    sample, plan : str, optional
        The raw run's sample and plan; ``*`` stands for anything, and capitals don't count.
    since, until : str, date or datetime, optional
        When the scan was measured, at the earliest and at the latest, local time; texts as ISO 8601 has them
        (``2026-03-04``, ``2026-03-04 12:30``). A day alone is meant as a whole.
    quality : str or iterable of str, optional
        Words of verdicts: ``good``, ``doubtful``, ``failed``.
    complete : bool
        Whether only complete results count; else also those that go on, failed, or were left by a process that died.

    Raises
    ------
    CatalogError
        If a time or a word is none, or the server can't be reached.
    """
    words = _words(quality)
    earliest, latest = _moment(since, time.min), _moment(until, time.max)

    def fits(row: ResultSummary) -> bool:
        when = row.time if row.raw_time is None else row.raw_time
        return (
            row.uid is not None
            and (row.complete or not complete)
            and (words is None or row.verdict in words)
            and (earliest is None or when >= earliest)
            and (latest is None or when <= latest)
            and all(_is_like(*pair) for pair in ((row.sample, sample), (row.plan_name, plan)))
        )

    return Results(Result(catalog, row) for row in list_results(catalog) if fits(row))


def _is_like(text: str | None, wanted: str | None) -> bool:
    return wanted is None or (text is not None and fnmatch(text.lower(), wanted.lower()))


def _words(quality: str | Iterable[str] | None) -> set[str] | None:
    if quality is None:
        return None
    words = {quality} if isinstance(quality, str) else set(quality)
    if unknown := sorted(words - set(QUALITIES)):
        raise CatalogError(f"the quality of a result is one of {', '.join(QUALITIES)}; got {', '.join(unknown)}")
    return words


def _moment(when: When | None, of_day: time) -> float | None:
    """Give seconds since 1970; a day without a time of day gets that which is given."""
    if when is None:
        return None
    if isinstance(when, str):
        try:
            when = date.fromisoformat(when) if len(when) <= len("2026-03-04") else datetime.fromisoformat(when)
        except ValueError as err:
            raise CatalogError(f"a time is written as 2026-03-04 or 2026-03-04 12:30; got {when!r}") from err
    moment = when if isinstance(when, datetime) else datetime.combine(when, of_day)
    return moment.timestamp()
