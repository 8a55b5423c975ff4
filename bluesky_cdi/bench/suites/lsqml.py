"""What the choices inside LSQ-ML are worth: likelihood by dose, mini-batches against all frames together, its course.

The simulated scans, the recorded Siemens star and the measures of the first two are those of `suites.engines`, in
mini-batches without momentum. The last is the time to convergence: every eighth frame of a recorded scan is left out,
and the Poisson deviance of these frames is looked at after each epoch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bluesky_cdi.bench.courses import NEAR, Course
from bluesky_cdi.bench.engine_cases import EngineCase, recorded_case, simulated_case
from bluesky_cdi.bench.exchange import diffraction
from bluesky_cdi.bench.explained import EXPLAINED, Explained
from bluesky_cdi.bench.machine import Stopwatch, record
from bluesky_cdi.bench.recorded import HELD_OUT_EVERY
from bluesky_cdi.bench.suites.engines import errors
from bluesky_cdi.engines.lsqml import Lsqml, LsqmlSettings
from bluesky_cdi.engines.ptychography import Schedule, Solution, iterate
from bluesky_cdi.physics.forward import Likelihood

DOSES = (1e3, 1e4, 1e5, 1e6)
KINDS = ("leaves", "circuit")
LIKELIHOODS: tuple[Likelihood, ...] = ("amplitude", "poisson")
# Epochs on simulated scans, and on the recorded one.
SIMULATED_EPOCHS, RECORDED_EPOCHS = 40, 100
# From which epoch on all frames are taken together; -1: never.
PLAIN_TOGETHER_FROM = 10
PHASES = {"mini-batches to the end": -1, "together from the 10th": 10}
PLAIN, OWN = "without momentum", "its own"


def lsqml(data: Path | None, device: torch.device, on_progress: Callable[[str], None] | None = None) -> dict[str, Any]:
    """Measure the choices.

    Parameters
    ----------
    data : Path, optional
        Folder of recorded scans; without it the star is left out.
    device : torch.device
        Device that computes.
    on_progress : callable, optional
        Called with the name of each scan.

    Returns
    -------
    dict
        ``machine``; ``likelihood``: by simulated scan the complex NRMSE of each likelihood; ``phases``: by likelihood
        and course the mean deviance on the recorded star; ``courses``: by recorded scan and course what `courses` says.
    """
    tell = on_progress or (lambda _: None)
    by_dose: dict[str, dict[str, float]] = {}
    for photons in DOSES:
        for kind in KINDS:
            name = f"{kind}, {photons:.0e} photons"
            tell(name)
            case = simulated_case(kind, photons=photons)
            by_dose[name] = {
                each: _run(case, each, PLAIN_TOGETHER_FROM, SIMULATED_EPOCHS, device)["complex_nrmse"]
                for each in LIKELIHOODS
            }
    phases = {} if data is None else _phases(recorded_case("star_recorded", data), device, tell)
    compared = {} if data is None else courses(data, device, tell)
    settings = {"simulated_epochs": SIMULATED_EPOCHS, "recorded_epochs": RECORDED_EPOCHS}
    return record([device], settings, likelihood=by_dose, phases=phases, courses=compared)


def courses(
    data: Path, device: torch.device, on_progress: Callable[[str], None] | None = None
) -> dict[str, dict[str, dict[str, float | None]]]:
    """Measure how soon each course of LSQ-ML comes near the deviance of unseen frames that the plain one ends with.

    Parameters
    ----------
    data : Path
        Folder of recorded scans.
    device : torch.device
        Device that computes.
    on_progress : callable, optional
        Called with the name of each scan.

    Returns
    -------
    dict
        By scan and course: ``epochs`` and ``seconds`` until the deviance of the unseen frames is within `NEAR` of the
        plain course's after `RECORDED_EPOCHS`, None where it never is, and ``deviance``, that of the unseen frames
        after the last epoch made. Seconds are the processor's time on a CPU, and by the clock elsewhere.
    """
    found = {}
    for name, read in EXPLAINED.items():
        if on_progress is not None:
            on_progress(f"{name}, courses")
        scan = read(data, device)
        plain = _course(scan, Lsqml(plain_settings(len(scan.data))))
        target = (1 + NEAR) * plain[-1][1]
        found[name] = {PLAIN: _until(plain, target), OWN: _until(_course(scan, Lsqml(), target), target)}
    return found


def plain_settings(
    frames: int, likelihood: Likelihood = "poisson", together_from: int = PLAIN_TOGETHER_FROM
) -> LsqmlSettings:
    """Return settings with mini-batches that step by themselves, all of a sixteenth of the frames and at least 32.

    Parameters
    ----------
    frames : int
        Of the scan.
    likelihood : {'poisson', 'amplitude'}
        What is maximised.
    together_from : int
        First epoch that steps once for all frames; negative: never.
    """
    return LsqmlSettings(batch=max(32, frames // 16), together_from=together_from, likelihood=likelihood, step=0.9)


def _course(scan: Explained, engine: Lsqml, target: float = -math.inf) -> list[tuple[float, float]]:
    """Return seconds so far and the deviance of unseen frames after each epoch, until that is a target."""
    held_out = torch.arange(len(scan.data), device=scan.probe.device) % HELD_OUT_EVERY == HELD_OUT_EVERY // 2
    given, unseen = scan.data[~held_out], scan.data[held_out]
    vacuum = torch.ones(given.object_shape, dtype=torch.complex64, device=scan.probe.device)
    with Stopwatch(scan.probe.device) as watch:
        course = Course(unseen, watch, target)
        iterate(engine, Solution.start(vacuum, scan.probe, given), Schedule(RECORDED_EPOCHS), course)
    cpu = scan.probe.device.type == "cpu"
    return [(m.found.cpu_seconds if cpu else m.found.seconds, m.unseen) for m in course.marks]


def _until(course: list[tuple[float, float]], target: float) -> dict[str, float | None]:
    near = [number for number, (_, deviance) in enumerate(course) if deviance <= target]
    return {
        "epochs": near[0] + 1 if near else None,
        "seconds": course[near[0]][0] if near else None,
        "deviance": course[-1][1],
    }


def _phases(star: EngineCase, device: torch.device, tell: Callable[[str], None]) -> dict[str, float]:
    found = {}
    for likelihood in LIKELIHOODS:
        for phase, together_from in PHASES.items():
            tell(f"{star.name}, {likelihood}, {phase}")
            numbers = _run(star, likelihood, together_from, RECORDED_EPOCHS, device)
            found[f"{likelihood}, {phase}"] = numbers["deviance"]
    return found


def _run(
    case: EngineCase, likelihood: Likelihood, together_from: int, epochs: int, device: torch.device
) -> dict[str, float]:
    """Measure deviance, and error against the case's reference, after some epochs without momentum."""
    data = diffraction(case.problem, device)
    probe = torch.from_numpy(case.problem["probe"])[None].to(device)
    vacuum = torch.ones(data.object_shape, dtype=torch.complex64, device=device)
    settings = plain_settings(len(data), likelihood, together_from)
    found = iterate(Lsqml(settings), Solution.start(vacuum, probe, data), Schedule(epochs)).solution.judged()
    obj, probe_found = found.object[0].cpu().numpy(), found.probe[0].cpu().numpy()
    return {"deviance": found.mean_deviance, **errors(case, obj, probe_found)}
