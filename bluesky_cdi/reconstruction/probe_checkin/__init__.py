"""Check-in of a probe: what frames say about the probe that is assumed, before anything is reconstructed with it."""

from bluesky_cdi.reconstruction.probe_checkin.check import LEAST_FRAMES, MOST_FRAMES, CheckIn, check_in
from bluesky_cdi.reconstruction.probe_checkin.gain import Gain
from bluesky_cdi.reconstruction.probe_checkin.live import LiveCheckIn
from bluesky_cdi.reconstruction.probe_checkin.recorded import ScanCheckIn, applied, check_in_scan
from bluesky_cdi.reconstruction.probe_checkin.search import Wanted
from bluesky_cdi.reconstruction.probe_checkin.trial import ABERRATIONS, Trial
from bluesky_cdi.reconstruction.probe_checkin.words import defocus_m, in_words

__all__ = [
    "ABERRATIONS",
    "LEAST_FRAMES",
    "MOST_FRAMES",
    "CheckIn",
    "Gain",
    "LiveCheckIn",
    "ScanCheckIn",
    "Trial",
    "Wanted",
    "applied",
    "check_in",
    "check_in_scan",
    "defocus_m",
    "in_words",
]
