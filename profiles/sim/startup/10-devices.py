"""Devices of the simulated beamline."""

from bluesky_cdi.sim_devices import simulated_beamline

beamline = simulated_beamline(config, session.frames_directory)
diff, stage, i0, shutter = beamline.detector, beamline.stage, beamline.monitor, beamline.shutter
scanner = beamline.scanner
