"""A decision of the agent as something that a plan can read into an event."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from bluesky_cdi.protocols import Proposal

STREAM = "agent"


class DecisionRecord:
    """The latest decision, readable: the source of the events of the stream ``agent``.

    Arrays have the length of a full batch; a shorter one is filled up with NaN, because all events
    of a stream have one shape.

    Parameters
    ----------
    batch : int
        Positions of a full batch.
    """

    name = "agent"
    parent = None

    def __init__(self, batch: int) -> None:
        self._batch = batch
        self._values: dict[str, Any] = {}
        self._time = time.time()

    def put(self, proposal: Proposal) -> None:
        """Take a decision."""
        positions = self._filled(np.asarray(proposal.positions_m, dtype=np.float64).reshape(-1, 2))
        gain = self._filled(np.asarray(proposal.expected_gain, dtype=np.float64).reshape(-1, 1))
        self._values = {
            "agent_y": positions[:, 0],
            "agent_x": positions[:, 1],
            "agent_expected_gain": gain[:, 0],
            "agent_n_proposed": len(proposal.positions_m),
            "agent_n_ingested": proposal.n_ingested,
            "agent_n_pending": proposal.pending,
            "agent_decision_s": float(proposal.decision_s),
            "agent_acquisition": proposal.acquisition,
            "agent_reason": proposal.reason,
        }
        self._time = time.time()

    def read(self) -> dict[str, dict[str, Any]]:
        """Give the decision as Bluesky reads it."""
        return {key: {"value": value, "timestamp": self._time} for key, value in self._values.items()}

    def describe(self) -> dict[str, dict[str, Any]]:
        """Give the data keys of `read`, with their units."""
        return {key: {"source": "bluesky_cdi", **_kind(key, self._batch)} for key in self._values}

    def _filled(self, rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        out = np.full((self._batch, rows.shape[1]), np.nan)
        out[: len(rows)] = rows
        return out


def _kind(key: str, batch: int) -> dict[str, Any]:
    if key in ("agent_acquisition", "agent_reason"):
        return {"dtype": "string", "shape": []}
    if key in ("agent_n_proposed", "agent_n_ingested", "agent_n_pending"):
        return {"dtype": "integer", "dtype_numpy": "<i8", "shape": []}
    if key == "agent_decision_s":
        return {"dtype": "number", "dtype_numpy": "<f8", "shape": [], "units": "s"}
    units = {} if key == "agent_expected_gain" else {"units": "m"}
    return {"dtype": "array", "dtype_numpy": "<f8", "shape": [batch], **units}
