"""Least-squares maximum-likelihood ptychography (LSQ-ML) with incoherent modes, positions and flux.

Odstrcil, Menzel and Guizar-Sicairos, Opt. Express 26, 3108 (2018). The likelihood asks each exit
wave for a change; preconditioned steps of object and probe share it, and their lengths solve a 2 x 2
least-squares problem. Here that problem is one for a mini-batch, not one for a frame: summed over
the frames, its inner products can be taken on object and probe, where they cost next to nothing.

The first epochs step after every mini-batch, which gets near the answer soon and then wanders in the
noise: small ones with momentum (the heavy ball of Polyak, USSR Comput. Math. Math. Phys. 4, 1 (1964)), whose
last epoch is averaged (Polyak and Juditsky, SIAM J. Control Optim. 30, 838 (1992)). The later ones step once
for all frames, accelerated (Nesterov's momentum, begun anew where the deviance rises: O'Donoghue and Candes,
Found. Comput. Math. 15, 715 (2015)), and converge.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bluesky_cdi.engines.ptychography import Refine, Solution
from bluesky_cdi.engines.steps import ordered, probe_spectrum, random_order, transmission
from bluesky_cdi.physics.forward import Diffraction, Likelihood, accumulate, extract, intensity, peak_intensity
from bluesky_cdi.physics.illuminated_frames import frames_at_once
from bluesky_cdi.physics.likelihood import mean_over_valid, poisson_deviance

# Mini-batches of the engine's own choice: shares of the frames in its first epochs and in those after them, and the
# fewest frames; the factor on their steps, and the share of the last step that each repeats. Decision 0024 has the
# measurements.
SMALL_EPOCHS, SMALL, LARGER, FEWEST = 4, 1 / 28, 1 / 14, 8
OWN_STEP, OWN_MOMENTUM = 0.5, 0.8


@dataclass(frozen=True)
class LsqmlSettings:
    """Settings of LSQ-ML.

    Parameters
    ----------
    batch : int, optional
        Frames a mini-batch, which then steps by itself. If absent the engine's own course: a twenty-eighth of the
        frames, from the fifth epoch on a fourteenth, with momentum, and an average over the last epoch's steps.
    together_from : int
        First epoch (from 0) that steps once for all frames; negative: never.
    likelihood : {'poisson', 'amplitude'}
        What is maximised.
    object_floor, probe_floor : float
        Share of the brightest pixel's illumination (transmission) added to each pixel's before a
        step divides by it: dim pixels move less.
    step : float
        Factor on the lengths that the least-squares problem finds, for mini-batches of a given size.
    largest_move_px : float
        Most that a position moves in an epoch, pixels.
    """

    batch: int | None = None
    together_from: int = 8
    likelihood: Likelihood = "poisson"
    object_floor: float = 0.05
    probe_floor: float = 0.1
    step: float = 0.9
    largest_move_px: float = 0.3


@dataclass(frozen=True, eq=False)
class Prior:
    """Prior of the object: a Gaussian around an image.

    Attributes
    ----------
    object : Tensor, shape (1, Y, X), complex
        Its mean, in the gauge of the object that the engine begins with.
    photons : Tensor, shape (1, Y, X)
        Its precision, as the photons on a pixel that determine the object as well: ``1 / (4 s^2)`` for a standard
        deviation s of the real and of the imaginary part.
    """

    object: Tensor
    photons: Tensor


class Lsqml:
    """LSQ-ML: an `Engine` for one scene.

    Parameters
    ----------
    settings : LsqmlSettings
        Step sizes, mini-batch and what is refined when.
    seed : int
        Seed of the order of frames.
    prior : Prior, optional
        Makes it find the most probable object instead of the most likely one.
    """

    name = "lsqml"

    def __init__(self, settings: LsqmlSettings | None = None, seed: int = 0, prior: Prior | None = None) -> None:
        self.settings = settings or LsqmlSettings()
        self._prior = prior
        self.warm_up = max(0, self.settings.together_from)
        self._seed = seed
        self._epochs = 0
        self._last: Solution | None = None
        self._speeding = 0
        self._velocity: tuple[Tensor, Tensor] | None = None
        self._mean: tuple[Tensor, Tensor] | None = None

    def epoch(self, solution: Solution, refine: Refine) -> Solution:
        """Use every frame once: in mini-batches at first, later all of them in one accelerated step.

        Parameters
        ----------
        solution : Solution
            The one to improve; its state of the frames is taken over.
        refine : Refine
            What may change besides the object.

        Returns
        -------
        Solution
            With the deviance that was met on the way, or that of the result.
        """
        together = 0 <= self.settings.together_from <= self._epochs
        count, device = len(solution.data), solution.object.device
        size, step, momentum = (count, 1.0, 0.0) if together else self._mini_batch(count)
        self._epochs += 1
        if together:
            solution = self._carried_on(solution, refine)
            batches: tuple[Tensor, ...] = (torch.arange(count, device=device),)
        else:
            batches = torch.split(random_order(count, self._seed, solution.epochs, device), size)
        obj, probe, data = solution.object, solution.probe, solution.data
        unmoved, same = torch.zeros(count, 2, device=device), torch.ones(count, device=device)
        found = _Found(torch.zeros_like(solution.deviance), unmoved, same)
        passed = torch.zeros_like(obj), torch.zeros_like(probe)
        for picked in batches:
            part = data if together else data[picked]
            stepped = self._improved(obj, probe, part, picked, found, refine, step)
            obj, probe = self._with_momentum(obj, probe, stepped, momentum, refine) if momentum else stepped
            passed = passed[0] + obj, passed[1] + probe
        if momentum:
            self._mean = passed[0] / len(batches), passed[1] / len(batches) if refine.probe else probe
        if self._epochs == self.settings.together_from:
            obj, probe = self._averaged(obj, probe)
        if refine.positions:
            data = moved(data, found.moves, self.settings.largest_move_px)
        if refine.flux:
            data = with_flux(data, found.flux)
        return Solution(obj, probe, data, found.deviance, solution.epochs + 1)

    def finish(self, solution: Solution, refine: Refine) -> Solution:
        """Average what the last epoch passed through if it made mini-batches, order the modes, forget all momentum.

        Parameters
        ----------
        solution : Solution
            That of the last epoch.
        refine : Refine
            What that epoch refined.

        Returns
        -------
        Solution
        """
        obj, probe = self._averaged(solution.object, solution.probe)
        self._last, self._speeding = None, 0
        return ordered(replace(solution, object=obj, probe=probe), refine)

    def _mini_batch(self, count: int) -> tuple[int, float, float]:
        """Return frames, factor on the step, and momentum of this epoch's mini-batches."""
        if self.settings.batch is not None:
            return self.settings.batch, self.settings.step, 0.0
        share = SMALL if self._epochs < SMALL_EPOCHS else LARGER
        return max(FEWEST, math.ceil(share * count)), OWN_STEP, OWN_MOMENTUM

    def _with_momentum(
        self, obj: Tensor, probe: Tensor, stepped: tuple[Tensor, Tensor], momentum: float, refine: Refine
    ) -> tuple[Tensor, Tensor]:
        """Repeat a share of the last step."""
        to_object, to_probe = stepped[0] - obj, stepped[1] - probe
        if self._velocity is not None:
            to_object = to_object + momentum * self._velocity[0]
            to_probe = to_probe + momentum * self._velocity[1] if refine.probe else to_probe
        self._velocity = to_object, to_probe
        return obj + to_object, probe + to_probe if refine.probe else probe

    def _averaged(self, obj: Tensor, probe: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean of what the last epoch's mini-batches passed through, if they had momentum; it ends there."""
        found = (obj, probe) if self._mean is None else self._mean
        self._velocity = self._mean = None
        return found

    def _carried_on(self, solution: Solution, refine: Refine) -> Solution:
        """Carry a solution on in the direction of the last epoch."""
        last, self._last = self._last, solution
        # Written so that NaN, an unknown deviance, begins anew.
        falls = last is not None and solution.mean_deviance <= last.mean_deviance
        self._speeding = self._speeding + 1 if falls else 0
        if last is None or not self._speeding:
            return solution
        momentum = self._speeding / (self._speeding + 3)
        obj = solution.object + momentum * (solution.object - last.object)
        probe = solution.probe + momentum * (solution.probe - last.probe) if refine.probe else solution.probe
        return replace(solution, object=obj, probe=probe)

    def _improved(
        self, obj: Tensor, probe: Tensor, data: Diffraction, picked: Tensor, found: _Found, refine: Refine, step: float
    ) -> tuple[Tensor, Tensor]:
        """Step object and probe by the frames `data`, number `picked` of all; fills in `found`."""
        changes = _changes(obj, probe, data, picked, found, refine, self.settings.likelihood)
        if self._prior is not None:
            # Each frame brings its share of the prior, so that an epoch brings all of it.
            changes = _with_prior(changes, obj, self._prior, len(picked) / len(found.deviance))
        to_object = changes.object / (changes.illumination + self.settings.object_floor * peak_intensity(probe))
        # Squared lengths of the exit waves' changes, and what they share with the changes asked for.
        cost, benefit = (changes.illumination * _square(to_object)).sum(), _inner(to_object, changes.object)
        if not refine.probe:
            return obj + step * benefit / cost.clamp_min(1e-30) * to_object, probe
        to_probe = changes.probe / (changes.transmission + self.settings.probe_floor * changes.transmission.max())
        probe_cost, probe_benefit = (changes.transmission * _square(to_probe)).sum(), _inner(to_probe, changes.probe)
        mixed = _mixed(obj, probe, data, to_object, to_probe)
        lengths = _lengths(cost, mixed, probe_cost, benefit, probe_benefit)
        return obj + step * lengths[0] * to_object, probe + step * lengths[1] * to_probe


@dataclass(frozen=True, eq=False)
class _Found:
    """Deviance of each frame (n,), move of its position (n, 2), and factor on its flux (n,), as an epoch finds them."""

    deviance: Tensor
    moves: Tensor
    flux: Tensor


@dataclass(frozen=True, eq=False)
class _Changes:
    """Changes of object and probe that frames together ask for.

    `object` is ``sum conj(P) step``, (1, Y, X), and `illumination` the ``sum |P|^2`` behind it; `probe` is
    ``sum conj(O) step`` at whole pixels, (1, M, N, N), and `transmission` the ``sum |O|^2`` behind it, (N, N).
    """

    object: Tensor
    illumination: Tensor
    probe: Tensor
    transmission: Tensor


def _changes(
    obj: Tensor,
    probe: Tensor,
    data: Diffraction,
    picked: Tensor,
    found: _Found,
    refine: Refine,
    likelihood: Likelihood,
) -> _Changes:
    """Go through the frames a few at a time, which bounds memory and stays in a CPU's caches."""
    total, illumination = torch.zeros_like(obj), torch.zeros_like(obj.real)
    spectrum, power = torch.zeros_like(probe), torch.zeros_like(probe[0, 0].real)
    slopes = _slopes(obj) if refine.positions else None
    size = frames_at_once(probe)
    for part, index in zip(data.chunks(size), torch.split(picked, size), strict=True):
        probes, patches = part.probes(probe), part.patches(obj)
        step, rate = part.exit_wave_step(probes, patches, likelihood)
        change, bright = (probes.conj() * step).sum(dim=1), intensity(probes)  # (n, N, N)
        total += accumulate(change, part.corner, part.object_shape)
        illumination += accumulate(bright, part.corner, part.object_shape)
        if refine.probe:
            spectrum += probe_spectrum(patches, step, part)
            power += transmission(patches, part)
        found.deviance[index] = mean_over_valid(poisson_deviance(rate, part.counts), part.valid)
        if slopes is not None:
            found.moves[index] = _moves(slopes, change, bright, part)
        if refine.flux:
            found.flux[index] = _flux(rate, part)
    return _Changes(total, illumination, torch.fft.ifft2(spectrum), power)


def _with_prior(changes: _Changes, obj: Tensor, prior: Prior, share: float) -> _Changes:
    photons = share * prior.photons
    return replace(
        changes, object=changes.object + photons * (prior.object - obj), illumination=changes.illumination + photons
    )


def _mixed(obj: Tensor, probe: Tensor, data: Diffraction, to_object: Tensor, to_probe: Tensor) -> Tensor:
    """Compute the inner product of the exit waves' changes by object and by probe, both at whole pixels."""
    overlap = (probe.conj() * to_probe).sum(dim=1)  # (1, N, N)
    size = probe.shape[-1]
    total = torch.zeros((), device=obj.device)
    for part in data.chunks(frames_at_once(probe)):
        turned = extract(to_object, part.corner, size).conj() * part.patches(obj)  # (n, N, N)
        total = total + (turned.sum(dim=0) * overlap[0]).real.sum()
    return total


def _lengths(
    cost: Tensor, mixed: Tensor, probe_cost: Tensor, benefit: Tensor, probe_benefit: Tensor
) -> tuple[Tensor, Tensor]:
    """Solve [[cost, mixed], [mixed, probe_cost]] x = (benefit, probe_benefit).

    A mixed term as large as the others' would make the system singular: object and probe then ask
    for the same, and share it.
    """
    a, c = cost.clamp_min(1e-30), probe_cost.clamp_min(1e-30)
    limit = 0.9 * (a * c).sqrt()
    b = mixed.maximum(-limit).minimum(limit)
    determinant = a * c - b * b
    return (c * benefit - b * probe_benefit) / determinant, (a * probe_benefit - b * benefit) / determinant


def _slopes(obj: Tensor) -> tuple[Tensor, Tensor]:
    """Compute central differences of the object along rows and columns, (1, Y, X) each."""
    down, across = ((torch.roll(obj, -1, dims=d) - torch.roll(obj, 1, dims=d)) / 2 for d in (-2, -1))
    return down, across


def _moves(slopes: tuple[Tensor, Tensor], wanted: Tensor, illumination: Tensor, part: Diffraction) -> Tensor:
    """Compute by how much each frame's position should move, pixels, (n, 2).

    Least squares of the change that the frame asks for over the changes ``P dO/dy``, ``P dO/dx`` that a
    move makes (the paper's eq. 25). `wanted` is ``sum conj(P) step`` and `illumination` ``sum |P|^2``, (n, N, N).
    """
    down, across = (extract(slope, part.corner, wanted.shape[-1]) for slope in slopes)
    pairs = ((down, down), (down, across), (across, across))
    yy, yx, xx = ((illumination * (a.conj() * b).real).sum(dim=(-2, -1)) for a, b in pairs)
    right = torch.stack([(g.conj() * wanted).real.sum(dim=(-2, -1)) for g in (down, across)], dim=-1)
    # A frame on vacuum can't tell where it is: the ridge, a small share of the scan's mean, keeps it there.
    ridge = 0.01 * (yy + xx).mean().clamp_min(1e-12)
    matrix = torch.stack([yy + ridge, yx, yx, xx + ridge], dim=-1).reshape(-1, 2, 2)
    moves: Tensor = torch.linalg.solve(matrix, right)
    return moves


def moved(data: Diffraction, moves: Tensor, largest_px: float) -> Diffraction:
    """Move frames to their new places, within the object; their mean place stays, for the object could follow it.

    Parameters
    ----------
    data : Diffraction
        The frames and where they lie.
    moves : Tensor, shape (n, 2)
        Rows, columns; pixels.
    largest_px : float
        Most that a position moves along an axis.

    Returns
    -------
    Diffraction
    """
    moves = moves.clamp(-largest_px, largest_px)
    place = data.corner + data.shift_px.double() + (moves - moves.mean(dim=0))
    room = torch.tensor(data.object_shape[1:], device=place.device) - data.counts.shape[-1]
    # Nearly half a pixel beyond the last corner is still nearest to it.
    place = place.clamp_min(-0.49).minimum(room + 0.49)
    corner = place.round().long()
    return replace(data, corner=corner, shift_px=(place - corner).to(data.shift_px.dtype))


def with_flux(data: Diffraction, factor: Tensor) -> Diffraction:
    """Multiply the fluxes of frames by factors, and divide by a common one, so that their mean stays.

    Parameters
    ----------
    data : Diffraction
        The frames.
    factor : Tensor, shape (n,)
        On each frame's flux.

    Returns
    -------
    Diffraction
    """
    before = torch.ones_like(factor) if data.flux is None else data.flux
    flux = before * factor
    return replace(data, flux=flux * (before.mean() / flux.mean()))


def _flux(rate: Tensor, part: Diffraction) -> Tensor:
    """Compute half of the way to the flux that fits each frame's counts best, (n,), as a factor."""
    valid = torch.ones_like(rate) if part.valid is None else part.valid
    counted = ((part.counts - part.background) * valid).sum(dim=(-2, -1))
    expected = ((rate - part.background) * valid).sum(dim=(-2, -1))
    factor: Tensor = (counted / expected.clamp_min(1e-6)).clamp(0.25, 4).sqrt()
    return factor


def _inner(a: Tensor, b: Tensor) -> Tensor:
    return (a.real * b.real + a.imag * b.imag).sum()


def _square(a: Tensor) -> Tensor:
    return a.real.square() + a.imag.square()
