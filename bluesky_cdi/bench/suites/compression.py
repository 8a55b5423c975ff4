"""Bytes a frame and what they cost: HDF5 filters, rounded and quantised counts, and a model's prediction with residual.

The model is a reconstruction by LSQ-ML, whose object and probe are the latent of all frames at once: from them and the
positions it predicts each frame, and what remains is coded beside them, without loss or in steps of photon noise. Its
bounds are what a perfect arithmetic coder would need. *Deviance* is Poisson's, a valid pixel, of the decoded counts
against the measured ones; *error* and *moved* are the complex NRMSE of a reconstruction from the decoded counts against
the truth (recorded scans: the reference) and against the reconstruction from the measured ones.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import torch

from bluesky_cdi.bench.codecs import PredictedRoot, SquareRoot, adaptive_bits, folded, poisson_bits, smallest
from bluesky_cdi.bench.engine_cases import RECORDED, EngineCase, cases_of, simulated_case
from bluesky_cdi.bench.exchange import diffraction
from bluesky_cdi.bench.machine import record
from bluesky_cdi.bench.suites.engines import errors
from bluesky_cdi.engines import make_engine
from bluesky_cdi.engines.ptychography import Schedule, Solution, iterate
from bluesky_cdi.io import COMPRESSIONS, Rounding, filter_options
from bluesky_cdi.models.unrolled import pool_under_frames
from bluesky_cdi.models.weights import load_weights
from bluesky_cdi.physics.likelihood import expected_deviance, poisson_deviance
from bluesky_cdi.protocols import ComplexArray, FloatArray

# The first is what CXI files had before; speeds are ratios to it.
BEFORE = "gzip"
LZF = "lzf"
FILTER = COMPRESSIONS[0]
ROUNDED = (0.5, 1.0)
STEPS = (1.0, 2.0, 3.0)
PREDICTED_STEPS = (1.0, 2.0)
# Bytes of a complex pixel of object or probe: in half precision, whose error is far below the noise of a count.
COMPLEX_BYTES = 4
REPEATS = 3

Row = dict[str, float]
Counts = npt.NDArray[np.integer]


@dataclass(frozen=True)
class Options:
    """What is measured.

    Parameters
    ----------
    doses : tuple of float
        Photons of a frame through vacuum of the simulated scans; empty: none.
    kind : str
        Of `objects.make_sample`.
    frames : int
        About how many frames a simulated scan has.
    epochs : int
        Of LSQ-ML.
    weights : str
        Network whose embeddings are the lower end.
    """

    doses: tuple[float, ...] = (1e3, 1e4, 1e5, 1e6)
    kind: str = "leaves"
    frames: int = 169
    epochs: int = 30
    weights: str = "canvas-small"


def compression(
    data: Path | None, options: Options | None = None, on_progress: Callable[[str], None] | None = None
) -> dict[str, Any]:
    """Measure all ways on simulated and recorded scans.

    Parameters
    ----------
    data : Path, optional
        Folder of recorded scans; without it they are left out.
    options : Options, optional
        The documented ones if absent.
    on_progress : callable, optional
        Called with a line for each scan.

    Returns
    -------
    dict
        ``machine``, ``settings``, and ``scans``: by name ``frames``, ``frame_px``, ``bytes`` (of a raw frame),
        ``noise_deviance``, and ``rows``: by way ``bytes`` of a frame and, as far as they apply, ``deviance``,
        ``encode``, ``decode`` (speeds over those of gzip), ``complex_nrmse`` and ``moved``.
    """
    options, tell = options or Options(), on_progress or (lambda _: None)
    scans = {}
    for name, case in _cases(options, data):
        tell(name)
        scans[name] = _Scan(case, options).measured()
    settings = {"epochs": options.epochs, "doses": list(options.doses), "weights": options.weights}
    return record([torch.device("cpu")], settings, scans=scans)


def _cases(options: Options, data: Path | None) -> list[tuple[str, EngineCase]]:
    simulated = [
        (f"{options.kind}, {dose:.0e} photons", simulated_case(options.kind, options.frames, dose))
        for dose in options.doses
    ]
    return simulated + [(case.name, case) for case in cases_of(list(RECORDED), data) if data is not None]


class _Scan:
    """One scan in all ways.

    Parameters
    ----------
    case : EngineCase
        With counts that are whole numbers.
    options : Options
        How it is reconstructed.
    """

    def __init__(self, case: EngineCase, options: Options) -> None:
        self._case, self._options = case, options
        self._counts = smallest(np.asarray(case.problem["counts"]).astype(np.int64))
        self._object, self._probe = self._solved(self._counts)
        self._rate = self._predicted()

    def measured(self) -> dict[str, Any]:
        """Measure all rows."""
        counts = self._counts
        rows = {**self._without_loss(), **self._quantised(), **self._with_prediction(), **self._from_embedding()}
        gzip = rows[BEFORE]
        for row in rows.values():
            for key in ("encode", "decode"):
                if key in row and row is not gzip:
                    row[key] = gzip[key] / row[key]
        gzip |= {"encode": 1.0, "decode": 1.0}
        return {
            "frames": len(counts),
            "frame_px": counts.shape[-1],
            "bytes": counts.nbytes / len(counts),
            "noise_deviance": float(expected_deviance(torch.from_numpy(self._valid(self._rate))).mean()),
            "rows": rows,
        }

    def _without_loss(self) -> dict[str, Row]:
        made = {name: self._stored(lambda: self._counts, **filter_options(name)) for name in (BEFORE, *COMPRESSIONS)}
        made[LZF] = self._stored(lambda: self._counts, compression="lzf", shuffle=True)
        return {name: {**row, "deviance": 0.0} for name, row in made.items()} | {
            BEFORE: {**made[BEFORE], "deviance": 0.0, **self._errors(self._object, self._probe)}
        }

    def _quantised(self) -> dict[str, Row]:
        rows, options = {}, filter_options(FILTER)
        for step in ROUNDED:
            rounding = Rounding(step)
            row = self._stored(lambda rounding=rounding: rounding(self._counts), **options)  # type: ignore[misc]  # bound now
            rows[f"rounded, {step:g}"] = {**row, **self._lost(rounding(self._counts))}
        for step in STEPS:
            root = SquareRoot.up_to(int(self._counts.max()), step)
            row = self._stored(lambda root=root: root.encode(self._counts), root.decode, **options)  # type: ignore[misc]
            rows[f"square root, {step:g}"] = {**row, **self._lost(root.decode(root.encode(self._counts)))}
        return rows

    def _with_prediction(self) -> dict[str, Row]:
        counts, rate, options = self._counts, self._rate, filter_options(FILTER)
        n = len(counts)
        latent = COMPLEX_BYTES * (self._object.size + self._probe.size) / n
        residual = counts.astype(np.int64) - np.rint(rate).astype(np.int64)
        stored = self._stored(lambda: folded(counts.astype(np.int64) - np.rint(rate).astype(np.int64)), **options)
        rows: dict[str, Row] = {
            "object and probe alone": {"bytes": latent, "deviance": self._deviance(rate)},
            "and residual": {**stored, "bytes": stored["bytes"] + latent, "deviance": 0.0},
            "and residual, adaptive bound": {
                "bytes": latent + adaptive_bits(residual, rate) / 8 / n,
                "deviance": 0.0,
            },
            "and residual, Poisson bound": {"bytes": latent + poisson_bits(counts, rate) / 8 / n, "deviance": 0.0},
        }
        for step in PREDICTED_STEPS:
            root = PredictedRoot(step)
            codes = root.encode(counts, rate)
            deviance = self._deviance(root.decode(codes, rate))
            kept = self._stored(lambda root=root: folded(root.encode(counts, rate).astype(np.int64)), **options)  # type: ignore[misc]
            rows[f"and roots of residual, {step:g}"] = {
                **kept,
                "bytes": kept["bytes"] + latent,
                "deviance": deviance,
            }
            rows[f"and roots of residual, {step:g}, adaptive bound"] = {
                "bytes": latent + adaptive_bits(codes, rate, math.inf) / 8 / n,
                "deviance": deviance,
            }
        mean = np.broadcast_to(counts.mean(axis=0), counts.shape)
        held = mean[0].size * 4 / n
        rows["mean frame alone"] = {"bytes": held, "deviance": self._deviance(mean)}
        around = counts.astype(np.int64) - np.rint(mean).astype(np.int64)
        rows["mean frame and residual, adaptive bound"] = {
            "bytes": held + adaptive_bits(around, mean) / 8 / n,
            "deviance": 0.0,
        }
        return rows

    def _from_embedding(self) -> dict[str, Row]:
        """Decode frames from their embeddings by the best linear map of the other half of them to square roots.

        The map is not counted.
        """
        net = load_weights(self._options.weights).unrolled_net
        probe, obj = torch.from_numpy(self._probe)[None], torch.from_numpy(self._object)[None]
        data = diffraction(self._case.problem, "cpu")
        with torch.no_grad():
            _, features = net.judge(obj, probe, data)
            found = pool_under_frames(features, probe, data, net.config.stem).double().numpy()
        known = np.column_stack([found, np.ones(len(found))])
        roots = np.sqrt(self._counts.reshape(len(found), -1).astype(np.float64))
        best = np.empty_like(roots)
        for own, other in ((slice(0, None, 2), slice(1, None, 2)), (slice(1, None, 2), slice(0, None, 2))):
            best[own] = known[own] @ np.linalg.lstsq(known[other], roots[other], rcond=None)[0]
        # A pixel in which nothing is expected would make one photon infinitely unlikely.
        decoded = np.square(np.maximum(best, 0.03)).reshape(self._counts.shape)
        return {"embedding alone": {"bytes": 4.0 * found.shape[1], "deviance": self._deviance(decoded)}}

    def _lost(self, decoded: Counts) -> Row:
        """Give the deviance of decoded counts, and what a reconstruction from them is."""
        return {"deviance": self._deviance(decoded), **self._errors(*self._solved(decoded))}

    def _errors(self, obj: ComplexArray, probe: ComplexArray) -> Row:
        error = errors(self._case, obj, probe)["complex_nrmse"]
        if obj is self._object:
            return {"complex_nrmse": error}
        against = EngineCase(self._case.name, self._case.problem, self._object)
        return {"complex_nrmse": error, "moved": errors(against, obj, probe)["complex_nrmse"]}

    def _solved(self, counts: Counts) -> tuple[ComplexArray, ComplexArray]:
        problem = {**self._case.problem, "counts": counts}
        data, probe = diffraction(problem, "cpu"), torch.from_numpy(problem["probe"])[None]
        vacuum = torch.ones(data.object_shape, dtype=torch.complex64)
        schedule = Schedule(self._options.epochs)
        found = iterate(make_engine("lsqml", 0), Solution.start(vacuum, probe, data), schedule).solution
        return found.object[0].numpy(), found.probe[0].numpy()

    @torch.no_grad()
    def _predicted(self) -> FloatArray:
        data = diffraction(self._case.problem, "cpu")
        probe, obj = (torch.from_numpy(_halved(each))[None] for each in (self._probe, self._object))
        parts = [part.rate(part.probes(probe), part.patches(obj)) for part in data.chunks(64)]
        return np.asarray(data.propagator.to_detector(torch.cat(parts)).numpy())

    def _deviance(self, decoded: npt.NDArray[Any]) -> float:
        expected = torch.from_numpy(self._valid(decoded).astype(np.float64))
        return float(poisson_deviance(expected, torch.from_numpy(self._valid(self._counts).astype(np.float64))).mean())

    def _valid(self, frames: npt.NDArray[Any]) -> npt.NDArray[Any]:
        mask = self._case.problem.get("mask")
        return np.ascontiguousarray(frames if mask is None else frames[:, mask])

    def _stored(
        self, encode: Callable[[], Counts], decode: Callable[[Counts], Any] = lambda codes: codes, **filters: Any
    ) -> Row:
        """Store what `encode` gives in HDF5, in memory, a frame a chunk: bytes of a frame, and median seconds."""
        times: list[tuple[float, float]] = []
        for _ in range(REPEATS):
            # No cache of chunks: what is read has been written.
            with h5py.File("frames", "w", driver="core", backing_store=False, rdcc_nbytes=0) as file:
                began = time.process_time()
                values = encode()
                dataset = file.create_dataset("a", values.shape, values.dtype, chunks=(1, *values.shape[1:]), **filters)
                dataset[:] = values
                written = time.process_time()
                decode(dataset[:])
                times.append((written - began, time.process_time() - written))
                size = dataset.id.get_storage_size()
        encoding, decoding = (statistics.median(each) for each in zip(*times, strict=True))
        return {"bytes": size / len(values), "encode": encoding, "decode": decoding}


def _halved(values: ComplexArray) -> ComplexArray:
    """Round to half precision; the probe, whose values may be beyond it, relative to its largest."""
    scale = float(np.abs(values).max())
    parts = (values / scale).view(np.float32).astype(np.float16).astype(np.float32)
    return np.asarray(parts.view(np.complex64) * np.float32(scale))
