"""What pretraining learns from: simulated scans, and windows of recorded ones.

Every batch is a function of the seed, the process and the number of the step alone, so that a training that goes on
after an interruption meets what it would have met.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bluesky_cdi.errors import ScanFileError
from bluesky_cdi.io import Scan, read_scan
from bluesky_cdi.io.frame_summaries import dark_frames
from bluesky_cdi.io.frames import photons_of_frames
from bluesky_cdi.physics.forward import Diffraction
from bluesky_cdi.physics.propagators import Propagator, propagator_of
from bluesky_cdi.training.draws import Draws
from bluesky_cdi.training.objects import RENEWED_EVERY
from bluesky_cdi.training.stream import CPU_SHARE, SceneShape, SceneStream, place

logger = logging.getLogger(__name__)

SHAPES = (
    SceneShape(64, 128, (6, 40), 100, 0.3),
    SceneShape(64, 192, (24, 96), 48, 0.2),
    SceneShape(128, 224, (6, 40), 36, 0.4),
    SceneShape(256, 416, (4, 16), 10, 0.1),
)
# On a CPU the smallest ones alone: objects for larger ones take minutes to draw.
CPU_SHAPES = SHAPES[:1]
# Objects that simulated scans are cut from, on a GPU and on a CPU.
POOL, CPU_POOL = 64, 8
# Before a pool would renew a part of itself, which depends on what was cut from it, the next one takes its place.
POOL_STEPS = RENEWED_EVERY - 1
# Share of the batches that are recorded, where there are recorded scans.
RECORDED_SHARE = 0.5
# Frames of a window of a recorded scan, and pixels of a batch of them on a GPU.
WINDOW_FRAMES, WINDOW_PIXELS = (8, 48), 850 * 128**2
# Of a recorded scan so many frames are learned from, the first ones: all of them are kept on the device.
MOST_FRAMES = 4096
SUFFIXES = (".cxi", ".h5", ".hdf5", ".npz")
# Sides of the windows' objects are multiples of this, so that memory is used again.
SIDE_STEP = 32


@dataclass(frozen=True, eq=False)
class Scans:
    """Scans of a batch, all with as many frames.

    Attributes
    ----------
    probe : Tensor, shape (B, M, N, N), complex64
        The assumed probes, which the encoder is given.
    data : Diffraction
        Frames at their assumed positions; those of a scan follow each other.
    judging_probe : Tensor, shape (B, M, N, N), complex64
        With which hidden frames are predicted: of simulated scans the true one, under which their truth explains the
        frames best; of recorded ones the assumed one.
    judging_data : Diffraction
        The same counts at the positions that go with it.
    truth : Tensor, shape (B, Y, X), complex64, or None
        Of simulated scans; no loss looks at it.
    """

    probe: Tensor
    data: Diffraction
    judging_probe: Tensor
    judging_data: Diffraction
    truth: Tensor | None = None

    @property
    def single(self) -> bool:
        """Whether each has but one frame."""
        return len(self.data) == len(self.probe)


class ScanSource:
    """Give the batch of any step.

    Parameters
    ----------
    device : torch.device
        Where the batches are.
    seed : int
        Of everything.
    photons : tuple of float
        Least and most photons of a simulated frame.
    files : sequence of Path
        Recorded scans, and folders of them; simulated ones alone without any.
    rank : int
        Number of the process among those that train together: sizes of batches are the same in all, scans are not.
    shapes : sequence of SceneShape, optional
        Of the simulated batches; by default those that the device is fit for. On a CPU they have fewer scans.

    Attributes
    ----------
    names : list of str
        Of the recorded scans' files.

    Raises
    ------
    ScanFileError
        If a file is no scan that can be learned from.
    """

    def __init__(
        self,
        device: torch.device,
        seed: int,
        photons: tuple[float, float] = (1e3, 1e8),
        files: Sequence[Path] = (),
        rank: int = 0,
        shapes: Sequence[SceneShape] | None = None,
    ) -> None:
        self._device, self._seed, self._photons, self._rank = device, seed, photons, rank
        cuda = device.type == "cuda"
        self._share, self._objects = (1.0, POOL) if cuda else (CPU_SHARE, CPU_POOL)
        chosen = shapes or (SHAPES if cuda else CPU_SHAPES)
        self._shapes = [replace(each, scenes=max(1, round(self._share * each.scenes))) for each in chosen]
        read = [(path, RecordedFrames(scan, path, device)) for path, scan in read_scans(files)]
        self.names = [path.name for path, _ in read]
        self._recorded = [frames for _, frames in read]
        self._pool = -1
        self._stream: SceneStream | None = None

    def batch(self, step: int) -> tuple[Scans, Draws]:
        """Give the scans of a step, and what else is random in it."""
        draws = self._stream_of(step).draws
        draws.reseed(mixed(self._seed, self._rank, step, 1), mixed(self._seed, step, 1))
        if self._recorded and draws.chance(RECORDED_SHARE):
            return self._windows(draws), draws
        return simulated(self._stream_of(step), self._pick(draws)), draws

    def _stream_of(self, step: int) -> SceneStream:
        """Give the stream whose pool the step's objects are cut from."""
        pool = step // POOL_STEPS
        if self._stream is None or pool != self._pool:
            seed, decisions = mixed(self._seed, self._rank, pool, 2), mixed(self._seed, pool, 2)
            side = max(shape.grid_px for shape in self._shapes)
            self._stream = SceneStream(self._device, seed, self._photons, self._objects, side, None, decisions)
            self._pool = pool
        return self._stream

    def _pick(self, draws: Draws) -> SceneShape:
        pick = draws.between(0, sum(shape.share for shape in self._shapes))
        for shape in self._shapes[:-1]:
            if pick < shape.share:
                return shape
            pick -= shape.share
        return self._shapes[-1]

    def _windows(self, draws: Draws) -> Scans:
        scan = self._recorded[draws.whole(0, len(self._recorded) - 1)]
        frames = min(draws.whole(*WINDOW_FRAMES), len(scan))
        number = max(1, round(self._share * WINDOW_PIXELS / (frames * scan.size**2)))
        # Where the windows lie differs from process to process.
        places = np.random.default_rng(mixed(self._seed, self._rank, draws.whole(0, 2**31 - 1), 3))
        return scan.windows(places.integers(len(scan), size=number), frames)


def simulated(stream: SceneStream, shape: SceneShape, exact: bool = False) -> Scans:
    """Draw simulated scans.

    Parameters
    ----------
    stream : SceneStream
        Draws them.
    shape : SceneShape
        Their number and size.
    exact : bool
        Whether the true probes and positions are known, and all pixels are valid.
    """
    batch = stream.draw(shape, exact)
    return Scans(batch.probe, batch.data, batch.true_probe, batch.true_data, batch.truth)


class RecordedFrames:
    """A recorded scan on a device, of which windows are cut.

    Parameters
    ----------
    scan : Scan
        With a probe.
    path : Path
        Where it came from, for messages.
    device : torch.device
        Where its frames are kept.

    Raises
    ------
    ScanFileError
        If it has no probe, or fewer than four frames with light.
    """

    def __init__(self, scan: Scan, path: Path, device: torch.device) -> None:
        if scan.probe is None:
            raise ScanFileError(
                f"{path} holds no probe, without which hidden frames can't be predicted: write its guess into the file "
                f"(`bluesky-cdi probe {path}` finds one), or leave the scan out"
            )
        kept = np.flatnonzero(~dark_frames(photons_of_frames(scan.counts, scan.mask)))[:MOST_FRAMES]
        if len(kept) < 4:
            raise ScanFileError(f"{path} has {len(kept)} frames with light; to hide some and keep some, 4 are needed")
        if len(kept) < len(scan):
            logger.info("of %s %d frames of %d are learned from", path, len(kept), len(scan))
        part = scan.subset(kept)
        self.size = part.geometry.frame_px
        self._propagator: Propagator = propagator_of(part.geometry, device)
        order = self._propagator.to_working
        self._counts = order(torch.from_numpy(np.asarray(part.counts, np.float32)).to(device))
        mask = part.mask
        self._mask = None if mask is None or mask.all() else order(torch.from_numpy(mask.copy()).to(device))
        if self._mask is not None:
            self._counts = torch.where(self._mask, self._counts, 0.0)
        self._probe = torch.from_numpy(np.asarray(scan.probe, np.complex64)).to(device)
        flux = None if part.flux is None else np.asarray(part.flux / np.mean(part.flux), np.float32)
        self._flux = None if flux is None else torch.from_numpy(flux).to(device)
        self._places_px = part.positions_m / part.geometry.pixel_m

    def __len__(self) -> int:
        return len(self._counts)

    def windows(self, middles: Sequence[int] | np.ndarray, frames: int) -> Scans:
        """Cut windows.

        Parameters
        ----------
        middles : sequence of int, B
            Frames in their middles.
        frames : int
            Of each: the nearest ones.
        """
        places, device = self._places_px, self._counts.device
        away = np.square(places[None] - places[np.asarray(middles)][:, None]).sum(axis=-1)  # (B, n)
        chosen = np.sort(np.argpartition(away, frames - 1, axis=1)[:, :frames], axis=1)
        inside = places[chosen]
        inside = inside - inside.min(axis=1, keepdims=True)  # (B, frames, 2)
        side = self.size + 3 + math.ceil(inside.max())
        side = SIDE_STEP * math.ceil(side / SIDE_STEP)
        centre = torch.from_numpy(inside.reshape(-1, 2) + self.size // 2 + 1)
        corner, shift = place(centre, self.size, side)
        rows = torch.from_numpy(chosen.reshape(-1)).to(device)
        number = len(chosen)
        scene = torch.arange(number, device=device).repeat_interleave(frames)
        probe = self._probe.expand(number, *self._probe.shape)
        data = Diffraction(
            self._counts[rows],
            corner.to(device),
            shift.float().to(device),
            (number, side, side),
            None if self._flux is None else self._flux[rows],
            scene,
            self._mask,
            propagator=self._propagator,
        )
        return Scans(probe, data, probe, data)


def read_scans(files: Sequence[Path]) -> Iterator[tuple[Path, Scan]]:
    """Read scans from files, and from all files in folders that are scans.

    Raises
    ------
    ScanFileError
        If a file is no scan, or a folder holds none.
    """
    for path in files:
        if not path.is_dir():
            yield path, read_scan(path)
            continue
        found = 0
        for inside in sorted(each for each in path.rglob("*") if each.suffix.lower() in SUFFIXES):
            try:
                scan = read_scan(inside)
            except ScanFileError as err:
                # Others, such as results, lie there too.
                logger.info("%s is left out: %s", inside, err)
                continue
            found += 1
            yield inside, scan
        if not found:
            raise ScanFileError(f"no scans in {path}: name files of scans, or a folder of them ({', '.join(SUFFIXES)})")


def mixed(*numbers: int) -> int:
    """Make one seed of several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
