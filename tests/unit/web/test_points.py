"""Where the frames of a fly scan were measured that goes on, as the page shows it."""

import contextlib
import shutil
from dataclasses import replace

import h5py
import numpy as np
import pytest
from event_model import compose_run

from bluesky_cdi.catalog import Feeder, feeder, open_catalog, serve
from bluesky_cdi.catalog.columns import RunColumns
from bluesky_cdi.config import DocumentsConfig
from bluesky_cdi.journal import Journal
from bluesky_cdi.web.points import measured_points, rate_of

N, CAME, PERIOD_S, EXPOSURE_S = 40, 25, 0.01, 0.004
STARTS_S = 0.02 + PERIOD_S * np.arange(N)
TIMES_S = np.arange(0, 0.6, 1e-3)
GEOMETRY = {"energy_ev": 8000.0, "distance_m": 2.0, "detector_pixel_m": 172e-6}


def track_m(times_s):
    return np.stack([2e-5 * times_s, 3e-6 - 5e-5 * times_s], axis=-1)


def flight(path, written=N):
    """The documents of a fly scan up to some frame, and its start document."""
    with h5py.File(path, "w") as file:
        file["image"], file["stamp"] = np.ones((N, 4, 4), np.uint16), STARTS_S[:written]
        file["y"], file["x"] = track_m(TIMES_S).T
        file["t"] = TIMES_S
    metadata = {"motors": ["y", "x"], "scan_id": 3, "position_stream": "positions", "geometry": GEOMETRY}
    run = compose_run(uid="fly-raw", metadata=metadata)

    def described(name, keys, configuration):
        external = {"source": "test", "dtype": "number", "dtype_numpy": "<f8", "shape": [], "external": "STREAM:"}
        return run.compose_descriptor(
            name=name, data_keys={key: {**external, **more} for key, more in keys.items()},
            object_keys={name: list(keys)}, configuration=configuration,
        )  # fmt: skip

    exposure = {"source": "test", "dtype": "number", "shape": [], "units": "s"}
    configuration = {
        "primary": {"data": {"exposure_time": EXPOSURE_S}, "timestamps": {"exposure_time": 0.0},
                    "data_keys": {"exposure_time": exposure}}
    }  # fmt: skip
    image = {"dtype": "array", "dtype_numpy": "<u2", "shape": [1, 4, 4]}
    streams = (
        (described("primary", {"image": image, "stamp": {"units": "s"}}, configuration), CAME),
        (described("positions", {"y": {"units": "m"}, "x": {"units": "m"}, "t": {"units": "s"}}, {}), len(TIMES_S)),
    )
    yield "start", run.start_doc
    for stream, rows in streams:
        yield "descriptor", stream.descriptor_doc
        for key in stream.descriptor_doc["data_keys"]:
            resource = run.compose_stream_resource(
                mimetype="application/x-hdf5", uri="file://localhost" + path.as_uri().removeprefix("file://"),
                data_key=key, parameters={"dataset": f"/{key}", "chunk_shape": [1]},
            )  # fmt: skip
            yield "stream_resource", resource.stream_resource_doc
            rows_come = {"indices": {"start": 0, "stop": rows}, "seq_nums": {"start": 1, "stop": rows + 1}}
            yield "stream_datum", resource.compose_stream_datum(**rows_come, descriptor=stream.descriptor_doc)


@pytest.fixture(params=[N, 10])
def catalog(empty_catalog, tmp_path, patient, monkeypatch, request):
    monkeypatch.setitem(feeder.PATIENCE, "raw", replace(feeder.PATIENCE["raw"], longest_s=0.0))
    folder = shutil.copytree(empty_catalog, tmp_path / "catalog")
    with contextlib.ExitStack() as stack:
        opened = stack.enter_context(contextlib.closing(open_catalog(stack.enter_context(serve(folder)))))
        journal = stack.enter_context(contextlib.closing(Journal(folder / "journal" / "raw")))
        for name, doc in flight(folder / "fly.h5", request.param):
            journal(name, doc)
        stack.enter_context(contextlib.closing(Feeder(folder / "journal", opened))).feed()
        yield opened


def test_a_fly_scan_that_goes_on_shows_its_places_and_its_rate(catalog, request):
    """Where a file holds less than is announced, on which Tiled's server fails, nothing is shown and nothing waits."""
    run = catalog.raw["fly-raw"]
    points = measured_points(catalog, RunColumns(run), DocumentsConfig())
    shown = np.stack([points["y_m"], points["x_m"]], axis=-1)
    if request.node.callspec.params["catalog"] == N:
        np.testing.assert_allclose(shown, track_m(STARTS_S[:CAME] + EXPOSURE_S / 2), atol=1e-12)
        assert rate_of(points) == pytest.approx(1 / PERIOD_S)
    else:
        assert len(shown) == 0 and rate_of(points) is None
    # Its clock is not that of the images' times.
    assert len(points["time"]) == 0
