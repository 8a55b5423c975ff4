"""From documents to a sight, through what a session's worker is made of."""

import time

import event_model
import numpy as np

from bluesky_cdi.live.parts import Pace, WorkerParts
from bluesky_cdi.remote.setup import Setup

LONG_S = 60.0
GEOMETRY = {"energy_ev": 8000.0, "distance_m": 2.0, "detector_pixel_m": 1e-4}
SIDE = 32


def documents(frames, positions_um):
    """A step scan whose frames are inside its events."""
    metadata = {"geometry": GEOMETRY, "scan_id": 3, "plan_name": "raster", "motors": ["y", "x"],
                "window_m": [[-1e-6, -1e-6], [1e-6, 1e-6]]}  # fmt: skip
    run = event_model.compose_run(metadata=metadata)
    yield "start", run.start_doc
    motor = {"source": "sim", "dtype": "number", "shape": [], "units": "um"}
    image = {"source": "sim", "dtype": "array", "shape": [SIDE, SIDE]}
    made = run.compose_descriptor(name="primary", data_keys={"image": image, "y": motor, "x": motor})
    yield "descriptor", made.descriptor_doc
    for counts, (y, x) in zip(frames, positions_um, strict=True):
        data = {"image": counts, "y": y, "x": x}
        yield "event", made.compose_event(data=data, timestamps=dict.fromkeys(data, time.time()), validate=False)
    yield "stop", run.compose_stop()


def test_frames_are_seen_though_nothing_can_be_reconstructed():
    def nobody(*_):
        raise RuntimeError("no reconstruction")

    mask = np.ones((SIDE, SIDE), bool)
    mask[0, 0] = False
    setup = Setup(WorkerParts(nobody, nobody, nobody, lambda _: []), Pace(), mask=mask)
    worker, buffer = setup.start()
    places = [(0.0, 0.1), (0.0, 0.2), (0.1, 0.1), (0.1, 0.2), (0.2, 0.1)]
    for document in documents(np.full((5, SIDE, SIDE), 2), places):
        buffer(*document)
    assert buffer.drain(LONG_S)
    sight = worker.look(0).result(LONG_S)
    assert (sight.scan_id, sight.plan, sight.received, sight.ended) == (3, "raster", 5, "success")
    np.testing.assert_allclose(sight.positions_m, 1e-6 * np.array(places))
    np.testing.assert_allclose(sight.photons, 2 * (SIDE**2 - 1))
    assert not sight.valid[0, 0] and sight.fit is None
    buffer.close()
    worker.close()
