"""The online reconstructor: network first where there is one, physics always, nothing twice.

The canvas is reconstructed in regions, which new frames make where they are and which alone they cost
(`regions.Tiling`; a small canvas is one region). In each the work starts from the better of two objects: the
network's fresh reading of its frames with the probe as it is known now, or the object as it was, continued into
newly lit places. A few iterations of an engine, with the reading as the prior (`refinement`), then refine object and
probe together, and count only if they explain the frames clearly better. The judge is always the Poisson deviance of
the frames. Without a network the fresh reading is vacuum, and what remains is the engine alone.

One probe serves all regions. Where no new frames wait, regions whose refining still pays go on, and those are
read again that knew a worse probe, the worst explained first.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bluesky_cdi.config import ReconstructorConfig
from bluesky_cdi.engines import make_engine
from bluesky_cdi.engines.lsqml import Prior
from bluesky_cdi.engines.ptychography import Engine, Schedule, Solution, deviance_of, iterate
from bluesky_cdi.engines.steps import averaged_step, orthogonalise
from bluesky_cdi.errors import GeometryError, WorkerError
from bluesky_cdi.live.agenda import Agenda
from bluesky_cdi.live.appraisal import (
    UNKNOWN_STD_RAD,
    Appraiser,
    CriticAppraiser,
    PhotonNoiseAppraiser,
    under_frames,
)
from bluesky_cdi.live.detector_faults import valid_pixels
from bluesky_cdi.live.frame_results import FrameResults
from bluesky_cdi.live.measured import MeasuredFrames
from bluesky_cdi.live.refinement import prior_of, refiner
from bluesky_cdi.live.regions import IndexArray, Region, Tiling
from bluesky_cdi.models.weights import Trained
from bluesky_cdi.physics.forward import Diffraction, accumulate, intensity, peak_intensity
from bluesky_cdi.physics.geometry import Canvas
from bluesky_cdi.physics.lit_frames import frames_at_once
from bluesky_cdi.physics.probes import scaled_to
from bluesky_cdi.physics.propagators import FAR_FIELD, Propagator
from bluesky_cdi.protocols import ComplexArray, Estimate, FloatArray, Frame
from bluesky_cdi.training.finetune import FineTuner

BoolArray = np.ndarray[Any, np.dtype[np.bool_]]

# A pixel counts as lit, and keeps its object from step to step, above this share of the probe's peak.
LIT = 0.05
# Frames after which the bad pixels are looked for again; more frames tell no more.
FAULT_FRAMES = 32
# Refining counts if it lowers the deviance by this share; less is fitting the noise.
LEAST_GAIN = 0.005
# Frames from which on the probe is refined: fewer can't tell it from the object.
PROBE_FRAMES = 8
# Frames that fine-tuning learns from, the first ones of a run: more would need all of them on the device.
TUNING_FRAMES = 2048
# Share of a frame's light that may fall on tiles which are not reconstructed for its sake.
STRAY = 0.01
# A region goes over into its surroundings within this part of a frame's width.
BLENDED = 4
# Regions are read again when the probe differs by this share (root mean square) from the one that they knew.
PROBE_CHANGE = 0.1


class PtychoReconstructor:
    """Reconstructs object and probe from a growing set of frames: a `Reconstructor`.

    Parameters
    ----------
    canvas : Canvas
        Where the object is reconstructed.
    probe : ndarray, shape (modes, N, N), complex
        First guess; its photons are set from the first frames.
    config : ReconstructorConfig
    trained : Trained, optional
        The network; the engine alone without it.
    mask : ndarray, shape (N, N), bool, optional
        Valid pixels known beforehand; hot and dead pixels that the frames show are added.
    propagator : Propagator
        From the sample to the detector.
    device : torch.device
    seed : int
        Seed of the order of frames.
    told : callable, optional
        Called after each iteration with the iterations so far and the mean deviance.
    """

    def __init__(
        self,
        canvas: Canvas,
        probe: ComplexArray,
        config: ReconstructorConfig,
        *,
        trained: Trained | None = None,
        mask: np.ndarray[Any, np.dtype[np.bool_]] | None = None,
        propagator: Propagator = FAR_FIELD,
        device: torch.device | str = "cpu",
        seed: int = 0,
        told: Callable[[int, float], None] | None = None,
    ) -> None:
        _check_probe(probe, canvas.frame_px)
        self._canvas = canvas
        self._config = config
        self._device = torch.device(device)
        self._net = trained.canvas_net if trained else None
        self._appraise: Appraiser = CriticAppraiser(self._net) if self._net else PhotonNoiseAppraiser()
        self._known_mask = np.ones((canvas.frame_px,) * 2, dtype=bool) if mask is None else np.asarray(mask, dtype=bool)
        self._propagator = propagator
        self._measured = self._no_frames()
        self._results = FrameResults(self._device)
        self._tiling = Tiling.covering(canvas.shape, canvas.frame_px, config.window_px)
        self._agenda = Agenda(len(self._tiling), LEAST_GAIN)
        self._probe = torch.from_numpy(np.asarray(probe, dtype=np.complex64)).to(self._device)[None]
        self._version_probe = self._probe
        self._object = torch.ones((1, *canvas.shape), dtype=torch.complex64, device=self._device)
        self._seen_light = torch.zeros((1, *canvas.shape), device=self._device)
        self._std_amplitude = torch.ones(canvas.shape, device=self._device)
        self._std_phase_rad = torch.full(canvas.shape, UNKNOWN_STD_RAD, device=self._device)
        self._seed = seed
        self._told = told
        self._engine: Engine | None = None
        self._prior: Prior | None = None
        self._engine_tiles: tuple[int, ...] = ()
        self._tuner: FineTuner | None = None
        self._tuning_steps = 0
        self._ended = ""
        self._scaled = False
        self._iterations = 0
        self._source = {
            "reconstructor": config.name,
            "network": trained.name if trained else None,
            "weights_sha256": trained.sha256 if trained else None,
            "uncertainty": self._appraise.name,
            "settings": config.model_dump(mode="json"),
            "seed": seed,
            "device": str(self._device),
        }

    def add(self, frames: Sequence[Frame]) -> None:
        """Take frames in; see `MeasuredFrames.add` for the errors."""
        if not frames:
            return
        known, flux = len(self._measured), self._measured.mean_flux
        replaced = self._measured.rows_of(frame.seq_num for frame in frames)
        left = self._measured.corner[replaced]
        rows = self._measured.add(frames)
        self._results.make_room(len(self._measured))
        self._results.forget(rows)
        self._follow_flux(flux)
        # What an engine remembers belongs to the frames that it has seen.
        self._engine = None
        corner = self._measured.corner
        changed = known < FAULT_FRAMES and self._update_mask()
        if not self._scaled:
            self._scale_probe()
        # Where the new frames' middles are comes first: each step then tells of a frame at least.
        self._agenda.touch(self._tiling.home(corner[rows]))
        self._agenda.touch(self._tiling.touched(corner if changed else corner[rows], _dark_border(self._probe)))
        self._agenda.touch(self._tiling.touched(left))

    @torch.no_grad()
    def step(self, budget_s: float) -> Estimate | None:
        """Read new frames with the network, refine, and judge, region by region.

        Parameters
        ----------
        budget_s : float
            No further iteration, and no further region, begins after this time; the regions that are left
            come first in the next step. Fine-tuning has a time of its own.

        Returns
        -------
        Estimate or None
            None before the first frame, and when neither new frames nor refining change anything. Frames
            whose region was left for the next step are not in the estimate yet.
        """
        due = self._agenda.due(self._burden())
        if not due:
            return None
        started, learning = time.monotonic(), self._agenda.has_new_frames
        for region in self._tiling.regions(due):
            self._work_on(region, started + budget_s)
            if time.monotonic() >= started + budget_s:
                break
        if learning and self._config.fine_tune_s:
            self._fine_tune()
        return self._estimate(started)

    def checkpoint(self) -> Mapping[str, Any]:
        """Object, probe, frames and what is known of them, as arrays and plain values."""
        return {
            "object": self._object[0].cpu().numpy().copy(),
            "probe": self._probe[0].cpu().numpy(),
            "version_probe": self._version_probe[0].cpu().numpy(),
            "light": self._seen_light[0].cpu().numpy().copy(),
            "std_amplitude": self._std_amplitude.cpu().numpy().copy(),
            "std_phase_rad": self._std_phase_rad.cpu().numpy().copy(),
            "mask": None if self._measured.mask is None else self._measured.mask.cpu().numpy(),
            "scaled": self._scaled,
            "iterations": self._iterations,
            "ended": self._ended,
            "agenda": self._agenda.state(),
            "frames": self._measured.frames,
            "results": self._results.state(self._measured.rows),
            "moves_px": self._measured.moves_px,
            "flux": self._measured.flux,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint of a reconstructor with the same canvas.

        An engine with a memory begins anew, and a network is tuned anew.

        Raises
        ------
        WorkerError
            If the checkpoint's canvas or probe has another shape, or its canvas other tiles.
        """
        found, wanted = np.shape(state["object"]), self._canvas.shape
        if found != wanted or np.shape(state["probe"]) != tuple(self._probe.shape[1:]):
            raise WorkerError(
                f"the checkpoint's object is {found}, this canvas is {wanted}: "
                "restore into the same scan window and probe"
            )
        tiles = len(state["agenda"]["settled"])
        if tiles != len(self._tiling):
            raise WorkerError(
                f"the checkpoint's canvas has {tiles} tiles, this one {len(self._tiling)}: "
                "restore with the same reconstructor.window_px"
            )
        self._measured = self._no_frames()
        self._measured.add(state["frames"])
        self._measured.use_refined(state["moves_px"], state["flux"])
        self._results = FrameResults(self._device)
        self._results.restore(state["results"])
        self._agenda.restore(state["agenda"])
        self._engine = self._prior = None
        if state["mask"] is not None:
            self._measured.use_mask(self._tensor(state["mask"]))
        self._object, self._seen_light = self._tensor(state["object"])[None], self._tensor(state["light"])[None]
        self._probe, self._version_probe = (self._tensor(state[name])[None] for name in ("probe", "version_probe"))
        self._std_amplitude, self._std_phase_rad = (
            self._tensor(state[name]) for name in ("std_amplitude", "std_phase_rad")
        )
        self._scaled, self._iterations = bool(state["scaled"]), int(state["iterations"])
        self._ended = str(state["ended"])

    def _tensor(self, values: Any) -> Tensor:
        """A copy on the device."""
        return torch.from_numpy(np.array(values)).to(self._device)

    def _no_frames(self) -> MeasuredFrames:
        config = self._config
        return MeasuredFrames(
            self._canvas, self._device, config.background, config.saturation, self._propagator, config.memory_mb * 2**20
        )

    def _update_mask(self) -> bool:
        """Look for bad pixels in the first frames; whether the mask is another one now."""
        counts = self._measured.first_counts(FAULT_FRAMES)
        # One frame may have a bright speckle that a second one moves.
        mask = self._known_mask & valid_pixels(counts) if len(counts) > 1 else self._known_mask
        before, found = self._measured.mask, self._propagator.to_working(torch.from_numpy(mask)).to(self._device)
        self._measured.use_mask(found)
        return before is None or not torch.equal(before, found)

    def _scale_probe(self) -> None:
        photons = self._measured.mean_photons()
        self._probe = scaled_to(self._probe, max(photons, 1.0))
        self._version_probe = self._probe
        # Dark frames say nothing of the beam: the first with light will.
        self._scaled = photons > 0

    def _follow_flux(self, before: float) -> None:
        """Scale the probe to another mean flux, so that no frame that is known is lit differently."""
        after = self._measured.mean_flux
        if self._scaled and before > 0 and after > 0 and after != before:
            factor = (after / before) ** 0.5
            self._probe, self._version_probe = self._probe * factor, self._version_probe * factor

    def _burden(self) -> FloatArray:
        """Deviance of each tile's own frames, summed, (tiles,)."""
        residual = self._results.residual[: len(self._measured)]
        home = self._tiling.home(self._measured.corner)
        return np.bincount(home, weights=residual, minlength=len(self._tiling)).astype(np.float64)

    def _work_on(self, region: Region, deadline: float) -> None:
        """Read a region's frames if they must be, refine, and take over what is found."""
        rows = self._measured.inside(region.outer)
        if not len(rows):
            self._clear(region)
            self._agenda.forget(region.tiles)
            return
        data = self._measured.diffraction(rows, region.outer)
        canvas, reading = self._object[region.outer.pixels], self._agenda.must_read(region.tiles)
        if reading or self._engine_tiles != region.tiles:
            self._engine, self._prior, self._engine_tiles = None, None, region.tiles
        if reading or (self._net is not None and self._prior is None):
            fresh = self._fresh(canvas, self._known(region), data)
            self._prior = None if self._net is None else prior_of(self._net, fresh, self._probe, data)
            canvas = self._better(canvas, fresh, self._known(region), data) if reading else canvas
        found = self._refine(region, canvas, data, rows, deadline)
        self._agenda.done(region.tiles, settled=found is None)
        if found is not None:
            canvas = self._taken(found, region, rows)
        if found is not None or reading:
            self._write(region, canvas, rows)

    def _fine_tune(self) -> None:
        """Tune the network; what it has read is read again when no new frames wait."""
        if self._net is None:
            return
        if self._tuner is None:
            self._tuner = FineTuner(self._net, seed=self._seed)
        data = self._measured.diffraction(self._measured.rows[:TUNING_FRAMES])
        found = self._tuner.tune(self._probe, data, self._config.fine_tune_s)
        self._tuning_steps += found.steps
        if found.kept:
            self._net, self._probe = found.net, found.probe
            self._agenda.version, self._version_probe = self._agenda.version + 1, found.probe

    def _known(self, region: Region) -> Tensor:
        """Where in a region's outer box the object is known, (1, Y, X)."""
        return self._seen_light[region.outer.pixels] > LIT * peak_intensity(self._probe)

    def _fresh(self, before: Tensor, known: Tensor, data: Diffraction) -> Tensor:
        """The network's reading, in phase with the object where that is known; vacuum without a network."""
        if self._net is None:
            return torch.ones_like(before)
        fresh: Tensor = self._net(self._probe, data)[-1]
        return fresh * _phase_towards(before, fresh, known)

    def _better(self, before: Tensor, fresh: Tensor, known: Tensor, data: Diffraction) -> Tensor:
        """The better candidate for the object."""
        candidates = [torch.where(known, before, fresh), fresh]
        deviances = [self._mean_deviance(canvas, data) for canvas in candidates]
        return candidates[int(np.argmin(deviances))]

    def _refine(
        self, region: Region, canvas: Tensor, data: Diffraction, rows: IndexArray, deadline: float
    ) -> Solution | None:
        """Refine object and probe of a region; None unless that explains its own frames clearly better."""
        if not self._config.refine_iterations:
            return None
        config = self._config
        if self._prior is not None:
            # Anew in each step: it begins in batches, which get further than all frames together.
            self._engine = refiner(self._prior, len(data), config.refine_iterations, self._seed, config.batch)
        elif self._engine is None:
            self._engine = make_engine(config.name, self._seed, config.batch)

        def in_time(epochs: int, solution: Solution) -> bool:
            if self._told is not None:
                self._told(solution.epochs, solution.mean_deviance)
            return time.monotonic() < deadline

        start = Solution.start(canvas, self._probe, data, self._iterations)
        outcome = iterate(self._engine, start, self._schedule(len(data)), in_time)
        self._iterations += len(outcome.history)
        self._ended = outcome.ended
        if outcome.ended == "diverged":
            # Its memory is of the epochs that are not kept.
            self._engine = None
        found = outcome.solution if len(self._tiling) == 1 else self._shared(outcome.solution)
        own = torch.from_numpy(self._is_home(region, rows)).to(self._device)
        before, after = (
            float(deviance_of(self._embedded(region, s.canvas), s.probe, s.data)[own | ~own.any()].mean())
            for s in (start, found)
        )
        return found if after < (1 - LEAST_GAIN) * before else None

    def _shared(self, found: Solution) -> Solution:
        """A region's solution with a probe for all regions: its frames count for their share of all.

        A brighter probe with a fainter object explains frames as well: the probe's photons stay.
        """
        if torch.equal(found.probe, self._probe):
            return found
        phase = torch.sgn((found.probe.conj() * self._probe).sum(dim=(-2, -1), keepdim=True))
        mixed = torch.lerp(self._probe, found.probe * phase, len(found.data) / len(self._measured))
        photons, own, shared = (intensity(probe).sum() for probe in (self._probe, found.probe, mixed))
        probe = orthogonalise(mixed * (photons / shared).sqrt())
        canvas = found.canvas * (own / photons).sqrt()
        # The object went with another probe: one step of all frames brings it to this one.
        return replace(found, canvas=averaged_step(canvas, probe, found.data), probe=probe)

    def _schedule(self, frames: int) -> Schedule:
        config = self._config
        # Positions and fluxes once the image can tell them.
        later = config.refine_iterations // 4
        return Schedule(
            config.refine_iterations,
            probe_from=0 if config.refine_probe and frames >= PROBE_FRAMES else -1,
            positions_from=later if config.refine_positions else -1,
            flux_from=later if config.refine_flux else -1,
            tolerance=config.tolerance,
        )

    def _mean_deviance(self, canvas: Tensor, data: Diffraction) -> float:
        return float(deviance_of(canvas, self._probe, data).mean())

    def _taken(self, found: Solution, region: Region, rows: IndexArray) -> Tensor:
        """Keep the refined probe, positions and fluxes of a region; its refined object."""
        self._probe = found.probe
        # Vacuum, which is all that there is to read without a network, is the same under any probe.
        worth = self._net is not None or len(self._tiling) > 1
        if worth and _difference(self._probe, self._version_probe) > PROBE_CHANGE:
            self._agenda.version, self._version_probe = self._agenda.version + 1, self._probe
        if self._config.refine_positions or self._config.refine_flux:
            own = self._is_home(region, rows)
            flux = self._measured.mean_flux
            part = found.data[torch.from_numpy(own).to(self._device)]
            self._measured.take_refined(part, rows[own], region.outer)
            self._follow_flux(flux)
        return found.canvas

    def _write(self, region: Region, canvas: Tensor, rows: IndexArray) -> None:
        """Write a region's core, and judge it."""
        data = self._measured.diffraction(rows, region.outer)
        light = self._light(data)
        core = region.core.seen_from(region.outer).pixels
        if len(self._tiling) > 1:
            canvas = torch.where(light > 0, self._embedded(region, canvas), 1)
        self._object[region.core.pixels] = canvas[core]
        self._seen_light[region.core.pixels] = light[core]
        self._judge(region, data, light, rows)

    def _embedded(self, region: Region, canvas: Tensor) -> Tensor:
        """The object on a region's outer box with the core of `canvas`, in phase with its surroundings.

        Where these are not known yet, the phase is that of the core as it was. Towards them the core goes over into
        what was known: readings of two windows differ in their lowest frequencies, and would meet in a seam.
        """
        if len(self._tiling) == 1:
            return canvas
        core, known = region.core.seen_from(region.outer).pixels, self._known(region)
        around = known.clone()
        around[core] = False
        out = self._object[region.outer.pixels].clone()
        turned = canvas * _phase_towards(out, canvas, around if around.any() else known)
        share = torch.from_numpy(region.share_of_new(self._canvas.frame_px // BLENDED)).to(self._device)
        out[core] = torch.lerp(out[core], turned[core], torch.where(known[core], share, 1.0).to(out.dtype))
        return out

    def _judge(self, region: Region, data: Diffraction, light: Tensor, rows: IndexArray) -> None:
        """Appraise what was written: the core, the embeddings of its own frames, the residual of all frames read."""
        canvas, core = self._object[region.outer.pixels], region.core.seen_from(region.outer).pixels
        deviance = deviance_of(canvas, self._probe, data)
        judged = self._appraise(canvas, self._probe, data, light, deviance)
        self._std_amplitude[region.core.pixels] = judged.std_amplitude[core]
        self._std_phase_rad[region.core.pixels] = judged.std_phase_rad[core]
        variance = self._std_phase_rad[region.outer.pixels].square()
        self._results.put_residual(rows, deviance)
        self._results.put_uncertainty(rows, under_frames(variance[None], self._probe, data.corner))
        own = self._is_home(region, rows)
        self._results.put_embedding(rows[own], judged.embedding[torch.from_numpy(own).to(self._device)])

    def _is_home(self, region: Region, rows: IndexArray) -> BoolArray:
        """Which frames have their middle in a region's core, (n,)."""
        return np.isin(self._tiling.home(self._measured.corner[rows]), region.tiles)

    def _clear(self, region: Region) -> None:
        """Forget a region that its last frames have left."""
        self._object[region.core.pixels], self._seen_light[region.core.pixels] = 1, 0
        self._std_amplitude[region.core.pixels], self._std_phase_rad[region.core.pixels] = 1, UNKNOWN_STD_RAD

    def _light(self, data: Diffraction) -> Tensor:
        """Summed illumination, photons per pixel, shape (1, Y, X)."""
        total = torch.zeros(data.canvas_shape, device=self._device)
        for part in data.chunks(frames_at_once(self._probe)):
            total += accumulate(intensity(part.probes(self._probe)), part.corner, part.canvas_shape)
        return total

    def _estimate(self, started: float) -> Estimate:
        measured, results = self._measured, self._results
        known = results.known[measured.rows]
        rows = measured.rows[known]
        return Estimate(
            n_frames=len(rows),
            object=self._object[0].cpu().numpy().copy(),
            origin_m=self._canvas.origin_m,
            pixel_m=self._canvas.pixel_m,
            probe=self._probe[0].cpu().numpy().copy(),
            std_amplitude=self._std_amplitude.cpu().numpy().copy(),
            std_phase_rad=self._std_phase_rad.cpu().numpy().copy(),
            coverage=self._seen_light[0].cpu().numpy().copy(),
            frame_seq_nums=measured.seq_nums[known],
            positions_m=measured.positions_m[known],
            embedding=results.embedding[rows],
            frame_uncertainty=results.uncertainty[rows],
            residual=results.residual[rows],
            novelty=results.novelty(rows),
            seconds=time.monotonic() - started,
            source={**self._source, **self._progress()},
        )

    def _progress(self) -> dict[str, Any]:
        return {"iterations": self._iterations, "ended": self._ended, "fine_tuning_steps": self._tuning_steps}


def _check_probe(probe: ComplexArray, frame_px: int) -> None:
    if np.ndim(probe) != 3 or np.shape(probe)[1:] != (frame_px, frame_px):
        raise GeometryError(f"a probe must be (modes, {frame_px}, {frame_px}); it is {np.shape(probe)}")


def _phase_towards(wanted: Tensor, canvas: Tensor, where: Tensor) -> Tensor:
    """The phase factor that brings an object closest to another on the pixels `where`; 1 where there are none."""
    overlap = (canvas[where].conj() * wanted[where]).sum()
    return torch.sgn(overlap) if bool(where.any()) else torch.ones_like(overlap)


def _dark_border(probe: Tensor) -> int:
    """Pixels along each border of a frame that hold no more than the share `STRAY` of its light in all."""
    light = intensity(probe)[0]
    y, x = torch.meshgrid(*(torch.arange(side, device=light.device) for side in light.shape), indexing="ij")
    size = light.shape[-1]
    ring = torch.minimum(torch.minimum(y, size - 1 - y), torch.minimum(x, size - 1 - x))  # 0 along the border
    outside = torch.zeros(size // 2, device=light.device).index_add(0, ring.reshape(-1), light.reshape(-1)).cumsum(0)
    return int((outside <= STRAY * light.sum()).sum())


def _difference(probe: Tensor, other: Tensor) -> float:
    """Root mean square of the difference of two probes as a share of the other, the modes' phases left out."""
    overlap = (probe.conj() * other).sum(dim=(-2, -1), keepdim=True)
    return float((probe * torch.sgn(overlap) - other).norm() / other.norm())
