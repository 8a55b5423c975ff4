"""How a scan and its reconstruction went: the agent's decisions, the updates, the loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bluesky_cdi.catalog.columns import Columns, streams_of
from bluesky_cdi.protocols import Proposal

if TYPE_CHECKING:
    from bluesky_cdi.catalog.connect import Catalog

# Stream of a raw run with an event for each decision.
DECISIONS = "agent"


def decisions_of(catalog: Catalog, raw_uid: str) -> list[Proposal]:
    """Read what the agent decided in a run, in order, each with its reason; empty for a scan that asked for nothing.

    Parameters
    ----------
    catalog : Catalog
        Where the run is.
    raw_uid : str
        Uid of the raw run, in full.

    Raises
    ------
    CatalogError
        If the server can't be reached, or the catalog does not hold that run.
    """
    from bluesky_cdi.catalog.browse import find_run

    run = find_run(catalog, raw_uid)
    with catalog.reaching():
        stream = streams_of(run).get(DECISIONS)
        return [] if stream is None else proposals_of(decision_columns(Columns(stream)))


def decision_columns(columns: Columns) -> dict[str, npt.NDArray[Any]]:
    """Read the columns of the stream ``agent`` by data key, a row a decision, and ``time``.

    Parameters
    ----------
    columns : Columns
        Of the stream; of one that grows, what is there whole.
    """
    found = {key: columns.read(key) for key in (*columns.descriptor["data_keys"], "time")}
    # A decision that is being written may have its row and not yet its arrays.
    n = min(len(each) for each in found.values())
    return {key: values[:n] for key, values in found.items()}


def proposals_of(columns: Mapping[str, Any]) -> list[Proposal]:
    """Make proposals of the columns of the stream ``agent``.

    Parameters
    ----------
    columns : Mapping
        Arrays by data key, a row a decision.
    """
    decisions = []
    for k, n in enumerate(np.asarray(columns["agent_n_proposed"], int)):
        row = {key: values[k] for key, values in columns.items()}
        decisions.append(
            Proposal(
                np.stack([row["agent_y"][:n], row["agent_x"][:n]], axis=1),
                np.asarray(row["agent_expected_gain"][:n]),
                str(row["agent_acquisition"]),
                str(row["agent_reason"]),
                int(row["agent_n_pending"]),
                int(row["agent_n_ingested"]),
                float(row["agent_decision_s"]),
            )
        )
    return decisions
