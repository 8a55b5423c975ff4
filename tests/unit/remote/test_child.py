"""What the reconstruction's process tells of itself."""

from types import SimpleNamespace

import pytest

from bluesky_cdi.config import Config
from bluesky_cdi.remote import child, link
from bluesky_cdi.remote.setup import live_arguments, live_setup


@pytest.mark.parametrize(("busy_s", "hangs"), [(99.0, False), (419.0, False), (421.0, True)])
def test_a_step_hangs_when_it_takes_much_longer_than_its_settings_allow(tmp_path, busy_s, hangs):
    config = Config.model_validate({"reconstructor": {"name": "pinn", "step_budget_s": 100.0, "fine_tune_s": 200.0}})
    pace = live_setup(live_arguments(config, tmp_path), emit=print).pace
    said = []
    worker = SimpleNamespace(error=None, n_dropped=0, is_idle=False, busy_s=busy_s)
    channel = SimpleNamespace(send=lambda *message: said.append(list(message)))
    child.Served(channel, worker, SimpleNamespace(drain=lambda _: True), None, pace)._state()
    assert (said[0][-1] > link.STUCK_S) == hangs
