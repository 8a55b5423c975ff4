"""What methods find beyond a detector's aperture, judged by pixels of it that no method was given.

Of each frame the inner part is given, and the object is wanted on the grid of the whole frame, whose pixel is finer.
The pixels outside tell how good what was found there is: by their Poisson deviance, and by the correlation, in rings of
frequency, with what LSQ-ML finds from the whole frames. Probe and positions of simulated scans are known; of the
recorded one the probe is that which LSQ-ML finds on the cropped detector, for whole frames that which it finds there.

The pixels of a ring beyond the aperture are seen by a scan all the same, as far as the probe's own spectrum reaches
(`physics.measured_aperture`); `measured` is the share of the light of these frequencies that was. Decoders add to what
LSQ-ML finds from the inner pixels; `unsupported` is the mean share of an answer's contrast that these don't support.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bluesky_cdi.bench.cases import Case, simulate
from bluesky_cdi.bench.machine import Stopwatch, record
from bluesky_cdi.bench.methods import MOST_EPOCHS, TOLERANCE, Found, Network, engine, predict
from bluesky_cdi.bench.problem import Problem, judge
from bluesky_cdi.bench.recorded import MARGIN_PX, STAR, problem_of, siemens_star
from bluesky_cdi.engines.ptychography import Schedule, deviance_of, noise_of
from bluesky_cdi.evaluation import illuminated_mask
from bluesky_cdi.evaluation.alignment import align
from bluesky_cdi.evaluation.data_support import unsupported_share
from bluesky_cdi.evaluation.frc import soft_window
from bluesky_cdi.models.aperture_decoder import ApertureDecoder
from bluesky_cdi.physics.forward import Diffraction, fft2c, ifft2c, to_centre, to_corner
from bluesky_cdi.physics.illumination import summed_illumination
from bluesky_cdi.physics.illumination_shares import REFERENCE_SHARE
from bluesky_cdi.physics.measured_aperture import (
    beyond,
    data_support,
    inner_pixels,
    inner_side,
    measured_share,
    supported,
)
from bluesky_cdi.protocols import ComplexArray, FloatArray

# Photons a pixel beside every rate: a method that expects none where some came would else be infinitely wrong.
DARK_PHOTONS = 1e-2
# Coarse pixels around a coarse object.
ROOM_PX = 2
CROPPED, ZEROS, MASKED, LIMITED, WHOLE, TRUTH = (
    "cropped",
    "padded with zeros",
    "LSQ-ML, outer pixels unknown",
    "LSQ-ML, as far as supported",
    "LSQ-ML, whole frames",
    "truth",
)


@dataclass(frozen=True)
class Options:
    """What is measured.

    Parameters
    ----------
    samples : sequence of str
        Kinds of simulated samples.
    doses : sequence of float
        Photons of a frame.
    seeds : int
        Scans of each kind and dose.
    share : float
        Of a side of the detector that methods are given.
    data : Path, optional
        Folder of recorded scans; the Siemens star is measured too where it is named.
    frames : int
        Of the star: those about its middle.
    epochs : int
        Most of LSQ-ML.
    """

    samples: Sequence[str] = ("star", "leaves", "circuit")
    doses: Sequence[float] = (1e5, 1e7)
    seeds: int = 1
    share: float = 2 / 3
    data: Path | None = None
    frames: int = 60
    epochs: int = MOST_EPOCHS


@dataclass(frozen=True, eq=False)
class Hidden:
    """A scan whose outer pixels are hidden.

    Attributes
    ----------
    whole : Problem
        As measured.
    inner : Problem
        As given: its outer pixels are not valid, and hold nothing.
    share : float
        Of a side of the detector that is given.
    """

    whole: Problem
    inner: Problem
    share: float

    @property
    def outer(self) -> Diffraction:
        """The frames, of which the hidden pixels alone count."""
        data = self.whole.data
        outside = ~_inside(self.whole, self.share)
        mask = outside if data.mask is None else outside & data.mask
        return replace(data, mask=mask, background=data.background + DARK_PHOTONS)


def hide(problem: Problem, share: float) -> Hidden:
    """Hide the outer pixels of a far-field scan.

    Parameters
    ----------
    problem : Problem
        The scan.
    share : float
        Of a side of the detector that stays.

    Returns
    -------
    Hidden

    Raises
    ------
    ValueError
        If the share leaves no pixel, or hides none, or the scan is no far field.
    """
    if problem.propagation != "far":
        raise ValueError("only of a far field outer pixels are high frequencies of the sample; got a near field")
    data, inside = problem.data, _inside(problem, share)
    mask = inside if data.mask is None else inside & data.mask
    # Not only masked: what is not there reaches no method by any way.
    given = replace(data, counts=torch.where(inside, data.counts, 0.0), mask=mask)
    return Hidden(problem, replace(problem, data=given, held_out=None), share)


def _inside(problem: Problem, share: float) -> Tensor:
    """Mark the pixels that are given, in the working order."""
    return to_corner(inner_pixels(problem.probe.shape[-1], share)).to(problem.probe.device)


def beyond_aperture(
    options: Options,
    networks: Sequence[Network],
    decoders: Mapping[str, ApertureDecoder],
    device: torch.device,
    on_progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Run every method on every scan.

    Parameters
    ----------
    options : Options
        What is measured.
    networks : sequence of Network
        Those that are given frames with hidden pixels.
    decoders : Mapping of str to ApertureDecoder
        By name; on the device.
    device : torch.device
        Device that computes.
    on_progress : callable, optional
        Called with the name of each scan before it is measured.

    Returns
    -------
    dict
        ``machine``, ``settings`` and ``rows``, one a scan and method.
    """
    tell = on_progress or (lambda _: None)
    rows = []
    for name, photons, seed, problem in scans(options, device):
        tell(name if photons is None else f"{name}, {photons:.0e} photons, seed {seed}")
        hidden = hide(problem, options.share)
        for method, numbers in judged(hidden, solve(hidden, networks, decoders, seed, options.epochs)).items():
            rows.append({"scan": name, "photons": photons, "seed": seed, "method": method, **numbers})
    settings = asdict(options) | {"data": None if options.data is None else str(options.data)}
    return record([device], settings, rows=rows)


def scans(options: Options, device: torch.device) -> Iterator[tuple[str, float | None, int, Problem]]:
    """Give the scans that are measured.

    Parameters
    ----------
    options : Options
        Which.
    device : torch.device
        Device that computes.

    Yields
    ------
    str, float or None, int, Problem
        Name, photons of a frame where they are chosen, seed, and the scan.
    """
    for sample in options.samples:
        for dose in options.doses:
            for seed in range(options.seeds):
                yield sample, dose, seed, simulate(Case(dose=dose, sample=sample), seed, device)
    if options.data is not None:
        recorded = siemens_star(options.data / STAR)
        yield recorded.name, None, 0, middle_of(problem_of(recorded, device), options.frames)


def middle_of(problem: Problem, frames: int) -> Problem:
    """Cut a scan to the frames about its middle, and its object to what they see.

    Parameters
    ----------
    problem : Problem
        The scan.
    frames : int
        How many, at most.
    """
    data, size = problem.data, problem.probe.shape[-1]
    away = (data.corner - data.corner.double().mean(dim=0)).square().sum(dim=1)
    part = data[away.argsort(stable=True)[:frames].sort().values]
    low = part.corner.amin(dim=0) - MARGIN_PX
    high = part.corner.amax(dim=0) + size + MARGIN_PX
    low, high = low.clamp_min(0), torch.minimum(high, torch.tensor(data.object_shape[1:], device=high.device))
    rows, columns = (slice(int(first), int(last)) for first, last in zip(low, high, strict=True))
    shape = (1, rows.stop - rows.start, columns.stop - columns.start)
    part = replace(part, corner=part.corner - low, object_shape=shape)
    return replace(
        problem,
        data=part,
        truth=problem.truth[rows, columns],
        illuminated=illuminated_mask(summed_illumination(problem.probe, part)[0].cpu().numpy(), REFERENCE_SHARE),
        origin_m=(
            problem.origin_m[0] + rows.start * problem.pixel_m,
            problem.origin_m[1] + columns.start * problem.pixel_m,
        ),
        held_out=None,
    )


@dataclass(frozen=True, eq=False)
class Answer:
    """What a method made of the inner pixels, on the grid of the whole frame.

    Attributes
    ----------
    object : Tensor, shape (1, Y, X), complex64
    probe : Tensor, shape (1, M, N, N), complex64
        With which it explains frames.
    seconds : float
    unsupported : Tensor, shape (1, Y, X), complex64, or None
        The part of it that the given pixels don't support; None where more was told. Of decoders it is what they added.
    """

    object: Tensor
    probe: Tensor
    seconds: float
    unsupported: Tensor | None = None


@torch.no_grad()
def solve(
    hidden: Hidden,
    networks: Sequence[Network],
    decoders: Mapping[str, ApertureDecoder],
    seed: int,
    epochs: int = MOST_EPOCHS,
) -> dict[str, Answer]:
    """Run every method on a scan with hidden pixels; the last two answers are told more.

    Parameters
    ----------
    hidden : Hidden
        The scan.
    networks : sequence of Network
        Given the frames with hidden pixels.
    decoders : Mapping of str to ApertureDecoder
        Add to what LSQ-ML finds.
    seed : int
        Seed of the order of frames.
    epochs : int
        Most of LSQ-ML.

    Returns
    -------
    dict of str to Answer
    """
    inner, coarse = hidden.inner, _from_cropped(hidden, seed, epochs)
    if inner.refine_probe:
        # Beyond the given pixels nothing bounds a probe. Refined there, LSQ-ML had a deviance of 14.8 on hidden pixels
        # of the star; with the probe of the cropped detector, which has nothing there, 3.2.
        inner = replace(inner, probe=coarse.probe, refine_probe=False)
    zeros = replace(inner, data=replace(inner.data, mask=hidden.whole.data.mask))
    found = {
        CROPPED: coarse,
        ZEROS: _answer(_lsqml(zeros, seed, epochs)),
        MASKED: _answer(_lsqml(inner, seed, epochs)),
    }
    base = found[MASKED]
    illumination = summed_illumination(base.probe, inner.data)
    support = data_support(measured(base, hidden), illumination)
    found[LIMITED] = replace(base, object=supported(base.object, support))
    for network in networks:
        found[f"{network.name}, outer pixels unknown"] = _answer(predict(network, inner))
    for name, decoder in decoders.items():
        with Stopwatch(base.object.device, base.seconds) as watch:
            added = decoder(base.object, illumination, support)
        found[f"LSQ-ML, {name} decoder"] = Answer(found[LIMITED].object + added, base.probe, watch.seconds, added)
    found = {
        name: answer
        if answer.unsupported is not None
        else replace(answer, unsupported=beyond(answer.object - 1, support))
        for name, answer in found.items()
    }
    found[WHOLE] = _answer(_lsqml(hidden.whole, seed, epochs))
    if not hidden.whole.refine_probe:
        truth = torch.from_numpy(np.asarray(hidden.whole.truth, np.complex64))[None].to(base.object.device)
        found[TRUTH] = Answer(truth, hidden.whole.probe, 0.0)
    return found


def judged(hidden: Hidden, found: Mapping[str, Answer]) -> dict[str, dict[str, Any]]:
    """Hold answers against the hidden pixels, and against what LSQ-ML finds with them.

    Parameters
    ----------
    hidden : Hidden
        The scan.
    found : Mapping of str to Answer
        Among them that from the whole frames.

    Returns
    -------
    dict of str to dict
        ``deviance`` a hidden pixel, and ``noise``, which photon noise alone would give it under the same object;
        ``within`` and ``beyond``: the correlation with LSQ-ML of the whole frames at frequencies that the given pixels
        and the hidden ones centre on; ``measured``, the mean share of the light of the latter that was; ``nrmse`` to
        the truth, of simulated scans; ``unsupported``; ``seconds``.
    """
    problem, outer = hidden.whole, hidden.outer
    reference = found[WHOLE].object[0].cpu().numpy()
    window = soft_window(problem.illuminated)
    rows = {}
    for name, answer in found.items():
        obj = answer.object[0].cpu().numpy()
        outside = _outside(obj.shape, problem.probe.shape[-1], hidden.share)
        # Where the probe is found too, objects differ by what no frame tells.
        free = problem.refine_probe
        alike = align(obj, reference, problem.illuminated, shift=free, ramp=free)
        within, past = correlations(alike.object, alike.truth, window, outside)
        rows[name] = {
            "deviance": float(deviance_of(answer.object, answer.probe, outer).mean()),
            "noise": float(noise_of(answer.object, answer.probe, outer).mean()),
            "within": within,
            "beyond": past,
            "measured": float(measured(answer, hidden)[0].cpu()[torch.from_numpy(outside)].mean()),
            "nrmse": None if problem.refine_probe else judge(answer.object, problem).numbers["complex_nrmse"],
            "unsupported": None if answer.unsupported is None else float(np.nanmean(unsupported_map(answer, problem))),
            "seconds": answer.seconds,
        }
    return rows


def measured(answer: Answer, hidden: Hidden) -> Tensor:
    """Compute the share of the light of each frequency that fell on given pixels, (1, Y, X), with an answer's probe.

    Parameters
    ----------
    answer : Answer
        Whose probe counts.
    hidden : Hidden
        Says which pixels were given.
    """
    data = hidden.inner.data
    valid = torch.ones_like(data.counts[0], dtype=torch.bool) if data.mask is None else data.mask
    return measured_share(answer.probe, valid, (data.object_shape[-2], data.object_shape[-1]))


def correlations(
    obj: ComplexArray, reference: ComplexArray, window: FloatArray, outside: npt.NDArray[np.bool_]
) -> tuple[float, float]:
    """Correlate two images in rings of frequency, and average the rings within an aperture, and beyond it.

    Parameters
    ----------
    obj, reference : ndarray, shape (Y, X), complex
        Registered images.
    window : ndarray, shape (Y, X)
        Weight of each pixel.
    outside : ndarray, shape (Y, X), bool
        Frequencies beyond the aperture; zero frequency at ``[0, 0]``.

    Returns
    -------
    float, float
        Each ring counts as often as it has frequencies; those above the Nyquist frequency don't.
    """
    one, other = (np.fft.fft2(window * (each - np.average(each, weights=window))) for each in (obj, reference))
    side = min(obj.shape)
    radius = np.hypot(*np.meshgrid(*(np.fft.fftfreq(n) * side for n in obj.shape), indexing="ij"))
    ring = np.rint(radius).astype(np.int64)
    means = []
    for part in (~outside, outside):
        counted = part & (ring >= 1) & (ring <= side // 2)
        shared, power, power_of_other, number = (
            np.bincount(ring[counted], values[counted], side // 2 + 1)
            for values in ((one * other.conj()).real, abs(one) ** 2, abs(other) ** 2, np.ones(obj.shape))
        )
        root = np.sqrt(power * power_of_other)
        correlation = np.divide(shared, root, out=np.zeros_like(root), where=root > 0)
        means.append(float(np.average(correlation, weights=number)))
    return means[0], means[1]


def _outside(shape: Sequence[int], size: int, share: float) -> npt.NDArray[np.bool_]:
    """Mark frequencies of an object beyond the given part of a detector of so many pixels."""
    rows, columns = (np.abs(np.fft.fftfreq(n) * size) > inner_side(size, share) / 2 for n in shape)
    return np.asarray(rows[:, None] | columns[None, :])


def unsupported_map(answer: Answer, problem: Problem) -> npt.NDArray[np.float64]:
    """Compute which share of an answer's contrast the given pixels don't support, (Y, X); NaN where no light fell.

    Parameters
    ----------
    answer : Answer
        What a method made of the given pixels.
    problem : Problem
        Its illuminated pixels count.

    Raises
    ------
    ValueError
        If more than the given pixels was told.
    """
    if answer.unsupported is None:
        raise ValueError("the answer rests on more than the given pixels: there is no part that they don't support")
    parts = (answer.object - answer.unsupported, answer.unsupported)
    kept, rest = (each[0].cpu().numpy() for each in parts)
    return unsupported_share(kept, rest, problem.illuminated)


def _lsqml(problem: Problem, seed: int, epochs: int) -> Found:
    return engine("lsqml", problem, Schedule(epochs, tolerance=TOLERANCE), seed)


def _answer(found: Found) -> Answer:
    return Answer(found.object, found.probe, found.seconds)


def _from_cropped(hidden: Hidden, seed: int, epochs: int) -> Answer:
    """Reconstruct from the cropped detector, on its own coarse grid, and bring that to the fine one."""
    fine = hidden.whole
    coarse = cropped(hidden)
    found = _lsqml(coarse, seed, epochs)
    factor = coarse.probe.shape[-1] / fine.probe.shape[-1]
    change = found.object - 1
    for axis, side in ((-2, fine.data.object_shape[-2]), (-1, fine.data.object_shape[-1])):
        at = factor * torch.arange(side, device=change.device) + ROOM_PX
        change = _interpolated(change.transpose(axis, -1), at).transpose(axis, -1)
    return Answer(1 + change, _with_spectrum_of_side(found.probe, fine.probe.shape[-1]), found.seconds)


def cropped(hidden: Hidden) -> Problem:
    """Cut the detector to the given pixels: a scan with a coarser pixel, of fewer pixels a frame.

    Parameters
    ----------
    hidden : Hidden
        The scan.
    """
    problem, size = hidden.inner, hidden.whole.probe.shape[-1]
    side, data = inner_side(size, hidden.share), problem.data
    factor = side / size
    place = factor * (data.corner + size // 2 + data.shift_px) + ROOM_PX
    corner = place.round().long() - side // 2
    rows, columns = (int(factor * each) + 2 * ROOM_PX + 1 for each in data.object_shape[-2:])
    coarse = Diffraction(
        to_corner(_middle(to_centre(data.counts), side)).contiguous(),
        corner,
        place - place.round(),
        (1, rows, columns),
        data.flux,
        mask=None if data.mask is None else to_corner(_middle(to_centre(data.mask), side)).contiguous(),
        background=data.background,
    )
    return replace(problem, data=coarse, probe=_with_spectrum_of_side(problem.probe, side))


def _with_spectrum_of_side(probe: Tensor, side: int) -> Tensor:
    """Cut or pad a probe's spectrum: the same field on another pixel, with the photons that are left."""
    spectrum, room = fft2c(probe), side - probe.shape[-1]
    if room < 0:
        return ifft2c(_middle(spectrum, side))
    before = side // 2 - probe.shape[-1] // 2
    return ifft2c(torch.nn.functional.pad(spectrum, (before, room - before) * 2))


def _middle(images: Tensor, side: int) -> Tensor:
    """Cut the middle out of images (..., N, N), with the zero frequency in its place."""
    first = images.shape[-1] // 2 - side // 2
    return images[..., first : first + side, first : first + side]


def _interpolated(images: Tensor, at: Tensor) -> Tensor:
    """Give values at any places (m,) of the last axis of periodic images (..., n): band-limited, (..., m)."""
    n = images.shape[-1]
    frequency = torch.fft.fftfreq(n, device=images.device)
    wave = torch.exp(2j * torch.pi * frequency[:, None] * at)  # (n, m)
    interpolated: Tensor = torch.fft.fft(images, norm="forward") @ wave
    return interpolated
