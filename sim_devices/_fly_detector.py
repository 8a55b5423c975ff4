"""Area detector that also takes frames at a fixed rate while the stage moves."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from ophyd.status import DeviceStatus

from bluesky_cdi.io.compression import filter_options
from bluesky_cdi.protocols import Flight, FloatArray
from bluesky_cdi.sim_devices._beam import Beam, relative_exposure
from bluesky_cdi.sim_devices._clock import Clock, RealClock
from bluesky_cdi.sim_devices._detector import SimAreaDetector
from bluesky_cdi.sim_devices._errors import NotStagedError
from bluesky_cdi.sim_devices._flight_file import Column, FlightFile
from bluesky_cdi.sim_devices._flight_recorder import FlightRecorder
from bluesky_cdi.sim_devices._frame_file import DATASET
from bluesky_cdi.sim_devices._monitor import NOMINAL_COUNTS
from bluesky_cdi.sim_devices._source import Counts, MovingSource
from bluesky_cdi.sim_devices._ticker import TriggerLine

# The way during an exposure is divided into so many parts.
PARTS = 5


@dataclass(eq=False)
class _Series:
    """The frames of one flight; `counts` before the shutter was looked at."""

    flight: Flight
    counts: Counts
    flux: FloatArray
    first_number: int
    begun_s: float | None = None
    done: int = 0


class SimFlyDetector(SimAreaDetector):
    """Detector for step scans (`SimAreaDetector`) and fly scans.

    `prepare` takes a `Flight` and computes its frames, so that they come at their rate however fast the computer is;
    the pulse of `line` sets them off. They go to an HDF5 file of their own, compressed, a chunk a frame, with the time
    at which each exposure began (``<name>_timestamp``, seconds of the detector's clock), the hardware's count of them
    (``<name>_number``) and the incident flux during it (`flux_key`).

    Parameters
    ----------
    prefix : str
        Not used; every ophyd device has one.
    source : MovingSource
    beam : Beam
        Draws the flux of each exposure.
    line : TriggerLine
        Its pulse is the beginning of the motion.
    flux_key : str
        Data key of the incident flux during the exposures of a flight.
    nominal_s : float
        Exposure in which the mean flux gives 1e6 counts, seconds.
    clock : Clock, optional
        Absent, exposures take real time.
    dropped : collection of int
        Numbers of the exposures that get lost in the hardware, from 1 at each staging.
    **kwargs
        As for `SimAreaDetector`.
    """

    def __init__(
        self,
        prefix: str = "",
        *,
        source: MovingSource,
        beam: Beam,
        line: TriggerLine,
        flux_key: str = "i0",
        nominal_s: float = 0.0,
        clock: Clock | None = None,
        dropped: Collection[int] = (),
        **kwargs: Any,
    ) -> None:
        self._clock = clock or RealClock()
        super().__init__(prefix, source=source, beam=beam, clock=self._clock, **kwargs)
        self._moving = source
        self._flux_key, self._nominal_s = flux_key, nominal_s
        self._dropped = frozenset(dropped)
        self._flight_file: FlightFile | None = None
        self._series: _Series | None = None
        self._recorder = FlightRecorder(self, self._clock, self._columns, self._record_due)
        self._numbered = 0
        self._step_exposure_s: float | None = None
        line.connect(self._set_off)

    @property
    def frame_number_key(self) -> str:
        """Data key of the hardware's count of the frames of flights."""
        return f"{self.name}_number"

    def prepare(self, flight: Flight) -> DeviceStatus:
        """Compute the frames of a flight, on a thread; they come once the motion has begun.

        Parameters
        ----------
        flight : Flight
            What will be flown.

        Raises
        ------
        NotStagedError
            If the detector is not staged.
        """
        if self._worker is None:
            raise NotStagedError(f"{self.name} must be staged before it is prepared for a flight")
        if self._step_exposure_s is None:
            self._step_exposure_s = float(self.exposure_s.get())
        self.exposure_s.put(flight.exposure_s)
        status = DeviceStatus(self, call_stop_on_failure=False)
        if self._series is not None and self._series.flight is flight and self._series.begun_s is None:
            status.set_finished()
            return status

        def work() -> None:
            try:
                self._series = self._computed(flight)
            except Exception as err:  # noqa: BLE001 (whatever it is, who waits for the device must hear of it)
                status.set_exception(err)
            else:
                status.set_finished()

        threading.Thread(target=work, name=f"{self.name}-prepare", daemon=True).start()
        return status

    def kickoff(self) -> DeviceStatus:
        """Wait, armed, for the pulse.

        Raises
        ------
        NotStagedError
            If it was not prepared.
        """
        if self._series is None:
            raise NotStagedError(f"{self.name} must be prepared for a flight before its kickoff")
        if self._flight_file is None:
            self._flight_file = FlightFile(self._new_path(), self._columns())
        return self._recorder.arm()

    def complete(self) -> DeviceStatus:
        """Give the status that ends when all frames of the flight are written."""
        return self._recorder.status

    def describe_collect(self) -> dict[str, Any]:
        """Describe what comes from flights."""
        return self._recorder.describe()

    def get_index(self) -> int:
        """Return the number of frames that belong to events, or, during flights, that are written."""
        return super().get_index() if self._flight_file is None else self._flight_file.rows

    def collect_asset_docs(self, index: int | None = None) -> Iterator[tuple[str, Any]]:
        """Yield the documents of new frames; of flights those before `index`."""
        if self._flight_file is None:
            yield from super().collect_asset_docs(index)
        else:
            yield from self._flight_file.announce(index)

    def stop(self, *, success: bool = False) -> None:
        """End the flight in progress; the frames that are exposed by now are kept."""
        super().stop(success=success)
        self._recorder.end(success)

    def pause(self) -> None:
        """End the flight in progress: it is flown again when the scan goes on; frames not told of yet are given up."""
        super().pause()
        self.stop(success=True)
        if self._flight_file is not None:
            self._flight_file.skip()

    def unstage(self) -> list[object]:
        """End what is in progress, complete the files, and take the exposure of step scans back."""
        self.stop()
        self._series = None
        self._recorder.disarm()
        self._numbered = 0
        if self._step_exposure_s is not None:
            self.exposure_s.put(self._step_exposure_s)
            self._step_exposure_s = None
        if self._flight_file is not None:
            self._flight_file.close()
            self._flight_file = None
        return super().unstage()

    def _columns(self) -> dict[str, Column]:
        compressed = dict(filter_options("bitshuffle-lz4"))
        shape, dtype = self._source.frame_shape, self._source.frame_dtype
        return {
            self.frame_key: Column(DATASET, dtype, shape, chunk_rows=1, filters=compressed),
            f"{self.name}_timestamp": Column("/entry/data/timestamp", np.dtype("<f8"), units="s"),
            self.frame_number_key: Column("/entry/data/number", np.dtype("<i8")),
            self._flux_key: Column("/entry/data/flux", np.dtype("<i8")),
        }

    def _computed(self, flight: Flight) -> _Series:
        flux = self._beam.draw(flight.n_frames)
        counts = self._moving.expose_along(flight.during_exposures(PARTS), flight.exposure_s, flux)
        first, self._numbered = self._numbered + 1, self._numbered + flight.n_frames
        return _Series(flight, counts, flux, first)

    def _set_off(self, time_s: float) -> None:
        if self._recorder.is_armed and self._series is not None and self._series.begun_s is None:
            self._series.begun_s = time_s
            self._recorder.begin()

    def _record_due(self, now_s: float) -> bool:
        """Write the frames that are exposed by now; whether they are all."""
        series, file = self._series, self._flight_file
        if series is None or file is None or series.begun_s is None:
            return False
        flight = series.flight
        ends_s = series.begun_s + flight.starts_s + flight.exposure_s
        # To a nanosecond, so that rounding does not move a frame into the next block.
        due = np.arange(series.done, int(np.searchsorted(ends_s, now_s + 1e-9, side="right")))
        series.done = max(series.done, series.done + len(due))
        kept = due[[series.first_number + k not in self._dropped for k in due]] if len(due) else due
        if len(kept):
            is_open = self._beam.is_open
            mean = NOMINAL_COUNTS * series.flux[kept] * relative_exposure(flight.exposure_s, self._nominal_s)
            file.append({
                self.frame_key: series.counts[kept] if is_open else np.zeros_like(series.counts[kept]),
                f"{self.name}_timestamp": series.begun_s + flight.starts_s[kept],
                self.frame_number_key: series.first_number + kept,
                self._flux_key: np.rint(mean * is_open).astype(np.int64),
            })  # fmt: skip
        return series.done == flight.n_frames
