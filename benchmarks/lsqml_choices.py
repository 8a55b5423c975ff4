"""What the choices inside LSQ-ML are worth: its likelihood by dose, and mini-batches against all frames together.

    python benchmarks/lsqml_choices.py [--data FOLDER] [--device cuda]

The simulated scans, the recorded Siemens star and the measures are those of `engines_beside_ptychi.py`.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch
from engines_beside_ptychi import Case, quality, simulated_case, star_case
from with_ours import diffraction

from bluesky_cdi.engines.lsqml import Lsqml, LsqmlSettings
from bluesky_cdi.engines.ptychography import Schedule, Solution, iterate


def run(case: Case, settings: LsqmlSettings, epochs: int, device: str) -> dict[str, float]:
    """Deviance, and error against the case's reference, after some epochs."""
    data = diffraction(case.problem, device)
    probe = torch.from_numpy(case.problem["probe"])[None].to(device)
    vacuum = torch.ones(data.canvas_shape, dtype=torch.complex64, device=device)
    found = iterate(Lsqml(settings), Solution.start(vacuum, probe, data), Schedule(epochs)).solution.judged()
    result = {"object": found.canvas[0].cpu().numpy(), "probe": found.probe[0].cpu().numpy()}
    return {"deviance": found.mean_deviance, **quality(case, result)}


def main() -> None:
    """Run all and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("BLUESKY_CDI_DATA", "../shared/data")))
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    print(f"{'40 epochs':28}{'amplitude':>10} {'poisson':>8}  (complex NRMSE)")
    for photons in (1e3, 1e4, 1e5, 1e6):
        for kind in ("leaves", "circuit"):
            case = simulated_case(kind, photons=photons)
            errors = [
                run(case, LsqmlSettings(likelihood=likelihood), 40, args.device)["nrmse"]
                for likelihood in ("amplitude", "poisson")
            ]
            print(f"{f'{kind}, {photons:.0e} photons':28}{errors[0]:10.4f} {errors[1]:8.4f}", flush=True)
    star = star_case(args.data)
    print(f"\n{'Siemens star, 100 epochs':44}{'deviance':>9}")
    for likelihood in ("amplitude", "poisson"):
        for together_from, phases in ((-1, "mini-batches to the end"), (10, "together from the 10th")):
            settings = LsqmlSettings(likelihood=likelihood, together_from=together_from)
            numbers = run(star, settings, 100, args.device)
            print(f"{f'{likelihood}, {phases}':44}{numbers['deviance']:9.4f}", flush=True)


if __name__ == "__main__":
    main()
