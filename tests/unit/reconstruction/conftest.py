"""A simulated scan as frames, without a beamline."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from bluesky_cdi.agent.patterns import raster
from bluesky_cdi.config import Config, ReconstructorConfig
from bluesky_cdi.physics.geometry import Geometry, ObjectGrid
from bluesky_cdi.protocols import Frame
from bluesky_cdi.reconstruction.online import PtychoReconstructor
from bluesky_cdi.reconstruction.probe_guess import first_probe
from bluesky_cdi.reconstruction.targets import Targets
from bluesky_cdi.sim_devices import SimulatedSource

NO_TARGETS = Targets()


@dataclass
class Scene:
    """Frames of a scan, the simulation behind them, and the grid they lie on."""

    config: Config
    source: SimulatedSource
    grid: ObjectGrid
    geometry: Geometry

    def frames(self, step_m=0.15e-6, flux=None, monitor=None):
        half = np.array(self.config.scan.extent_um) * 1e-6 / 2
        positions = raster(-half, half, step_m)
        flux = np.ones(len(positions)) if flux is None else flux
        monitor = np.ones(len(positions)) if monitor is None else monitor
        return [
            Frame(k + 1, p, self.source.expose((p[0], p[1]), 0.0, flux[k]), flux=float(monitor[k]))
            for k, p in enumerate(positions)
        ]

    def reconstructor(self, true_probe=False, mask=None, trained=None, targets=NO_TARGETS, **settings):
        chosen: dict[str, Any] = {"name": "rpie", "refine_iterations": 5, **settings}
        probe = self.source.truth.probe if true_probe else first_probe(self.geometry, self.config)
        return PtychoReconstructor(
            self.grid, probe, ReconstructorConfig(**chosen), mask=mask, trained=trained, targets=targets
        )


@pytest.fixture(scope="session")
def make_scene():
    """Make a scene; keywords override the simulation's settings, which are ideal by default."""

    def make(extent_um=(0.9, 0.9), **simulation):
        ideal = {
            "sample": "cells",
            "seed": 3,
            "dead_pixels": 0,
            "hot_pixels": 0,
            "position_error_m": 0.0,
            "flux_fluctuation": 0.0,
            "defocus_error_m": 0.0,
        }
        config = Config.model_validate(
            {"scan": {"extent_um": extent_um, "exposure_s": 0.0}, "simulation": ideal | simulation}
        )
        geometry = Geometry(**config.geometry.model_dump())
        half = np.array(extent_um) * 1e-6 / 2
        grid = ObjectGrid.covering(-half, half, geometry.pixel_m, geometry.frame_px)
        return Scene(config, SimulatedSource(config), grid, geometry)

    return make


@pytest.fixture(scope="session")
def scene(make_scene):
    return make_scene()


@pytest.fixture(scope="session")
def frames(scene):
    return scene.frames()


@pytest.fixture
def renumbered():
    """The same frames under other numbers."""
    return lambda frames, first: [replace(f, seq_num=first + k) for k, f in enumerate(frames)]
