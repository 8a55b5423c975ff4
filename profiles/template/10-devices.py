"""Devices of this beamline; the only file that knows that they are simulated.

The plans take four names from here: `diff` (area detector), `stage` (with axes `y` and `x`), `i0` (flux monitor) and
`config`. Replace the simulated ones by yours (EDIT); `bluesky-cdi doctor FOLDER` says what they offer.
"""

# EDIT: remove these lines when yours are below.
from bluesky_cdi.sim_devices import simulated_beamline

beamline = simulated_beamline(config, session.frames_directory)
diff, stage, i0 = beamline.detector, beamline.stage, beamline.monitor

# --- EPICS, classic ophyd -------------------------------------------------------------------------------------------
# import threading
#
# from ophyd import ADComponent, Component, Device, EpicsMotor, EpicsSignalRO, SingleTrigger
# from ophyd.areadetector import AreaDetector, CamBase, HDF5Plugin
# from ophyd.areadetector.filestore_mixins import FileStoreHDF5IterativeWrite
#
#
# class HDF5(HDF5Plugin, FileStoreHDF5IterativeWrite):
#     """Frames go to a file, which the catalog's server must see at the same path."""
#
#
# class Detector(SingleTrigger, AreaDetector):
#     cam = ADComponent(CamBase, "cam1:")
#     image = ADComponent(HDF5, "HDF1:", write_path_template=f"{session.frames_directory}/%Y/%m/%d/")
#
#     def __init__(self, *args, **kwargs):
#         self._answering = threading.RLock()
#         super().__init__(*args, **kwargs)
#
#     # Without these two a camera that is done before `trigger` returns leaves ophyd without a status.
#     def trigger(self):
#         with self._answering:
#             return super().trigger()
#
#     def _acquire_changed(self, *args, **kwargs):
#         with self._answering:
#             super()._acquire_changed(*args, **kwargs)
#
#
# class Stage(Device):
#     y = Component(EpicsMotor, "Y")  # its EGU must be a length: mm, um, nm, ...
#     x = Component(EpicsMotor, "X")
#
#
# # Without `read_attrs` the frames are in no event. The plugin must have seen a frame: `diff.image.warmup()`, once.
# diff = Detector("BL:DET:", name="diff", read_attrs=["image"])  # EDIT: prefix
# stage = Stage("BL:STAGE:", name="stage")  # EDIT: prefix
# i0 = EpicsSignalRO("BL:I0", name="i0")  # EDIT: or leave it out, here, in 20-plans.py and in config.yaml
# for device in (diff, stage, i0):
#     device.wait_for_connection(timeout=10)

# --- ophyd-async ----------------------------------------------------------------------------------------------------
# from ophyd_async.core import StaticPathProvider, UUIDFilenameProvider, init_devices
# from ophyd_async.epics.adsimdetector import SimDetector  # EDIT: your detector's class
# from ophyd_async.epics.motor import Motor
#
# with init_devices():
#     diff = SimDetector("BL:DET:", StaticPathProvider(UUIDFilenameProvider(), session.frames_directory))
#     stage_y, stage_x = Motor("BL:STAGE:Y"), Motor("BL:STAGE:X")
#
#
# class stage:
#     """The two axes under the names that the plans use."""
#
#     y, x = stage_y, stage_x
