"""The agents and the live reconstruction under the plans of bluesky-adaptive 1.x.

There an optimizer suggests values of named actuators, in their units, and an evaluation function tells what a
measurement brought. Nothing here needs that package.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from bluesky_cdi.agent.bayesian import BayesianAgent
from bluesky_cdi.agent.static import StaticAgent
from bluesky_cdi.errors import ConfigError, WorkerError
from bluesky_cdi.protocols import FloatArray
from bluesky_cdi.units import metres_per

ID = "_id"
AXES = ("y", "x")
# What an outcome has beside its id.
OUTCOMES = ("uncertainty", "structure", "novelty", "residual")
# Values of an embedding in an outcome, as many as the shipped networks give; after fewer come zeros, which change no
# distance. The first outcomes say what shape the documents of a run have, and there may be no image yet.
EMBEDDING = 32


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
        """Choose points: mappings with ``_id`` and the actuators' values; empty means stop.

        Parameters
        ----------
        num_points : int, optional
            Most points; one if absent.
        """
        chosen = self.agent.suggest(num_points)
        self._history.append(("suggest", [num_points, [[point["y"], point["x"]] for point in chosen]]))
        return [self._of_actuators(point) for point in chosen]

    def ingest(self, points: Sequence[Mapping[str, Any]]) -> None:
        """Learn outcomes: mappings with ``_id``, or the actuators' values, and what `LiveEvaluation` gives.

        Parameters
        ----------
        points : sequence of Mapping
            One for each measured point.
        """
        taken = [_plain(self._of_axes(point)) for point in points]
        self.agent.ingest(taken)
        self._history.append(("ingest", taken))

    def get_best_points(self) -> list[tuple[Any, Mapping[str, Any], Mapping[str, Any]]]:
        """Give the measured points that taught most: (id, the actuators' values, outcomes)."""
        return [(key, self._of_actuators(at), outcome) for key, at, outcome in self.agent.get_best_points()]

    def register_suggestions(self, suggestions: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """Take points that someone else chose, and give each an ``_id``.

        Parameters
        ----------
        suggestions : sequence of Mapping
            Values of the actuators by name.
        """
        points = [{axis: self._of_axes(point)[axis] for axis in AXES} for point in suggestions]
        registered = self.agent.register_suggestions(points)
        self._history.append(("register", points))
        return [self._of_actuators(point) for point in registered]

    def register_failures(self, suggestions: Sequence[Mapping[str, Any]]) -> None:
        """Learn that suggestions, known by their ``_id``, were not measured.

        Parameters
        ----------
        suggestions : sequence of Mapping
            As `suggest` gave them.
        """
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
        """Read the places of suggestions, shape (n, 2), metres.

        Parameters
        ----------
        suggestions : sequence of Mapping
            As `suggest` gave them.
        """
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

    def points_after(self, after: int) -> Future[Sequence[Mapping[str, Any]]]:
        """Ask what the image says of a run's frames, once those up to a number are in it or left out."""


class LiveEvaluation:
    """Tells what the live reconstruction made of the points that were just measured.

    An evaluation function of bluesky-adaptive, for the plans that measure in one run (`optimize_in_run`): an image
    grows from batch to batch. One for each run. It holds up the plan until the worker has taken the frames in, or left
    them out.

    Parameters
    ----------
    live : WorkerProcess or LiveWorker
        The session's worker.
    optimizer : Optimizer
        Whose suggestions are measured.
    timeout_s : float
        How long to wait for the worker, seconds.
    embedding_values : int
        Of an embedding that are told, the first ones. Class tokens have more than the networks' embeddings.

    Raises
    ------
    WorkerError
        When called: if the reconstruction failed, or has not dealt with the frames in time.
    """

    def __init__(
        self, live: _Live, optimizer: Optimizer, *, timeout_s: float = 60.0, embedding_values: int = EMBEDDING
    ) -> None:
        self._live, self._optimizer, self._timeout_s = live, optimizer, timeout_s
        self._values = embedding_values
        self._n_measured = 0

    def __call__(self, uid: Any, suggestions: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """Give an outcome for each suggestion; NaN where its frame could not be used, which may be all of them.

        Parameters
        ----------
        uid : object
            Not used: frames are known by their place.
        suggestions : sequence of Mapping
            ``_id`` and the actuators' values.
        """
        first, self._n_measured = self._n_measured, self._n_measured + len(suggestions)
        answer = self._live.points_after(self._n_measured)
        try:
            points = answer.result(self._timeout_s)
        except TimeoutError as err:
            answer.cancel()
            raise WorkerError(
                f"the reconstruction has not dealt with the {len(suggestions)} frames within {self._timeout_s:g} s. "
                "Look into the log; measure them in one run (optimize_in_run), with a new LiveEvaluation for each."
            ) from err
        return self._outcomes([point for point in points if point["seq_num"] > first], suggestions)

    def _outcomes(
        self, points: Sequence[Mapping[str, Any]], suggestions: Sequence[Mapping[str, Any]]
    ) -> list[Mapping[str, Any]]:
        """Match the points of this batch to its suggestions by their places."""
        from scipy.optimize import linear_sum_assignment

        wanted_m = self._optimizer.positions_m(suggestions)
        found_m = np.array([[point[axis] for axis in AXES] for point in points]).reshape(-1, 2)
        distance = np.linalg.norm(wanted_m[:, None] - found_m[None], axis=-1)  # (n, points)
        of_suggestion = dict(zip(*(each.tolist() for each in linear_sum_assignment(distance)), strict=True))
        return [
            {ID: each[ID], **_outcome(points[of_suggestion[k]] if k in of_suggestion else {}, self._values)}
            for k, each in enumerate(suggestions)
        ]


def _outcome(point: Mapping[str, Any], values: int) -> dict[str, Any]:
    """Choose what an outcome tells of a frame, with so many values of its embedding; NaN for one that is not there."""
    embedding = np.full(values, np.nan)
    if point:
        found = np.asarray(point["embedding"])[:values]
        embedding = np.pad(found, (0, values - len(found)))
    return {**{name: point.get(name, float("nan")) for name in OUTCOMES}, "embedding": embedding}


def _plain(point: Mapping[str, Any]) -> dict[str, Any]:
    """Write a point as JSON can hold it; what is not finite is left out, as if it had not been told."""
    plain = {
        key: value.tolist() if isinstance(value, np.ndarray | np.generic) else value for key, value in point.items()
    }
    return {key: value for key, value in plain.items() if key == ID or np.isfinite(np.asarray(value, float)).all()}
