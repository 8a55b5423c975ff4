"""The probe in the later stages of the unrolled network: what frames ask of its aberrations and of its modes' powers.

A probe may change by low-order phases at its pupil, the same for all modes, and by the power of each mode. These few
are fitted to the amplitudes of the counts, for an object that is kept: a step of Gauss and Newton. Photons, centre and
phase ramp, which no frame tells of object and probe apart, stay as they are in the assumed probe.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bluesky_cdi.physics.forward import STEP_FLOOR, Diffraction, intensity
from bluesky_cdi.physics.illuminated_frames import frames_at_once
from bluesky_cdi.physics.propagators import shift_ramp

# Phases that are fitted: defocus, two astigmatisms, two comas, spherical aberration.
ABERRATIONS = 6
# Of the pupil's brightest pixel: what is darker tells no shape of it.
PUPIL_SHARE = 0.01
# Polynomials end at this: beyond the pupil they grow like a power of the distance.
MOST_OF_A_TERM = 6.0
# Usual and most changes of one step: root mean square phase in radians, and logarithm of a mode's amplitude.
USUAL_CHANGE, MOST_CHANGE = 1.0, 1.0
# Frames of a scene that a step looks at, at most: sixteen to fifty tell a probe's low orders.
MOST_FRAMES = 32


@dataclass(frozen=True, eq=False)
class Pupil:
    """What a probe may change by, and what it keeps.

    Attributes
    ----------
    terms : Tensor, shape (B, ABERRATIONS, N, N)
        Phases at the pupil, zero frequency at ``[0, 0]``: root mean square 1 over its light, without piston and tilt.
    photons : Tensor, shape (B, 1, 1, 1)
    centre, ramp : Tensor, shape (B, 2), complex64
        Where the light is at the sample and at the pupil: its first harmonics along rows and columns, whose phases a
        periodic shift turns.
    """

    terms: Tensor
    photons: Tensor
    centre: Tensor
    ramp: Tensor

    @classmethod
    def of(cls, probe: Tensor) -> Pupil:
        """Look at an assumed probe.

        Parameters
        ----------
        probe : Tensor, shape (B, M, N, N), complex64
            Its modes.
        """
        with torch.no_grad():
            photons = probe.abs().square().sum(dim=(-3, -2, -1), keepdim=True)
            spectrum = intensity(torch.fft.fft2(probe))
            places = (first_harmonics(light) for light in (intensity(probe), spectrum))
            return cls(aberration_terms(spectrum), photons, *places)

    def bent(self, probe: Tensor, changes: Tensor) -> Tensor:
        """Change a probe by aberrations and powers of its modes, and restore what it keeps.

        Parameters
        ----------
        probe : Tensor, shape (B, M, N, N), complex64
            Its modes.
        changes : Tensor, shape (B, ABERRATIONS + M)
            Phases, radians, and logarithms of the factors on the modes' amplitudes.
        """
        phase = torch.einsum("bk,bkyx->byx", changes[:, :ABERRATIONS], self.terms)
        factors = changes[:, ABERRATIONS:].exp()[..., None, None]  # (B, M, 1, 1)
        waves = torch.fft.fft2(probe) * torch.polar(torch.ones_like(phase), phase)[:, None]
        return self.restored(torch.fft.ifft2(waves) * factors)

    def restored(self, probe: Tensor) -> Tensor:
        """Give a probe the photons, the centre and the phase ramp that it keeps.

        Parameters
        ----------
        probe : Tensor, shape (B, M, N, N), complex64
            Its modes.
        """
        size = probe.shape[-1]
        photons = probe.abs().square().sum(dim=(-3, -2, -1), keepdim=True)
        probe = probe * (self.photons / photons).sqrt()
        spectrum = torch.fft.fft2(probe)
        # A shift at the sample is a ramp at the pupil, and the other way round: neither spoils the other.
        shift, tilt = (
            size / (2 * torch.pi) * (kept * first_harmonics(light).conj()).angle()
            for kept, light in ((self.centre, intensity(probe)), (self.ramp, intensity(spectrum)))
        )
        probe = torch.fft.ifft2(spectrum * shift_ramp(shift, size)[:, None])
        back: Tensor = probe * torch.fft.fftshift(shift_ramp(-tilt, size), dim=(-2, -1))[:, None]
        return back


def aberration_terms(power: Tensor) -> Tensor:
    """Make low-order polynomials orthonormal under the light of pupils, and orthogonal to piston and tilt.

    Gram and Schmidt in the order of Noll's numbers (Mahajan and Dai, J. Opt. Soc. Am. A 24, 2994 (2007)).

    Parameters
    ----------
    power : Tensor, shape (B, N, N)
        Intensity at the pupil, zero frequency at ``[0, 0]``.

    Returns
    -------
    Tensor, shape (B, ABERRATIONS, N, N)
        Float32, zero frequency at ``[0, 0]``.
    """
    power = torch.fft.fftshift(power, dim=(-2, -1)).double()
    weight = torch.where(power > PUPIL_SHARE * power.amax(dim=(-2, -1), keepdim=True), power, 0.0)
    weight = weight / weight.sum(dim=(-2, -1), keepdim=True)
    index = torch.arange(power.shape[-1], dtype=torch.float64, device=power.device)
    rows, columns = ((weight.sum(dim=axis) @ index)[:, None, None] for axis in (-1, -2))
    y, x = index[:, None] - rows, index[None, :] - columns  # (B, N, 1), (B, 1, N)
    size = (weight * (y**2 + x**2)).sum(dim=(-2, -1), keepdim=True).sqrt().clamp_min(0.5)
    y, x = (y / size).expand_as(power), (x / size).expand_as(power)
    r2 = y**2 + x**2
    made: list[Tensor] = []
    for shape in (torch.ones_like(y), y, x, r2, x**2 - y**2, 2 * y * x, r2 * y, r2 * x, r2**2):
        # Twice, because rounding leaves some of the others the first time.
        for _ in range(2):
            for other in made:
                shape = shape - other * (weight * other * shape).sum(dim=(-2, -1), keepdim=True)
        norm = (weight * shape.square()).sum(dim=(-2, -1), keepdim=True).sqrt()
        # A pupil of a few pixels has no more shapes than these.
        made.append(torch.where(norm > 1e-6, shape / norm.clamp_min(1e-6), 0.0))
    terms = torch.stack(made[-ABERRATIONS:], dim=1).clamp(-MOST_OF_A_TERM, MOST_OF_A_TERM)
    shifted: Tensor = torch.fft.ifftshift(terms, dim=(-2, -1))
    return shifted.float()


def first_harmonics(image: Tensor) -> Tensor:
    """Compute the first harmonics of images along rows and columns: (B, N, N) to (B, 2), complex."""
    angle = 2 * torch.pi / image.shape[-1] * torch.arange(image.shape[-1], dtype=image.dtype, device=image.device)
    wave = torch.polar(torch.ones_like(angle), angle)
    return torch.stack([image.sum(dim=axis).to(wave.dtype) @ wave for axis in (-1, -2)], dim=1)


@torch.no_grad()
def asked_changes(obj: Tensor, probe: Tensor, data: Diffraction, pupil: Pupil) -> Tensor:
    """Fit aberrations and powers of the modes to frames, with the object as it is.

    Without gradients: what a fit hands on depends on earlier stages through a matrix that may be nearly singular.

    Parameters
    ----------
    obj : Tensor, shape (B, Y, X), complex64
        The object, which is kept.
    probe : Tensor, shape (B, M, N, N), complex64
        Its modes.
    data : Diffraction
        The frames; of many only some are looked at, since all have one probe.
    pupil : Pupil
        What the probe may change by.

    Returns
    -------
    Tensor, shape (B, ABERRATIONS + M)
        As for `Pupil.bent`; nothing where frames ask for what is no number.
    """
    each = -(-len(data) // (MOST_FRAMES * len(obj)))
    matrix, wanted = normal_equations(obj, probe, data[::each], pupil)
    # Amplitudes of counts have a variance of 1/4, changes are taken to be about `USUAL_CHANGE`: what frames can't tell
    # from noise stays.
    prior = torch.eye(matrix.shape[-1], device=matrix.device) / (2 * USUAL_CHANGE) ** 2
    matrix, wanted = matrix.nan_to_num(), wanted.nan_to_num()
    found = torch.linalg.solve(matrix + prior, wanted[..., None])[..., 0]
    phases, powers = found[:, :ABERRATIONS], found[:, ABERRATIONS:]
    sizes = phases.norm(dim=1, keepdim=True), powers.abs().amax(dim=1, keepdim=True)
    parts = zip((phases, powers), sizes, strict=True)
    return torch.cat([part * (MOST_CHANGE / size.clamp_min(MOST_CHANGE)) for part, size in parts], dim=1)


def normal_equations(obj: Tensor, probe: Tensor, data: Diffraction, pupil: Pupil) -> tuple[Tensor, Tensor]:
    """Compute what frames say of small changes of the probe: normal equations of the amplitudes of their counts.

    Parameters
    ----------
    obj : Tensor, shape (B, Y, X), complex64
        The object.
    probe : Tensor, shape (B, M, N, N), complex64
        Its modes.
    data : Diffraction
        The frames.
    pupil : Pupil
        What the probe may change by.

    Returns
    -------
    matrix : Tensor, shape (B, Q, Q)
        ``sum J^T J`` over pixels and frames, Q = ABERRATIONS + M; J the slopes of the root of the expected counts.
    wanted : Tensor, shape (B, Q)
        ``sum J^T (sqrt(counts) - sqrt(rate))``.
    """
    scenes, modes = probe.shape[:2]
    spectrum = torch.fft.fft2(probe)
    turned = torch.fft.ifft2(1j * pupil.terms[:, :, None] * spectrum[:, None])  # (B, K, M, N, N)
    # The probe itself and its changes, as if they were modes of one probe: (B, (1 + K) M, N, N)
    together = torch.cat([probe[:, None], turned], dim=1).flatten(1, 2)
    matrix = torch.zeros(scenes, ABERRATIONS + modes, ABERRATIONS + modes, device=probe.device)
    wanted = torch.zeros(scenes, ABERRATIONS + modes, device=probe.device)
    for part in data.chunks(max(1, frames_at_once(probe) // (1 + ABERRATIONS))):
        waves = part.propagator.forward(part.probes(together) * part.patches(obj)[:, None], part.shift_px)
        waves = waves.reshape(len(part), 1 + ABERRATIONS, modes, *waves.shape[-2:])  # (n, 1 + K, M, N, N)
        own = waves[:, 0].abs().square()  # (n, M, N, N)
        amplitude = (own.sum(dim=1) + part.background + STEP_FLOOR).sqrt()
        along = (waves[:, :1].conj() * waves[:, 1:]).real.sum(dim=2)  # (n, K, N, N)
        slopes = torch.cat([along, own], dim=1) / amplitude[:, None]  # (n, Q, N, N)
        rest = part.counts.sqrt() - amplitude
        if part.valid is not None:
            valid = part.valid.expand_as(rest)
            slopes, rest = slopes * valid[:, None], torch.where(valid, rest, 0.0)
        slopes, rest = slopes.flatten(2), rest.flatten(1)[..., None]
        scene = torch.zeros(len(part), dtype=torch.long, device=obj.device) if part.scene is None else part.scene
        matrix = matrix.index_add(0, scene, slopes @ slopes.transpose(-1, -2))
        wanted = wanted.index_add(0, scene, (slopes @ rest)[..., 0])
    return matrix, wanted
