"""The probe that a network finds by its steps of the probe, judged as any other that is to replace the assumed one."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from bluesky_cdi.reconstruction.prediction import ProbeFinder
from bluesky_cdi.reconstruction.probe_checkin.gain import Gain
from bluesky_cdi.reconstruction.probe_checkin.judging import Fold, Judge
from bluesky_cdi.reconstruction.probe_checkin.pupil import Pupil
from bluesky_cdi.reconstruction.probe_checkin.trial import Trial


@dataclass(frozen=True, eq=False)
class NetworkProbe:
    """What a network has found.

    Attributes
    ----------
    probe : Tensor, shape (M, N, N), complex64
        As bright as the frames are.
    trial : Trial
        The same as changes of the assumed probe: aberrations and powers of the modes (far field).
    gain : Gain
        What it brings.
    """

    probe: Tensor
    trial: Trial
    gain: Gain

    @classmethod
    def find(cls, finder: ProbeFinder, pupil: Pupil, judge: Judge, fold: Fold) -> NetworkProbe:
        """Have a probe found by the given frames of a fold, and judge it from vacuum by the others.

        Parameters
        ----------
        finder : callable
            The network.
        pupil : Pupil
            Knows the assumed probe.
        judge : Judge
            Reconstructs the object of each of the two.
        fold : Fold
            Which frames are given.
        """
        assumed = pupil.probe(Trial())
        found = pupil.as_bright_as_frames(finder(assumed[None], judge.given(Trial(), fold))[0])
        before, after = judge.deviance_of_probes([Trial(), Trial()], [assumed, found], fold)
        return cls(found, pupil.nearest(found), Gain.of(before, after))
