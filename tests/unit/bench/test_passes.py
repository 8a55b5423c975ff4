"""Passes in a row, and the figures of the design, on the CPU."""

from dataclasses import replace

import pytest
import torch

from bluesky_cdi.bench import methods
from bluesky_cdi.bench.cases import Case, simulate
from bluesky_cdi.bench.methods import Network
from bluesky_cdi.bench.reports.quality import tables
from bluesky_cdi.bench.suites import passes, quality
from bluesky_cdi.bench.suites.design_figures import DesignFigure, design_figures
from bluesky_cdi.errors import FrameError
from bluesky_cdi.models.unrolled import UnrolledConfig, UnrolledNet

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(methods, "REPEATS", 1)
    monkeypatch.setattr(passes, "BUDGET_FROM", 1)
    monkeypatch.setattr(passes, "BETTER_FROM", 2)
    monkeypatch.setattr(passes, "MANY_PASSES", 3)


def network(name, number):
    torch.manual_seed(3)
    return Network(name, UnrolledNet(UnrolledConfig(stages=1, channels=8, levels=2, passes=number)).eval())


def test_passes_in_a_row_are_chained_and_timed():
    problem, warm = simulate(Case(field=0.5), 1, CPU), network("warm", 2)
    found = passes.solve_passes(problem, [warm, network("cold", 1)], 0)
    assert list(found) == [
        "1 rPIE",
        "2 rPIE",
        "warm, one pass",
        "warm, 3 passes",
        "warm, as long as 1 rPIE, refined",
        "2 rPIE, warm, one pass",
        "warm",
        "warm, 16 new frames",
        "cold",
        "cold, 3 passes",
        "cold, as long as 1 rPIE, refined",
    ]
    with torch.no_grad():
        obj = problem.vacuum
        for _ in range(3):
            obj = warm.net(problem.probe, problem.data, obj)[-1]
        better = warm.net(problem.probe, problem.data, found["2 rPIE"].object)[-1]
    torch.testing.assert_close(found["warm, 3 passes"].object, obj)
    torch.testing.assert_close(found["2 rPIE, warm, one pass"].object, better)
    assert found["2 rPIE, warm, one pass"].seconds > found["2 rPIE"].seconds
    # What is known of all but the newest frames is where the update begins.
    assert not torch.equal(found["warm, 16 new frames"].object, found["warm, one pass"].object)
    assert found["warm, as long as 1 rPIE, refined"].epochs == methods.REFINED_FOR
    with pytest.raises(FrameError, match="16 new frames beside known ones; the scan has 16"):
        passes.solve_passes(replace(problem, data=problem.data[:16]), [warm], 0)


def test_passes_end_with_their_time_but_one_is_made(monkeypatch):
    problem, net = simulate(Case(field=0.4), 1, CPU), network("warm", 2).net
    made = []
    row = passes._Passes(net, problem)
    monkeypatch.setattr(row, "made", lambda number, obj: (made.append(number), obj)[1])
    clock = iter(range(100))
    # Each look at the clock is a second later: the second pass would end after 4 s, the third after 6.
    monkeypatch.setattr(passes.time, "perf_counter", lambda: float(next(clock)))
    row.in_time(0.0)
    assert len(made) == 1
    made.clear()
    row.in_time(3.5)
    assert len(made) == 3


def row(label, **errors):
    """A row whose methods have an error each, or an error and further numbers."""
    found = {}
    for method, numbers in errors.items():
        each = numbers if isinstance(numbers, dict) else {"complex_nrmse": numbers}
        found[method] = {name: {"median": value} for name, value in each.items()}
    return {"label": label, "methods": found}


def test_the_figures_of_the_design_are_ratios_of_the_same_scan():
    probe = [
        row("0 rad", **{"net": 0.1, "check-in, net": 0.11}),
        row("0.8 rad", **{"net": 0.4, "check-in, net": 0.12}),
        row("2.5 rad", **{"net": 0.9, "check-in, net": 0.8}),
    ]
    lsqml = {"complex_nrmse": 0.1, "held_out_deviance": 1.0, "cpu_seconds": 100.0}
    star = row(
        "Siemens star",
        **{
            "LSQ-ML, converged": {**lsqml, "held_out_deviance": 2.0},
            "check-in, LSQ-ML, converged": lsqml,
            "check-in, net": {"complex_nrmse": 0.3, "held_out_deviance": 1.2},
            "check-in, net, refined": {"complex_nrmse": 0.2, "held_out_deviance": 1.1, "cpu_seconds_to_image": None},
        },
    )
    found = design_figures({"probe": probe, "recorded": [star]}, [network("net", 1)])
    assert [(each.figure, round(each.measured, 3), each.reached) for each in found] == [
        ("right probe, NRMSE over that without check-in", 1.1, False),
        ("assumed probe 0.8 rad wrong, NRMSE", 0.12, True),
        ("Siemens star, NRMSE", 0.3, False),
        ("Siemens star, unseen deviance over LSQ-ML's", 1.2, True),
        ("Siemens star, NRMSE", 0.2, True),
        ("Siemens star, unseen deviance over LSQ-ML's", 1.1, True),
    ]
    # An image as good as LSQ-ML's, once there is one, counts by its time.
    star["methods"]["check-in, net, refined"]["cpu_seconds_to_image"]["median"] = 20.0
    last = design_figures({"recorded": [star]}, [network("net", 1)])[-1]
    assert last == DesignFigure(last.figure, "check-in, net, refined", 0.1, 0.2) and not last.reached


def test_the_suite_is_measured_and_told(monkeypatch):
    monkeypatch.setattr(quality, "THICK", {"gold": 1.0})
    monkeypatch.setattr(quality, "PASSES_DOSES", (1e5,))
    options = quality.Options(("passes",), 1, Case(field=0.5), None, CPU)
    found = quality.quality([network("warm", 2)], options)
    assert [each["label"] for each in found["suites"]["passes"]] == ["1e5", "gold, thick"]
    titles = [each["figure"] for each in found["design_figures"]]
    assert sum(title.startswith("gold, thick, NRMSE over that of") for title in titles) >= 3
    text = tables(found)
    assert "Passes in a row" in text and "Figures of the design" in text and "warm, 3 passes" in text
