"""From a run's metadata and the configuration to a reconstructor and an agent."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from bluesky_cdi.config import Config, ReconstructorConfig
from bluesky_cdi.errors import GeometryError
from bluesky_cdi.io import Preprocessing
from bluesky_cdi.physics.geometry import Geometry, ObjectGrid
from bluesky_cdi.protocols import Agent, ComplexArray, FloatArray, RunInfo, ScanArea
from bluesky_cdi.reconstruction.probe_guess import first_probe, first_probe_and_offer, with_modes

if TYPE_CHECKING:
    from bluesky_cdi.agent.space import SearchSpace
    from bluesky_cdi.reconstruction.online import PtychoReconstructor

logger = logging.getLogger(__name__)

BoolImage = np.ndarray[Any, np.dtype[np.bool_]]


def build_reconstructor(
    info: RunInfo,
    config: Config,
    *,
    probe: ComplexArray | None = None,
    mask: BoolImage | None = None,
    on_progress: Callable[[int, float], None] | None = None,
) -> PtychoReconstructor:
    """Make the reconstructor of a run.

    Parameters
    ----------
    info : RunInfo
        Its metadata must hold ``geometry``, and they or itself the window of probe centres, ``window_m`` ([low, high],
        each (y, x)).
    config : Config
        What to do.
    probe : ndarray, shape (modes, N, N), complex, optional
        First guess; by default what ``config.probe`` says: a file, the nearest of a library, or the lens.
    mask : ndarray, shape (N, N), bool, optional
        Valid pixels of frames that were not preprocessed; else `info` says which they are.
    on_progress : callable, optional
        Called after each iteration with the iterations so far and the mean deviance.

    Raises
    ------
    GeometryError
        If the metadata, the given probe or the given mask do not fit.
    """
    import torch

    from bluesky_cdi.models.weights import load_weights
    from bluesky_cdi.physics.propagators import propagator_of
    from bluesky_cdi.reconstruction.frame_embedding import frame_embedding
    from bluesky_cdi.reconstruction.growing import GrowingReconstructor
    from bluesky_cdi.reconstruction.online import PtychoReconstructor
    from bluesky_cdi.reconstruction.prediction import probe_finder
    from bluesky_cdi.reconstruction.probe_checkin import LiveCheckIn
    from bluesky_cdi.reconstruction.targets import Targets

    geometry = Geometry.from_metadata(info.metadata, info.frame_shape)
    done = info.preprocessed
    mask = mask if done is None else done.mask
    if mask is not None and np.shape(mask) != info.frame_shape:
        raise GeometryError(f"a mask must have the shape of the frames, {info.frame_shape}; it is {np.shape(mask)}")
    low, high = scan_window(info)
    grid = ObjectGrid.covering(low, high, geometry.pixel_m, geometry.frame_px)
    settings = config.reconstructor
    device = torch.device(device_of(settings))
    if settings.threads:
        torch.set_num_threads(settings.threads)
    notes: dict[str, Any] = {"preprocessing": dict(done.notes)} if done is not None and done.notes else {}
    if probe is not None:
        probe = with_modes(probe, config.probe.modes, geometry.frame_px)
    else:
        probe, offer = first_probe_and_offer(geometry, config)
        if offer is not None:
            logger.info("run %s begins with %s", info.scan_id, offer)
            notes["first_probe"] = str(offer)
    trained = load_weights(settings.weights, device) if settings.name == "pinn" else None
    finder = None if trained is None else probe_finder(trained.unrolled_net)
    kind = GrowingReconstructor if info.grows else PtychoReconstructor
    return kind(
        grid,
        probe,
        settings,
        trained=trained,
        mask=mask,
        propagator=propagator_of(geometry, device),
        device=device,
        check_in=None if config.probe.trust else LiveCheckIn(geometry, finder),
        on_progress=on_progress,
        saturation=config.detector.saturation if done is None else done.saturation,
        targets=Targets(config.agent.target_resolution_m, config.agent.target_std_rad),
        notes=notes or None,
        embedding=frame_embedding(config.latents, device),
    )


def device_of(settings: ReconstructorConfig) -> str:
    """Name the PyTorch device of a reconstructor: the configured one, or of ``auto`` a GPU where there is one."""
    import torch

    if settings.device != "auto":
        return settings.device
    return "cuda" if torch.cuda.is_available() else "cpu"


def build_agent(
    area: ScanArea, config: Config, *, space: SearchSpace | None = None, probe_width_m: float | None = None
) -> Agent:
    """Make the agent of a scan.

    Parameters
    ----------
    area : ScanArea
        What will be scanned.
    config : Config
        What to do.
    space : SearchSpace, optional
        The positions to choose from; by default a grid of the scan's step.
    probe_width_m : float, optional
        By default that of the lens of ``config.probe``.
    """
    from bluesky_cdi.agent import make_agent
    from bluesky_cdi.agent.space import SearchSpace
    from bluesky_cdi.physics.probes import width_px

    if probe_width_m is None:
        import torch

        geometry = Geometry(**config.geometry.model_dump())
        if (wanted := Preprocessing.live(config)) is not None:
            geometry = wanted.geometry(geometry)
        probe_width_m = width_px(torch.from_numpy(first_probe(geometry, config))) * geometry.pixel_m
    space = space or SearchSpace.grid(area.low_m, area.high_m, area.step_m)
    return make_agent(
        config.agent,
        space,
        probe_width_m=probe_width_m,
        budget=area.budget,
        seed=config.agent.seed,
        step_m=area.step_m,
        keep_out_m=area.keep_out_m,
    )


def scan_window(info: RunInfo) -> tuple[FloatArray, FloatArray]:
    """Read the corners (y, x) of the run's window of probe centres, metres.

    Raises
    ------
    GeometryError
        If neither the metadata nor the first positions tell it.
    """
    stated = info.metadata.get("window_m")
    try:
        low, high = np.asarray(info.window_m if stated is None else stated, dtype=np.float64).reshape(2, 2)
    except (TypeError, ValueError) as err:
        raise GeometryError(
            "the run's metadata must hold window_m = [[y_low, x_low], [y_high, x_high]] in metres; "
            f"it holds {info.metadata.get('window_m')!r}. "
            "The plans of this package state it; pass it in md with others."
        ) from err
    return low, high
