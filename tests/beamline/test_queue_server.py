"""The simulated profile as a queue server takes it: its plans are listed, checked, and run."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bluesky_cdi.catalog import find_results, open_catalog, serve
from bluesky_cdi.catalog.feeder import waiting_files
from bluesky_cdi.profiles import profile_directory

pytest.importorskip(
    "bluesky_queueserver", reason="bluesky-queueserver is not installed: pip install '.[test-beamline]'"
)

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


HERE = (
    "catalog: {{directory: '{}', in_process: {inside}}}\nscan: {{exposure_s: 0.0}}\n"
    "reconstructor: {{name: rpie, refine_iterations: 1, final_steps: 1, in_process: {inside}}}\n"
)


def test_plans_are_listed_checked_and_run(tmp_path, empty_catalog):
    (tmp_path / "script.py").write_text(SCRIPT)
    shutil.copytree(empty_catalog, tmp_path / "data")
    (tmp_path / "here.yaml").write_text(HERE.format(tmp_path / "data", inside="true"))
    environment = {**os.environ, "BLUESKY_CDI_CONFIG": str(tmp_path / "here.yaml"), "MPLBACKEND": "Agg"}
    done = subprocess.run(
        [sys.executable, tmp_path / "script.py", str(profile_directory("sim") / "startup")],
        env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    plans = ["adaptive", "adaptive_ptycho", "fly", "full", "ptycho_fly", "ptycho_raster", "ptycho_spiral"]
    assert found["plans"] == plans
    assert found["devices"] == ["diff", "i0", "scanner", "shutter", "stage"]
    (good, _), (by_name, _), (wrong, why) = found["checked"]
    assert good and by_name and not wrong and "step_um" in why
    assert found["ran"] == [16, 9]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def running(command, said, **options):
    """A program, ready once its log has said so; its log is shown where that fails."""
    log = options["cwd"] / f"{Path(command[0]).name}.log"
    with log.open("w") as out, subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, **options) as process:
        try:
            while said not in log.read_text():
                assert process.poll() is None, log.read_text()
                time.sleep(0.05)
            yield
        finally:
            process.terminate()


@pytest.mark.skipif(shutil.which("redis-server") is None, reason="redis-server is not installed: apt install redis")
def test_a_manager_runs_an_adaptive_scan(tmp_path, empty_catalog):
    from bluesky_queueserver import ZMQCommSendThreads

    startup = shutil.copytree(profile_directory("sim"), tmp_path / "profile") / "startup"
    shutil.copytree(empty_catalog, tmp_path / "data")
    (tmp_path / "here.yaml").write_text(HERE.format(tmp_path / "data", inside="false"))
    environment = {**os.environ, "BLUESKY_CDI_CONFIG": str(tmp_path / "here.yaml"), "MPLBACKEND": "Agg"}
    redis, control, info = free_port(), free_port(), free_port()
    manager = [
        Path(sys.executable).with_name("start-re-manager"), "--startup-dir", startup,
        "--redis-addr", f"127.0.0.1:{redis}", "--zmq-control-addr", f"tcp://127.0.0.1:{control}",
        "--zmq-info-addr", f"tcp://127.0.0.1:{info}", "--console-output", "ON",
    ]  # fmt: skip
    server = [shutil.which("redis-server"), "--port", str(redis), "--bind", "127.0.0.1", "--save", "", "--dir", "."]
    with running(server, "Ready to accept", cwd=tmp_path), \
            running(list(map(str, manager)), "Starting ZeroMQ server", cwd=tmp_path, env=environment):  # fmt: skip
        manage = ZMQCommSendThreads(zmq_server_address=f"tcp://127.0.0.1:{control}", timeout_recv=60_000)

        def ask(method, **params):
            answer = manage.send_message(method=method, params=params)
            assert answer.get("success", True), answer
            return answer

        def until(state):
            while (status := ask("status"))["manager_state"] != state:
                time.sleep(0.1)
            return status

        ask("environment_open")
        assert until("idle")["worker_environment_exists"]
        assert "adaptive" in ask("plans_allowed", user_group="primary")["plans_allowed"]
        plan = {"name": "adaptive", "item_type": "plan", "args": [16], "kwargs": {"extent_um": [1.0, 1.0], "batch": 8}}
        ask("queue_item_add", item=plan, user="someone", user_group="primary")
        ask("queue_start")
        until("idle")
        (done,) = ask("history_get")["items"]
        assert done["result"]["exit_status"] == "completed", done
        (uid,) = done["result"]["run_uids"]
        ask("environment_close")
        until("idle")
        # The profile closes its session when the environment's process ends: then all is in the catalog, and a little
        # later its server is gone.
        while waiting_files(tmp_path / "data" / "journal"):
            time.sleep(0.1)
    with serve(tmp_path / "data", claim_s=240.0) as uri, contextlib.closing(open_catalog(uri)) as catalog:
        assert len(catalog.raw[uid]["primary"].base["internal"].read()) == 16
        assert find_results(catalog, uid)
