"""Diffraction patterns for the simulated detector of ophyd-async.

Needs ophyd-async: ``pip install 'bluesky-cdi[test-beamline]'``.
"""

from __future__ import annotations

import asyncio
from pathlib import PurePath
from typing import Any

import h5py
import numpy as np
from ophyd_async.core import soft_signal_r_and_setter
from ophyd_async.sim import PatternGenerator, SimMotor

from bluesky_cdi.config import Config
from bluesky_cdi.errors import ConfigError
from bluesky_cdi.sim_devices._simulated import SimulatedSource
from bluesky_cdi.units import metres_per

# Where `SimBlobDetector` announces frames and their sums.
FRAMES, SUMS = "/entry/data/data", "/entry/sum"
COUNTS = np.dtype(np.uint8)


class DiffractionGenerator(PatternGenerator):  # type: ignore[misc]
    """Gives a `SimBlobDetector` the frames of a simulated sample, at the place where the motors are.

    The detector stays as ophyd-async has it: frames of 240 by 320 pixels, 8 bits. The pattern is around their middle
    pixel, and zero elsewhere.

    Parameters
    ----------
    config : Config
        Geometry, lens, scan, and what is simulated; ``simulation.saturation`` is at most 255.
    y, x : SimMotor
        Stage axes; they state a unit of length.

    Raises
    ------
    ConfigError
        If the frames don't fit the detector.
    """

    def __init__(self, config: Config, y: SimMotor, x: SimMotor) -> None:
        super().__init__()
        if config.simulation.saturation > np.iinfo(COUNTS).max:
            raise ConfigError(
                f"the simulated detector of ophyd-async counts to {np.iinfo(COUNTS).max}; simulation.saturation is "
                f"{config.simulation.saturation}. Set it to that, and simulation.photons so low that frames stay below."
            )
        self.images_written, self._tell_written = soft_signal_r_and_setter(int)
        self._source, self._axes, self._nominal_s = SimulatedSource(config), (y, x), config.scan.exposure_s
        self._h5: Any = None
        self._n_wanted, self._period_s = 1, 0.0

    def setup_acquisition_parameters(self, exposure: float, period: float, number_of_frames: int) -> None:
        """Take over what the next acquisition shall be.

        Parameters
        ----------
        exposure : float
            Not used: the configured photons are those of a frame.
        period : float
            From frame to frame, seconds.
        number_of_frames : int
            How many.
        """
        self._n_wanted, self._period_s = number_of_frames, period

    def open_file(self, path: PurePath, width: int, height: int) -> None:
        """Make the file of a staging, readable while it is written.

        Parameters
        ----------
        path : path
            Of the file.
        width, height : int
            Of a frame, pixels.
        """
        self._h5 = h5py.File(path, "w", libver="latest")
        shape = (height, width)
        self._h5.create_dataset(FRAMES, (0, *shape), COUNTS, maxshape=(None, *shape), chunks=(1, *shape))
        self._h5.create_dataset(SUMS, (0,), np.int64, maxshape=(None,), chunks=(1024,))
        self._h5.swmr_mode = True
        self._tell_written(0)

    async def write_images_to_file(self) -> None:
        """Take as many frames as the detector was prepared for."""
        for _ in range(self._n_wanted):
            await asyncio.sleep(self._period_s)
            frame = self._source.expose(await self._position_m(), self._nominal_s, 1.0)
            self._tell_written(self._append(frame))

    def close_file(self) -> None:
        """Complete the file."""
        if self._h5 is not None:
            self._h5.close()
            self._h5 = None

    async def _position_m(self) -> tuple[float, float]:
        y, x = [await self._metres(axis) for axis in self._axes]
        return y, x

    async def _metres(self, axis: SimMotor) -> float:
        described = await axis.describe()
        unit = metres_per(described[axis.name].get("units"), axis.name)
        return float(await axis.user_readback.get_value()) * unit

    def _append(self, frame: np.ndarray[Any, Any]) -> int:
        """Write a frame behind the last; how many there are."""
        frames, sums = self._h5[FRAMES], self._h5[SUMS]
        n, height, width = frames.shape
        top, left = height // 2 - frame.shape[0] // 2, width // 2 - frame.shape[1] // 2
        full = np.zeros((height, width), COUNTS)
        full[top : top + frame.shape[0], left : left + frame.shape[1]] = frame
        for dataset, value in ((frames, full), (sums, int(full.sum(dtype=np.int64)))):
            dataset.resize(n + 1, axis=0)
            dataset[n] = value
            dataset.flush()
        return int(n) + 1
