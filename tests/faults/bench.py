"""A session at a beamline, in three processes, what is done to it, and what it is checked for."""

import json
import threading

import numpy as np

from bluesky_cdi.catalog import find_results, load_result
from bluesky_cdi.config import load_config
from bluesky_cdi.errors import WorkerError
from bluesky_cdi.plans import adaptive_ptycho, ptycho_raster
from bluesky_cdi.session import Session
from bluesky_cdi.sim_devices import simulated_beamline

WINDOW = {"extent_um": (1.2, 1.2), "step_um": 0.2}
N_RASTER = 49
SOON_S = 240.0
SETTINGS = {
    "scan": {**WINDOW, "exposure_s": 0.0},
    "simulation": {"velocity_m_per_s": 0.02, "seed": 2},
    "probe": {"trust": True},
    "reconstructor": {
        "name": "rpie", "refine_iterations": 1, "final_steps": 0, "threads": 1, "device": "cpu", "checkpoint_s": 0.0
    },
}  # fmt: skip


class Bench:
    """A session, its beamline, and what was measured."""

    def __init__(self, directory, fault, **options):
        self._fault = fault
        self.misbehave()
        self.image_came = threading.Event()
        listeners = [lambda _: self.image_came.set()]
        self.session = Session(
            load_config(overrides=SETTINGS), directory, monitor_key="i0", listeners=listeners, **options
        )
        self.beamline = simulated_beamline(self.session.config, self.session.frames_directory)
        self.events, self.uids, self.stops, self.reasons, self.stamps = [], [], [], [], []
        self.when_measured = None
        self.session.RE.subscribe(self._see)

    def _see(self, name, doc):
        if name == "start":
            self.uids.append(doc["uid"])
        elif name == "stop":
            self.stops.append(doc)
        elif name == "event" and "stage_y" in doc["data"]:
            self.events.append(doc)
            if self.when_measured is not None and len(self.events) == self.when_measured[0]:
                self.when_measured[1]()
        elif name == "event" and "agent_reason" in doc["data"]:
            self.reasons.append(doc["data"]["agent_reason"])

    def misbehave(self, **fault):
        """The reconstructors of coming runs fail so."""
        self._fault.write_text(json.dumps(fault))

    @property
    def devices(self):
        return [self.beamline.detector, self.beamline.monitor], self.beamline.stage.y, self.beamline.stage.x

    def raster(self, **changes):
        return ptycho_raster(*self.devices, self.session.live, **{**WINDOW, **changes})

    def adaptive(self, **changes):
        options = {**WINDOW, "budget": 40, "batch": 8, "decision_timeout_s": 5.0, **changes}
        return adaptive_ptycho(*self.devices, self.session.live, **options)

    def run(self, plan):
        """Run a plan from a clean slate; the raw run's uid."""
        self.image_came.clear()
        for seen in (self.events, self.uids, self.stops, self.reasons):
            seen.clear()
        self.session.RE(plan)
        self.when_measured = None
        return self.uids[-1]

    def wait_for_an_image(self):
        """Hold the scan up after some points until there is an image of them: the others make another step."""
        self.when_measured = 20, lambda: self.image_came.wait(SOON_S)

    def settle(self):
        """Wait until all is in the catalog, whether the reconstruction failed or not; why it failed."""
        try:
            self.session.wait(SOON_S)
        except WorkerError as err:
            return str(err)
        return None

    def check_measured(self, n):
        """The scan measured all, and the catalog holds each event with its frame."""
        (stop,) = self.stops
        assert (stop["exit_status"], len(self.events)) == ("success", n)
        check_in_catalog(self.session.catalog, self.uids[-1], self.events)

    def results(self):
        return find_results(self.session.catalog, self.uids[-1])

    def check_image(self, n):
        """The newest result is complete, rests on n frames, and is finite."""
        result = self.results()[-1]
        assert (result.complete, result.n_frames) == (True, n)
        estimate = load_result(self.session.catalog, result.uid)
        assert np.isfinite(estimate.object).all() and sorted(estimate.frame_seq_nums) == list(range(1, n + 1))


def check_in_catalog(catalog, uid, events, exit_status="success"):
    """A run of the catalog holds these events of its stream primary, each once, and their frames."""
    run = catalog.raw[uid]
    assert run.stop["exit_status"] == exit_status
    table = run["primary"].base["internal"].read()
    assert list(table["seq_num"]) == [event["seq_num"] for event in events]
    np.testing.assert_array_equal(table["stage_y"], [event["data"]["stage_y"] for event in events])
    frames = run["primary"]["diff_image"].read()
    np.testing.assert_array_equal(frames.sum(axis=(1, 2)), [event["data"]["diff_total"] for event in events])
