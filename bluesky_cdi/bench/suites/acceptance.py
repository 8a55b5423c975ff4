"""What a network is for, as ratios to iterative engines on the same scans; below 1 it is better, or faster."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from bluesky_cdi.bench.cases import photons
from bluesky_cdi.bench.methods import CONVERGED, Network, rpie_name

BASELINE = rpie_name(50)
ERROR, SECONDS = "complex_nrmse", "seconds"

Suites = Mapping[str, Sequence[Mapping[str, Any]]]


def acceptance(suites: Suites, networks: Sequence[Network]) -> list[dict[str, Any]]:
    """Compare on the suites that were run.

    Parameters
    ----------
    suites : Mapping of str to sequence of Mapping
        Of `quality.quality`.
    networks : sequence of Network
        Those of the suites.

    Returns
    -------
    list of dict
        ``goal`` in words, ``method``, ``at`` (which scans), ``error`` and ``seconds``: medians over the seeds of the
        method's complex NRMSE and seconds over those of 50 rPIE on the same scan. For counts in other units,
        ``change``: the share by which the NRMSE changed.
    """
    names = [name for n in networks for name in n.names]
    rows = [
        _against(row["methods"], name, f"{row['label']} photons a frame")
        for row in suites.get("dose", ())
        for name in [*names, CONVERGED]
    ]
    rows += [_against(row["methods"], name, row["label"]) for row in suites.get("thick", ()) for name in names]
    rows += _over_objects(suites.get("objects", ()), [*names, CONVERGED])
    return [*rows, *_changes(suites.get("rate", ()), [*names, BASELINE, CONVERGED])]


def _against(found: Mapping[str, Any], method: str, label: str) -> dict[str, Any]:
    return {
        "goal": f"over {BASELINE}",
        "method": method,
        "at": label,
        "error": _median(ratios(found, method, ERROR)),
        "seconds": _median(ratios(found, method, SECONDS)),
    }


def ratios(found: Mapping[str, Any], method: str, number: str) -> list[float]:
    """Divide a method's number by that of 50 rPIE, seed by seed.

    Parameters
    ----------
    found : Mapping
        Of a scan, by method.
    method : str
        Its name.
    number : str
        ``complex_nrmse`` or ``seconds``.

    Returns
    -------
    list of float
        Without the seeds where either is not known.
    """
    pairs = zip(found[method][number]["each"], found[BASELINE][number]["each"], strict=True)
    return [mine / its for mine, its in pairs if mine is not None and its]


def _over_objects(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[dict[str, Any]]:
    """Take all kinds of objects and all seeds of a dose together."""
    doses = sorted({row["case"]["dose"] for row in rows})
    table = []
    for dose in doses:
        for name in names:
            of_dose = [row["methods"] for row in rows if row["case"]["dose"] == dose]
            error, seconds = (
                [ratio for found in of_dose for ratio in ratios(found, name, key)] for key in (ERROR, SECONDS)
            )
            table.append(
                {
                    "goal": f"over {BASELINE}",
                    "method": name,
                    "at": f"{photons(dose)} photons a frame, all objects",
                    "error": _median(error),
                    "worst_error": max(error, default=None),
                    "seconds": _median(seconds),
                }
            )
    return table


def _changes(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[dict[str, Any]]:
    """Compute by what share counts in other units change the NRMSE."""
    plain = [row for row in rows if row["case"]["count_scale"] == 1]
    return [
        {
            "goal": "no change",
            "method": name,
            "at": row["label"],
            "change": _median(_change(plain[0]["methods"][name], row["methods"][name])),
        }
        for row in rows
        if row["case"]["count_scale"] != 1
        for name in names
    ]


def _change(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[float]:
    pairs = zip(before[ERROR]["each"], after[ERROR]["each"], strict=True)
    return [new / old - 1 for old, new in pairs if old and new is not None]


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None
