"""Values that are not what their descriptor states are told: once, and counted at the end of the run."""

import logging

import numpy as np
import pytest
from event_model import compose_run, pack_event_page

from bluesky_cdi.callbacks import ValueCheck


def documents(spec, values, paged=False):
    run = compose_run(metadata={"scan_id": 12})
    stream = run.compose_descriptor(
        name="primary", data_keys={"key": {"source": "test", "shape": [], **spec}}, object_keys={"d": ["key"]}
    )
    events = [stream.compose_event(data={"key": value}, timestamps={"key": 0.0}, validate=False) for value in values]
    middle = [("event_page", pack_event_page(*events))] if paged else [("event", event) for event in events]
    return [("start", run.start_doc), ("descriptor", stream.descriptor_doc), *middle, ("stop", run.compose_stop())]


def told(caplog, docs):
    check = ValueCheck()
    with caplog.at_level(logging.WARNING):
        for name, doc in docs:
            check(name, doc)
    return [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize("paged", [False, True])
def test_fractions_among_integers(caplog, paged):
    first, last = told(caplog, documents({"dtype": "integer"}, [1, 2.5, 3.5, np.int32(4), True], paged))
    assert first.startswith("run 12: a value of 'key' is float, where the descriptor states integer")
    assert last == "run 12: values that are not of the type that was stated: 2 of 'key' (float, not integer)"


@pytest.mark.parametrize(
    ("spec", "value", "kind"),
    [
        ({"dtype": "number"}, "1.5", "str"),
        ({"dtype": "number"}, None, "NoneType"),
        ({"dtype": "string"}, 3, "int"),
        ({"dtype": "boolean"}, 1, "int"),
        ({"dtype": "number", "dtype_numpy": "<i4"}, 1.5, "float"),
        ({"dtype": "array", "shape": [2, 2], "dtype_numpy": "<u2"}, np.ones((2, 2)), "float64"),
        ({"dtype": "array", "shape": [2, 2], "dtype_numpy": "<u2"}, [[1.5, 2.5], [1.0, 1.0]], "float64"),
    ],
)
def test_other_types(caplog, spec, value, kind):
    first, last = told(caplog, documents(spec, [value]))
    assert f"a value of 'key' is {kind}, where" in first
    assert "1 of 'key'" in last


@pytest.mark.parametrize(
    ("spec", "value"),
    [
        ({"dtype": "number"}, 3),
        ({"dtype": "number"}, np.float32(3)),
        ({"dtype": "integer"}, np.uint8(3)),
        ({"dtype": "string"}, "text"),
        ({"dtype": "string"}, np.str_("text")),
        ({"dtype": "boolean"}, np.bool_(True)),
        ({"dtype": "array", "shape": [2], "dtype_numpy": "<f4"}, np.ones(2, int)),
        ({"dtype": "array", "shape": [2]}, [1.5, "a"]),
        ({"dtype": "array", "shape": [0], "dtype_numpy": "<i4"}, []),
        ({"dtype": "number", "external": "STREAM:"}, "anything"),
    ],
)
def test_what_fits_is_not_told(caplog, spec, value):
    assert not told(caplog, documents(spec, [value]))


def test_documents_of_no_form_do_not_raise(caplog):
    messages = told(caplog, [("start", {}), ("event", {"descriptor": "x"}), ("descriptor", {"uid": "a"})])
    assert len(messages) == 2 and all("can't be looked at (the run goes on)" in message for message in messages)
