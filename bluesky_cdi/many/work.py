"""One scan on a worker: read, checked, reconstructed, and written whole, with what the summary says of it."""

from __future__ import annotations

import base64
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from bluesky_cdi.errors import BlueskyCDIError
from bluesky_cdi.log import ROOT_NAME, keep_traceback
from bluesky_cdi.many.rows import NOTES
from bluesky_cdi.many.task import Task


def reconstruct_one(task: Task) -> str:
    """Reconstruct a scan and write its result; what fails is told, and nothing is written.

    Parameters
    ----------
    task : Task
        The scan.

    Returns
    -------
    str
        Why there is no result; empty where there is one.
    """
    try:
        _write_result(task)
    except Exception as err:  # noqa: BLE001 - the reason is told in the summary, and the other scans go on
        where, said = keep_traceback(err), str(err) or "no message"
        return said if isinstance(err, BlueskyCDIError) else f"{type(err).__name__}: {said} ({where})"
    return ""


def _write_result(task: Task) -> None:
    import torch

    from bluesky_cdi.io import read_probe, write_cxi_result
    from bluesky_cdi.reconstruction.batch import reconstruct
    from bluesky_cdi.reconstruction.recorded import noted, prepared
    from bluesky_cdi.viz import thumbnail_png

    began, method = time.process_time(), task.method
    if threads := method.config.reconstructor.threads:
        torch.set_num_threads(threads)
    # Before the scan is read: if the file changes meanwhile, the result is one of another file.
    made_of = task.as_notes()
    with _kept_warnings() as warnings:
        ready = prepared(
            task.source.read(method),
            method.config,
            probe=None if method.probe is None else read_probe(method.probe),
            orientation=method.orientation,
            check_in=method.check_in,
        )
        estimate = reconstruct(ready.scan, method.config, method.iterations, numbers=ready.numbers)
    estimate = noted(estimate, ready.checked)
    notes = {
        "task": made_of,
        "engine": method.config.reconstructor.name,
        "deviance_per_pixel": float(np.mean(estimate.residual)),
        "pixel_m": estimate.pixel_m,
        "cpu_s": time.process_time() - began,
        "warnings": warnings,
        "thumbnail": base64.b64encode(thumbnail_png(estimate)).decode("ascii"),
    }
    estimate = replace(estimate, source={**estimate.source, NOTES: notes})
    write_cxi_result(task.out, estimate, ready.scan.geometry, ready.scan.name)


class _Keeper(logging.Handler):
    """Keeps the messages of warnings."""

    def __init__(self, kept: list[str]) -> None:
        super().__init__(logging.WARNING)
        self._kept = kept

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a message."""
        self._kept.append(record.getMessage())


@contextmanager
def _kept_warnings() -> Iterator[list[str]]:
    """Collect what the package warns of: a worker's log is seen by nobody."""
    kept: list[str] = []
    logger, keeper = logging.getLogger(ROOT_NAME), _Keeper(kept)
    propagates, logger.propagate = logger.propagate, False
    logger.addHandler(keeper)
    try:
        yield kept
    finally:
        logger.removeHandler(keeper)
        logger.propagate = propagates
