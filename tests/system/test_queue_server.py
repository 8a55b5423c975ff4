"""The simulated profile as a queue server takes it: its plans are listed, checked, and run."""

import json
import os
import subprocess
import sys

import pytest

from bluesky_cdi.profiles import profile_directory

pytest.importorskip("bluesky_queueserver", reason="bluesky-queueserver is not installed: pip install '.[queueserver]'")

SCRIPT = """
import json, sys
from bluesky_queueserver.manager import profile_ops as po

if __name__ == "__main__":
    folder = sys.argv[1]
    namespace = po.load_profile_collection(folder)
    plans, devices = po.plans_from_nspace(namespace), po.devices_from_nspace(namespace)
    known_plans = po._prepare_plans(plans, existing_devices=devices)
    known_devices = po._prepare_devices(devices)
    permissions = po.load_user_group_permissions(folder + "/user_group_permissions.yaml")
    allowed_plans, allowed_devices = po.load_allowed_plans_and_devices(
        existing_plans=known_plans, existing_devices=known_devices, user_group_permissions=permissions
    )
    item = {"name": "adaptive", "user_group": "primary", "item_type": "plan",
            "args": [16], "kwargs": {"extent_um": [1.0, 1.0], "batch": 8, "decision_timeout_s": 600.0}}
    wrong = {**item, "kwargs": {"extent_um": [1.0, 1.0], "step_um": "wide"}}
    by_name = {"name": "ptycho_raster", "user_group": "primary", "item_type": "plan",
               "args": [["diff", "i0"], "stage.y", "stage.x"], "kwargs": {"extent_um": [0.4, 0.4], "step_um": 0.2}}
    allowed = {"allowed_plans": allowed_plans["primary"], "allowed_devices": allowed_devices["primary"]}
    checked = [po.validate_plan(each, **allowed) for each in (item, by_name, wrong)]
    ran = []
    for each in (item, by_name):
        plan = po.prepare_plan(each, plans_in_nspace=plans, devices_in_nspace=devices, nspace=namespace,
                               allowed_plans=allowed_plans, allowed_devices=allowed_devices)
        (uid,) = namespace["RE"](plan["callable"](*plan["args"], **plan["kwargs"]))[:1]
        namespace["session"].wait()
        ran.append(len(namespace["catalog"].raw[uid]["primary"].base["internal"].read()))
    namespace["session"].close()
    print(json.dumps({"plans": sorted(allowed_plans["primary"]), "devices": sorted(allowed_devices["primary"]),
                      "checked": checked, "ran": ran}))
"""


def test_plans_are_listed_checked_and_run(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "here.yaml").write_text(
        f"catalog: {{directory: '{tmp_path / 'data'}'}}\nscan: {{exposure_s: 0.0}}\n"
        "reconstructor: {name: rpie, refine_iterations: 1, final_steps: 1}\n"
    )
    environment = {**os.environ, "BLUESKY_CDI_CONFIG": str(tmp_path / "here.yaml"), "MPLBACKEND": "Agg"}
    done = subprocess.run(
        [sys.executable, tmp_path / "script.py", str(profile_directory("sim") / "startup")],
        env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["plans"] == ["adaptive", "adaptive_ptycho", "full", "ptycho_raster", "ptycho_spiral"]
    assert found["devices"] == ["diff", "i0", "shutter", "stage"]
    (good, _), (by_name, _), (wrong, why) = found["checked"]
    assert good and by_name and not wrong and "step_um" in why
    assert found["ran"] == [16, 9]
