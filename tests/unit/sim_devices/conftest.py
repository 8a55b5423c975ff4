"""A RunEngine whose documents are validated, and small beamlines."""

from urllib.parse import unquote, urlparse

import h5py
import numpy as np
import pytest
from event_model import DocumentNames, schema_validators

from bluesky_cdi.config import Config
from bluesky_cdi.sim_devices import ManualClock


class Documents(list):
    """Documents of the runs, as (name, document) in the order of their emission."""

    __hash__ = object.__hash__

    def __call__(self, name, doc):
        schema_validators[DocumentNames[name]].validate(doc)
        self.append((name, doc))

    def of(self, kind):
        return [doc for name, doc in self if name == kind]

    def column(self, key):
        return np.array([event["data"][key] for event in self.of("event")])

    def paths(self):
        return [unquote(urlparse(doc["uri"]).path) for doc in self.of("stream_resource")]

    def frames(self):
        """Each event's frame, found as a consumer does: resource by uid, slot by sequence number."""
        uri = {doc["uid"]: path for doc, path in zip(self.of("stream_resource"), self.paths(), strict=True)}
        slot = {
            (doc["descriptor"], doc["seq_nums"]["start"]): (uri[doc["stream_resource"]], doc["indices"]["start"])
            for doc in self.of("stream_datum")
        }
        out = []
        for event in self.of("event"):
            path, index = slot[event["descriptor"], event["seq_num"]]
            with h5py.File(path) as file:
                out.append(file["/entry/data/data"][index])
        return np.array(out)


@pytest.fixture
def clock():
    return ManualClock()


@pytest.fixture
def docs(RE):
    documents = Documents()
    RE.subscribe(documents)
    return documents


@pytest.fixture
def make_config():
    """Configuration without faults and waiting times; keywords override `simulation`."""

    def make(exposure_s=0.0, **simulation):
        ideal = {
            "dead_pixels": 0,
            "hot_pixels": 0,
            "position_error_m": 0.0,
            "flux_fluctuation": 0.0,
            "velocity_m_per_s": 0.01,
            "seed": 7,
        }
        return Config.model_validate({"scan": {"exposure_s": exposure_s}, "simulation": ideal | simulation})

    return make
