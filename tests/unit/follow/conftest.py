"""Documents of small runs, as publishers give them."""

import numpy as np
import pytest

LENGTH = {"dtype": "number", "shape": [], "source": "", "units": "um"}


class Published:
    """The documents of one run, as (name, document)."""

    def __init__(self, uid, n=4, *, frames="inside", uri="file://localhost/data/scan.h5", **start):
        self.uid = uid
        image = {"dtype": "array", "shape": [16, 16], "source": ""}
        if frames != "inside":
            image["external"] = "STREAM:"
        keys = {"y": LENGTH, "x": LENGTH, **({"image": image} if frames != "none" else {})}
        geometry = {"energy_ev": 8000.0, "distance_m": 2.0, "detector_pixel_m": 172e-6}
        self.start = {"uid": uid, "scan_id": 1, "time": 1.0, "motors": ["y", "x"], "geometry": geometry, **start}
        self.descriptor = {
            "uid": f"{uid}-d", "run_start": uid, "name": "primary", "time": 2.0, "data_keys": keys, "configuration": {},
            "hints": {"y": {"fields": ["y"]}, "x": {"fields": ["x"]}}, "object_keys": {"y": ["y"], "x": ["x"]},
        }  # fmt: skip
        self.resource = {
            "uid": f"{uid}-r", "run_start": uid, "data_key": "image", "mimetype": "application/x-hdf5", "uri": uri,
            "parameters": {"dataset": "/frames"},
        }  # fmt: skip
        self.events = [self._event(k + 1, frames) for k in range(n)]
        self.stop = {
            "uid": f"{uid}-s", "run_start": uid, "time": 9.0, "exit_status": "success", "num_events": {"primary": n}
        }  # fmt: skip
        self.documents = [("start", self.start), ("descriptor", self.descriptor)]
        if frames == "file":
            self.documents.append(("stream_resource", self.resource))
        self.documents += [("event", event) for event in self.events] + [("stop", self.stop)]

    def _event(self, number, frames):
        data = {"y": 0.1 * number, "x": 0.2 * (number % 3)}
        if frames == "inside":
            data["image"] = np.random.default_rng(number).poisson(5.0, (16, 16)).astype(np.uint16)
        return {
            "uid": f"{self.uid}-e{number}", "descriptor": self.descriptor["uid"], "seq_num": number,
            "time": 2.0 + number, "data": data, "timestamps": dict.fromkeys(data, 2.0 + number), "filled": {},
        }  # fmt: skip


@pytest.fixture(scope="session")
def published():
    return Published
