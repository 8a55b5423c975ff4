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
        What it brings over the assumed probe.
    """

    probe: Tensor
    trial: Trial
    gain: Gain

    @classmethod
    def better(
        cls,
        finder: ProbeFinder,
        pupil: Pupil,
        judge: Judge,
        fold: Fold,
        rival: tuple[Trial, Tensor],
        least: tuple[float, float],
    ) -> NetworkProbe | None:
        """Have a probe found by the given frames of a fold, and judge it from vacuum by the others.

        Parameters
        ----------
        finder : callable
            The network.
        pupil : Pupil
            Knows the assumed probe.
        judge : Judge
            Reconstructs an object with each probe.
        fold : Fold
            Which frames are given.
        rival : tuple of Trial and Tensor
            What was found without a network: its changes, and its probe, (M, N, N).
        least : tuple of float
            Least gains over the assumed probe and over that, as shares of the deviance.

        Returns
        -------
        NetworkProbe or None
            None where it is not better.
        """
        assumed, (trial, without) = pupil.probe(Trial()), rival
        found = pupil.as_bright_as_frames(finder(assumed[None], judge.given(Trial(), fold))[0])
        probes = [assumed, pupil.as_bright_as_frames(without), found]
        before, rivals, after = judge.deviance_of_probes([Trial(), trial, Trial()], probes, fold)
        gain = Gain.of(before, after)
        if not (gain.exceeds(least[0]) and Gain.of(rivals, after).exceeds(least[1])):
            return None
        return cls(found, pupil.nearest(found), gain)
