"""How our iterative engines do beside pty-chi's, on recorded and simulated scans.

Every row has the same frames, the same first guess of the probe and the same number of epochs, begins with an object
of ones, and runs in a process of its own, one after the other. pty-chi is asked through `with_ptychi`, which says what
of it is default. Deviance is that of our forward model on the object and probe of the row (and the positions, where
they are refined); for pty-chi the lower of that with positions as recorded and rounded to whole pixels. Error and ring
correlation (the mean of all rings) of recorded scans are against the reference, which pty-chi itself (Siemens star) or
cdtools (P25) made; those of simulated scans against the truth. ``halves`` is the mean ring correlation of two
independent halves of the frames, which no reference favours.
"""

from __future__ import annotations

import logging
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.ndimage import distance_transform_cdt

from bluesky_cdi.bench.engine_cases import RECORDED, SIMULATED, EngineCase, cases_of, speed_case
from bluesky_cdi.bench.exchange import Arrays, diffraction, read_arrays
from bluesky_cdi.bench.machine import record
from bluesky_cdi.engines.ptychography import deviance_of
from bluesky_cdi.errors import BlueskyCDIError
from bluesky_cdi.evaluation import compare, fourier_ring_correlation, illuminated_mask
from bluesky_cdi.physics.illumination import summed_illumination
from bluesky_cdi.physics.illumination_shares import ENGINES_SHARE
from bluesky_cdi.protocols import ComplexArray, FloatArray

logger = logging.getLogger(__name__)

# pty-chi's interpreter knows nothing of this package: it is given the file.
WITH_PTYCHI = Path(__file__).parents[1] / "with_ptychi.py"
WITH_OURS = "bluesky_cdi.bench.with_ours"
CASES = (*RECORDED, *SIMULATED)


@dataclass(frozen=True)
class Row:
    """One engine with its settings.

    Parameters
    ----------
    label : str
    ours : bool
        Whether it is this package's.
    settings : Mapping
        Entries of the problem.
    """

    label: str
    ours: bool
    settings: Mapping[str, Any] = field(default_factory=dict)


ROWS = (
    Row("network", True, {"algorithm": "pinn", "batch_size": 0, "epochs": 0}),
    Row("network, 30 of LSQ-ML", True, {"algorithm": "pinn", "batch_size": 0, "epochs": 30}),
    Row("LSQ-ML", True, {"algorithm": "lsqml", "batch_size": 0}),
    Row("LSQ-ML, positions refined", True, {"algorithm": "lsqml", "batch_size": 0, "refine_positions": True}),
    Row("rPIE", True, {"algorithm": "rpie", "batch_size": 0}),
    Row("pty-chi LSQ-ML", False, {"algorithm": "lsqml", "batch_size": 64}),
    Row("pty-chi rPIE", False, {"algorithm": "rpie", "batch_size": 64, "step_size": 0.1}),
)
TIMED = ("LSQ-ML", "pty-chi LSQ-ML")


@dataclass(frozen=True)
class Options:
    """What is measured, and on what.

    Parameters
    ----------
    ptychi : str, optional
        Python interpreter of an environment with pty-chi; without it our rows alone.
    rows : sequence of str
        Labels; all of `ROWS` if empty.
    epochs : int
    device : str
        PyTorch device of both packages.
    threads : int
        CPU threads of each process.
    """

    ptychi: str | None = None
    rows: Sequence[str] = ()
    epochs: int = 100
    device: str = "cpu"
    threads: int = 2

    @property
    def chosen(self) -> list[Row]:
        """Rows that can be run and are asked for."""
        return [row for row in ROWS if (row.ours or self.ptychi) and (not self.rows or row.label in self.rows)]

    @property
    def common(self) -> Arrays:
        """Entries of every problem."""
        return {"epochs": self.epochs, "device": self.device, "threads": self.threads, "seed": 0}


def engines(
    cases: Sequence[str],
    data: Path | None,
    options: Options | None = None,
    on_progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Measure quality and cost on every scan.

    Parameters
    ----------
    cases : sequence of str
        Of `CASES`.
    data : Path, optional
        Folder of recorded scans; without it they are left out.
    options : Options, optional
        The documented ones if absent.
    on_progress : callable, optional
        Called with a line for each row.

    Returns
    -------
    dict
        ``machine``, ``settings``, and ``cases``: by scan and row ``deviance``, ``complex_nrmse``, ``frc``, ``halves``
        (of LSQ-ML on recorded scans), ``seconds_per_epoch``, ``peak_memory_mib``, ``machine`` and ``version``.

    Raises
    ------
    BlueskyCDIError
        If a process fails.
    """
    options, tell = options or Options(), on_progress or (lambda _: None)
    table: dict[str, dict[str, Any]] = {}
    with _Bench(options) as bench:
        for case in cases_of(list(cases), data):
            for row in options.chosen:
                tell(f"{case.name}, {row.label}")
                table.setdefault(case.name, {})[row.label] = bench.judged(case, row)
    return _record(options, table)


def speed(
    sizes: Sequence[int],
    frames: int,
    batch: int,
    options: Options,
    on_progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Measure the seconds of an epoch of LSQ-ML with many frames, both packages in the same mini-batches.

    Parameters
    ----------
    sizes : sequence of int
        Pixels along a side of the frames.
    frames : int
        About how many; a square number.
    batch : int
        Frames of a mini-batch.
    options : Options
        Its rows are those of `TIMED`.
    on_progress : callable, optional
        Called with a line for each row.

    Returns
    -------
    dict
        As `engines`, with ``frames`` and without errors.
    """
    tell = on_progress or (lambda _: None)
    table: dict[str, dict[str, Any]] = {}
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with _Bench(options) as bench:
        for size in sizes:
            case = speed_case(size, frames, device)
            for row in (row for row in options.chosen if row.label in TIMED):
                tell(f"{case.name}, {row.label}")
                timed = Row(row.label, row.ours, {**row.settings, "batch_size": batch})
                table.setdefault(case.name, {})[row.label] = bench.timed(case, timed)
    return _record(options, table)


def errors(case: EngineCase, obj: ComplexArray, probe: ComplexArray) -> dict[str, float]:
    """Measure error and ring correlation against a case's reference.

    Parameters
    ----------
    case : EngineCase
        The scan.
    obj : ndarray, shape (Y, X), complex
        What was found; NaN where the engine diverged, and then the numbers are.
    probe : ndarray, shape (M, N, N), complex
        What was found: it tells which pixels count.

    Returns
    -------
    dict
        ``complex_nrmse`` and ``frc``.
    """
    if not np.isfinite(obj).all():
        return dict.fromkeys(("complex_nrmse", "frc"), math.nan)
    return _against(case.reference, obj, _illumination(probe, case.problem))


class _Bench:
    """Runs rows in processes, whose files lie in a folder that goes with it."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._files = tempfile.TemporaryDirectory()

    def __enter__(self) -> _Bench:
        return self

    def __exit__(self, *_: object) -> None:
        self._files.cleanup()

    def judged(self, case: EngineCase, row: Row) -> dict[str, Any]:
        """Return all numbers of a row."""
        result = self._solved(case.problem, row)
        numbers = {
            "deviance": self._deviance(case, row, result),
            **errors(case, result["object"], result["probe"]),
            **_cost(result),
        }
        if case.recorded and "LSQ-ML" in row.label:
            numbers["halves"] = self._halves(case, row)
        return numbers

    def timed(self, case: EngineCase, row: Row) -> dict[str, Any]:
        """Return what a row costs."""
        result = self._solved(case.problem, row)
        frames = len(case.problem["counts"])
        return {"frames": frames, "deviance": self._deviance(case, row, result), **_cost(result)}

    def _solved(self, scan: Mapping[str, Any], row: Row) -> Arrays:
        problem = {**scan, **self._options.common, **row.settings}
        if not row.ours and problem.get("propagation") == "near":
            # On the grid of the object: pty-chi's near field has no parts of pixels (see `with_ptychi`).
            problem["positions_px"] = _rounded(problem)
        paths = [str(Path(self._files.name) / name) for name in ("problem.npz", "result.npz")]
        np.savez(paths[0], **problem)
        command = [sys.executable, "-m", WITH_OURS] if row.ours else [str(self._options.ptychi), str(WITH_PTYCHI)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(self._options.threads)}
        done = subprocess.run([*command, *paths], capture_output=True, text=True, env=environment, check=False)
        if done.returncode:
            raise BlueskyCDIError(f"{row.label} failed in {' '.join(command)}: {done.stderr.strip()[-2000:]}")
        logger.debug("%s", done.stdout.strip())
        return read_arrays(Path(paths[1]))

    def _deviance(self, case: EngineCase, row: Row, result: Arrays) -> float:
        """Compute the mean Poisson deviance per pixel; NaN where the engine diverged."""
        if not np.isfinite(result["object"]).all():
            return math.nan
        device = self._options.device
        obj, probe = (torch.from_numpy(result[name])[None].to(device) for name in ("object", "probe"))
        places = [result["positions_px"]] if row.ours else [case.problem["positions_px"], _rounded(case.problem)]
        return min(float(deviance_of(obj, probe, diffraction(case.problem, device, at)).mean()) for at in places)

    def _halves(self, case: EngineCase, row: Row) -> float:
        """Compute the mean ring correlation of two independent halves of the frames; NaN where one diverged."""
        found, illumination = [], []
        for first in (0, 1):
            half = {**case.problem, **{key: case.problem[key][first::2] for key in ("counts", "positions_px")}}
            result = self._solved(half, row)
            found.append(result["object"])
            illumination.append(_illumination(result["probe"], half))
        if not all(np.isfinite(image).all() for image in found):
            return math.nan
        return _against(found[0], found[1], np.minimum(*illumination))["frc"]


def _record(options: Options, table: Mapping[str, Any]) -> dict[str, Any]:
    settings = {**options.common, "rows": [row.label for row in options.chosen]}
    return record([torch.device(options.device)], settings, cases=table)


def _rounded(problem: Mapping[str, Any]) -> FloatArray:
    """Round positions to whole pixels of the object."""
    origin = np.asarray(problem["origin_px"])
    return np.asarray(np.rint(problem["positions_px"] - origin) + origin)


def _cost(result: Mapping[str, Any]) -> dict[str, Any]:
    """State what a result cost; the first quarter of the epochs warms up."""
    seconds = result["seconds_per_epoch"]
    return {
        "seconds_per_epoch": float(np.median(seconds[len(seconds) // 4 :])) if len(seconds) else math.nan,
        "peak_memory_mib": float(result["peak_memory_bytes"]) / 2**20,
        "machine": result["machine"],
        "version": result["version"],
    }


def _illumination(probe: ComplexArray, problem: Mapping[str, Any]) -> FloatArray:
    return np.asarray(summed_illumination(torch.from_numpy(probe)[None], diffraction(problem, "cpu"))[0].numpy())


def _against(reference: ComplexArray, image: ComplexArray, illumination: FloatArray) -> dict[str, float]:
    found = compare(image, reference, illuminated_mask(illumination, ENGINES_SHARE))
    square = _inner_square(found.mask)
    # In units of a pixel: only the mean of the rings is reported.
    curve = fourier_ring_correlation(found.object[square], found.truth[square], 1.0)
    return {"complex_nrmse": found.numbers["complex_nrmse"], "frc": float(curve.correlation.mean())}


def _inner_square(mask: npt.NDArray[np.bool_]) -> tuple[slice, slice]:
    """Find a large square inside a mask, around one pixel: rings need a rectangle without gaps."""
    distance = distance_transform_cdt(np.pad(mask, 1), metric="chessboard")[1:-1, 1:-1]
    y, x = np.unravel_index(int(distance.argmax()), distance.shape)
    reach = int(distance.max()) - 1
    return slice(int(y) - reach, int(y) + reach + 1), slice(int(x) - reach, int(x) + reach + 1)
