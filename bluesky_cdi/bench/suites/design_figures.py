"""What networks were to reach on wrong probes, recorded scans and passes in a row, beside what the suites measure.

The figures were set before they were measured. Each is an error that shall not be above what is wanted, or a ratio of
two errors, deviances or times of the same scan.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bluesky_cdi.bench.cases import photons
from bluesky_cdi.bench.checked import CHECKED
from bluesky_cdi.bench.methods import CONVERGED, Network, rpie_name
from bluesky_cdi.bench.suites import passes

# What one pass after the check-in shall have where the assumed probe is wrong: complex NRMSE by the suite's case.
WANTED_ON_THE_LADDER = {"0.8 rad": 0.13, "1.6 rad": 0.15}
# On the recorded star: complex NRMSE, and deviance of unseen frames over that of converged LSQ-ML.
WANTED_OF_THE_STAR = {"one pass": (0.25, 1.3), "refined": (0.20, 1.1)}
# Time to an image as good as converged LSQ-ML's over the time that LSQ-ML takes.
WANTED_TIME = 0.1
# Error over that of 50 rPIE on thick objects, after as many passes as take the time of 10 rPIE and five iterations.
WANTED_OF_THICK = 1.1
# Time of an update for new frames over that of a full reading.
WANTED_UPDATE = 0.25
# An error that is larger by less is level with another.
LEVEL = 1.005
ERROR = "complex_nrmse"

Row = Mapping[str, Any]


@dataclass(frozen=True)
class DesignFigure:
    """One figure of the design.

    Attributes
    ----------
    figure : str
        What it is of, in words.
    method : str
    wanted, measured : float
        The most that was wanted, and what there is.
    """

    figure: str
    method: str
    wanted: float
    measured: float

    @property
    def reached(self) -> bool:
        """Whether it is as good as wanted."""
        return self.measured <= self.wanted


def design_figures(suites: Mapping[str, Sequence[Row]], networks: Sequence[Network]) -> list[DesignFigure]:
    """Compare what was measured with what was wanted.

    Parameters
    ----------
    suites : Mapping of str to sequence of Mapping
        Of `quality.quality`: those of its suites ``probe``, ``recorded`` and ``passes`` that were run count.
    networks : sequence of Network
        Those of the suites.

    Returns
    -------
    list of DesignFigure
        Without what was not measured: an image as good as LSQ-ML's that never was, for example.
    """
    found = [
        figure
        for network in networks
        for rows, of in (("probe", _of_the_ladder), ("recorded", _of_recorded), ("passes", _of_passes))
        for row in suites.get(rows, ())
        for figure in of(row, network)
    ]
    return found


def _of_the_ladder(row: Row, network: Network) -> Iterator[DesignFigure]:
    method = CHECKED + network.one_pass_name
    label = row["label"]
    if (wanted := WANTED_ON_THE_LADDER.get(label)) is not None:
        yield from _figure(f"assumed probe {label} wrong, NRMSE", method, wanted, _number(row, method))
    if label == "0 rad":
        before = _number(row, network.one_pass_name)
        yield from _figure("right probe, NRMSE over that without check-in", method, LEVEL, _number(row, method), before)


def _of_recorded(row: Row, network: Network) -> Iterator[DesignFigure]:
    label, lsqml = row["label"], [CONVERGED, CHECKED + CONVERGED]
    lowest = min(_number(row, method, "held_out_deviance") or float("inf") for method in lsqml)
    names = {"one pass": network.one_pass_name, "refined": network.refined_name}
    for name, (error, deviance) in WANTED_OF_THE_STAR.items() if label == "Siemens star" else ():
        if names[name] is not None:
            method = f"{CHECKED}{names[name]}"
            yield from _figure(f"{label}, NRMSE", method, error, _number(row, method))
            unseen = _number(row, method, "held_out_deviance")
            yield from _figure(f"{label}, unseen deviance over LSQ-ML's", method, deviance, unseen, lowest)
    if network.refined_name is not None:
        method = CHECKED + network.refined_name
        yield from _figure(
            f"{label}, CPU time to LSQ-ML's image over LSQ-ML's",
            method,
            WANTED_TIME,
            _number(row, method, "cpu_seconds_to_image"),
            _number(row, CONVERGED, "cpu_seconds"),
        )


def _of_passes(row: Row, network: Network) -> Iterator[DesignFigure]:
    label, name, engine = row["label"], network.name, _number(row, rpie_name(passes.BETTER_FROM))

    def over(title: str, method: str, wanted: float, of: float | None, number: str = ERROR) -> Iterator[DesignFigure]:
        return _figure(f"{label}, {title}", method, wanted, _number(row, method, number), of)

    its = f"NRMSE over that of {rpie_name(passes.BETTER_FROM)}"
    if label.endswith("thick"):
        yield from over(its, passes.as_long_name(name), WANTED_OF_THICK, engine)
    yield from over(its + " before", passes.better_name(name), LEVEL, engine)
    once = _number(row, network.one_pass_name)
    yield from over("NRMSE over that of one pass", passes.many_name(name), LEVEL, once)
    if label == photons(1e7):
        yield from over(its, passes.many_name(name), LEVEL, engine)
    full = "over that of a full reading"
    yield from over(f"time {full}", passes.update_name(name), WANTED_UPDATE, _number(row, name, "seconds"), "seconds")
    yield from over(f"NRMSE {full}", passes.update_name(name), LEVEL, _number(row, name))


def _figure(
    figure: str, method: str, wanted: float, measured: float | None, over: float | None = 1.0
) -> Iterator[DesignFigure]:
    """Yield a figure if both of its numbers are known."""
    if measured is not None and over:
        yield DesignFigure(figure, method, wanted, measured / over)


def _number(row: Row, method: str, number: str = ERROR) -> float | None:
    """Return the median of a method's number; None where it has none."""
    found: float | None = row["methods"].get(method, {}).get(number, {}).get("median")
    return found
