"""Errors of reconstructions of simulated scans, beside what was predicted of them and under what conditions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bluesky_cdi.config import ReconstructorConfig
from bluesky_cdi.evaluation import align, illuminated_mask, wrap_rad
from bluesky_cdi.models.weights import Trained
from bluesky_cdi.protocols import Estimate, FloatArray
from bluesky_cdi.reconstruction.calibration.conditions import Conditions, relative_shape
from bluesky_cdi.reconstruction.calibration.halves import HalfPixels
from bluesky_cdi.reconstruction.calibration.record import Check, Intervals, Uncalibrated
from bluesky_cdi.reconstruction.calibration.scenes import Scene
from bluesky_cdi.reconstruction.online import PtychoReconstructor
from bluesky_cdi.reconstruction.uncertainty import UncertaintyEstimate

# Iterations of a step, and steps after which errors are looked at, of a network and of an engine alone.
STEP, STEPS, ENGINE_STEPS = 5, (1, 6), (2, 6, 20)
# Pixels of an object that are kept.
MOST_PIXELS = 3000


@dataclass(frozen=True, eq=False)
class Sample:
    """Pixels of one object of a scene.

    Attributes
    ----------
    scene : int
        Its number.
    covariates : ndarray, shape (4, n)
        Of `Conditions`.
    errors, predicted : Mapping of str to ndarray, shape (n,)
        Of ``amplitude`` and of ``phase`` (radians, wrapped); the predicted deviations are the estimator's own.
    shapes : Mapping of str to ndarray, shape (n,), or None
        A second opinion of the same, as `relative_shape` gives it; None where the estimator has none.
    halves : HalfPixels or None
        What the halves of the frames show; None where the frames are too few.
    """

    scene: int
    covariates: FloatArray
    errors: Mapping[str, FloatArray]
    predicted: Mapping[str, FloatArray]
    shapes: Mapping[str, FloatArray] | None = None
    halves: HalfPixels | None = None

    @property
    def iterations(self) -> int:
        """Iterations since the prediction."""
        return round(math.expm1(float(self.covariates[3, 0])))


class _Watching:
    """Leaves predicted errors as they are, and keeps the last of them: a `Calibrating`."""

    def __init__(self) -> None:
        self._plain = Uncalibrated()
        self.last: tuple[UncertaintyEstimate, Conditions] | None = None

    def __call__(self, found: UncertaintyEstimate, conditions: Conditions) -> UncertaintyEstimate:
        self.last = found, conditions
        return found

    def intervals(self, photons: torch.Tensor, iterations: int) -> Intervals:
        return self._plain.intervals(photons, iterations)

    def checked(self, pixels: HalfPixels) -> Check | None:
        return self._plain.checked(pixels)

    @property
    def source(self) -> Mapping[str, Any]:
        return self._plain.source


def samples_of(
    scene: Scene,
    number: int,
    trained: Trained | None,
    estimator: str | None,
    device: torch.device,
    files: Sequence[str] = (),
) -> Iterator[Sample]:
    """Reconstruct a scan as a run's last frames are, and look at its errors after some numbers of iterations.

    Parameters
    ----------
    scene : Scene
        The scan.
    number : int
        Of the scan; it is the seed of which pixels are kept.
    trained : Trained or None
        The network; LSQ-ML alone without one.
    estimator : str or None
        What predicts errors; None: the default one.
    device : torch.device
        Where to compute.
    files : sequence of str
        Weights that the estimator needs besides.

    Yields
    ------
    Sample
    """
    settings: dict[str, Any] = {
        "name": "lsqml" if trained is None else "pinn",
        "background": 0.0,
        "uncertainty": estimator,
        "uncertainty_weights": tuple(files),
    }
    if trained is not None:
        settings["weights"] = str(trained.path)
    schedule: dict[int, tuple[int, ...]] = {} if trained is None else {0: (1,)}
    schedule[STEP] = ENGINE_STEPS if trained is None else STEPS
    for refined, after in schedule.items():
        config = ReconstructorConfig.model_validate({**settings, "refine_iterations": refined})
        watching, rng, known = _Watching(), np.random.default_rng(number), -1
        reconstructor = PtychoReconstructor(
            scene.grid, scene.probe, config, trained=trained, device=device, calibration=watching
        )
        reconstructor.add(scene.frames)
        estimate: Estimate | None = None
        for step in range(1, max(after) + 1):
            estimate = reconstructor.step(math.inf) or estimate
            if step not in after or estimate is None or watching.last is None:
                continue
            found, conditions = watching.last
            # Where no iteration was kept, the object is one that was looked at before.
            if conditions.iterations > known and (conditions.iterations > 0) == (refined > 0):
                known = conditions.iterations
                # They cost as much as the object itself, and say much the same after each of the steps.
                halves = reconstructor.half_pixels() if step == min(after) else None
                yield replace(_sample(scene, number, estimate, found, conditions, rng), halves=halves)


def _sample(
    scene: Scene,
    number: int,
    estimate: Estimate,
    found: UncertaintyEstimate,
    conditions: Conditions,
    rng: np.random.Generator,
) -> Sample:
    mask = illuminated_mask(estimate.coverage)
    both = align(estimate.object, scene.truth, mask)
    inside = np.flatnonzero(mask)
    pixels = np.sort(rng.choice(inside, min(MOST_PIXELS, len(inside)), replace=False))
    errors = {
        "amplitude": np.abs(both.object) - np.abs(both.truth),
        "phase": wrap_rad(np.angle(both.object) - np.angle(both.truth)),
    }
    predicted = {"amplitude": found.std_amplitude, "phase": found.std_phase_rad}
    opinions = {"amplitude": found.shape_amplitude, "phase": found.shape_phase_rad}
    shapes = {name: relative_shape(each, conditions.photons) for name, each in opinions.items() if each is not None}

    def kept(images: Mapping[str, Tensor]) -> dict[str, FloatArray]:
        return {name: each.reshape(-1).cpu().numpy()[pixels].astype(np.float64) for name, each in images.items()}

    return Sample(
        number,
        conditions.covariates().flatten(1)[:, torch.from_numpy(pixels)].cpu().numpy().astype(np.float64),
        {name: each.reshape(-1)[pixels] for name, each in errors.items()},
        kept(predicted),
        kept(shapes) if shapes else None,
    )
