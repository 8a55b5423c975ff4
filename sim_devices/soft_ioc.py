"""A soft IOC: two motors and an area detector with simulated frames, as an EPICS client meets them.

Run it as a program, with the configuration of what is simulated:

    python -m bluesky_cdi.sim_devices.soft_ioc config.yaml

It serves the motors ``SIM:Y`` and ``SIM:X`` (micrometres), and the detector ``SIM:DET:`` with a camera (``cam1:``)
and an HDF5 plugin (``HDF1:``). There is a PV for everything that ophyd's classes of the two ask for; those that take
frames and write files do what areaDetector's do, the others only keep what is put into them. Needs caproto:
``pip install 'bluesky-cdi[test-beamline]'``.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from caproto import ChannelChar, ChannelDouble, ChannelEnum, ChannelInteger, ChannelString
from caproto.asyncio.server import start_server
from ophyd import Device, DynamicDeviceComponent, EpicsSignalWithRBV
from ophyd.areadetector.cam import SimDetectorCam
from ophyd.areadetector.paths import EpicsPathSignal
from ophyd.areadetector.plugins import HDF5Plugin

from bluesky_cdi.config import load_config
from bluesky_cdi.sim_devices._simulated import SimulatedSource, travel_limits_um

MOTORS, DETECTOR = ("SIM:Y", "SIM:X"), "SIM:DET:"
# Where areaDetector keeps the frames of a file.
DATASET = "/entry/data/data"
PATH_LENGTH = 256
UM = 1e-6
# A camera is never done before it has answered: ophyd's `SingleTrigger` counts on that.
READOUT_S = 0.01
# Nor does a motor arrive before it has said that it moves.
MOVE_S = 0.01

Reaction = Callable[[Any], Coroutine[Any, Any, None]]


class _Reacting:
    """A PV that does something when a client has put a value into it; the put ends when that is done."""

    reaction: Reaction | None = None

    async def write_from_dbr(self, *args: Any, **options: Any) -> Any:
        """Take a client's value, and react to it."""
        done = await super().write_from_dbr(*args, **options)  # type: ignore[misc]
        if self.reaction is not None:
            await self.reaction(self.value)  # type: ignore[attr-defined]
        return done


class _Integer(_Reacting, ChannelInteger):  # type: ignore[misc]
    """A whole number."""


class _Double(_Reacting, ChannelDouble):  # type: ignore[misc]
    """A number."""


class _String(_Reacting, ChannelString):  # type: ignore[misc]
    """A short text."""


class _Path(_Reacting, ChannelChar):  # type: ignore[misc]
    """A text that may be longer than 40 characters."""


class _Choice(_Reacting, ChannelEnum):  # type: ignore[misc]
    """One of some words."""


def _channel(value: Any) -> Any:
    """Make the PV that fits a first value; a tuple is the choices, of which the first holds."""
    if isinstance(value, tuple):
        return _Choice(value=value[0], enum_strings=value)
    if isinstance(value, Path):
        return _Path(value=str(value), max_length=PATH_LENGTH, string_encoding="utf-8")
    if isinstance(value, str):
        return _String(value=value, string_encoding="utf-8")
    return _Double(value=value, precision=5) if isinstance(value, float) else _Integer(value=value)


def _names_of(device: type[Device], prefix: str) -> Iterator[tuple[str, bool, bool]]:
    """Yield the PVs that a class of ophyd asks for: name, whether it is a path, and whether it has a read-back."""
    for component in device._sig_attrs.values():
        if isinstance(component, DynamicDeviceComponent):
            parts = [(kind, suffix) for kind, suffix, _ in component.defn.values()]
        else:
            parts = [(component.cls, component.suffix)]
        for kind, suffix in parts:
            if suffix is None:
                continue  # made of other PVs
            if issubclass(kind, Device):
                yield from _names_of(kind, prefix + suffix)
            else:
                is_path = issubclass(kind, EpicsPathSignal)
                yield prefix + suffix, is_path, is_path or issubclass(kind, EpicsSignalWithRBV)


class PVs(dict[str, Any]):
    """PVs by name."""

    def add(self, name: str, value: Any, *, readback: bool = False) -> None:
        """Make a PV, with a read-back ``NAME_RBV`` that follows it if that is wanted."""
        self[name] = _channel(value)
        if readback:
            self[f"{name}_RBV"] = _channel(value)
            self[name].reaction = self[f"{name}_RBV"].write

    def then(self, name: str, action: Reaction) -> None:
        """Do something once a client's value, and the read-back's, are there."""
        first = self[name].reaction

        async def both(value: Any) -> None:
            if first is not None:
                await first(value)
            await action(value)

        self[name].reaction = both

    async def tell(self, name: str, value: Any) -> None:
        """Give a PV and its read-back a value, as the IOC itself does."""
        for each in (name, f"{name}_RBV"):
            if each in self:
                await self[each].write(value)


class Motor:
    """The fields of a motor record that ophyd's `EpicsMotor` uses; a move takes no time to speak of.

    Parameters
    ----------
    pvs : PVs
        Its PVs are added to these.
    name : str
        Of the record.
    limits_um : tuple of float
        Where it may go, micrometres.
    start_um : float
        Where it begins, micrometres.
    """

    def __init__(self, pvs: PVs, name: str, limits_um: tuple[float, float], start_um: float) -> None:
        self._pvs, self._name = pvs, name
        low, high = limits_um
        fields = {
            "VAL": start_um, "RBV": start_um, "OFF": 0.0, "DIR": 0, "FOFF": 0, "SET": 0, "VELO": 1000.0, "ACCL": 0.1,
            "EGU": "um", "MOVN": 0, "DMOV": 1, "HLS": 0, "LLS": 0, "HLM": high, "LLM": low, "TDIR": 0, "STOP": 0,
            "HOMF": 0, "HOMR": 0,
        }  # fmt: skip
        for field, value in fields.items():
            pvs.add(f"{name}.{field}", value)
        for field in ("VAL", "RBV"):
            pvs[f"{name}.{field}"]._data.update(units="um", lower_ctrl_limit=low, upper_ctrl_limit=high)
        pvs.then(f"{name}.VAL", self._move)

    @property
    def position_m(self) -> float:
        """Where it is, metres."""
        return float(self._pvs[f"{self._name}.RBV"].value) * UM

    async def _move(self, target_um: float) -> None:
        await self._tell(DMOV=0, MOVN=1)
        await asyncio.sleep(MOVE_S)
        await self._tell(RBV=target_um, MOVN=0, DMOV=1)

    async def _tell(self, **fields: Any) -> None:
        for field, value in fields.items():
            await self._pvs[f"{self._name}.{field}"].write(value)


class Detector:
    """Camera and HDF5 plugin of areaDetector, as far as a scan uses them.

    Parameters
    ----------
    pvs : PVs
        Its PVs are added to these.
    prefix : str
        Of its PVs.
    source : SimulatedSource
        Where frames come from.
    motors : sequence of Motor
        Y and x.
    exposure_s : float
        First exposure, seconds.
    """

    def __init__(
        self, pvs: PVs, prefix: str, source: SimulatedSource, motors: Sequence[Motor], exposure_s: float
    ) -> None:
        self._pvs, self._cam, self._file_plugin = pvs, f"{prefix}cam1:", f"{prefix}HDF1:"
        self._source, self._motors = source, motors
        self._file: h5py.File | None = None
        self._n_written = 0
        height, width = source.frame_shape
        kind = source.frame_dtype.name.replace("uint", "UInt")
        known = {
            self._cam: {
                "Acquire": 0, "AcquireTime": exposure_s, "AcquirePeriod": exposure_s,
                "PortName_RBV": "SIM", "DataType": (kind,),
                "ImageMode": ("Single", "Multiple", "Continuous"), "TriggerMode": ("Internal", "External"),
                "ArraySizeX_RBV": width, "ArraySizeY_RBV": height, "NumImages": 1, "NDimensions_RBV": 2,
                "Manufacturer_RBV": "Simulated", "Model_RBV": "Diffraction",
            },
            self._file_plugin: {
                "PortName_RBV": "HDF1", "NDArrayPort": "SIM", "PluginType_RBV": "NDFileHDF5", "NDimensions_RBV": 2,
                # Primed, as one says: it has seen a frame, and knows its size.
                "ArraySize0_RBV": width, "ArraySize1_RBV": height, "DataType_RBV": kind,
                "EnableCallbacks": ("Disable", "Enable"), "BlockingCallbacks": ("No", "Yes"),
                "AutoIncrement": ("No", "Yes"), "AutoSave": ("No", "Yes"),
                "FileWriteMode": ("Single", "Capture", "Stream"), "FileTemplate": Path("%s%s_%6.6d.h5"),
                "FileName": Path(), "FullFileName_RBV": Path(), "Capture": 0,
            },
        }  # fmt: skip
        for device, first in ((SimDetectorCam, self._cam), (HDF5Plugin, self._file_plugin)):
            asked = {name: (is_path, has_readback) for name, is_path, has_readback in _names_of(device, first)}
            for name, (is_path, has_readback) in asked.items():
                value = known[first].get(name.removeprefix(first), Path() if is_path else 0)
                pvs.add(name, value, readback=has_readback)
        pvs.then(f"{self._cam}Acquire", self._acquire)
        pvs.then(f"{self._file_plugin}FilePath", self._look_for_folder)
        pvs.then(f"{self._file_plugin}Capture", self._capture)

    async def _look_for_folder(self, folder: str) -> None:
        """Make the folder, as areaDetector does where ``CreateDirectory`` allows it, and say that it is there."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        await self._pvs.tell(f"{self._file_plugin}FilePathExists_RBV", 1)

    async def _capture(self, on: int) -> None:
        """Open the next file for frames, or close it."""
        if self._file is not None:
            self._file.close()
            self._file = None
        if not on:
            return
        name = {part: self._value(self._file_plugin + part) for part in ("FilePath", "FileName", "FileNumber")}
        path = self._value(f"{self._file_plugin}FileTemplate") % (*name.values(),)
        shape = self._source.frame_shape
        self._file, self._n_written = h5py.File(path, "w", libver="latest"), 0
        self._file.create_dataset(
            DATASET, (0, *shape), self._source.frame_dtype, maxshape=(None, *shape), chunks=(1, *shape)
        )
        self._file.swmr_mode = True
        await self._pvs.tell(f"{self._file_plugin}FullFileName_RBV", path)
        await self._pvs.tell(f"{self._file_plugin}FileNumber", name["FileNumber"] + 1)

    async def _acquire(self, on: int) -> None:
        """Take as many frames as are set, and hand them to the plugin; then it is off again."""
        if not on:
            return
        y_m, x_m = (motor.position_m for motor in self._motors)
        for _ in range(self._value(f"{self._cam}NumImages")):
            exposure_s = self._value(f"{self._cam}AcquireTime")
            await asyncio.sleep(exposure_s + READOUT_S)
            self._write(self._source.expose((y_m, x_m), exposure_s, 1.0))
            await self._pvs.tell(f"{self._cam}ArrayCounter", self._value(f"{self._cam}ArrayCounter") + 1)
            await self._pvs.tell(f"{self._file_plugin}NumCaptured_RBV", self._n_written)
        await self._pvs.tell(f"{self._cam}Acquire", 0)

    def _write(self, frame: np.ndarray[Any, Any]) -> None:
        if self._file is None:
            return
        frames = self._file[DATASET]
        frames.resize(self._n_written + 1, axis=0)
        frames[self._n_written] = frame
        frames.flush()
        self._n_written += 1

    def _value(self, name: str) -> Any:
        return self._pvs[name].value


def soft_ioc(config_paths: Sequence[Path | str]) -> PVs:
    """Make the PVs of a simulated beamline.

    Parameters
    ----------
    config_paths : sequence of path
        Configuration files: geometry, lens, scan, and what is simulated.

    Raises
    ------
    ConfigError
        If the configuration describes no possible experiment.
    """
    config = load_config([Path(path) for path in config_paths])
    pvs = PVs()
    limits, start = travel_limits_um(config), config.scan.centre_um
    motors = [Motor(pvs, name, limits[k], start[k]) for k, name in enumerate(MOTORS)]
    Detector(pvs, DETECTOR, SimulatedSource(config), motors, config.scan.exposure_s)
    return pvs


async def _ready(_: Any) -> None:
    sys.stdout.write(f"ready: {', '.join(MOTORS)}, {DETECTOR}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(start_server(soft_ioc(sys.argv[1:]), interfaces=["127.0.0.1"], startup_hook=_ready))
