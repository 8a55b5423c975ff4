"""Motion controller: moves the stage along a flight, and samples its encoders meanwhile."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ophyd import Device
from ophyd.status import DeviceStatus, StatusBase

from bluesky_cdi.protocols import Flight
from bluesky_cdi.sim_devices._clock import Clock, RealClock
from bluesky_cdi.sim_devices._errors import NotStagedError
from bluesky_cdi.sim_devices._flight_file import Column, FlightFile
from bluesky_cdi.sim_devices._flight_recorder import FlightRecorder
from bluesky_cdi.sim_devices._stage import UNIT, SimStage
from bluesky_cdi.sim_devices._ticker import TriggerLine
from bluesky_cdi.units import METRES_PER


class SimScanner(Device):  # type: ignore[misc]
    """Flies a `Flight` with a stage, and gives the samples of its encoders with their own time stamps.

    They are columns of an HDF5 file, under the names of the stage's axes and ``<name>_timestamp``, seconds of the
    controller's clock.

    Parameters
    ----------
    prefix : str
        Not used; every ophyd device has one.
    stage : SimStage
        What it moves.
    line : TriggerLine
        Gets a pulse when a motion begins.
    directory : path
        Folder of the files; made at the first flight.
    encoder_hz : float
        Samples a second.
    clock : Clock, optional
        Absent, motion takes real time.
    clock_offset_s : float
        What the controller's clock shows beyond the detector's, seconds.
    latency_s : float
        How much later samples are in the file than they were taken, seconds.
    lost_s : sequence of tuple of float
        From when to when of each flight samples get lost, seconds from its beginning.
    **kwargs
        As for `ophyd.Device`; `name` is required.
    """

    def __init__(
        self,
        prefix: str = "",
        *,
        stage: SimStage,
        line: TriggerLine,
        directory: Path | str,
        encoder_hz: float = 10e3,
        clock: Clock | None = None,
        clock_offset_s: float = 0.0,
        latency_s: float = 0.0,
        lost_s: Sequence[tuple[float, float]] = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(prefix, **kwargs)
        self._stage, self._line = stage, line
        self._directory = Path(directory).expanduser().absolute()
        self._encoder_hz = encoder_hz
        self._clock = clock or RealClock()
        self._offset_s, self._latency_s, self._lost_s = clock_offset_s, latency_s, tuple(lost_s)
        self._file: FlightFile | None = None
        self._flight: Flight | None = None
        self._recorder = FlightRecorder(self, self._clock, self._columns, self._record_due)
        self._begun_s = 0.0
        self._ended_s = np.inf
        self._done = 0

    def prepare(self, flight: Flight) -> StatusBase:
        """Take a flight, and go to its beginning.

        Parameters
        ----------
        flight : Flight
            What will be flown.

        Raises
        ------
        OutOfRangeError
            If it leaves the limits of the stage; nothing moves.
        """
        positions_um = flight.positions_m / METRES_PER[UNIT]
        axes = (self._stage.y, self._stage.x)
        for axis, column in zip(axes, positions_um.T, strict=True):
            for position in (column.min(), column.max()):
                axis.check_value(float(position))
        self._flight = flight
        moves = [axis.set(float(start)) for axis, start in zip(axes, positions_um[0], strict=True)]
        return moves[0] & moves[1]

    def kickoff(self) -> DeviceStatus:
        """Begin the motion.

        Raises
        ------
        NotStagedError
            If no flight was prepared.
        """
        if self._flight is None:
            raise NotStagedError(f"{self.name} must be prepared for a flight before its kickoff")
        if self._file is None:
            self._directory.mkdir(parents=True, exist_ok=True)
            self._file = FlightFile(self._directory / f"{self.name}_{uuid.uuid4().hex}.h5", self._columns())
        self._begun_s, self._ended_s, self._done = self._clock.now_s(), np.inf, 0
        self._stage.follow(self._flight, self._begun_s)
        begun = self._recorder.arm()
        self._recorder.begin()
        self._line.fire(self._begun_s)
        return begun

    def complete(self) -> DeviceStatus:
        """Give the status that ends when all samples of the flight are written."""
        return self._recorder.status

    def describe_collect(self) -> dict[str, Any]:
        """Describe the samples."""
        return self._recorder.describe()

    def get_index(self) -> int:
        """Return the number of samples that are written."""
        return 0 if self._file is None else self._file.rows

    def collect_asset_docs(self, index: int | None = None) -> Iterator[tuple[str, Any]]:
        """Yield the documents of new samples, those before `index`."""
        if self._file is not None:
            yield from self._file.announce(index)

    def stop(self, *, success: bool = False) -> None:
        """Come to rest; samples of the motion until now are kept."""
        super().stop(success=success)
        if self._recorder.is_armed:
            self._ended_s = min(self._ended_s, self._clock.now_s() - self._begun_s)
            for axis in (self._stage.y, self._stage.x):
                axis.stop(success=success)
            self._recorder.end(success)

    def pause(self) -> None:
        """Come to rest: the flight is flown again when the scan goes on."""
        self.stop(success=True)

    def unstage(self) -> list[object]:
        """End what is in progress, and complete the file."""
        self.stop()
        self._flight = None
        self._recorder.disarm()
        if self._file is not None:
            self._file.close()
            self._file = None
        unstaged: list[object] = super().unstage()
        return unstaged

    def _columns(self) -> dict[str, Column]:
        def column(name: str, units: str) -> Column:
            filters = {"compression": "gzip", "compression_opts": 1, "shuffle": True}
            return Column(f"/entry/{name}", np.dtype("<f8"), units=units, filters=filters)

        y, x = self._stage.y.name, self._stage.x.name
        return {y: column("y", UNIT), x: column("x", UNIT), f"{self.name}_timestamp": column("timestamp", "s")}

    def _samples_until(self, time_s: float) -> int:
        """Count the samples from the flight's beginning to a time."""
        # To a part in a million, so that rounding does not move a sample into the next block.
        return int(np.floor(time_s * self._encoder_hz + 1e-6)) + 1

    def _record_due(self, now_s: float) -> bool:
        """Write the samples that have come by now; whether they are all."""
        if self._flight is None or self._file is None:
            return True
        total = self._samples_until(self._flight.duration_s)
        come_s = min(now_s - self._begun_s - self._latency_s, self._ended_s)
        come = min(total, self._samples_until(come_s))
        if come > self._done:
            times_s = np.arange(self._done, come) / self._encoder_hz
            self._done = come
            for begin, end in self._lost_s:
                times_s = times_s[(times_s < begin) | (times_s > end)]
            positions_um = self._flight.at(times_s) / METRES_PER[UNIT]
            self._file.append({
                self._stage.y.name: positions_um[:, 0],
                self._stage.x.name: positions_um[:, 1],
                f"{self.name}_timestamp": times_s + self._begun_s + self._offset_s,
            })  # fmt: skip
        return self._done >= total
