"""Catalogs on Tiled's own server, with SQLite and PostgreSQL, read by other clients: docs/catalog.md as written."""

import contextlib
import os
import pwd
import re
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest
from event_model import compose_run

from bluesky_cdi import open_catalog
from bluesky_cdi.catalog import Feeder, publishing
from bluesky_cdi.catalog.feeder import RAW
from bluesky_cdi.evaluation.verdict import with_verdict
from bluesky_cdi.journal import Journal

PAGE = (Path(__file__).parents[2] / "docs" / "catalog.md").read_text(encoding="utf-8")
SOON_S = 240.0
PROGRAMS = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
pytestmark = pytest.mark.usefixtures("patient")


def block(kind, of):
    """The page's block of code that begins with these words."""
    (found,) = (code for code in re.findall(rf"^```{kind}\n(.*?)^```$", PAGE, re.M | re.S) if code.startswith(of))
    return found


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@contextlib.contextmanager
def tiled_serves(config, folder):
    """Run ``tiled serve config``; its address."""
    path, port = folder / "tiled.yml", free_port()
    path.write_text(config, encoding="utf-8")
    program = [Path(sys.executable).with_name("tiled"), "serve", "config", path, "--port", str(port)]
    with open(folder / "tiled.log", "w+") as log:
        process = subprocess.Popen([*map(str, program)], stdout=log, stderr=subprocess.STDOUT)
        try:
            while True:
                with contextlib.suppress(httpx.HTTPError):
                    if httpx.get(f"http://127.0.0.1:{port}/healthz", trust_env=False).is_success:
                        break
                assert process.poll() is None, (folder / "tiled.log").read_text()
                time.sleep(0.1)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(SOON_S)


def write_run(catalog, folder, info, estimate):
    """A raw run of two points and its result, through the journal, as a session writes them."""
    run = compose_run(uid=info.uid, metadata={"scan_id": info.scan_id, "plan_name": "raster", "sample": "star"})
    keys = {"stage_x": {"source": "test", "dtype": "number", "shape": [], "units": "um"}}
    stream = run.compose_descriptor(name="primary", data_keys=keys)
    with contextlib.closing(Journal(folder / "journal" / RAW)) as journal:
        journal("start", run.start_doc)
        journal("descriptor", stream.descriptor_doc)
        for x in (1.5, 2.5):
            journal("event", stream.compose_event(data={"stage_x": x}, timestamps={"stage_x": 0.0}))
        journal("stop", run.compose_stop())
    Feeder(folder / "journal", catalog).finish(SOON_S)
    with publishing(catalog, info, folder) as publisher:
        publisher.close(estimate)


@contextlib.contextmanager
def checked(address, estimate, info):
    """What was written is found and read: in Python, and by the lines that the page has for others."""
    with open_catalog(f"{address}/api/v1?api_key=secret") as catalog:
        (result,) = catalog.search(sample="star", plan="raster")
        np.testing.assert_array_equal(result.estimate.object, estimate.object)
        assert result.to_xarray().sizes["frame"] == 6 and result.thumbnail
    said = {}
    exec(block("py", "from tiled").replace("http://127.0.0.1:8000", address), said)
    with contextlib.closing(said["client"].context):
        np.testing.assert_allclose(said["predicted_error"], estimate.std_phase_rad)
        assert said["phase"].shape == (16, 16) and said["frames"].sizes["time"] == 2
        assert said["run"].start["raw_uid"] == info.uid
        assert [name for name, _ in said["documents"]][-1] == "stop"
        exec(block("py", "from databroker"), said)
        assert said["positions"].values.tolist() == [1.5, 2.5]
        yield said


def test_tiled_serves_a_folder_that_a_session_has_written(empty_catalog, tmp_path, info, make_estimate):
    folder, estimate = shutil.copytree(empty_catalog, tmp_path / "catalog"), with_verdict(make_estimate(0))
    with open_catalog(folder, writable=True) as catalog:
        write_run(catalog, folder, replace(info, scan_id=1), estimate)
    config = block("yml", "# tiled.yml").replace("FOLDER", str(folder))
    with tiled_serves(config, tmp_path) as address, checked(address, estimate, info):
        for needed in ("humanize", "boltons", "doct", "prettytable", "tzlocal"):
            pytest.importorskip(needed, reason="databroker's version 1: databroker[back-compat] prettytable tzlocal")
        lines = [block("py", "from tiled").replace("http://127.0.0.1:8000", address), block("py", "header =")]
        lines += ["print(table['stage_x'].tolist(), names[0], names[-1], updates['n_frames'].tolist())"]
        done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=False)
        assert done.stdout == "[1.5, 2.5] start stop [6]\n", done.stderr


@pytest.fixture
def postgresql(tmp_path_factory):
    """A cluster of its own, which nobody who isn't on this machine reaches; its address, without a database."""
    if not PROGRAMS:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    folder, port = tmp_path_factory.mktemp("postgresql"), free_port()
    user, ids = None, {}
    if os.geteuid() == 0:
        # It does not run as root.
        try:
            user = pwd.getpwnam("postgres")
        except KeyError:
            pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
        ids = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        home = Path("/tmp") / f"bluesky_cdi-postgresql-{os.getpid()}"
        home.mkdir(mode=0o700)
        os.chown(home, user.pw_uid, user.pw_gid)
        folder = home

    def run(program, *words):
        subprocess.run([PROGRAMS[-1].with_name(program), *words], check=True, capture_output=True, cwd="/", **ids)

    data = folder / "data"
    run("initdb", "-D", data, "-A", "trust", "-U", "tiled")
    options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1"
    run("pg_ctl", "-D", data, "-o", options, "-l", folder / "log", "-w", "start")
    try:
        for name in ("catalog", "tables"):
            run("createdb", "-h", folder, "-p", str(port), "-U", "tiled", name)
        yield f"tiled@127.0.0.1:{port}"
    finally:
        run("pg_ctl", "-D", data, "-m", "immediate", "-w", "stop")
        if user is not None:
            shutil.rmtree(folder)


def test_a_catalog_in_postgresql(postgresql, tmp_path, info, make_estimate):
    estimate, uri = with_verdict(make_estimate(0)), f"postgresql+asyncpg://{postgresql}/catalog"
    tiled = Path(sys.executable).with_name("tiled")
    subprocess.run([tiled, "catalog", "init", uri], check=True, capture_output=True, timeout=SOON_S)
    config = block("yml", "# tiled.yml").replace("sqlite:///FOLDER/catalog.db", uri)
    config = config.replace("sqlite:///FOLDER/tables.db", f"postgresql://{postgresql}/tables")
    (tmp_path / "data").mkdir()
    with tiled_serves(config.replace("FOLDER", str(tmp_path)), tmp_path) as address:
        with open_catalog(f"{address}/api/v1?api_key=secret") as catalog:
            write_run(catalog, tmp_path, replace(info, scan_id=1), estimate)
            assert catalog.latest().summary.complete
        with checked(address, estimate, info):
            pass
