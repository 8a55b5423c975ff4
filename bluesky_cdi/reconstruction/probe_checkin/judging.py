"""How well trials explain frames that their objects were not made from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bluesky_cdi.physics.forward import Diffraction, peak_intensity
from bluesky_cdi.physics.illuminated_frames import IlluminatedFrames, frames_at_once
from bluesky_cdi.physics.likelihood import mean_over_valid, poisson_deviance
from bluesky_cdi.reconstruction.probe_checkin.pupil import Pupil
from bluesky_cdi.reconstruction.probe_checkin.trial import Trial
from bluesky_cdi.reconstruction.scores import UNEXPLAINED

# Mini-batches of a sweep, and rPIE's regularisation: few sweeps from vacuum must come far.
BATCHES = 4
ALPHA = 0.1
# Bytes of exit waves of the trials computed at a time.
CPU_BYTES, GPU_BYTES = 2**27, 2**32


@dataclass(frozen=True, eq=False)
class Fold:
    """Numbers of the frames that objects are made from, and of those that judge them."""

    given: Tensor
    unseen: Tensor


class Judge:
    """Reconstruct trials for a few sweeps from vacuum, and look at the frames that were kept from them.

    Parameters
    ----------
    data : Diffraction
        Frames of one scene.
    pupil : Pupil
        Makes the trials' probes.
    sweeps : int
        Times that every given frame is used.
    weakest : float
        Modes with less than this share of the photons are left out.
    border_px : int
        Pixels along the frames' borders that are left out of everything, so that frames may be moved by so much.
    on_step : callable, optional
        Called before each batch of trials.
    """

    def __init__(
        self,
        data: Diffraction,
        pupil: Pupil,
        sweeps: int,
        weakest: float = 0.0,
        border_px: int = 0,
        on_step: Callable[[], None] | None = None,
    ) -> None:
        self._data, self._pupil, self._sweeps = data, pupil, sweeps
        self._weakest, self._border_px = weakest, border_px
        self._on_step = on_step or (lambda: None)

    def deviance(self, trials: Sequence[Trial], fold: Fold) -> Tensor:
        """Compute the deviance per valid pixel of each unseen frame, shape (trials, frames)."""
        probes = [self._pupil.probe(trial, self._weakest) for trial in trials]
        return self.deviance_of_probes(trials, probes, fold)

    def deviance_of_probes(self, trials: Sequence[Trial], probes: Sequence[Tensor], fold: Fold) -> Tensor:
        """Compute what `deviance` does, of probes (M, N, N) where frames and positions lie as trials say."""
        rows = []
        for first, last in self._batches(trials, probes, fold):
            self._on_step()
            stacked, chosen = torch.stack(list(probes[first:last])), trials[first:last]
            rows.append(self._judged(chosen, stacked, fold))
        return torch.cat(rows)

    def _batches(self, trials: Sequence[Trial], probes: Sequence[Tensor], fold: Fold) -> Iterator[tuple[int, int]]:
        """Cut trials into runs with as many modes and one mask that fit into memory together."""
        allowed = GPU_BYTES if self._data.counts.is_cuda else CPU_BYTES

        def unlike(a: int, b: int) -> bool:
            return probes[a].shape != probes[b].shape or trials[a].centre_px != trials[b].centre_px

        first = 0
        for last in range(1, len(probes) + 1):
            full = (last - first + 1) * len(fold.given) * probes[first].nbytes > allowed
            if last == len(probes) or full or unlike(first, last):
                yield first, last
                first = last

    def _judged(self, trials: Sequence[Trial], probes: Tensor, fold: Fold) -> Tensor:
        obj = self.objects(trials, probes, fold)
        unseen = self.scenes(trials, fold.unseen, tuple(obj.shape))
        # What no candidate explains, light that the object scattered, is like the mean frame; of an untouched
        # model the deviance would be ruled by single photons where it predicts darkness.
        given = self.scenes(trials, fold.given, tuple(obj.shape))
        flux = torch.ones(len(given), device=obj.device) if given.flux is None else given.flux
        each = (len(trials), len(fold.given))
        mean = given.counts.reshape(*each, *given.counts.shape[1:]).sum(dim=1) + 0.5
        mean = mean / flux.reshape(each).sum(dim=1)[:, None, None]
        parts = []
        for part in unseen.chunks(frames_at_once(probes)):
            rate = part.rate(part.probes(probes), part.patches(obj))
            like_mean = mean[part.scene] if part.flux is None else mean[part.scene] * part.flux[:, None, None]
            rate = (1 - UNEXPLAINED) * rate + UNEXPLAINED * like_mean
            parts.append(mean_over_valid(poisson_deviance(rate, part.counts), part.valid))
        return torch.cat(parts).reshape(len(trials), -1)

    def objects(self, trials: Sequence[Trial], probes: Tensor, fold: Fold) -> Tensor:
        """Reconstruct each trial's object from the given frames of a fold, (B, Y, X)."""
        shape = (len(trials), *self._shape(trials))
        obj = torch.ones(shape, dtype=torch.complex64, device=probes.device)
        order = torch.randperm(len(fold.given), generator=torch.Generator().manual_seed(0)).to(fold.given.device)
        batches = [
            IlluminatedFrames(probes, self.scenes(trials, fold.given[part], shape))
            for part in torch.tensor_split(order, min(BATCHES, len(order)))
        ]
        peak = peak_intensity(probes)
        for _ in range(self._sweeps):
            for frames in batches:
                numerator, illumination = frames.step(obj)
                obj = obj + numerator / ((1 - ALPHA) * illumination + ALPHA * peak)
        return obj

    def given(self, trial: Trial, fold: Fold) -> Diffraction:
        """Lay the given frames of a fold out as a trial says, on one object."""
        return replace(self.scenes([trial], fold.given, (1, *self._shape([trial]))), scene=None)

    def scenes(self, trials: Sequence[Trial], rows: Tensor, shape: tuple[int, ...]) -> Diffraction:
        """Lay some frames out as each trial says, one scene a trial, on objects of a shape (B, Y, X)."""
        parts = [self._laid_out(trial, rows) for trial in trials]
        scene = torch.arange(len(trials), device=rows.device).repeat_interleave(len(rows))
        return replace(
            parts[0],
            counts=torch.cat([part.counts for part in parts]),
            corner=torch.cat([part.corner for part in parts]),
            shift_px=torch.cat([part.shift_px for part in parts]),
            flux=None if parts[0].flux is None else torch.cat([part.flux for part in parts if part.flux is not None]),
            scene=scene,
            object_shape=(shape[0], shape[1], shape[2]),
        )

    def _laid_out(self, trial: Trial, rows: Tensor) -> Diffraction:
        data = self._data[rows]
        corner, shift = self._places(trial)
        low, _ = self._extent(trial)
        data = replace(data, corner=corner[rows] - low, shift_px=shift[rows])
        if not self._border_px and trial.centre_px == (0, 0):
            return data
        return moved_frames(data, trial.centre_px, self._border_px)

    def _places(self, trial: Trial) -> tuple[Tensor, Tensor]:
        data = self._data
        if trial.keeps_places:
            return data.corner, data.shift_px
        place = (data.corner + data.shift_px.double()).cpu().numpy()
        middle = place.mean(axis=0)
        turned = torch.from_numpy(middle + trial.scale * trial.orientation.turn(place - middle)).to(data.corner.device)
        corner = turned.round().long()
        return corner, (turned - corner).to(data.shift_px.dtype)

    def _extent(self, trial: Trial) -> tuple[Tensor, Tensor]:
        corner, _ = self._places(trial)
        return corner.amin(dim=0), corner.amax(dim=0)

    def _shape(self, trials: Sequence[Trial]) -> tuple[int, int]:
        sides = [high - low for low, high in map(self._extent, trials)]
        most = torch.stack(sides).amax(dim=0) + self._data.counts.shape[-1]
        return int(most[0]), int(most[1])


def moved_frames(data: Diffraction, centre_px: tuple[int, int], border_px: int) -> Diffraction:
    """Move frames so that the beam's centre comes to where it is assumed to lie.

    Parameters
    ----------
    data : Diffraction
        The frames.
    centre_px : tuple of int
        Where the centre lies now (rows, columns), pixels from there.
    border_px : int
        Pixels along the borders that are masked before; at least what comes in from the other side.

    Returns
    -------
    Diffraction
    """
    back = (-centre_px[0], -centre_px[1])
    size = data.counts.shape[-1]
    inside = torch.zeros(size, size, dtype=torch.bool, device=data.counts.device)
    inside[border_px : size - border_px, border_px : size - border_px] = True
    inside = data.propagator.to_working(inside)
    mask = inside if data.mask is None else inside & data.mask
    counts, mask = (torch.roll(each, back, dims=(-2, -1)) for each in (data.counts, mask))
    return replace(data, counts=counts, mask=mask)
