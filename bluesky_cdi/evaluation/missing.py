"""Frames of a run that are not in its result, as the result names them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from bluesky_cdi.protocols import Estimate

KEY = "missing_frames"
# A result names so many of them, gives the reasons of so many, and a reason so many letters.
NUMBERS_MAX, REASONS_MAX, LETTERS_MAX = 1000, 10, 300
# So many are named where it is said in a line.
SAID_MAX = 10


def with_missing(estimate: Estimate, why: Mapping[int, str]) -> Estimate:
    """Note in an estimate's `source`, under ``missing_frames``, which frames of the run are not in it.

    Parameters
    ----------
    estimate : Estimate
        The final one of a run.
    why : Mapping
        From a frame's number to the reason; those without light, which `source` names, are not among them.
    """
    source = {name: value for name, value in estimate.source.items() if name != KEY}
    if why:
        numbers = sorted(why)
        reasons = {str(number): _short(why[number]) for number in numbers[:REASONS_MAX]}
        source[KEY] = {"count": len(numbers), "seq_nums": numbers[:NUMBERS_MAX], "reasons": reasons}
    return replace(estimate, source=source)


def unreached(estimate: Estimate, numbers: Iterable[int]) -> dict[int, str]:
    """Name those of a run's frames that an estimate does not rest on, with the reason.

    Parameters
    ----------
    estimate : Estimate
        The final one.
    numbers : iterable of int
        Of all frames that could be used; those without light, which the estimate names, may be among them.
    """
    there = {*estimate.frame_seq_nums.tolist(), *estimate.source.get("dark_frames", ())}
    return dict.fromkeys(sorted(set(numbers) - there), "it came after the image was made")


def missing_count(source: Mapping[str, Any]) -> int:
    """Give how many frames an estimate's `source` says are missing."""
    return int(source[KEY]["count"]) if KEY in source else 0


def missing_said(source: Mapping[str, Any]) -> str:
    """Say which frames an estimate's `source` says are missing, and why the first is; empty where none is."""
    if not (count := missing_count(source)):
        return ""
    numbers = source[KEY]["seq_nums"]
    named = ", ".join(map(str, numbers[:SAID_MAX])) + ", ..." * (count > SAID_MAX)
    reason = source[KEY]["reasons"][str(numbers[0])]
    return f"{count} frame(s) are missing: {named} (the first: {reason})"


def _short(text: str) -> str:
    return text if len(text) <= LETTERS_MAX else text[: LETTERS_MAX - 3] + "..."
