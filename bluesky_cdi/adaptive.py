"""The agents and the live reconstruction under the plans of bluesky-adaptive 1.x.

There an optimizer suggests values of named actuators, in their units, and an evaluation function tells what a
measurement brought. Nothing here needs that package.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from bluesky_cdi.agent.bayesian import BayesianAgent
from bluesky_cdi.agent.static import StaticAgent
from bluesky_cdi.errors import ConfigError, WorkerError
from bluesky_cdi.protocols import Estimate, FloatArray
from bluesky_cdi.units import metres_per

ID = "_id"
AXES = ("y", "x")
LOOK_S = 0.02
# What an outcome has beside its id.
OUTCOMES = ("uncertainty", "structure", "novelty", "residual")


class Optimizer:
    """An agent as bluesky-adaptive's `Optimizer`.

    It also is `CanRegisterSuggestions`, `TrialFaultAware`, `SupportsStoppingCriteria` and `Checkpointable`.

    Parameters
    ----------
    agent : BayesianAgent or StaticAgent
        Fresh: nothing suggested or ingested yet.
    actuators : sequence of str
        Names of the stage's axes, y and x.
    unit : str
        What the actuators are set in: a unit of length.
    path : path, optional
        File of the checkpoint.

    Raises
    ------
    DocumentError
        If the unit is none of length.
    """

    def __init__(
        self,
        agent: BayesianAgent | StaticAgent,
        actuators: Sequence[str],
        *,
        unit: str = "um",
        path: Path | str | None = None,
    ) -> None:
        self.agent, self.actuators = agent, tuple(actuators)
        self._metres = metres_per(unit, " and ".join(self.actuators))
        self._path = None if path is None else Path(path)
        self._history: list[tuple[str, Any]] = []

    def suggest(self, num_points: int | None = None) -> list[Mapping[str, Any]]:
        """Choose points: mappings with ``_id`` and the actuators' values; empty means stop."""
        chosen = self.agent.suggest(num_points)
        self._history.append(("suggest", [num_points, [[point["y"], point["x"]] for point in chosen]]))
        return [self._of_actuators(point) for point in chosen]

    def ingest(self, points: Sequence[Mapping[str, Any]]) -> None:
        """Learn outcomes: mappings with ``_id``, or the actuators' values, and what `LiveEvaluation` gives."""
        taken = [_plain(self._of_axes(point)) for point in points]
        self.agent.ingest(taken)
        self._history.append(("ingest", taken))

    def get_best_points(self) -> list[tuple[Any, Mapping[str, Any], Mapping[str, Any]]]:
        """Give the measured points that taught most: (id, the actuators' values, outcomes)."""
        return [(key, self._of_actuators(at), outcome) for key, at, outcome in self.agent.get_best_points()]

    def register_suggestions(self, suggestions: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """Take points that someone else chose, and give each an ``_id``."""
        points = [{axis: self._of_axes(point)[axis] for axis in AXES} for point in suggestions]
        registered = self.agent.register_suggestions(points)
        self._history.append(("register", points))
        return [self._of_actuators(point) for point in registered]

    def register_failures(self, suggestions: Sequence[Mapping[str, Any]]) -> None:
        """Learn that suggestions, known by their ``_id``, were not measured."""
        failed = [{ID: point[ID]} for point in suggestions]
        self.agent.register_failures(failed)
        self._history.append(("fail", failed))

    def should_stop(self) -> tuple[bool, str | None]:
        """Tell whether to stop, and why."""
        return self.agent.should_stop()

    def checkpoint(self) -> None:
        """Write to the file what the agent was asked and told.

        Raises
        ------
        ConfigError
            If no file was named.
        """
        path = self._file()
        fresh = path.with_name(f"{path.name}.new")
        fresh.write_text(json.dumps(self._history, allow_nan=False), encoding="utf-8")
        os.replace(fresh, path)

    def restore(self) -> None:
        """Ask and tell the agent what the file holds, so that it goes on from there.

        Raises
        ------
        ConfigError
            If no file was named, the agent has been used, or another one, seed or window made the file: then this
            agent suggests something else.
        """
        if self._history:
            raise ConfigError("only a fresh agent can be restored; this one has been asked or told something already")
        for name, content in json.loads(self._file().read_text(encoding="utf-8")):
            self._again(name, content)
            self._history.append((name, content))

    def positions_m(self, suggestions: Sequence[Mapping[str, Any]]) -> FloatArray:
        """Read the places of suggestions, shape (n, 2), metres."""
        places = [self._of_axes(point) for point in suggestions]
        return np.array([[place[axis] for axis in AXES] for place in places])

    def _again(self, name: str, content: Any) -> None:
        if name != "suggest":
            tell = {
                "ingest": self.agent.ingest,
                "register": self.agent.register_suggestions,
                "fail": self.agent.register_failures,
            }
            tell[name](content)
            return
        n, wanted = content
        found = [[point["y"], point["x"]] for point in self.agent.suggest(n)]
        if len(found) != len(wanted) or not np.allclose(found, wanted, rtol=0.0, atol=1e-12):
            raise ConfigError(
                f"{self._path} was written by another agent, seed, window or version: this agent suggests other "
                "points. Make it as it was made then."
            )

    def _file(self) -> Path:
        if self._path is None:
            raise ConfigError("a checkpoint needs a file: Optimizer(agent, actuators, path=...)")
        return self._path

    def _of_actuators(self, point: Mapping[str, Any]) -> dict[str, Any]:
        at = {name: point[axis] / self._metres for name, axis in zip(self.actuators, AXES, strict=True)}
        return {**({ID: point[ID]} if ID in point else {}), **at}

    def _of_axes(self, point: Mapping[str, Any]) -> dict[str, Any]:
        axes = {axis: float(point[name]) * self._metres for name, axis in zip(self.actuators, AXES, strict=True)
                if name in point}  # fmt: skip
        return {**{key: value for key, value in point.items() if key not in self.actuators}, **axes}


class _Live(Protocol):
    """What an evaluation asks."""

    @property
    def latest(self) -> Estimate | None:
        """The newest estimate."""

    def check(self) -> None:
        """Raise the worker's error if it failed."""


class LiveEvaluation:
    """Tells what the live reconstruction made of the points that were just measured.

    An evaluation function of bluesky-adaptive, for the plans that measure in one run (`optimize_in_run`): an image
    grows from batch to batch. One for each run. It holds up the plan until the frames are in the image.

    Parameters
    ----------
    live : WorkerProcess or LiveWorker
        The session's worker.
    optimizer : Optimizer
        Whose suggestions are measured.
    timeout_s : float
        How long to wait for frames, seconds.

    Raises
    ------
    WorkerError
        When called: if the reconstruction failed, or has none of the frames in time.
    """

    def __init__(self, live: _Live, optimizer: Optimizer, *, timeout_s: float = 60.0) -> None:
        self._live, self._optimizer, self._timeout_s = live, optimizer, timeout_s
        self._of_an_earlier_run = live.latest
        self._n_measured = 0

    def __call__(self, uid: Any, suggestions: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """Give an outcome for each suggestion; NaN where its frame could not be used.

        Parameters
        ----------
        uid : object
            Not used: frames are known by their place.
        suggestions : sequence of Mapping
            ``_id`` and the actuators' values.
        """
        first, self._n_measured = self._n_measured, self._n_measured + len(suggestions)
        estimate = self._wait()
        if estimate is None or (
            not (new := estimate.frame_seq_nums > first).any() and _known(estimate) < self._n_measured
        ):
            raise WorkerError(
                f"none of the {len(suggestions)} frames came into the image within {self._timeout_s:g} s. Look into "
                "the log; measure them in one run (optimize_in_run), with a new LiveEvaluation for each."
            )
        return self._outcomes(estimate, np.flatnonzero(new), suggestions)

    def _wait(self) -> Estimate | None:
        """Wait for an estimate that rests on all frames of this run; the newest there is in the end."""
        deadline, found = time.monotonic() + self._timeout_s, None
        while time.monotonic() < deadline:
            self._live.check()
            latest = self._live.latest
            if latest is not None and latest is not self._of_an_earlier_run and latest.n_frames:
                found = latest if latest.frame_seq_nums.max() <= self._n_measured else found
                if found is latest and _known(latest) == self._n_measured:
                    return found
            time.sleep(LOOK_S)
        return found

    def _outcomes(
        self, estimate: Estimate, rows: np.ndarray[Any, Any], suggestions: Sequence[Mapping[str, Any]]
    ) -> list[Mapping[str, Any]]:
        from scipy.optimize import linear_sum_assignment

        from bluesky_cdi.reconstruction.points import points_of

        points = points_of(estimate)
        wanted_m = self._optimizer.positions_m(suggestions)
        distance = np.linalg.norm(wanted_m[:, None] - estimate.positions_m[rows][None], axis=-1)  # (n, frames)
        row_of = dict(zip(*(each.tolist() for each in linear_sum_assignment(distance)), strict=True))
        return [
            {ID: each[ID], **_outcome(points[int(rows[row_of[k]])] if k in row_of else None, estimate)}
            for k, each in enumerate(suggestions)
        ]


def _known(estimate: Estimate) -> int:
    """Count the frames that an estimate knows: those in the image, and those that are dark."""
    return estimate.n_frames + len(estimate.source.get("dark_frames", ()))


def _outcome(point: Mapping[str, Any] | None, estimate: Estimate) -> dict[str, Any]:
    """Choose what an outcome tells of a frame; NaN for one that is not there."""
    if point is None:
        return {**dict.fromkeys(OUTCOMES, float("nan")), "embedding": np.full(estimate.embedding.shape[1], np.nan)}
    return {**{name: point[name] for name in OUTCOMES}, "embedding": np.asarray(point["embedding"])}


def _plain(point: Mapping[str, Any]) -> dict[str, Any]:
    """Write a point as JSON can hold it; what is not finite is left out, as if it had not been told."""
    plain = {
        key: value.tolist() if isinstance(value, np.ndarray | np.generic) else value for key, value in point.items()
    }
    return {key: value for key, value in plain.items() if key == ID or np.isfinite(np.asarray(value, float)).all()}
