"""The result of `suites.compression` as a table a scan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bluesky_cdi.bench.reports.text import aligned

# Title and format of a column.
COLUMNS = {
    "bytes": ("bytes a frame", "{:.0f}"),
    "ratio": ("ratio", "{:.2f}"),
    "deviance": ("deviance", "{:.4f}"),
    "complex_nrmse": ("error", "{:.4f}"),
    "moved": ("moved", "{:.4f}"),
    "encode": ("encode", "{:.2f}x"),
    "decode": ("decode", "{:.2f}x"),
}


def compression(found: Mapping[str, Any]) -> str:
    """Set the result out; ratios are to a raw frame, speeds to gzip."""
    return "\n\n".join(_scan(name, scan) for name, scan in found["scans"].items())


def _scan(name: str, scan: Mapping[str, Any]) -> str:
    lines = [["", *(title for title, _ in COLUMNS.values())]]
    for way, row in scan["rows"].items():
        values = {**row, "ratio": scan["bytes"] / row["bytes"]}
        lines.append(
            [way, *("-" if values.get(key) is None else form.format(values[key]) for key, (_, form) in COLUMNS.items())]
        )
    side = scan["frame_px"]
    head = f"{name}: {scan['frames']} frames of {side}x{side}, {scan['bytes']:.0f} bytes each"
    return f"{head}; deviance of photon noise {scan['noise_deviance']:.3f}\n{aligned(lines)}"
