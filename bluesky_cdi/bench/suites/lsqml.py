"""What the choices inside LSQ-ML are worth: its likelihood by dose, and mini-batches against all frames together.

The simulated scans, the recorded Siemens star and the measures are those of `suites.engines`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bluesky_cdi.bench.engine_cases import EngineCase, recorded_case, simulated_case
from bluesky_cdi.bench.exchange import diffraction
from bluesky_cdi.bench.machine import record
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
PHASES = {"mini-batches to the end": -1, "together from the 10th": 10}


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
        and course the mean deviance on the recorded star.
    """
    tell = on_progress or (lambda _: None)
    by_dose: dict[str, dict[str, float]] = {}
    for photons in DOSES:
        for kind in KINDS:
            name = f"{kind}, {photons:.0e} photons"
            tell(name)
            case = simulated_case(kind, photons=photons)
            by_dose[name] = {
                each: _run(case, LsqmlSettings(likelihood=each), SIMULATED_EPOCHS, device)["complex_nrmse"]
                for each in LIKELIHOODS
            }
    phases = {} if data is None else _phases(recorded_case("star_recorded", data), device, tell)
    settings = {"simulated_epochs": SIMULATED_EPOCHS, "recorded_epochs": RECORDED_EPOCHS}
    return record([device], settings, likelihood=by_dose, phases=phases)


def _phases(star: EngineCase, device: torch.device, tell: Callable[[str], None]) -> dict[str, float]:
    found = {}
    for likelihood in LIKELIHOODS:
        for phase, together_from in PHASES.items():
            tell(f"{star.name}, {likelihood}, {phase}")
            settings = LsqmlSettings(likelihood=likelihood, together_from=together_from)
            found[f"{likelihood}, {phase}"] = _run(star, settings, RECORDED_EPOCHS, device)["deviance"]
    return found


def _run(case: EngineCase, settings: LsqmlSettings, epochs: int, device: torch.device) -> dict[str, float]:
    """Measure deviance, and error against the case's reference, after some epochs."""
    data = diffraction(case.problem, device)
    probe = torch.from_numpy(case.problem["probe"])[None].to(device)
    vacuum = torch.ones(data.object_shape, dtype=torch.complex64, device=device)
    found = iterate(Lsqml(settings), Solution.start(vacuum, probe, data), Schedule(epochs)).solution.judged()
    obj, probe_found = found.object[0].cpu().numpy(), found.probe[0].cpu().numpy()
    return {"deviance": found.mean_deviance, **errors(case, obj, probe_found)}
