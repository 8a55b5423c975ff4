"""Records of calibrations on disk: beside the weights, found by their checksum."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bluesky_cdi.errors import WeightsError
from bluesky_cdi.models.weights import SHIPPED, Trained
from bluesky_cdi.reconstruction.calibration.record import Calibrating, Calibration, Uncalibrated
from bluesky_cdi.whole_file import write_whole

# Beside weights of the same stem; the second for engines without a network.
SUFFIX = ".calibration.json"
ENGINES = SHIPPED / f"engines{SUFFIX}"
HOW = "bluesky-cdi calibrate"


def record_of(weights: Path) -> Path:
    """Name the file of the record of weights."""
    return weights.with_suffix(SUFFIX)


def calibration_of(trained: Trained | None, estimator: str) -> Calibrating:
    """Find the calibration of an estimator.

    Parameters
    ----------
    trained : Trained or None
        The network that reconstructs; None: an engine alone.
    estimator : str
        What predicts errors.

    Returns
    -------
    Calibrating
        Without a record of these very weights and this estimator, one that leaves errors as they are and says why.

    Raises
    ------
    WeightsError
        If the record is damaged.
    """
    path = ENGINES if trained is None else record_of(trained.path)
    how = f"{HOW} {_named(trained)}"
    if not path.is_file():
        return Uncalibrated(estimator, f"there is no {path.name}; make it: {how} --estimators '{estimator}'")
    record = _read(path)
    if record["weights_sha256"] != (None if trained is None else trained.sha256):
        return Uncalibrated(estimator, f"{path.name} is of other weights; make it again: {how}")
    if estimator not in record["estimators"]:
        return Uncalibrated(estimator, f"{path.name} does not have it; make it: {how} --estimators '{estimator}'")
    return Calibration.from_json(record["estimators"][estimator])


def write_record(path: Path, weights_sha256: str | None, found: Sequence[Calibration]) -> None:
    """Write the calibrations of the estimators of one network; those of others in the file stay, if they are of it.

    Parameters
    ----------
    path : Path
        Of the record.
    weights_sha256 : str or None
        Of the network.
    found : sequence of Calibration
        One an estimator.
    """
    estimators: dict[str, Any] = {}
    if path.is_file() and (before := _read(path))["weights_sha256"] == weights_sha256:
        estimators = dict(before["estimators"])
    estimators |= {each.estimator: each.as_json() for each in found}
    text = json.dumps({"weights_sha256": weights_sha256, "estimators": estimators}, indent=1)
    write_whole(path, text.encode())


def _named(trained: Trained | None) -> str | Path:
    """Name weights as commands take them."""
    if trained is None:
        return "none"
    return trained.path.stem if trained.path.parent == SHIPPED else trained.path


def _read(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(record, dict) or not {"weights_sha256", "estimators"} <= set(record):
            raise ValueError("it has no weights_sha256 and estimators")
    except (OSError, ValueError) as err:
        raise WeightsError(f"the record of a calibration {path} is damaged: {err}. Make it again: {HOW}") from err
    return record
