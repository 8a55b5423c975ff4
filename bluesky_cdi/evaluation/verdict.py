"""Whether a result can be believed: the one place that judges reconstructions of scans.

An image that looks well may be none: of a wrong probe, of positions on other axes, of frames without light. Nothing
here knows the sample. What is looked at is how the image explains its frames, and whether its numbers can be those of
a transmission. `docs/verdict.md` has the measurements behind the limits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np

from bluesky_cdi.evaluation.causes import causes_of
from bluesky_cdi.evaluation.missing import missing_count, missing_said
from bluesky_cdi.evaluation.motion import motion_doubts, motion_remarks
from bluesky_cdi.physics.illumination_shares import MEASURED_SHARE
from bluesky_cdi.protocols import ComplexArray, Estimate, FloatArray

Word = Literal["good", "doubtful", "failed"]

# Images and rows of an estimate that must be numbers everywhere.
FINITE = ("object", "probe", "std_amplitude", "std_phase_rad", "residual")
# An empty field is explained by vacuum as well as by any image of it, give or take the image's noise.
VACUUM_MARGIN = 1.1
# Shares of what the frames differ by, beyond photon noise, that an image leaves unexplained.
UNEXPLAINED_DOUBTFUL, UNEXPLAINED_FAILED = 0.15, 0.7
# So many times the deviance of photon noise, and the frames differ by nothing else; an image that lies further below
# that noise than this share of what they differ by has fitted it.
NOTHING_TO_SEE, FITTED_NOISE = 1.1, 0.2
# Share by which each iteration still lowers the deviance.
FALLING = 0.03
# The same in the first few iterations, whatever will come of them.
UNFINISHED = 0.1
# Way of the direct beam from the middle, over the frame's side.
OFF_CENTRE = 0.1
# Median modulus of an illuminated object. Its scale is free where the probe is refined too.
MODULUS = (0.3, 2.0)
# Distance of neighbouring frames over the width of the probe: beyond it they share too little.
SPACING = 1.0
# Shares of the frames that are not in the image.
MISSING_DOUBTFUL, MISSING_FAILED = 0.1, 0.5
# Share of the frames in whose part of the object the iterations diverged.
DIVERGED_FAILED = 0.5
# Photons of a frame below which there is nothing to see.
LEAST_PHOTONS = 5.0


@dataclass(frozen=True)
class Measures:
    """What a verdict rests on; NaN where it is not known.

    Attributes
    ----------
    deviance : float
        Mean Poisson deviance a valid pixel of the frames under the image.
    noise : float
        The same of photon noise alone.
    plain : float
        The same if each frame were like the mean of all, or under vacuum, whichever is lower.
    unexplained : float
        What the image leaves of the difference of `plain` and `noise`.
    falling : float
        Share by which each of the last iterations lowered the deviance.
    off_centre : float
        Way of the direct beam from the middle of the frames, over their side.
    modulus : float
        Median modulus of the object where there is light.
    spacing : float
        Median distance of a frame to its neighbour over the width of the probe.
    photons : float
        Of a frame through vacuum.
    missing : float
        Share of the frames that are not in the image.
    """

    deviance: float
    noise: float
    plain: float
    unexplained: float
    falling: float
    off_centre: float
    modulus: float
    spacing: float
    photons: float
    missing: float


@dataclass(frozen=True)
class Verdict:
    """Whether a result can be believed, and why not.

    Attributes
    ----------
    word : {'good', 'doubtful', 'failed'}
        What is said of the result as a whole.
    reasons : tuple of str
        Why it is not good.
    remarks : tuple of str
        What else is to be known of it.
    measures : Measures or None
        None where the image is not finite.
    """

    word: Word
    reasons: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    measures: Measures | None = None

    @property
    def says(self) -> str:
        """Word, reasons and remarks in one line."""
        said = "; ".join((*self.reasons, *self.remarks))
        return f"{self.word}: {said}" if said else self.word

    def as_notes(self) -> dict[str, Any]:
        """Give plain values as a result keeps them: None for what is not known."""
        measures = {} if self.measures is None else asdict(self.measures)
        return {
            "word": self.word,
            "reasons": list(self.reasons),
            "remarks": list(self.remarks),
            "measures": {name: value if math.isfinite(value) else None for name, value in measures.items()},
        }


def with_verdict(estimate: Estimate, *, doubt: str = "") -> Estimate:
    """Judge an estimate, and note the verdict in its `source`, under ``verdict``.

    Parameters
    ----------
    estimate : Estimate
        The final one of a run, which says what is missing in it (`missing.with_missing`).
    doubt : str
        As of `judge`.
    """
    verdict = judge(estimate, doubt=doubt)
    return replace(estimate, source={**estimate.source, "verdict": verdict.as_notes()})


def verdict_said(source: Mapping[str, Any]) -> str:
    """Give the verdict in an estimate's `source` in one line; empty where there is none.

    Parameters
    ----------
    source : Mapping
        `Estimate.source`.
    """
    notes = source.get("verdict")
    if not isinstance(notes, Mapping):
        return ""
    return Verdict(notes["word"], tuple(notes["reasons"]), tuple(notes["remarks"])).says


def fault_of(estimate: Estimate) -> str:
    """Say why an estimate may not even be shown; nothing where it may.

    It must be finite, and explain its frames no worse than an empty field does: a wrong assumed probe or geometry,
    or a network that was trained for something else, may give an image that looks well and is not the sample.

    Parameters
    ----------
    estimate : Estimate
        What was reconstructed.
    """
    for name in FINITE:
        bad = ~np.isfinite(getattr(estimate, name))
        if bad.any():
            return f"{100 * bad.mean():.3g} % of {name} is not finite"
    vacuum = _mean_vacuum(estimate)
    if math.isnan(vacuum) or not len(estimate.residual):
        return ""
    found = float(np.mean(estimate.residual))
    if found > VACUUM_MARGIN * vacuum:
        return f"it explains its frames worse than an empty field (deviance {found:.3g} a pixel against {vacuum:.3g})"
    return ""


def judge(estimate: Estimate, *, doubt: str = "") -> Verdict:
    """Judge the final estimate of a scan.

    Parameters
    ----------
    estimate : Estimate
        Its `source` tells what the reconstruction knows besides: ``iterations``, ``ended``, ``diverged``, ``falling``,
        ``noise_residual``, ``plain_residual``, ``off_centre_px``, ``dark_frames``, ``unwritten_frames``,
        ``missing_frames``, ``other_flux``, ``causes``, ``motion``, ``dropped_frames``. What is absent is not judged.
    doubt : str
        What else speaks against it; empty: nothing.
    """
    remarks = (*_remarks(estimate.source), *motion_remarks(estimate.source, estimate.pixel_m))
    if fault := fault_of(estimate):
        return Verdict("failed", (fault,), remarks)
    measures = _measured(estimate)
    failures = list(_failures(estimate.source, measures))
    doubts = [
        *filter(None, [doubt]),
        *_doubts(estimate.source, measures, estimate.probe.shape[-1]),
        *motion_doubts(estimate.source, estimate.pixel_m),
    ]
    word: Word = "failed" if failures else "doubtful" if doubts else "good"
    return Verdict(word, tuple(failures or doubts), remarks, measures)


def _failures(source: Mapping[str, Any], found: Measures) -> Iterator[str]:
    if _diverged(source) > DIVERGED_FAILED:
        yield "the iterations diverged; the image is the best one before that"
    if found.photons < LEAST_PHOTONS:
        yield f"a frame has {found.photons:.2g} photons: there was hardly any light"
    elif found.unexplained >= UNEXPLAINED_FAILED and not _is_unfinished(source, found):
        yield (
            f"it explains the frames hardly better than their mean does (deviance {found.deviance:.3g} a pixel against "
            f"{found.plain:.3g}; photon noise {found.noise:.3g}): is the probe the right one (`bluesky-cdi probe "
            "--no-guess` looks for one without a guess), and do frames and positions belong together?"
        )
    if found.missing > MISSING_FAILED:
        yield f"{100 * found.missing:.0f} % of the frames are not in it"


def _doubts(source: Mapping[str, Any], found: Measures, frame_px: int) -> Iterator[str]:
    if 0 < (diverged := _diverged(source)) <= DIVERGED_FAILED:
        yield (
            f"the iterations diverged where {100 * diverged:.0f} % of the frames lie; the image there is the best one "
            "before that"
        )
    if source.get("ended") == "interrupted":
        yield f"it was interrupted after {source.get('iterations')} iterations"
    if found.unexplained > UNEXPLAINED_DOUBTFUL:
        if _is_unfinished(source, found):
            cause = "there were too few iterations to tell more"
        else:
            cause = "are axes and signs of the stage, the geometry and the probe right?"
        yield f"it leaves {100 * found.unexplained:.0f} % of what the frames differ by unexplained: {cause}"
    if math.isnan(found.plain) and not math.isnan(found.noise):
        yield "it can't be told how much of the frames it explains: nothing is known to compare it with"
    elif found.plain <= NOTHING_TO_SEE * found.noise:
        yield "the frames differ by no more than photon noise: there is nothing to see in them"
    elif found.unexplained < -FITTED_NOISE:
        yield "it fits the photons' noise: fewer iterations, or the network (--engine pinn), give a better image"
    if found.falling > FALLING:
        yield f"the deviance still fell by {100 * found.falling:.1f} % an iteration: more iterations help"
    if found.off_centre > OFF_CENTRE:
        yield f"the direct beam lies {found.off_centre * frame_px:.1f} pixels from the middle of the frames"
    if not MODULUS[0] <= found.modulus <= MODULUS[1]:
        yield f"the median modulus is {found.modulus:.2g}, where vacuum is 1: the probe's photons are not the frames'"
    if found.spacing > SPACING:
        yield f"neighbouring frames are {found.spacing:.1f} widths of the probe apart: they share too little"
    if MISSING_DOUBTFUL < found.missing <= MISSING_FAILED:
        yield f"{100 * found.missing:.0f} % of the frames are not in it"
    yield from causes_of(source, few=False)


def _diverged(source: Mapping[str, Any]) -> float:
    """Give the share of the frames where the iterations diverged; all, where only that they did is known."""
    return float(source.get("diverged", 1.0)) if source.get("ended") == "diverged" else 0.0


def _is_unfinished(source: Mapping[str, Any], found: Measures) -> bool:
    """Tell whether the image is on its way: what it doesn't explain yet says nothing against it."""
    return source.get("iterations") == 0 or found.falling > UNFINISHED


def _remarks(source: Mapping[str, Any]) -> Iterator[str]:
    if dark := len(source.get("dark_frames", ())):
        yield f"{dark} frame(s) without light are left out"
    if unwritten := len(source.get("unwritten_frames", ())):
        yield f"{unwritten} frame(s) are in no file and left out"
    if missing := missing_said(source):
        yield missing
    if others := len(source.get("other_flux", ())):
        yield f"{others} frame(s) were under a flux of their own, which no monitor measured"
    # Frames without light and those under another flux have their remarks.
    yield from causes_of(source, few=True, besides=("beam", "flux"))


def _measured(estimate: Estimate) -> Measures:
    source, probe = estimate.source, np.square(np.abs(estimate.probe.astype(np.complex128))).sum(axis=0)
    bounds = [_number(source.get("plain_residual")), _mean_vacuum(estimate)]
    deviance = float(np.mean(estimate.residual)) if len(estimate.residual) else math.nan
    noise, plain = _number(source.get("noise_residual")), float(np.nanmin([*bounds, math.inf]))
    plain = plain if math.isfinite(plain) else math.nan
    lit = estimate.coverage >= MEASURED_SHARE * estimate.coverage.max(initial=0.0)
    missing = missing_count(source) + sum(len(source.get(name, ())) for name in ("dark_frames", "unwritten_frames"))
    off = source.get("off_centre_px")
    return Measures(
        deviance=deviance,
        noise=noise,
        plain=plain,
        unexplained=(deviance - noise) / (plain - noise) if plain > noise else math.nan,
        falling=_number(source.get("falling")),
        off_centre=math.nan if off is None else math.hypot(*off) / len(probe),
        modulus=_median_modulus(estimate.object[lit]),
        spacing=_spacing_m(estimate.positions_m) / (_width_px(probe) * estimate.pixel_m),
        photons=float(probe.sum()),
        missing=missing / max(missing + estimate.n_frames, 1),
    )


def _mean_vacuum(estimate: Estimate) -> float:
    """Compute the mean deviance of the frames of which it is known under an empty field; NaN without any."""
    if estimate.vacuum_residual is None:
        return math.nan
    known = estimate.vacuum_residual[np.isfinite(estimate.vacuum_residual)]
    return float(known.mean()) if known.size else math.nan


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _median_modulus(values: ComplexArray) -> float:
    return float(np.median(np.abs(values))) if values.size else math.nan


def _spacing_m(positions_m: FloatArray) -> float:
    """Compute the median distance to the nearest other place, metres; NaN for a single one."""
    from scipy.spatial import KDTree

    places = np.unique(positions_m, axis=0)
    if len(places) < 2:
        return math.nan
    distance, _ = KDTree(places).query(places, k=2)
    return float(np.median(distance[:, 1]))


def _width_px(intensity: FloatArray) -> float:
    """Compute the diameter of the disc with the same second moment, pixels, as `physics.probes.width_px` does."""
    weight, index = intensity / max(float(intensity.sum()), 1e-30), np.arange(len(intensity))
    variance = 0.0
    for line in (weight.sum(axis=0), weight.sum(axis=1)):
        variance += float((line * (index - (line * index).sum()) ** 2).sum())
    return max(2 * math.sqrt(2 * variance), 1.0)
