"""Calibrating the uncertainty estimators of a network, or of engines alone."""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from bluesky_cdi.errors import ConfigError
from bluesky_cdi.models.weights import Trained, load_weights
from bluesky_cdi.reconstruction.calibration.files import ENGINES, record_of, write_record
from bluesky_cdi.reconstruction.calibration.fit import FOLDS, fitted
from bluesky_cdi.reconstruction.calibration.record import Calibration
from bluesky_cdi.reconstruction.calibration.samples import Sample, samples_of
from bluesky_cdi.reconstruction.calibration.scenes import OBJECTS, PROBES, draw_scene
from bluesky_cdi.reconstruction.uncertainty import (
    ESTIMATORS,
    DeepEnsembleEstimator,
    HalvesEstimator,
    NetworkEstimator,
    PhotonNoiseEstimator,
)

# With fewer, groups rest on a handful of scans.
SCENES = 96


def calibrate(
    weights: str | Path | None,
    estimators: Sequence[str] = (),
    *,
    scenes: int = SCENES,
    device: str = "cpu",
    jobs: int = 1,
    members: Sequence[str] = (),
    on_progress: Callable[[int], None] | None = None,
) -> tuple[Path, list[Calibration]]:
    """Calibrate estimators on simulated scans, and write the record beside the weights.

    Parameters
    ----------
    weights : str, Path or None
        Name of shipped weights or a file; None: engines alone.
    estimators : sequence of str
        What predicts errors; empty: what does in a run, and when it has ended.
    scenes : int
        Scans, numbered from 0: the numbers are the seeds.
    device : str
        Where to compute.
    jobs : int
        Processes that share the scans.
    members : sequence of str
        Weights of the networks of a ``deep ensemble`` besides.
    on_progress : callable, optional
        Called with the number of scans that are done.

    Returns
    -------
    Path, list of Calibration
        The record, and what is in it.

    Raises
    ------
    ConfigError
        If there is no such estimator, or the scans are too few or tell nothing.
    """
    if scenes < FOLDS:
        raise ConfigError(f"a calibration needs {FOLDS} scans or more, and {SCENES} for use; there would be {scenes}")
    trained = None if weights is None else load_weights(weights, device)
    usual = PhotonNoiseEstimator.name if trained is None else NetworkEstimator.name
    names = list(estimators) or [usual, HalvesEstimator.name]
    if unknown := [name for name in names if name not in ESTIMATORS]:
        raise ConfigError(f"no uncertainty estimator is called {unknown[0]!r}; there are {', '.join(ESTIMATORS)}")
    samples: dict[str, list[Sample]] = {name: [] for name in names}
    for done, (name, found) in enumerate(
        _collected(_Means(weights, device, tuple(members)), names, scenes, jobs), start=1
    ):
        samples[name] += found
        if on_progress is not None:
            on_progress(done)
    if silent := [name for name, found in samples.items() if not found]:
        raise ConfigError(f"{scenes} scans told nothing of the errors by {silent[0]}: ask for more")
    sha256 = None if trained is None else trained.sha256
    made: dict[str, Any] = {"scenes": scenes, "objects": list(OBJECTS), "probes": list(PROBES), "device": device}
    calibrations = [
        fitted(sorted(each, key=lambda s: (s.scene, s.iterations)), name, sha256, made)
        for name, each in samples.items()
    ]
    path = ENGINES if trained is None else record_of(trained.path)
    write_record(path, sha256, calibrations)
    return path, calibrations


@dataclass(frozen=True)
class _Means:
    """What scans are looked at with; goes to other processes as it is."""

    weights: str | Path | None
    device: str
    members: tuple[str, ...]

    @cached_property
    def trained(self) -> Trained | None:
        return None if self.weights is None else load_weights(self.weights, self.device)

    def samples(self, number: int, name: str) -> list[Sample]:
        files = self.members if name == DeepEnsembleEstimator.name else ()
        return list(samples_of(draw_scene(number), number, self.trained, name, torch.device(self.device), files))


def _collected(means: _Means, names: Sequence[str], scenes: int, jobs: int) -> Iterator[tuple[str, list[Sample]]]:
    """Go through all scans with all estimators, in any order."""
    if jobs == 1:
        for number in range(scenes):
            for name in names:
                yield name, means.samples(number, name)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=_begin, initargs=(means,)) as pool:
        asked = {pool.submit(_at_work, number, name): name for number in range(scenes) for name in names}
        try:
            for future in as_completed(asked):
                yield asked[future], future.result()
        finally:
            # Told to end, the pool does not go through all that is left first.
            pool.shutdown(cancel_futures=True)


# What a process of the pool has.
_had: dict[str, _Means] = {}


def _begin(means: _Means) -> None:
    torch.set_num_threads(1)
    # Their detectors have bad pixels: that these are found is nothing that a user could mend.
    logging.getLogger("bluesky_cdi.reconstruction.causes").setLevel(logging.ERROR)
    _had["means"] = means


def _at_work(number: int, name: str) -> list[Sample]:
    return _had["means"].samples(number, name)
