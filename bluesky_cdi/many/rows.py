"""One line of the summary, read back from a scan's result, or said of a scan without one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bluesky_cdi.errors import ScanFileError
from bluesky_cdi.io import read_cxi_notes
from bluesky_cdi.many.task import Task

# Key of a result's source under which stands what this package says of it.
NOTES = "reconstruct_many"


@dataclass(frozen=True)
class Row:
    """What is said of one scan.

    Attributes
    ----------
    scan, source : str
        Its name, and where it comes from.
    state : {'done', 'failed', 'not done'}
        Whether there is a whole result.
    reason : str
        Why there is none, or what the verdict rests on.
    verdict : str or None
        ``good``, ``doubtful`` or ``failed``.
    frames, iterations : int or None
    engine, ended, probe : str or None
        Which engine, how its iterations ended, what the check of the probe said.
    deviance_per_pixel, pixel_m : float or None
    seconds, cpu_s : float or None
        Of the reconstruction alone, and of the worker's processors for all that was done with the scan.
    warnings : tuple of str
    result : str or None
        The file.
    earlier : bool
        Whether the result was there before.
    thumbnail : str or None
        PNG in base64.
    """

    scan: str
    source: str
    state: Literal["done", "failed", "not done"]
    reason: str = ""
    verdict: str | None = None
    frames: int | None = None
    engine: str | None = None
    iterations: int | None = None
    ended: str | None = None
    probe: str | None = None
    deviance_per_pixel: float | None = None
    pixel_m: float | None = None
    seconds: float | None = None
    cpu_s: float | None = None
    warnings: tuple[str, ...] = ()
    result: str | None = None
    earlier: bool = False
    thumbnail: str | None = None

    @property
    def is_good(self) -> bool:
        """Whether there is a result, and its verdict is not that it can't be believed."""
        return self.state == "done" and self.verdict != "failed"


def made_of(path: Path) -> dict[str, Any]:
    """Tell which task a result was made by; empty where no such task made it.

    Raises
    ------
    ScanFileError
        If the file can't be read, or is no result.
    """
    task = read_cxi_notes(path).get(NOTES, {}).get("task", {})
    return dict(task)


def row_of_result(task: Task, *, earlier: bool = False) -> Row:
    """Read from the result of a task what the summary says of it.

    Parameters
    ----------
    task : Task
        The task.
    earlier : bool
        Whether the result was there before.

    Raises
    ------
    ScanFileError
        If there is no result, or it can't be read or is another's.
    """
    notes = read_cxi_notes(task.out)
    said, verdict = notes.get(NOTES), notes.get("verdict") or {}
    if not isinstance(said, dict):
        raise ScanFileError(f"{task.out} must be a result of reconstruct-many; its notes hold no {NOTES!r}")
    return Row(
        scan=task.name,
        source=task.source.says,
        state="done",
        reason="; ".join(verdict.get("reasons", ())),
        verdict=verdict.get("word"),
        frames=notes.get("frames"),
        engine=said.get("engine"),
        iterations=notes.get("iterations"),
        ended=notes.get("ended"),
        probe=(notes.get("probe_check_in") or {}).get("says"),
        deviance_per_pixel=said.get("deviance_per_pixel"),
        pixel_m=said.get("pixel_m"),
        seconds=notes.get("seconds"),
        cpu_s=said.get("cpu_s"),
        warnings=tuple(said.get("warnings", ())),
        result=str(task.out),
        earlier=earlier,
        thumbnail=said.get("thumbnail"),
    )


def row_without_result(task: Task, state: Literal["failed", "not done"], reason: str) -> Row:
    """Say of a task why it has no result.

    Parameters
    ----------
    task : Task
        The task.
    state : {'failed', 'not done'}
        Whether it was tried.
    reason : str
        Why.
    """
    return Row(task.name, task.source.says, state, reason)
