"""The types at the seams: what passes between documents, reconstructors, agents and plans.

Everything here is numpy and the standard library; a plan or a callback can import it without
loading a network library.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating[Any]]
ComplexArray = npt.NDArray[np.complexfloating[Any, Any]]
# Key in the source of a live run's estimates: uid of the raw run.
RAW_UID = "raw_uid"


@dataclass(frozen=True, eq=False)
class Frame:
    """One diffraction frame and the place where it was measured.

    Attributes
    ----------
    seq_num : int
        The event's number in its stream, from 1. A frame taken again after a pause has the
        same number; the last one counts.
    position_m : ndarray, shape (2,)
        Centre of the probe on the sample as read back, (y, x), metres.
    counts : ndarray, shape (H, W)
        Photons per pixel, raw; zero frequency at ``[H // 2, W // 2]``.
    exposure_s : float
        Exposure time in seconds; NaN where the documents don't tell.
    flux : float
        Incident flux, as a monitor tells it, on any fixed scale; 1 where nothing monitors it.
    arrived_s : float
        When its documents were complete, seconds of `time.monotonic`; NaN where nobody noted it.
    """

    seq_num: int
    position_m: FloatArray
    counts: npt.NDArray[Any]
    exposure_s: float = float("nan")
    flux: float = 1.0
    arrived_s: float = float("nan")


@dataclass(frozen=True, eq=False)
class Preprocessed:
    """What preprocessing made of the frames of a detector.

    Attributes
    ----------
    mask : ndarray, shape (N, N), bool, or None
        True where a pixel is valid; None: all are.
    saturation : float or None
        Counts from which on a pixel is saturated in its frame.
    notes : Mapping
        What was done, as plain values.
    """

    mask: npt.NDArray[np.bool_] | None = None
    saturation: float | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)


class ReadAgain(Protocol):
    """Reads frames of a run again once it has ended, for who could not take them in as they came."""

    def __call__(self, number: int, region: tuple[slice, slice] | None = None) -> Frame | None:
        """Read a frame; None for one that is in no file.

        Parameters
        ----------
        number : int
            Its `seq_num`.
        region : pair of slice, optional
            Rows and columns that suffice.

        Raises
        ------
        ScanFileError
            If its file does not give it, or not yet.
        FrameError
            If it can't be used.
        """


@dataclass(frozen=True, eq=False)
class RunInfo:
    """What is known of a run before its first frame.

    Attributes
    ----------
    uid : str
        Unique identifier of the raw run's start document.
    scan_id : int
        The run's number, for people.
    metadata : Mapping
        The start document; its ``geometry`` is that of the frames after preprocessing.
    frame_shape : tuple of int
        (H, W) of the frames: from the descriptor, or after preprocessing.
    window_m : pair of pair of float, optional
        Corners (y, x) of the window of probe centres, metres, where the metadata state none (``window_m``).
    grows : bool
        Whether that is the window of the first probe centres alone: others may lie outside of it.
    preprocessed : Preprocessed or None
        What was done to the frames before they were handed on; None: nothing.
    read_again : ReadAgain, optional
        Reads frames again from their files, as they were handed on.
    notes : Mapping
        What the documents of a run that has ended tell of it as a whole, for the `source` of its estimate: ``motion``
        (of the probe during exposures: ``median_m``, ``largest_m``; ``position_error_m`` of most positions between
        samples, metres; ``period_s`` from frame to frame) and ``dropped_frames`` (how many the detector dropped).
        Absent is what is not known.
    notes_by_now : callable, optional
        Gives the `notes` of a run that goes on, as far as its documents have come; may be called in any thread.
    """

    uid: str
    scan_id: int
    metadata: Mapping[str, Any]
    frame_shape: tuple[int, int]
    window_m: tuple[tuple[float, float], tuple[float, float]] | None = None
    grows: bool = False
    preprocessed: Preprocessed | None = None
    read_again: ReadAgain | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)
    notes_by_now: Callable[[], Mapping[str, Any]] | None = None


@dataclass(frozen=True, eq=False)
class Estimate:
    """A reconstruction at one moment of a run.

    Images share one object of shape (Y, X): pixel ``[0, 0]`` is centred on ``origin_m``. Per-frame
    arrays share the order of `frame_seq_nums`.

    Attributes
    ----------
    n_frames : int
        Frames that the estimate rests on.
    object : ndarray, shape (Y, X), complex64
        Transmission function; vacuum is 1.
    origin_m : tuple of float
        Sample position (y, x) of pixel [0, 0], metres.
    pixel_m : float
        Sample pixel, metres.
    probe : ndarray, shape (modes, N, N), complex64
        Incoherent modes; the sum of ``abs(probe)**2`` is the mean photons of a frame.
    std_amplitude, std_phase_rad : ndarray, shape (Y, X), float32
        Predicted standard deviation of the object's amplitude and phase.
    coverage : ndarray, shape (Y, X), float32
        Summed illumination, photons per pixel.
    frame_seq_nums : ndarray, shape (n,), int
        Numbers of the frames in their stream, from 1.
    positions_m : ndarray, shape (n, 2), float64
        (y, x) of each frame as the object rests on it, metres: measured, or refined where the engine refines.
    embedding : ndarray, shape (n, d), float32
        Latent description of each frame's patch.
    frame_uncertainty : ndarray, shape (n,), float32
        Root mean square of `std_phase_rad` under each frame's illumination, radians.
    residual : ndarray, shape (n,), float32
        Poisson deviance per valid pixel of each frame; near 1 where the model explains
        bright pixels to the photon noise.
    novelty : ndarray, shape (n,), float32
        Distance of each embedding to its nearest neighbour, divided by the median distance.
    seconds : float
        Time that the step took.
    source : Mapping
        What made it: name and version of model or engine, weights' checksum, settings.
    vacuum_residual : ndarray, shape (n,), or None
        Poisson deviance per valid pixel of each frame without any object: what the estimate must be better than.
    """

    n_frames: int
    object: ComplexArray
    origin_m: tuple[float, float]
    pixel_m: float
    probe: ComplexArray
    std_amplitude: FloatArray
    std_phase_rad: FloatArray
    coverage: FloatArray
    frame_seq_nums: npt.NDArray[np.integer[Any]]
    positions_m: FloatArray
    embedding: FloatArray
    frame_uncertainty: FloatArray
    residual: FloatArray
    novelty: FloatArray
    seconds: float = float("nan")
    source: Mapping[str, Any] = field(default_factory=dict)
    vacuum_residual: FloatArray | None = None


@dataclass(frozen=True, eq=False)
class Proposal:
    """Where to measure next, and why.

    Attributes
    ----------
    positions_m : ndarray, shape (q, 2)
        (y, x) in metres, in travel order. Empty means: stop.
    expected_gain : ndarray, shape (q,)
        The acquisition's value of each position when it was chosen.
    acquisition : str
        Name of the rule that chose.
    reason : str
        Phase of the scan (``fill``, ``adapt``, ``coverage``, ...), or why to stop.
    pending : int
        Positions proposed before and not yet ingested when this was decided.
    n_ingested : int
        Frames whose outcome the decision knew.
    decision_s : float
        Time from the request's being ready to the proposal, seconds.
    """

    positions_m: FloatArray
    expected_gain: FloatArray
    acquisition: str
    reason: str
    pending: int = 0
    n_ingested: int = 0
    decision_s: float = float("nan")


@runtime_checkable
class Reconstructor(Protocol):
    """Turns frames into an estimate of the object, incrementally."""

    def add(self, frames: Sequence[Frame]) -> None:
        """Take frames in; a known `seq_num` replaces the earlier frame.

        Parameters
        ----------
        frames : sequence of Frame
            Of one run, in any order.
        """

    def step(self, budget_s: float, interrupted: Callable[[], bool] | None = None) -> Estimate | None:
        """Work for a while; None while there is nothing to estimate from or to improve.

        Parameters
        ----------
        budget_s : float
            About how long, seconds.
        interrupted : callable, optional
            Asked now and then whether to come back at once, with the estimate as it is.
        """

    def checked(self, estimate: Estimate, interrupted: Callable[[], bool] | None = None) -> Estimate:
        """Hold the predicted errors of a run's last estimate against its frames; no step was made since.

        Parameters
        ----------
        estimate : Estimate
            The last one.
        interrupted : callable, optional
            Asked now and then whether to give the estimate back as it is.

        Returns
        -------
        Estimate
            With predicted errors as they are after that; the same where there is nothing to check them by.
        """

    def checkpoint(self) -> Mapping[str, npt.NDArray[Any]]:
        """Give all that is needed to go on later, but for the frames themselves, as arrays that NPZ files hold."""

    def restore(self, state: Mapping[str, npt.NDArray[Any]], frames: Sequence[Frame]) -> None:
        """Go on from what `checkpoint` gave, with the run's frames; those that it did not know are new.

        Parameters
        ----------
        state : Mapping
            What `checkpoint` gave, as read from an NPZ file.
        frames : sequence of Frame
            All of the run.
        """

    def close(self) -> None:
        """End what goes on beside the steps; no step follows."""


@runtime_checkable
class QuickReader(Protocol):
    """A `Reconstructor` that can bring new frames into the image at a cost that does not grow with the scan."""

    def read_quickly(self, budget_s: float) -> Estimate | None:
        """Read new frames alone, without refinement; None where none waits, or it can't as it is configured.

        Parameters
        ----------
        budget_s : float
            About how long it may take, seconds; of more frames than fit, some from everywhere are read.
        """


@runtime_checkable
class LooksBeside(Protocol):
    """A `Reconstructor` that looks, beside its steps, for what may change the whole image."""

    def settle(self, interrupted: Callable[[], bool]) -> bool:
        """Wait for what is being looked for; the next step goes on from what was found.

        Parameters
        ----------
        interrupted : callable
            Where it gives true, the wait is over.

        Returns
        -------
        bool
            Whether nothing is being looked for any more.
        """

    def give_up(self) -> None:
        """Look for nothing any more; steps wait for nothing that was being looked for, and don't go on from it."""


@runtime_checkable
class Agent(Protocol):
    """Chooses where to measure.

    `ingest`, `suggest` and `get_best_points` have the names and the ``"_id"`` rule of
    bluesky-adaptive 1.x, so an agent also runs under its plans; `propose` is the same decision
    as `suggest` with positions in travel order and the reason kept.
    """

    def ingest(self, points: Sequence[Mapping[str, Any]]) -> None:
        """Learn outcomes: mappings with ``_id``, ``y``, ``x`` (metres) and the outcome's values.

        Parameters
        ----------
        points : sequence of Mapping
            One for each measured point.
        """

    def suggest(self, num_points: int | None = None) -> Sequence[Mapping[str, Any]]:
        """Choose points: mappings with ``_id``, ``y``, ``x`` (metres).

        Parameters
        ----------
        num_points : int, optional
            Most points; one if absent.
        """

    def get_best_points(self) -> Sequence[tuple[Any, Mapping[str, Any], Mapping[str, Any]]]:
        """Give the measured points that taught most: (id, parameters, outcomes)."""

    def propose(self, n: int) -> Proposal:
        """Choose up to `n` positions; none of them is chosen again.

        Parameters
        ----------
        n : int
            Most positions.
        """

    def coverage_path(self) -> FloatArray:
        """Give all positions in an order that covers the window evenly, shape (m, 2), metres."""


@dataclass(frozen=True, eq=False)
class ScanArea:
    """What a plan is about to scan.

    Attributes
    ----------
    low_m, high_m : tuple of float
        Corners (y, x) of the window of probe centres, metres.
    step_m : float
        Step of the full scan, metres.
    budget : int
        Most frames.
    adaptive : bool
        Whether positions will be asked for.
    keep_out_m : tuple of ((y, x), (y, x))
        Low and high corner of each box that no position may lie in, metres.
    """

    low_m: tuple[float, float]
    high_m: tuple[float, float]
    step_m: float
    budget: int
    adaptive: bool = True
    keep_out_m: tuple[tuple[tuple[float, float], tuple[float, float]], ...] = ()


@dataclass(frozen=True, eq=False)
class Flight:
    """A motion without stops, and the frames that are taken during it at a fixed rate.

    Devices of a fly scan get it by ``prepare``. Times count from the beginning of the motion.

    Attributes
    ----------
    times_s : ndarray, shape (k,)
        Ascending, from 0, seconds.
    positions_m : ndarray, shape (k, 2)
        (y, x) at these times, metres; between them the motion is straight and even.
    first_s : float
        When the first exposure begins, seconds.
    period_s, exposure_s : float
        From one exposure's beginning to the next one's, and how long each lasts, seconds.
    n_frames : int
    """

    times_s: FloatArray
    positions_m: FloatArray
    first_s: float
    period_s: float
    exposure_s: float
    n_frames: int

    @property
    def duration_s(self) -> float:
        """How long the motion lasts, seconds."""
        return float(self.times_s[-1])

    @property
    def starts_s(self) -> FloatArray:
        """When each exposure begins, shape (n,), seconds."""
        return self.first_s + self.period_s * np.arange(self.n_frames)

    def at(self, times_s: FloatArray) -> FloatArray:
        """Compute where the motion is, shape (..., 2), metres; it rests before its beginning and after its end.

        Parameters
        ----------
        times_s : ndarray, shape (...,)
            Seconds.
        """
        y, x = (np.interp(times_s, self.times_s, self.positions_m[:, axis]) for axis in (0, 1))
        return np.stack([y, x], axis=-1)

    def during_exposures(self, n: int) -> FloatArray:
        """Compute where each exposure is at `n` moments in the middles of equal parts of it, shape (n_frames, n, 2).

        Parameters
        ----------
        n : int
            At least 1; with one, it is the middle of the exposure.
        """
        moments_s = self.exposure_s * (np.arange(n) + 0.5) / n
        return self.at(self.starts_s[:, None] + moments_s)

    def smear_m(self) -> FloatArray:
        """Compute the length of the way during each exposure, shape (n_frames,), metres."""
        knots_s = np.concatenate([self.times_s, self.starts_s, self.starts_s + self.exposure_s])
        order = np.sort(knots_s)
        way_m = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(self.at(order), axis=0).T))])
        begin, end = (np.interp(t, order, way_m) for t in (self.starts_s, self.starts_s + self.exposure_s))
        return np.asarray(end - begin)


@dataclass(frozen=True, eq=False)
class ScanTicket:
    """What a plan gets for its scan.

    Attributes
    ----------
    reconstruction_uid : str
        Unique identifier of the derived run that the scan's reconstruction will be, for the raw
        run's start document.
    coverage_path_m : ndarray, shape (m, 2)
        Positions (y, x) that cover the window evenly in this order, metres: what to measure when
        a decision is late. Empty for a scan that asks for nothing.
    """

    reconstruction_uid: str
    coverage_path_m: FloatArray


@runtime_checkable
class ScanSource(Protocol):
    """What a plan asks for positions; every answer comes from another thread."""

    def begin(self, area: ScanArea) -> Future[ScanTicket]:
        """Prepare for a scan; forget the one before.

        Parameters
        ----------
        area : ScanArea
            Window, step and budget.
        """

    def request(self, n: int, after: int) -> Future[Proposal]:
        """Ask for `n` positions, decided once frame number `after` is in the reconstruction.

        Parameters
        ----------
        n : int
            Most positions.
        after : int
            Number of frames measured so far; they are waited for.
        """

    def check(self) -> None:
        """Raise the worker's error if it failed."""
