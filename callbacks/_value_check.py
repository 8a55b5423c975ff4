"""Telling of values that are not of the type that their documents state."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np

logger = logging.getLogger(__name__)

# Kinds of NumPy's types that fit a descriptor's: what a catalog's column of that type holds without loss.
_FITTING = {"integer": "biu", "number": "biuf", "boolean": "b", "string": "US"}
# Python's own types need no look at NumPy's.
_PLAIN = {int: "i", float: "f", bool: "b", str: "U"}


class ValueCheck:
    """Counts values in events that are not of the type that their descriptor states, and tells of them.

    A catalog that makes columns of the stated types cuts such values: a float loses its fraction in a column of
    integers. The first value of a key is told at once, all of a run in one line at its end. A callback for
    ``RE.subscribe``; it never raises.
    """

    def __init__(self) -> None:
        self._runs: dict[str, _Run] = {}
        self._run_of: dict[str, _Run] = {}

    def __call__(self, name: str, doc: Mapping[str, Any]) -> None:
        """Take one document of any run."""
        try:
            self._take(name, doc)
        except Exception as err:
            logger.exception("a %s document can't be looked at (the run goes on): %s", name, err)

    def _take(self, name: str, doc: Mapping[str, Any]) -> None:
        match name:
            case "start":
                self._runs[doc["uid"]] = _Run(doc.get("scan_id"))
            case "descriptor" if doc["run_start"] in self._runs:
                run = self._run_of[doc["uid"]] = self._runs[doc["run_start"]]
                run.describe(doc)
            case "event" if doc["descriptor"] in self._run_of:
                self._run_of[doc["descriptor"]].look(doc["descriptor"], doc["data"])
            case "event_page" if doc["descriptor"] in self._run_of:
                for k in range(len(doc["seq_num"])):
                    row = {key: column[k] for key, column in doc["data"].items()}
                    self._run_of[doc["descriptor"]].look(doc["descriptor"], row)
            case "stop" if doc["run_start"] in self._runs:
                run = self._runs.pop(doc["run_start"])
                self._run_of = {uid: owner for uid, owner in self._run_of.items() if owner is not run}
                run.tell()


class _Run:
    """What was announced in one run, and what came."""

    def __init__(self, scan_id: Any) -> None:
        self._scan_id = scan_id
        # By descriptor and key: the kinds that fit, and the stated type in words.
        self._stated: dict[str, dict[str, tuple[str, str]]] = {}
        self._others: dict[tuple[str, str, str], int] = {}

    def describe(self, descriptor: Mapping[str, Any]) -> None:
        stated = {key: _stated(spec) for key, spec in descriptor["data_keys"].items() if not spec.get("external")}
        self._stated[descriptor["uid"]] = {key: found for key, found in stated.items() if found is not None}

    def look(self, descriptor: str, data: Mapping[str, Any]) -> None:
        for key, (fitting, words) in self._stated[descriptor].items():
            if key in data and (other := _other(data[key], fitting)) is not None:
                case = (key, other, words)
                if case not in self._others:
                    logger.warning(
                        "run %s: a value of %r is %s, where the descriptor states %s: the catalog may cut it. "
                        "Mend what the device describes. Further ones are counted.",
                        self._scan_id, key, other, words,
                    )  # fmt: skip
                self._others[case] = self._others.get(case, 0) + 1

    def tell(self) -> None:
        if self._others:
            counted = (f"{n} of {key!r} ({other}, not {words})" for (key, other, words), n in self._others.items())
            logger.warning(
                "run %s: values that are not of the type that was stated: %s", self._scan_id, "; ".join(counted)
            )


def _stated(spec: Mapping[str, Any]) -> tuple[str, str] | None:
    """Give the kinds that fit a data key, and its type in words; None where it states none."""
    words, numpy_type = str(spec.get("dtype")), spec.get("dtype_numpy")
    if isinstance(numpy_type, str) and numpy_type:
        kind = np.dtype(numpy_type).kind
        fitting = {"i": "biu", "u": "biu", "f": "biuf", "c": "biufc", "U": "US", "S": "US"}.get(kind, kind)
        return (fitting, f"{words} {numpy_type}")
    return (_FITTING[words], words) if words in _FITTING else None


def _other(value: Any, fitting: str) -> str | None:
    """Give the type of a value that does not fit, in words."""
    if (plain := _PLAIN.get(type(value))) is not None:
        return None if plain in fitting else type(value).__name__
    while isinstance(value, (list, tuple)) and value:
        value = value[0]
    found = np.asarray(value).dtype
    if found.kind in fitting or (isinstance(value, (list, tuple)) and not value):
        return None
    return type(value).__name__ if found.kind == "O" else str(found)
