"""Area detector."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
from ophyd import Component, Device, Signal
from ophyd.status import DeviceStatus

from bluesky_cdi.errors import ConfigError
from bluesky_cdi.sim_devices._beam import Beam, Shot
from bluesky_cdi.sim_devices._clock import Clock, RealClock
from bluesky_cdi.sim_devices._errors import NotStagedError
from bluesky_cdi.sim_devices._frame_file import FrameFile
from bluesky_cdi.sim_devices._signals import BoundedSignal
from bluesky_cdi.sim_devices._source import Counts, FrameSource

FrameMode = Literal["file", "inline"]
# Readers of a file's address disagree on these: some decode them, some take them as they are.
UNUSABLE_IN_URI = "%?#"


class SimAreaDetector(Device):  # type: ignore[misc]
    """Detector whose frames come from a `FrameSource`.

    With `frame_mode` ``'file'`` the first trigger after staging makes one HDF5 file, announced by stream_resource and
    stream_datum documents; with ``'inline'`` the frame is in the event. The data key is
    ``<name>_image`` in both. Exposures run on a worker thread. A trigger or `unstage` cuts an
    exposure short that is still in progress: that one's status finishes, and its frame is dropped.

    Parameters
    ----------
    prefix : str
        Not used; every ophyd device has one.
    source : FrameSource
    beam : Beam
        Draws the flux of each exposure.
    position_m : callable
        Gives the stage's read-back (y, x), metres, when the detector is triggered.
    directory : path
        Folder of the files; made at the first staging.
    frame_mode : {'file', 'inline'}
    exposure_s : float
        First value of `exposure_s`, seconds.
    clock : Clock, optional
        Absent, exposures take real time.
    **kwargs
        As for `ophyd.Device`; `name` is required.

    Attributes
    ----------
    exposure_s : Signal
        Exposure, seconds; an exposure takes this long.
    total : Signal
        Sum of the latest frame's counts (of those that are numbers, where a recorded frame has others).

    Raises
    ------
    ConfigError
        If `frame_mode` is neither of the two, or the path of `directory` has a character that the
        address of a file can't hold.
    """

    exposure_s = Component(BoundedSignal, value=0.0, minimum=0.0, units="s", kind="config")
    total = Component(Signal, value=0.0, kind="hinted")

    def __init__(
        self,
        prefix: str = "",
        *,
        source: FrameSource,
        beam: Beam,
        position_m: Callable[[], tuple[float, float]],
        directory: Path | str,
        frame_mode: FrameMode = "file",
        exposure_s: float = 0.0,
        clock: Clock | None = None,
        **kwargs: Any,
    ) -> None:
        if frame_mode not in ("file", "inline"):
            raise ConfigError(f"frame_mode must be 'file' or 'inline'; got {frame_mode!r}")
        folder = Path(directory).expanduser().absolute()
        if set(str(folder)) & set(UNUSABLE_IN_URI):
            raise ConfigError(f"the folder of frames must have none of {UNUSABLE_IN_URI} in its path; it is {folder}")
        super().__init__(prefix, **kwargs)
        self._source = source
        self._beam = beam
        self._position_m = position_m
        self._directory = folder
        self._frame_mode = frame_mode
        self._file: FrameFile | None = None
        self._worker: ThreadPoolExecutor | None = None
        self._exposure = _Exposure(until_s=0.0)
        self._clock = clock or RealClock()
        self._frame: Counts = np.zeros(source.frame_shape, source.frame_dtype)
        self._frame_time = time.time()
        self.exposure_s.put(exposure_s)

    @property
    def frame_mode(self) -> FrameMode:
        """Where frames go: ``'file'`` or ``'inline'``."""
        return self._frame_mode

    @property
    def frame_key(self) -> str:
        """Data key of the frames."""
        return f"{self.name}_image"

    def stage(self) -> list[object]:
        """Prepare for a run: a worker, and, with the first trigger, a new file."""
        staged: list[object] = super().stage()
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix=self.name)
        return staged

    def unstage(self) -> list[object]:
        """End an exposure in progress, and complete the file."""
        self._exposure.cut_short()
        if self._worker is not None:
            self._worker.shutdown()
            self._worker = None
        if self._file is not None:
            self._file.close()
            self._file = None
        unstaged: list[object] = super().unstage()
        return unstaged

    def trigger(self) -> DeviceStatus:
        """Take a frame at the stage's present position.

        Raises
        ------
        NotStagedError
            If the detector is not staged.
        """
        if self._worker is None:
            raise NotStagedError(
                f"{self.name} must be staged before it is triggered. Use a plan that stages its detectors, "
                f"or wrap yours in bluesky.preprocessors.stage_wrapper(plan, [{self.name}])."
            )
        self._exposure.cut_short()
        if self._frame_mode == "file" and self._file is None:
            shape, dtype = self._source.frame_shape, self._source.frame_dtype
            self._file = FrameFile(self._new_path(), self.frame_key, shape, dtype)
        shot = self._beam.expose(float(self.exposure_s.get()))
        self._exposure = _Exposure(self._clock.now_s() + shot.exposure_s)
        status = DeviceStatus(self, call_stop_on_failure=False)
        frame = self._worker.submit(self._expose, self._position_m(), shot, self._exposure)
        frame.add_done_callback(lambda done: _settle(status, done))
        return status

    def pause(self) -> None:
        """Give up a frame that was read into an event which the pause prevents; the RunEngine calls this."""
        super().pause()
        if self._file is not None:
            self._file.unclaim_unsaved()

    def read(self) -> dict[str, Any]:
        """Return the values of an event; the frame is among them if it is inline."""
        reading: dict[str, Any] = super().read()
        if self._frame_mode == "inline":
            reading[self.frame_key] = {"value": self._frame, "timestamp": self._frame_time}
        return reading

    def describe(self) -> dict[str, Any]:
        """Return the data keys of an event, the frame's among them."""
        described: dict[str, Any] = super().describe()
        described[self.frame_key] = {
            "source": f"SIM:{self.name}",
            "dtype": "array",
            "shape": list(self._source.frame_shape),
            "dtype_numpy": self._source.frame_dtype.str,
            "dims": [f"{self.name}_row", f"{self.name}_col"],
        }
        if self._frame_mode == "file":
            described[self.frame_key]["external"] = "STREAM:"
        return described

    def get_index(self) -> int:
        """Return the number of frames in the file that belong to events."""
        return 0 if self._file is None else self._file.claimed

    def collect_asset_docs(self, index: int | None = None) -> Iterator[tuple[str, Any]]:
        """Yield the documents of the frame that the event being read claims; `index` is ophyd's, and not used."""
        if self._file is not None:
            yield from self._file.claim()

    def _new_path(self) -> Path:
        self._directory.mkdir(parents=True, exist_ok=True)
        return self._directory / f"{self.name}_{uuid.uuid4().hex}.h5"

    def _expose(self, position_m: tuple[float, float], shot: Shot, exposure: _Exposure) -> None:
        frame = self._source.expose(position_m, shot.exposure_s, shot.flux)
        if exposure.lasts(self._clock):
            self._record(frame)

    def _record(self, frame: Counts) -> None:
        if self._file is not None:
            self._file.write(frame)
        self._frame, self._frame_time = frame, time.time()
        self.total.put(float(np.nansum(frame, dtype=np.float64)))


class _Exposure:
    """The time that the shutter of the sensor is open, which ends by itself or is cut short."""

    def __init__(self, until_s: float) -> None:
        self._until_s = until_s
        self._is_over = threading.Event()
        self._is_cut_short = False

    def cut_short(self) -> None:
        """End it now."""
        self._is_cut_short = True
        self._is_over.set()

    def lasts(self, clock: Clock) -> bool:
        """Wait for its end; whether it came by itself."""
        alarm = clock.call_at(self._until_s, self._is_over.set)
        self._is_over.wait()
        alarm.cancel()
        return not self._is_cut_short


def _settle(status: DeviceStatus, done: Future[None]) -> None:
    error = done.exception()
    if error is None:
        status.set_finished()
    else:
        status.set_exception(error)
