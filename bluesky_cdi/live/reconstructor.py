"""The online reconstructor: network first where there is one, physics always, nothing twice.

Each step starts from the better of two objects: the network's fresh reading of all frames with
the probe as it is known now, or the object of the last step continued into newly lit places. A
few iterations of an engine then refine object and probe together, and count only if they explain the
frames clearly better: in few photons they soon fit the noise instead. The judge is always the Poisson
deviance of the frames. Without a network the fresh reading is vacuum, and what remains is the engine alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bluesky_cdi.config import ReconstructorConfig
from bluesky_cdi.engines import make_engine
from bluesky_cdi.engines.ptychography import Engine, Schedule, Solution, deviance_of, iterate
from bluesky_cdi.errors import WorkerError
from bluesky_cdi.live.appraisal import Appraiser, CriticAppraiser, PhotonNoiseAppraiser, novelty, under_frames
from bluesky_cdi.live.detector_faults import valid_pixels
from bluesky_cdi.live.measured import MeasuredFrames
from bluesky_cdi.models.weights import Trained
from bluesky_cdi.physics.forward import Diffraction, accumulate, intensity, peak_intensity
from bluesky_cdi.physics.geometry import Canvas
from bluesky_cdi.physics.lit_frames import frames_at_once
from bluesky_cdi.physics.probes import scaled_to
from bluesky_cdi.physics.propagators import FAR_FIELD, Propagator
from bluesky_cdi.protocols import ComplexArray, Estimate, Frame

# A pixel counts as lit, and keeps its object from step to step, above this share of the probe's peak.
LIT = 0.05
# Frames after which the bad pixels are looked for again; more frames tell no more.
FAULT_FRAMES = 32
# Refining counts if it lowers the deviance by this share; less is fitting the noise.
LEAST_GAIN = 0.005
# What refines after the network.
NETWORK_ENGINE = "rpie"
# Frames from which on the probe is refined: fewer can't tell it from the object.
PROBE_FRAMES = 8


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
        self._canvas = canvas
        self._config = config
        self._device = torch.device(device)
        self._net = trained.canvas_net if trained else None
        self._appraise: Appraiser = CriticAppraiser(self._net) if self._net else PhotonNoiseAppraiser()
        self._known_mask = np.ones((canvas.frame_px,) * 2, dtype=bool) if mask is None else np.asarray(mask, dtype=bool)
        self._propagator = propagator
        self._measured = self._no_frames()
        self._probe = torch.from_numpy(np.asarray(probe, dtype=np.complex64)).to(self._device)[None]
        self._object = torch.ones((1, *canvas.shape), dtype=torch.complex64, device=self._device)
        self._seen_light = torch.zeros((1, *canvas.shape), device=self._device)
        self._seed = seed
        self._told = told
        self._engine: Engine | None = None
        self._ended = ""
        self._scaled = False
        self._new_frames = False
        self._settled = False
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
        known = len(self._measured)
        self._measured.add(frames)
        if frames:
            # What an engine remembers belongs to the frames that it has seen.
            self._new_frames, self._engine = True, None
        if known < FAULT_FRAMES and len(self._measured):
            self._update_mask()
        if not self._scaled and len(self._measured):
            self._scale_probe()

    @torch.no_grad()
    def step(self, budget_s: float) -> Estimate | None:
        """Read new frames with the network, refine, and judge.

        Parameters
        ----------
        budget_s : float
            No iteration begins after this time.

        Returns
        -------
        Estimate or None
            None before the first frame, and when neither new frames nor refining change anything.
        """
        if not len(self._measured):
            return None
        if self._settled and not self._new_frames:
            return None
        started = time.monotonic()
        data = self._measured.diffraction()
        deviance = self._start(data) if self._new_frames else self._mean_deviance(self._object, data)
        self._new_frames = False
        self._settled = not self._refine(data, deviance, started + budget_s)
        data = self._measured.diffraction()
        self._seen_light = self._light(data)
        return self._estimate(data, started)

    def checkpoint(self) -> Mapping[str, Any]:
        """Object, probe and frames, as arrays and plain values."""
        return {
            "object": self._object[0].cpu().numpy(),
            "probe": self._probe[0].cpu().numpy(),
            "light": self._seen_light[0].cpu().numpy(),
            "mask": None if self._measured.mask is None else self._measured.mask.cpu().numpy(),
            "iterations": self._iterations,
            "new_frames": self._new_frames,
            "settled": self._settled,
            "frames": self._measured.frames,
            "moves_px": self._measured.moves_px,
            "flux": self._measured.flux,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint of a reconstructor with the same canvas; an engine with a memory begins anew.

        Raises
        ------
        WorkerError
            If the checkpoint's canvas or probe has another shape.
        """
        found, wanted = np.shape(state["object"]), self._canvas.shape
        if found != wanted or np.shape(state["probe"]) != tuple(self._probe.shape[1:]):
            raise WorkerError(
                f"the checkpoint's object is {found}, this canvas is {wanted}: "
                "restore into the same scan window and probe"
            )
        self._measured = self._no_frames()
        self._measured.add(state["frames"])
        self._measured.use_refined(state["moves_px"], state["flux"])
        self._engine = None
        if state["mask"] is not None:
            self._measured.use_mask(torch.from_numpy(np.array(state["mask"])).to(self._device))
        self._object = torch.from_numpy(np.array(state["object"]))[None].to(self._device)
        self._probe = torch.from_numpy(np.array(state["probe"]))[None].to(self._device)
        self._seen_light = torch.from_numpy(np.array(state["light"]))[None].to(self._device)
        self._iterations = int(state["iterations"])
        self._new_frames, self._settled = bool(state["new_frames"]), bool(state["settled"])
        self._scaled = len(self._measured) > 0

    def _no_frames(self) -> MeasuredFrames:
        background, saturation = self._config.background, self._config.saturation
        return MeasuredFrames(self._canvas, self._device, background, saturation, self._propagator)

    def _update_mask(self) -> None:
        counts = np.stack([f.counts for f in self._measured.frames[:FAULT_FRAMES]])
        # One frame may have a bright speckle that a second one moves.
        mask = self._known_mask & valid_pixels(counts) if len(counts) > 1 else self._known_mask
        self._measured.use_mask(self._propagator.to_working(torch.from_numpy(mask)).to(self._device))

    def _scale_probe(self) -> None:
        self._probe = scaled_to(self._probe, max(self._measured.mean_photons(), 1.0))
        self._scaled = True

    def _start(self, data: Diffraction) -> float:
        """Take the better candidate as the object; its mean deviance."""
        known = self._seen_light > LIT * peak_intensity(self._probe)
        fresh = torch.ones_like(self._object) if self._net is None else self._net(self._probe, data)[-1]
        overlap = (fresh[known].conj() * self._object[known]).sum()
        phase = torch.sgn(overlap) if known.any() else torch.ones_like(overlap)
        candidates = [torch.where(known, self._object, fresh * phase), fresh]
        deviances = [self._mean_deviance(canvas, data) for canvas in candidates]
        best = int(np.argmin(deviances))
        self._object = candidates[best]
        return deviances[best]

    def _refine(self, data: Diffraction, deviance: float, deadline: float) -> bool:
        """Refine object and probe, and keep the result if it is better than `deviance`; whether it was kept."""
        if not self._config.refine_iterations:
            return False
        if self._engine is None:
            name = self._config.name if self._net is None else NETWORK_ENGINE
            self._engine = make_engine(name, self._seed, self._config.batch)

        def in_time(epochs: int, solution: Solution) -> bool:
            if self._told is not None:
                self._told(solution.epochs, solution.mean_deviance)
            return time.monotonic() < deadline

        start = Solution.start(self._object, self._probe, data, self._iterations)
        outcome = iterate(self._engine, start, self._schedule(len(data)), in_time)
        self._iterations += len(outcome.history)
        self._ended = outcome.ended
        if outcome.ended == "diverged":
            # Its memory is of the epochs that are not kept.
            self._engine = None
        found = outcome.solution
        if not float(deviance_of(found.canvas, found.probe, found.data).mean()) < (1 - LEAST_GAIN) * deviance:
            return False
        self._object, self._probe = found.canvas, found.probe
        if self._config.refine_positions or self._config.refine_flux:
            self._measured.take_refined(found.data)
        return True

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

    def _light(self, data: Diffraction) -> Tensor:
        """Summed illumination, photons per pixel, shape (1, Y, X)."""
        total = torch.zeros_like(self._seen_light)
        for part in data.chunks(frames_at_once(self._probe)):
            total += accumulate(intensity(part.probes(self._probe)), part.corner, part.canvas_shape)
        return total

    def _estimate(self, data: Diffraction, started: float) -> Estimate:
        deviance = deviance_of(self._object, self._probe, data)
        judged = self._appraise(self._object, self._probe, data, self._seen_light, deviance)
        embedding = judged.embedding.cpu().numpy().astype(np.float32)
        frame_variance = under_frames(judged.std_phase_rad[None].square(), self._probe, data.corner)
        return Estimate(
            n_frames=len(data),
            object=self._object[0].cpu().numpy().copy(),
            origin_m=self._canvas.origin_m,
            pixel_m=self._canvas.pixel_m,
            probe=self._probe[0].cpu().numpy().copy(),
            std_amplitude=judged.std_amplitude.cpu().numpy().astype(np.float32),
            std_phase_rad=judged.std_phase_rad.cpu().numpy().astype(np.float32),
            coverage=self._seen_light[0].cpu().numpy().copy(),
            frame_seq_nums=self._measured.seq_nums,
            positions_m=self._measured.positions_m,
            embedding=embedding,
            frame_uncertainty=frame_variance.sqrt().cpu().numpy().astype(np.float32),
            residual=deviance.cpu().numpy().astype(np.float32),
            novelty=novelty(embedding),
            seconds=time.monotonic() - started,
            source={**self._source, "iterations": self._iterations, "ended": self._ended},
        )
