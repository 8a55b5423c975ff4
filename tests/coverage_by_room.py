"""Print how much of each room of the package the tests ran, and the files of which they ran least.

Reads the file ``.coverage`` that ``make test COVERAGE=1`` leaves.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import coverage

LEAST_PERCENT = 90.0


def main() -> None:
    """Print the table of rooms, then the files below `LEAST_PERCENT`."""
    data = coverage.Coverage()
    data.load()
    root = Path(__file__).parents[1].resolve()
    rooms: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    low = []
    for measured in sorted(data.get_data().measured_files()):
        path = Path(measured).resolve().relative_to(root)
        _, lines, _, missing, where = data.analysis2(measured)
        room = path.parts[1] if path.parts[0] == "bluesky_cdi" and len(path.parts) > 2 else path.parts[0]
        for name in (room, "total"):
            rooms[name][0] += len(lines)
            rooms[name][1] += len(lines) - len(missing)
        if lines and percent(len(lines), len(lines) - len(missing)) < LEAST_PERCENT:
            low.append(f"{percent(len(lines), len(lines) - len(missing)):6.1f} %  {path}  without {where}")
    total = rooms.pop("total")
    print("room                 lines   run")
    for name, (lines, run) in [*sorted(rooms.items()), ("total", total)]:
        print(f"{name:20s} {lines:5d} {percent(lines, run):5.1f} %")
    print(f"files of which less than {LEAST_PERCENT:.0f} % ran:", *(low or ["none"]), sep="\n")


def percent(lines: int, run: int) -> float:
    """Share of lines that ran; all of none did."""
    return 100.0 * run / lines if lines else 100.0


if __name__ == "__main__":
    main()
