"""Scans so small that each is reconstructed in a moment, and the tasks for them."""

import numpy as np
import pytest

from bluesky_cdi.config import load_config
from bluesky_cdi.io import Scan, write_scan
from bluesky_cdi.many import Method, ScanFile, Task, named
from bluesky_cdi.physics.geometry import Geometry

GEOMETRY = Geometry(9000.0, 1.9, 75e-6, 16)
SETTINGS = {"reconstructor": {"name": "rpie", "background": 0.0, "threads": 1}, "probe": {"modes": 1}}


@pytest.fixture
def method():
    return Method(load_config(overrides=SETTINGS), iterations=1, orientation=False, check_in=False)


@pytest.fixture
def write(tmp_path):
    """Write a scan, and give its path."""

    def written(name, seed=5):
        rng = np.random.default_rng(seed)
        counts = rng.poisson(40.0, (6, 16, 16)).astype(np.uint16)
        values = rng.normal(size=(1, 16, 16)) + 1j * rng.normal(size=(1, 16, 16))
        probe = (values * np.sqrt(counts.sum() / len(counts) / (abs(values) ** 2).sum())).astype(np.complex64)
        positions_m = rng.uniform(-0.4, 0.4, (6, 2)) * 16 * GEOMETRY.pixel_m
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        write_scan(path, Scan(counts, positions_m, GEOMETRY, probe, name="a", source={"propagation": "far field"}))
        return path

    return written


@pytest.fixture
def tasks_of(method, tmp_path):
    """Make the tasks for files."""
    out = tmp_path / "out"
    out.mkdir()

    def made(*paths, how=method):
        return [
            Task(name, source, how, out / f"{name}.cxi") for name, source in named(list(map(ScanFile, paths))).items()
        ]

    return made
