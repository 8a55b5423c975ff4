"""Events of which no document came: the stop document counts them."""

import numpy as np
import pytest

from bluesky_cdi.callbacks import FrameAssembler
from bluesky_cdi.callbacks._recorded import _Kept

GEOMETRY = {"energy_ev": 8000.0, "distance_m": 2.0, "detector_pixel_m": 172e-6}
START = {"uid": "run", "scan_id": 3, "time": 1.0, "motors": ["y", "x"], "geometry": GEOMETRY}
LENGTH = {"dtype": "number", "shape": [], "source": "", "units": "um"}
DESCRIPTOR = {
    "uid": "primary", "run_start": "run", "name": "primary", "time": 2.0,
    "data_keys": {"y": LENGTH, "x": LENGTH, "image": {"dtype": "array", "shape": [16, 16], "source": ""}},
    "hints": {"y": {"fields": ["y"]}, "x": {"fields": ["x"]}}, "object_keys": {"y": ["y"], "x": ["x"]},
}  # fmt: skip


def event(number):
    data = {"y": 0.1 * number, "x": 0.2 * number, "image": np.full((16, 16), number)}
    return {"uid": f"e{number}", "descriptor": "primary", "seq_num": number, "time": 3.0, "data": data}


def feed(numbers, **stop):
    sink = _Kept()
    assembler = FrameAssembler(sink)
    documents = [("start", START), ("descriptor", DESCRIPTOR), *(("event", event(n)) for n in numbers)]
    for name, doc in [*documents, ("stop", {"run_start": "run", "exit_status": "success", **stop})]:
        assembler(name, doc)
    assert assembler.error is None
    return sink


@pytest.mark.parametrize(
    ("numbers", "counted", "lost"),
    [
        ([1, 2, 3, 4], {"primary": 4}, []),
        ([1, 3], {"primary": 5}, [2, 4, 5]),
        ([2, 1, 2, 4], {"primary": 4}, [3]),
        ([1, 3], {"baseline": 5}, []),
        ([1, 3], {}, []),
    ],
    ids=["all came", "in the middle and last", "again, and out of order", "of another stream", "not counted"],
)
def test_those_that_are_counted_and_never_came_are_told(numbers, counted, lost):
    sink = feed(numbers, num_events=counted)
    assert sorted(sink.frames) == sorted(set(numbers))
    assert sorted(sink.left_out) == lost
    assert all("none of its documents did" in str(error) for error in sink.left_out.values())


def test_where_the_stop_document_counts_nothing_all_is_as_it_was():
    assert feed([1, 3]).left_out == {}
