"""How far a run's frames have come on their way into the image, as an estimate's `source` says it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

KEY = "pipeline"
# Where a frame that is not in the image can be.
ELSEWHERE = ("waiting", "thinned", "bad", "dark")
LATENCIES = ("latency_p50_s", "latency_p95_s")


def pipeline_said(source: Mapping[str, Any]) -> str:
    """Say how many frames came and are in the image, and how long they took; empty where nobody counted.

    Parameters
    ----------
    source : Mapping
        Of an estimate.
    """
    if not (counts := source.get(KEY)):
        return ""
    said = [f"{counts['imaged']} of {counts['received']} frames in the image"]
    said += [f"{counts[name]} {name}" for name in ELSEWHERE if counts[name]]
    if counts["latency_p95_s"] is not None:
        said.append(f"latency {counts['latency_p50_s']:.2g} s, at most {counts['latency_p95_s']:.2g} s for 95 %")
    return ", ".join(said)


def pipeline_numbers(source: Mapping[str, Any]) -> dict[str, float]:
    """Give the counts of frames as ``n_received``, ``n_waiting`` and so on, and the latencies; NaN: nobody counted.

    Parameters
    ----------
    source : Mapping
        Of an estimate.
    """
    counts = source.get(KEY) or {}
    keys = {f"n_{name}": name for name in ("received", *ELSEWHERE)} | {name: name for name in LATENCIES}
    return {key: math.nan if counts.get(name) is None else float(counts[name]) for key, name in keys.items()}
