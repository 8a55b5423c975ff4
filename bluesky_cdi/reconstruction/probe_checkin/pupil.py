"""The assumed probe where it meets the detector, and the probes made by changing it there.

In the far field that is the pupil of the lens. A phase added there keeps modes orthogonal and the photons.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from bluesky_cdi.physics.forward import Diffraction, intensity
from bluesky_cdi.physics.illumination import photons_through_vacuum
from bluesky_cdi.physics.propagators import FAR_FIELD, Propagator
from bluesky_cdi.reconstruction.probe_checkin.trial import ABERRATIONS, DEFOCUS, Trial

# Below this share of the pupil's brightest amplitude the assumed phase is noise: there it goes on smoothly.
KNOWN_AMPLITUDE = 0.05
# Light below this share of the pupil's brightest is scattered by the object, and says nothing of the pupil's size.
PUPIL_SHARE = 0.05
# Pixels that piston, tilts and the six aberrations need to be told apart.
LEAST_PUPIL = len(ABERRATIONS) + 3

# Least part of a mode, as a share of its amplitude, that the modes before it have not.
LEAST_MODE = 0.1
# Modes whose powers differ by no more than this share are assumed to be equal.
SAME_POWER = 1e-3


class Pupil:
    """Make probes from trials.

    Parameters
    ----------
    assumed : Tensor, shape (M, N, N), complex64
        Its modes, in sqrt(photons).
    data : Diffraction
        Frames of one scene, whose mean gives an amplitude.

    Attributes
    ----------
    strongest : int
        Number of the assumed mode with most photons: the main mode.
    shares : tuple of float
        Assumed share of each mode in the photons.
    basis : Tensor, shape (6, N, N)
        The aberrations, in the propagator's working order: orthonormal, and orthogonal to piston and tilt, under the
        pupil's intensity.
    """

    def __init__(self, assumed: Tensor, data: Diffraction) -> None:
        self._assumed, self._propagator = assumed, data.propagator
        self._valid = _valid_in_all(data)
        self._counted = _photons(data, self._valid)
        powers = assumed.abs().square().sum(dim=(-2, -1))
        self.shares = tuple((powers / powers.sum()).tolist())
        # Of modes that are assumed equal the first: rounding must not choose.
        self.strongest = int((powers > (1 - SAME_POWER) * powers.max()).nonzero()[0])
        self._waves = data.propagator.forward(assumed[None])[0]  # (M, N, N)
        main = self._waves[self.strongest].abs()
        self._mean = mean_amplitude(data)
        self._mean = self._mean * (main.norm() / self._mean.norm())
        # A plane wave, assumed where no probe is known, is a point here: then the frames alone tell where the pupil is.
        tells = int((main.square() > PUPIL_SHARE * main.square().max()).sum()) > LEAST_PUPIL
        pupil = (main.square() + self._mean.square()) / 2 if tells else self._mean.square()
        self.basis = aberration_basis(pupil, data.propagator)

    def probe(self, trial: Trial, weakest: float = 0.0) -> Tensor:
        """Make the probe of a trial, as bright as the frames are on their valid pixels.

        Parameters
        ----------
        trial : Trial
            What is changed.
        weakest : float
            Modes with less than this share of the photons are left out.

        Returns
        -------
        Tensor, shape (M or fewer, N, N), complex64
        """
        probe = self._assumed if trial.keeps_probe else self._changed(trial)
        if weakest:
            powers = probe.abs().square().sum(dim=(-2, -1))
            probe = probe[powers >= min(weakest, 1 / len(powers)) * powers.sum()]
        return self.as_bright_as_frames(probe)

    def turned(self, trial: Trial) -> Tensor:
        """Make the probe (M, N, N) with a trial's aberrations and the assumed amplitude, as bright as the assumed."""
        return self._propagator.adjoint(self._phased(self._waves, trial)[None])[0].to(torch.complex64)

    def nearest(self, probe: Tensor) -> Trial:
        """Find the trial whose probe is like another one, which has other aberrations and powers of the modes.

        Outside the far field, where a phase at the detector is no aberration of the lens, by its powers alone.

        Parameters
        ----------
        probe : Tensor, shape (M, N, N), complex
            The other one, wherever it lies.
        """
        before, after = self._waves, self._propagator.forward(probe[None])[0]
        powers = after.abs().square().sum(dim=(-2, -1))
        trial = Trial(powers=tuple((powers / powers.sum()).tolist()) if len(powers) > 1 else None)
        if self._propagator is not FAR_FIELD:
            return trial
        to_detector = self._propagator.to_detector
        wave = to_detector((after * before.conj()).sum(dim=0)).to(torch.complex128)
        tilts = _polynomials(to_detector(before.abs().square().sum(dim=0)).double())[1:3]
        turned = _fitted_by_slopes(wave, torch.cat([tilts, to_detector(self.basis).double()]))[2:]
        return replace(trial, aberrations_rad=tuple(turned.tolist()))

    def derivatives(self, count: int) -> dict[str, Tensor]:
        """Differentiate the assumed probe by the first aberrations: (M, N, N) for a radian rms, by name.

        Parameters
        ----------
        count : int
            How many, in the order of `ABERRATIONS`.
        """
        turned = 1j * self._waves * self.basis[:count, None]  # (count, M, N, N)
        made = self._propagator.adjoint(turned).to(torch.complex64)
        return dict(zip(ABERRATIONS[:count], made, strict=True))

    def as_bright_as_frames(self, probe: Tensor) -> Tensor:
        """Scale a probe (M, N, N): through vacuum the valid pixels count what they count in the brighter frames."""
        expected = intensity(self._propagator.forward(probe[None]))[0]
        seen = float(torch.where(self._valid, expected, 0.0).sum())
        return probe * math.sqrt(self._counted / max(seen, 1e-30))

    @property
    def defocus_curvature(self) -> float:
        """Phase of one radian of defocus, rms, at one pixel from the middle, radians; it is a square."""
        # Neighbouring pixels of float32 differ by little more than their rounding: the ends of a row and its middle.
        row = self._propagator.to_detector(self.basis[DEFOCUS])[0].double()
        half = (len(row) - 1) // 2
        return float(row[0] - 2 * row[half] + row[2 * half]) / (2 * half**2)

    def offset_px(self, most: int) -> tuple[int, int]:
        """Match mean frame and assumed pupil: how many whole pixels (rows, columns) it is off, at most `most`."""
        assumed, mean = (torch.fft.fft2(each) for each in (self._waves[self.strongest].abs(), self._mean))
        match = torch.fft.ifft2(mean * assumed.conj()).real
        size = match.shape[-1]
        steps = torch.arange(size, device=match.device)
        near = torch.minimum(steps, size - steps) <= most
        match = torch.where(near[:, None] & near[None, :], match, -torch.inf)
        y, x = divmod(int(match.argmax()), size)
        return (y - size if y > size // 2 else y), (x - size if x > size // 2 else x)

    def _changed(self, trial: Trial) -> Tensor:
        modes = self._modes(trial)  # (M, N, N), each of unit energy
        shares = torch.tensor(trial.powers or self.shares, dtype=torch.float32, device=modes.device)
        waves = self._phased(modes * shares.sqrt()[:, None, None], trial)
        return self._propagator.adjoint(waves[None])[0].to(torch.complex64)

    def _phased(self, waves: Tensor, trial: Trial) -> Tensor:
        turn = torch.tensor(trial.aberrations_rad, dtype=torch.float32, device=waves.device)
        angle = (turn[:, None, None] * self.basis).sum(dim=0)
        return waves * torch.polar(torch.ones_like(angle), angle)

    def _modes(self, trial: Trial) -> Tensor:
        energy = self._waves.abs().square().sum(dim=(-2, -1), keepdim=True)
        waves = self._waves / energy.sqrt().clamp_min(1e-30)
        if trial.amplitude == "assumed" and not trial.flat:
            return waves
        main = waves[self.strongest]
        amplitude = main.abs() if trial.amplitude == "assumed" else self._mean / self._mean.norm()
        known = main.abs() > KNOWN_AMPLITUDE * main.abs().max()
        middle = _of_the_middle(main, self._propagator)
        phasor = (
            middle
            if trial.flat
            else torch.where(known, torch.sgn(main), middle * self._carried_on(middle.conj() * main, known))
        )
        lead = amplitude * phasor
        lead = lead / lead.norm()
        made = [lead]
        # Gram and Schmidt, twice: the other modes stay as assumed but for what they share with the new main one.
        for k in [k for k in range(len(waves)) if k != self.strongest]:
            wave = waves[k]
            for _ in range(2):
                for mode in made:
                    wave = wave - mode * (mode.conj() * wave).sum()
            # Of a mode that is nearly another one only noise is left, which is no mode.
            made.append(wave / wave.norm() if float(wave.norm()) > LEAST_MODE else torch.zeros_like(wave))
        order = [self.strongest, *(k for k in range(len(waves)) if k != self.strongest)]
        return torch.stack([made[order.index(k)] for k in range(len(waves))])

    def _carried_on(self, main: Tensor, known: Tensor) -> Tensor:
        """Carry the phase of a wave on to where it is not known: the low-order polynomials that fit its slopes."""
        wave = self._propagator.to_detector(torch.where(known, main, 0.0)).to(torch.complex128)
        shapes = _polynomials(wave.abs().square())
        sizes = _fitted_by_slopes(wave, shapes[1:])
        smooth = torch.polar(torch.ones_like(shapes[0]), (sizes[:, None, None] * shapes[1:]).sum(dim=0))
        smooth = smooth * torch.sgn((wave * smooth.conj()).sum())
        return self._propagator.to_working(smooth).to(main.dtype)


def mean_amplitude(data: Diffraction) -> Tensor:
    """Take the square root of the mean frame, masked pixels filled from their neighbourhood.

    Parameters
    ----------
    data : Diffraction
        Frames of one scene.

    Returns
    -------
    Tensor, shape (N, N)
        In the propagator's working order.
    """
    valid = torch.ones_like(data.counts, dtype=torch.bool) if data.valid is None else data.valid.expand_as(data.counts)
    seen = valid.sum(dim=0)
    total = torch.where(valid, data.counts - data.background, 0.0).sum(dim=0)
    # The flux that the pixel's frames had together: of a mean frame, not of the frames that happened to be valid there.
    flux = seen if data.flux is None else (valid * data.flux[:, None, None]).sum(dim=0)
    mean = (total / torch.where(seen > 0, flux, 1.0)).clamp_min(0)
    detector = data.propagator.to_detector
    filled = _filled(detector(mean.sqrt()), detector(seen > 0))
    return data.propagator.to_working(filled)


def aberration_basis(power: Tensor, propagator: Propagator) -> Tensor:
    """Make low-order polynomials orthonormal under a weight: the Zernikes of a pupil of any shape.

    Gram and Schmidt in the order of Noll's numbers (Mahajan and Dai, J. Opt. Soc. Am. A 24, 2994 (2007), for
    pupils that are no discs), so that a coefficient is the root mean square phase, radians.

    Parameters
    ----------
    power : Tensor, shape (N, N)
        Intensity at the detector, in the propagator's working order.
    propagator : Propagator
        Knows where the middle is.

    Returns
    -------
    Tensor, shape (6, N, N)
        Defocus, astigmatisms, comas and spherical aberration, in the working order.
    """
    power = propagator.to_detector(power).double()
    weight = torch.where(power > PUPIL_SHARE * power.max(), power, 0.0)
    weight = weight / weight.sum()
    made: list[Tensor] = []
    for shape in _polynomials(weight):
        for _ in range(2):
            for other in made:
                shape = shape - other * (weight * other * shape).sum()
        made.append(shape / (weight * shape**2).sum().sqrt())
    return propagator.to_working(torch.stack(made[-len(ABERRATIONS) :])).float()


def _polynomials(power: Tensor) -> Tensor:
    """Make piston, tilts, defocus, astigmatisms, comas and spherical aberration about a weight's middle, (9, N, N)."""
    weight = power / power.sum()
    index = torch.arange(power.shape[-1], dtype=torch.float64, device=power.device)
    y, x = torch.meshgrid(index, index, indexing="ij")
    y, x = y - (weight * y).sum(), x - (weight * x).sum()
    # A weight of one pixel, which a plane wave has, has no size.
    size = (weight * (y**2 + x**2)).sum().sqrt().clamp_min(1.0)
    y, x = y / size, x / size
    r2 = y**2 + x**2
    return torch.stack([torch.ones_like(y), y, x, r2, x**2 - y**2, 2 * y * x, r2 * y, r2 * x, r2**2])


def _fitted_by_slopes(wave: Tensor, shapes: Tensor) -> Tensor:
    """Fit shapes (K, N, N) to the phase of a wave (N, N) by its steps between neighbours, which don't wrap, (K,)."""
    rows, wanted = [], []
    for axis in (0, 1):
        step = torch.roll(wave, -1, axis) * wave.conj()
        inside = step.abs() > 0
        weight = step.abs()[inside].sqrt()
        rows.append(((torch.roll(shapes, -1, axis + 1) - shapes)[:, inside] * weight).T)
        wanted.append(torch.angle(step[inside]) * weight)
    # Few known pixels leave some shapes open, which a GPU's `lstsq` can't take: these stay 0.
    design, target = torch.cat(rows), torch.cat(wanted)
    found: Tensor = torch.linalg.pinv(design.T @ design, hermitian=True) @ (design.T @ target)
    return found


def _valid_in_all(data: Diffraction) -> Tensor:
    """Find the pixels (N, N) that are valid in all frames: a saturated one tells no photons in some of them."""
    everywhere = torch.ones_like(data.counts[0], dtype=torch.bool) if data.mask is None else data.mask
    if data.valid is None or data.valid.ndim == everywhere.ndim:
        return everywhere
    valid = data.valid.all(dim=0)
    return valid if bool(valid.any()) else everywhere


def _photons(data: Diffraction, valid: Tensor) -> float:
    """Count the photons of a frame of mean flux through vacuum on some pixels (N, N), less background; at least one."""
    counts = torch.where(valid, data.counts - data.background, 0.0).sum(dim=(-2, -1))
    if data.flux is not None:
        counts = counts / data.flux
    return max(photons_through_vacuum(counts.cpu().double().numpy()), 1.0)


def _of_the_middle(main: Tensor, propagator: Propagator) -> Tensor:
    """Compute the phasor at the detector of a point in the middle of the array, ``[N // 2, N // 2]``.

    In the far field of even N it turns every other pixel's sign; of odd N it is no sign.
    """
    size = main.shape[-1]
    if propagator is not FAR_FIELD:
        return torch.ones_like(main)
    angle = torch.arange(size, dtype=torch.float64, device=main.device) * (-2 * math.pi * (size // 2) / size)
    phasor = torch.polar(torch.ones_like(angle), angle)
    return (phasor[:, None] * phasor[None, :]).to(main.dtype)


def _filled(image: Tensor, known: Tensor) -> Tensor:
    """Fill unknown pixels by averages of known ones, over windows that grow until there are some; (N, N)."""
    filled, left = torch.where(known, image, 0.0), ~known
    width = 3
    while bool(left.any()) and width <= 2 * image.shape[-1] + 1:
        sums = [
            torch.nn.functional.avg_pool2d(each[None, None], width, stride=1, padding=width // 2)[0, 0]
            for each in (torch.where(known, image, 0.0), known.float())
        ]
        reached = left & (sums[1] > 0)
        filled = torch.where(reached, sums[0] / sums[1].clamp_min(1e-12), filled)
        left = left & ~reached
        width = 2 * width - 1
    return filled
