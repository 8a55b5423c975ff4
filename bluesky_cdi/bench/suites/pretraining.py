"""What a frame encoder has learned without labels: what it predicts of hidden frames, and what its class tokens tell.

A linear model of frozen class tokens tells kinds of samples, doses and defocus of scans that it was not fitted to,
beside the same model of the critic's embeddings and of radial profiles (Alain and Bengio, ICLR 2017 workshop, call it a
linear probe). Samples and lens are such that training draws neither, and all are given the same assumed probe, in the
middle of the range of the true ones.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bluesky_cdi.bench.cases import Case, grid_positions, simulate
from bluesky_cdi.bench.machine import record, synchronise
from bluesky_cdi.io import read_scan
from bluesky_cdi.models.frame_decoders import stepped
from bluesky_cdi.models.frame_encoder import Shown
from bluesky_cdi.models.frame_weights import TrainedFrameModel
from bluesky_cdi.models.weights import Trained
from bluesky_cdi.physics.forward import Diffraction, peak_intensity
from bluesky_cdi.physics.geometry import ObjectGrid
from bluesky_cdi.physics.illumination import summed_illumination
from bluesky_cdi.physics.illumination_shares import MEASURED_SHARE
from bluesky_cdi.physics.objects import make_sample
from bluesky_cdi.physics.probes import focused_probe
from bluesky_cdi.protocols import ComplexArray, FloatArray
from bluesky_cdi.reconstruction.prediction import predict_object
from bluesky_cdi.reconstruction.uncertainty import NetworkEstimator, radial_profile
from bluesky_cdi.training.draws import Draws
from bluesky_cdi.training.pretraining.masking import draw_shown
from bluesky_cdi.training.pretraining.scans import RecordedFrames, Scans
from bluesky_cdi.training.pretraining.validation import SEED, SHOWN, judged
from bluesky_cdi.viz.masked_frames import MaskedFrame

KINDS = ("star", "particles", "cells", "natural", "leaves", "lines", "circuit", "gold")
# Photons of a frame, log-uniform; the lens and its distance from the focus: the assumed one, and by which share of it
# the true one is nearer or farther.
DOSES, APERTURE, STOP, DEFOCUS_M, DEFOCUS_SHARE = (1e4, 1e6), 1.9e-3, 0.25, 0.22e-3, 0.6
# Side of a scan in widths of a frame, and its step in pixels of a frame of 64.
FIELD, STEP_PX = 0.9, 10.0
# Share of the scans that linear models are fitted to.
FITTED_SHARE = 0.6
PENALTIES = [1e-3, 1e-2, 1e-1, 1.0]
# Frames of the window of a recorded scan that is drawn.
WINDOW_FRAMES = 36


@dataclass(frozen=True, eq=False)
class LabelledScan:
    """A simulated scan of which is known what a linear model has to tell.

    Attributes
    ----------
    probe : Tensor, shape (1, M, N, N), complex64
        The assumed one.
    data : Diffraction
    kind : str
        Of the sample.
    dose : float
        Logarithm to base 10 of the photons of a frame through vacuum.
    defocus : float
        Of the true probe: how much farther from the focus the sample is, over the range, -1 to 1.
    """

    probe: Tensor
    data: Diffraction
    kind: str
    dose: float
    defocus: float


def draw_labelled(number: int, seed: int, device: torch.device, frame_px: int = 64) -> LabelledScan:
    """Simulate a scan.

    Parameters
    ----------
    number : int
        Of the scan; kinds of samples take turns.
    seed : int
        Of all that is random.
    device : torch.device
        Where to compute.
    frame_px : int
        Pixels along a side of the frames.
    """
    rng = np.random.default_rng([seed, number])
    geometry, kind = Case(frame_px=frame_px).geometry, KINDS[number % len(KINDS)]
    dose, defocus = rng.uniform(*np.log10(DOSES)), rng.uniform(-1, 1)
    side = FIELD * geometry.pixel_m * frame_px
    grid = ObjectGrid.covering(np.zeros(2), np.full(2, side), geometry.pixel_m, frame_px, frame_px // 8)
    corner, shift = grid.place(grid_positions(side, STEP_PX * frame_px / 64 * geometry.pixel_m, rng))
    truth = torch.from_numpy(make_sample(kind, grid.shape, int(rng.integers(2**31)))).to(device)[None]

    def probe(share: float) -> Tensor:
        made = focused_probe(
            geometry,
            numerical_aperture=APERTURE,
            central_stop=STOP,
            defocus_m=(1 + DEFOCUS_SHARE * share) * DEFOCUS_M,
            photons=10**dose,
        )
        return made[None].to(device)

    blank = torch.zeros((), device=device).expand(len(corner), frame_px, frame_px)
    places = (torch.from_numpy(corner).to(device), torch.from_numpy(shift).float().to(device))
    frames = Diffraction(blank, *places, (1, *grid.shape))
    rate = frames.rate(frames.probes(probe(defocus)), frames.patches(truth.to(torch.complex64)))
    generator = torch.Generator(device).manual_seed(int(rng.integers(2**31)))
    counts = torch.poisson(rate, generator=generator)
    return LabelledScan(probe(0.0), Diffraction(counts, *places, (1, *grid.shape)), kind, dose, defocus)


def linear_probes(
    trained: TrainedFrameModel,
    network: Trained,
    scans: int,
    device: torch.device,
    on_progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Measure what linear models of frozen features tell of scans that they were not fitted to.

    Parameters
    ----------
    trained : TrainedFrameModel
        The encoder, on `device`.
    network : Trained
        Whose critic it is held against.
    scans : int
        How many, those included that the models are fitted to.
    device : torch.device
        Where to compute.
    on_progress : callable, optional
        Called with what is done next.

    Returns
    -------
    dict
        ``machine``, ``settings`` and ``rows``, one a feature: its ``values`` a frame, the share of frames whose
        ``kind`` is told, of the variance of ``dose`` and ``defocus`` the explained share, and ``ms_a_frame``, the
        median time (CPU time on a CPU); ``settings`` has that of a pass of the network, which the critic's needs.
    """
    tell = on_progress or (lambda _: None)
    found: dict[str, list[FloatArray]] = {"class tokens": [], network.name + ", critic": [], "radial profile": []}
    spent: list[list[float]] = []
    labels: dict[str, list[Any]] = {"scan": [], "kind": [], "dose": [], "defocus": []}
    for number in range(scans):
        if number % 20 == 0:
            tell(f"scan {number + 1} of {scans}")
        scan = draw_labelled(number, 1, device)
        features, seconds = _features(trained, network, scan)
        spent.append([1e3 * each / len(scan.data) for each in seconds])
        for values, rows in zip(features, found.values(), strict=True):
            rows.append(values.float().cpu().numpy().astype(np.float64))
        for name, value in (("scan", number), ("kind", scan.kind), ("dose", scan.dose), ("defocus", scan.defocus)):
            labels[name] += [value] * len(scan.data)
    tell("linear models")
    columns = {name: np.asarray(values) for name, values in labels.items()}
    *times, of_pass = (round(float(each), 4) for each in np.median(spent, axis=0))
    table = [
        {"features": name, **told(np.concatenate(rows), columns), "ms_a_frame": ms}
        for (name, rows), ms in zip(found.items(), times, strict=True)
    ]
    settings = {"encoder": trained.name, "encoder_sha256": trained.sha256, "scans": scans, "kinds": list(KINDS)}
    settings["pass_ms_a_frame"] = of_pass
    return record([device], {**settings, "frames": len(columns["scan"])}, rows=table)


@torch.no_grad()
def _features(trained: TrainedFrameModel, network: Trained, scan: LabelledScan) -> tuple[list[Tensor], list[float]]:
    """Compute the features of frames; beside them the seconds of each, and of the network's pass."""
    probe, data, net = scan.probe, scan.data, network.unrolled_net
    obj, of_pass = _timed(probe.device, lambda: predict_object(net, probe, data))
    light, unknown = summed_illumination(probe, data), torch.full((len(data),), torch.nan, device=probe.device)
    found = [
        _timed(probe.device, each)
        for each in (
            lambda: trained.model.encoder(probe, data).class_tokens,
            lambda: NetworkEstimator(net)(obj, probe, data, light, unknown).embedding,
            lambda: radial_profile(data.counts),
        )
    ]
    return [each for each, _ in found], [*(seconds for _, seconds in found), of_pass]


def _timed(device: torch.device, work: Callable[[], Tensor]) -> tuple[Tensor, float]:
    clock = time.process_time if device.type == "cpu" else time.monotonic
    started = clock()
    done = work()
    synchronise(device)
    return done, clock() - started


def told(features: FloatArray, labels: Mapping[str, npt.NDArray[Any]]) -> dict[str, Any]:
    """Fit linear models to the frames of some scans, and judge them by those of the others.

    Parameters
    ----------
    features : ndarray, shape (n, d)
        Of frames.
    labels : Mapping of str to ndarray, shape (n,)
        ``scan``, the number of each frame's scan, ``kind``, ``dose`` and ``defocus``.

    Returns
    -------
    dict
        ``values``, d; of the other scans' frames the share whose ``kind`` is told, and of the variance of ``dose`` and
        ``defocus`` the explained share.
    """
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.model_selection import GridSearchCV, GroupKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    scan = labels["scan"]
    # Kinds take turns, so both parts have all of them.
    fitted = scan < FITTED_SHARE * (scan.max() + 1)
    shares: dict[str, Any] = {"values": features.shape[1]}
    for name in ("kind", "dose", "defocus"):
        if name == "kind":
            model, setting, values = LogisticRegression(max_iter=3000), "logisticregression__C", PENALTIES
        else:
            model, setting, values = Ridge(), "ridge__alpha", [1 / each for each in PENALTIES]
        search = GridSearchCV(make_pipeline(StandardScaler(), model), {setting: values}, cv=GroupKFold(3))
        search.fit(features[fitted], labels[name][fitted], groups=scan[fitted])
        shares[name] = round(float(search.score(features[~fitted], labels[name][~fitted])), 4)
    return shares


@torch.no_grad()
def masked_frames(
    trained: TrainedFrameModel, scans: Scans, shown: Shown, frames: int = 2
) -> tuple[list[MaskedFrame], dict[str, ComplexArray], npt.NDArray[np.bool_], dict[str, float]]:
    """Predict what is hidden of a scan, for a figure.

    Parameters
    ----------
    trained : TrainedFrameModel
        Predicts.
    scans : Scans
        The first of them is drawn.
    shown : Shown
        What of them is shown.
    frames : int
        How many to draw that are hidden in part, and as many that are hidden as a whole.

    Returns
    -------
    list of MaskedFrame
    dict of ndarray, shape (Y, X), complex
        Objects by name.
    ndarray, shape (Y, X), bool
        Where light fell.
    dict of float
        What `judged` says.
    """
    model = trained.model
    found, data, patch = model(scans.probe, scans.data, shown), scans.data, model.config.patch
    order, size = data.propagator.to_detector, data.counts.shape[-1]
    per_scan = len(data) // len(scans.probe)
    judging = scans.judging_data
    rate = judging.rate(judging.probes(scans.judging_probe), judging.patches(found.object))
    valid = torch.ones_like(data.counts, dtype=torch.bool) if data.valid is None else data.valid.expand_as(data.counts)
    pixels, rows = shown.pixels(size, patch), {int(number): row for row, number in enumerate(shown.frames)}
    given = [number for number in range(per_scan) if number in rows]
    hidden = [number for number in range(per_scan) if number not in rows]
    drawn = []
    for number in given[len(given) // 2 :][:frames] + hidden[:frames]:
        row = rows.get(number)
        drawn.append(
            MaskedFrame(
                order(data.counts[number]).cpu().numpy(),
                np.zeros((size, size), bool) if row is None else pixels[row].cpu().numpy(),
                order(valid[number]).cpu().numpy(),
                None if row is None else found.log_rate[row].exp().cpu().numpy(),
                order(rate[number]).cpu().numpy(),
            )
        )
    of_shown = data[shown.frames]
    start, _ = stepped(of_shown, of_shown.probes(scans.probe), peak_intensity(scans.probe), shown, patch)
    objects = {} if scans.truth is None else {"truth": scans.truth[0].cpu().numpy()}
    objects |= {"some physics steps": start[0].cpu().numpy(), "encoder and decoder": found.object[0].cpu().numpy()}
    light = summed_illumination(scans.probe, of_shown)[0]
    return drawn, objects, (light > MEASURED_SHARE * light.max()).cpu().numpy(), judged(model, scans, shown)


def simulated_window(
    photons: float, patch: int, device: torch.device, frame_px: int = 128
) -> tuple[Scans, Shown, float]:
    """Draw a scan that training doesn't draw, what of it is shown, and its pixel in metres.

    Parameters
    ----------
    photons : float
        Of a frame.
    patch : int
        Pixels along a side of a patch.
    device : torch.device
        Where to compute.
    frame_px : int
        Pixels along a side of the frames.
    """
    case = Case(dose=photons, sample="leaves", frame_px=frame_px, field=FIELD)
    found = simulate(case, SEED, device)
    truth = torch.from_numpy(found.truth)[None].to(device)
    scans = Scans(found.probe, found.data, found.probe, found.data, truth)
    return scans, draw_shown(scans, patch, Draws(device, SEED), SHOWN), found.pixel_m


def recorded_window(path: Path, patch: int, device: torch.device) -> tuple[Scans, Shown, float]:
    """Cut a window from the middle of a recorded scan, with what of it is shown, and its pixel in metres.

    Parameters
    ----------
    path : Path
        The scan.
    patch : int
        Pixels along a side of a patch.
    device : torch.device
        Where to compute.
    """
    scan = read_scan(path)
    frames = RecordedFrames(scan, path, device)
    away = np.linalg.norm(scan.positions_m - np.median(scan.positions_m, axis=0), axis=1)
    window = frames.windows([min(int(away.argmin()), len(frames) - 1)], min(WINDOW_FRAMES, len(frames)))
    return window, draw_shown(window, patch, Draws(device, SEED), SHOWN), scan.geometry.pixel_m
