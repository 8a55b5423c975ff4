"""What other programs read off the plans: arguments that they can build models of, and send as JSON."""

import inspect
import json
from collections.abc import Sequence

import pytest
from bluesky.protocols import Flyable, Movable, Readable
from pydantic import ConfigDict, create_model

from bluesky_cdi.plans import adaptive_ptycho, ptycho_fly, ptycho_raster, ptycho_spiral

PLANS = [adaptive_ptycho, ptycho_fly, ptycho_raster, ptycho_spiral]
DEVICES = {"detectors": Sequence[str], "axis_y": str, "axis_x": str, "shutter": str | None, "scanner": str | None}
ARGUMENTS = {"detectors": ["diff"], "axis_y": "stage.y", "axis_x": "stage.x", "extent_um": [0.6, 0.6], "step_um": 0.2}


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan.__name__)
def test_a_model_is_made_of_its_arguments(plan):
    assert inspect.isgeneratorfunction(plan)
    parameters = inspect.signature(plan).parameters.values()
    assert not [each.name for each in parameters if isinstance(each.annotation, str)]
    annotations = {each.name: each.annotation for each in parameters}
    detector = Flyable if plan is ptycho_fly else Readable
    assert annotations["detectors"] == Sequence[detector] and annotations["axis_y"] is annotations["axis_x"] is Movable
    # The worker is no value that can be sent.
    fields = {
        # A queue server sends the names of devices, which it knows by these protocols.
        each.name: (DEVICES.get(each.name, each.annotation), ... if each.default is each.empty else each.default)
        for each in parameters
        if each.name != "live"
    }
    model = create_model("Arguments", __config__=ConfigDict(extra="forbid"), **fields)
    own = {adaptive_ptycho: {"budget": 20}, ptycho_fly: {"scanner": "scanner", "rate_hz": 100.0}}
    sent = {**ARGUMENTS, **own.get(plan, {})}
    assert json.loads(model(**sent).model_dump_json()).items() >= sent.items()
    with pytest.raises(ValueError, match="step_um"):
        model(**{**sent, "step_um": "wide"})
