"""A scan as it is after the check-in of its probe, made as `bluesky-cdi reconstruct` makes it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bluesky_cdi.bench.machine import Stopwatch
from bluesky_cdi.bench.problem import Problem
from bluesky_cdi.physics.probes import scaled_to
from bluesky_cdi.reconstruction.prediction import ProbeFinder
from bluesky_cdi.reconstruction.probe_checkin import CheckIn, Wanted, check_in, in_words
from bluesky_cdi.reconstruction.probe_checkin.judging import moved_frames

# Names of methods that go on from a check-in begin so.
CHECKED = "check-in, "


@dataclass(frozen=True, eq=False)
class Checked:
    """A scan with the probe and the frames that a check-in gives.

    Attributes
    ----------
    problem : Problem
        The scan to go on with.
    check : CheckIn
    watch : Stopwatch
        What the check-in took.
    """

    problem: Problem
    check: CheckIn
    watch: Stopwatch

    @property
    def says(self) -> str:
        """What was changed, in words."""
        return in_words(self.check)


@torch.no_grad()
def checked(problem: Problem, finder: ProbeFinder | None = None) -> Checked:
    """Check the assumed probe of a scan, and change the scan as that says.

    Parameters
    ----------
    problem : Problem
        Its orientation is not looked for, as in `bluesky-cdi reconstruct`.
    finder : callable, optional
        A network that finds probes.

    Returns
    -------
    Checked
    """
    watch = Stopwatch(problem.probe.device)
    with watch:
        check = check_in(problem.data, problem.probe[0], wanted=Wanted(orientation=False), finder=finder)
    probe = scaled_to(check.probe, float(problem.probe.abs().square().sum()))
    changed = replace(problem, probe=probe[None])
    if check.trial.centre_px != (0, 0):
        data, held_out = (
            None if part is None else moved_frames(part, check.trial.centre_px, check.trial.border_px)
            for part in (problem.data, problem.held_out)
        )
        changed = replace(changed, data=data or problem.data, held_out=held_out)
    return Checked(changed, check, watch)


def overlap(found: Tensor, true: Tensor) -> float:
    """Compute the normalised overlap of the main modes of two probes (M, N, N), wherever they lie."""
    a, b = (each[int(each.abs().square().sum(dim=(-2, -1)).argmax())] for each in (found, true))
    return float(torch.fft.ifft2(torch.fft.fft2(a) * torch.fft.fft2(b).conj()).abs().max() / a.norm() / b.norm())
