"""How far a run's frames have come on their way into the image, as an estimate's `source` says it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

KEY = "pipeline"


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
    said += [f"{counts[name]} {name}" for name in ("waiting", "thinned", "bad", "dark") if counts[name]]
    if counts["latency_p95_s"] is not None:
        said.append(f"latency {counts['latency_p50_s']:.2g} s, at most {counts['latency_p95_s']:.2g} s for 95 %")
    return ", ".join(said)
