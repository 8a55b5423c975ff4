"""What a device does during a flight besides flying: it writes columns of a file, block by block."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ophyd import Device
from ophyd.status import DeviceStatus

from bluesky_cdi.sim_devices._clock import Clock
from bluesky_cdi.sim_devices._errors import NotStagedError
from bluesky_cdi.sim_devices._flight_file import Column
from bluesky_cdi.sim_devices._ticker import Ticker

# How often frames and samples are written and told of, seconds.
FLUSH_S = 0.05


class FlightRecorder:
    """Records a device's flights, one after the other.

    Parameters
    ----------
    device : Device
        Whose flights they are.
    clock : Clock
    columns : callable
        Gives what is recorded, by data key.
    record_due : callable
        Takes the time, seconds of the clock, and writes what is there by then; gives whether that is all of the flight.
    """

    def __init__(
        self,
        device: Device,
        clock: Clock,
        columns: Callable[[], Mapping[str, Column]],
        record_due: Callable[[float], bool],
    ) -> None:
        self._device, self._clock, self._columns, self._record_due = device, clock, columns, record_due
        self._ticker: Ticker | None = None

    def arm(self) -> DeviceStatus:
        """Get ready for a flight; give the status of the device's kickoff."""
        status = DeviceStatus(self._device, call_stop_on_failure=False)
        self._ticker = Ticker(self._clock, FLUSH_S, self._record_due, status)
        armed = DeviceStatus(self._device, call_stop_on_failure=False)
        armed.set_finished()
        return armed

    @property
    def is_armed(self) -> bool:
        """Whether a flight is in progress, or was."""
        return self._ticker is not None

    def begin(self) -> None:
        """Record from now on, if it is armed."""
        if self._ticker is not None:
            self._ticker.begin()

    @property
    def status(self) -> DeviceStatus:
        """Status of the flight, which ends when all of it is written.

        Raises
        ------
        NotStagedError
            If there was no kickoff.
        """
        if self._ticker is None:
            raise NotStagedError(f"{self._device.name} completes a flight after its kickoff")
        return self._ticker.status

    def describe(self) -> dict[str, Any]:
        """Describe what is recorded, as event descriptors do."""
        name = self._device.name
        return {key: column.describe(f"SIM:{name}", name) for key, column in self._columns().items()}

    def end(self, success: bool) -> None:
        """Write what is there by now, and no more of this flight.

        Parameters
        ----------
        success : bool
            Whether the flight's status succeeds.
        """
        if self._ticker is not None:
            self._ticker.end(success, f"{self._device.name} was stopped during a flight")

    def disarm(self) -> None:
        """Forget the flight."""
        self._ticker = None
