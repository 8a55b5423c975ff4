import contextlib
import json
import shutil
import socket
import threading
import time
from functools import partial
from types import SimpleNamespace

import fastapi.dependencies.utils
import httpx
import numpy as np
import pytest
import tiled.client
from tiled.server import streaming

from bluesky_cdi.catalog import connect as connect_module
from bluesky_cdi.catalog import open_catalog, serve
from bluesky_cdi.catalog import server as server_module
from bluesky_cdi.catalog.connect import REACH_TIMEOUT_S
from bluesky_cdi.cli import main
from bluesky_cdi.cli import serve as serve_command
from bluesky_cdi.errors import CatalogError

SOON_S = 240.0


def timeouts_s(error):
    """How long the request that failed might take: to connect, to be sent, to be answered."""
    return set(error.__cause__.request.extensions["timeout"].values())


def server_threads():
    return [thread for thread in threading.enumerate() if thread.name == "tiled-server"]


def test_thread_is_daemon_and_ends_with_the_context(directory):
    with serve(directory):
        (thread,) = server_threads()
        assert thread.daemon
    assert not server_threads()


def test_port_is_kept_and_free_again(directory):
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    for _ in range(2):
        with serve(directory, port=port, api_key="Key1") as uri, contextlib.closing(open_catalog(uri)) as catalog:
            assert f":{port}/" in catalog.uri
            assert "api_key" not in catalog.uri


def test_requests_inspect_no_signatures(directory, monkeypatch):
    """FastAPI would look at all that a request depends on again, each time; and the key is asked for nevertheless."""
    with serve(directory) as uri:
        address, key = uri.split("/api/v1?api_key=")
        ask = partial(httpx.get, f"{address}/api/v1/metadata/raw", trust_env=False)
        assert ask(params={"api_key": key}).status_code == 404  # made by the first session
        monkeypatch.setattr(fastapi.dependencies.utils, "get_dependant", None)
        assert ask(params={"api_key": key}).status_code == 404
        assert ask(params={"api_key": "another"}).status_code == 401


def test_what_is_written_leaves_the_memory_again(directory, monkeypatch):
    """Tiled keeps it for subscribers, by default an hour: of frames in events that would be gigabytes."""
    stores, make = [], streaming._DATASTORES["memory"]
    monkeypatch.setitem(streaming._DATASTORES, "memory", lambda config: stores.append(make(config)) or stores[-1])
    with serve(directory) as uri:
        client = tiled.client.from_uri(uri)
        client.write_array(np.ones(1000))
        client.context.close()
    kept = stores[0]._data_cache
    assert sum(len(each.get("payload", b"")) for each in kept.values()) >= 8000
    kept.expire(kept.timer() + 60.0)
    assert not kept


def test_taken_port(directory):
    with contextlib.closing(socket.socket()) as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(CatalogError, match="can't listen on"), serve(directory, port=other.getsockname()[1]):
            pass
    assert not server_threads()


def test_directory_is_a_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("")
    with pytest.raises(CatalogError, match="needs a folder that can be written"), serve(path):
        pass


def test_directory_name_that_no_address_can_hold(tmp_path):
    with pytest.raises(CatalogError, match="without '\\?' and '#'"), serve(tmp_path / "run#1"):
        pass


def test_database_of_something_else(directory):
    (directory / "catalog.db").write_bytes(b"not a database" * 100)
    with pytest.raises(CatalogError, match="could not start"), serve(directory):
        pass
    assert not server_threads()


def test_key_that_fits_into_no_address(directory):
    with pytest.raises(CatalogError, match="letters and digits"), serve(directory, api_key="a b&c"):
        pass


def test_two_sessions_on_one_directory(directory):
    with serve(directory), pytest.raises(CatalogError, match="another session"), serve(directory):
        pass
    with serve(directory):
        pass


def test_the_server_of_a_session_that_begins_is_waited_for(directory, beside, monkeypatch):
    (directory / server_module.ADDRESS).write_text("http://127.0.0.1:9/api/v1?api_key=killed")
    begun, looked = threading.Event(), threading.Event()
    start = server_module._Server.start
    monkeypatch.setattr(server_module._Server, "start", lambda *its: (begun.set(), looked.wait(), start(*its)))
    clock = SimpleNamespace(monotonic=time.monotonic, sleep=lambda s: (looked.set(), time.sleep(s)))
    monkeypatch.setattr(server_module, "time", clock)

    def look():
        assert begun.wait(SOON_S)
        try:
            assert server_module.served_at(directory) is None
            return server_module.served_at(directory, SOON_S)
        finally:
            looked.set()

    with beside(look) as found, serve(directory) as uri:
        assert found.result() == uri


def test_a_second_server_in_one_process_is_refused(directory, tmp_path):
    other = shutil.copytree(directory, tmp_path / "other")
    with serve(directory), pytest.raises(CatalogError, match="already serves"), serve(other):
        pass
    with serve(other):
        pass


def test_a_proxy_is_for_other_machines(directory, monkeypatch):
    """Both spellings of its variables; a client that asks it could not reach the server."""
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with serve(directory) as uri:
        for proxy in ("http://127.0.0.1:9", "socks5://127.0.0.1:9"):
            for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
                monkeypatch.setenv(name, proxy)
                monkeypatch.setenv(name.lower(), proxy)
            with contextlib.closing(open_catalog(uri)) as catalog, catalog.reaching():
                assert len(catalog.raw) == 0


@pytest.mark.parametrize(
    ("host", "is_here"),
    [("127.0.0.1", True), ("127.3.2.1", True), ("[::1]", True), ("localhost", True), ("tiled.nsls2.bnl.gov", False)],
)
def test_which_addresses_are_here(host, is_here):
    assert connect_module._is_here(httpx.URL(f"http://{host}:8000/api/v1")) is is_here


def test_containers_are_made_once(session, directory):
    for _ in range(2):
        with session(directory) as catalog:
            assert type(catalog.raw).__name__ == type(catalog.processed).__name__ == "CatalogOfBlueskyRuns"
            assert (len(catalog.raw), len(catalog.processed)) == (0, 0)


def test_another_client_makes_the_container_first(directory, monkeypatch):
    class Late:
        """The root as it looked before the other client came."""

        def __init__(self, root):
            self.root = root

        def __contains__(self, key):
            return False

        def __getattr__(self, name):
            return getattr(self.root, name)

        def __getitem__(self, key):
            return self.root[key]

    with serve(directory) as uri, contextlib.closing(open_catalog(uri)) as first:
        real = tiled.client.from_context
        monkeypatch.setattr(tiled.client, "from_context", lambda *args, **rest: Late(real(*args, **rest)))
        with contextlib.closing(open_catalog(uri)) as second:
            assert (second.raw.uri, second.processed.uri) == (first.raw.uri, first.processed.uri)


def test_name_taken_by_something_else(directory):
    from tiled.client import from_uri

    with serve(directory) as uri:
        root = from_uri(uri)
        root.create_container("raw")
        with pytest.raises(CatalogError, match="'raw' must be a container of Bluesky runs"):
            open_catalog(uri)
        root.context.close()


def test_wrong_address_or_key(directory):
    with serve(directory, api_key="right") as uri:
        for wrong, match in {
            uri.partition("?")[0]: "requires API key",
            uri + "0": "Invalid API key",
            uri.replace("/api/v1", "/elsewhere"): "404",
            "not an address": r"or the address of a server \(http://",
        }.items():
            with pytest.raises(CatalogError, match=match) as caught:
                open_catalog(wrong)
            assert "right" not in str(caught.value)
        open_catalog(uri.replace("right", "wrong"), api_key="right").close()


def test_nobody_listens_and_server_gone(directory):
    with serve(directory) as uri:
        catalog = open_catalog(uri)
    with contextlib.closing(catalog):
        with pytest.raises(CatalogError, match="ConnectError") as caught:
            open_catalog(uri)
        assert timeouts_s(caught.value) == {connect_module.REACH_TIMEOUT_S}
        with pytest.raises(CatalogError, match="ConnectError") as caught, catalog.reaching():
            pass
        assert timeouts_s(caught.value) == {connect_module.REACH_TIMEOUT_S}


def test_server_that_never_answers(monkeypatch):
    assert REACH_TIMEOUT_S <= 30
    monkeypatch.setattr(connect_module, "REACH_TIMEOUT_S", 0.3)
    with contextlib.closing(socket.socket()) as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        with pytest.raises(CatalogError, match="ReadTimeout") as caught:
            open_catalog(f"http://127.0.0.1:{mute.getsockname()[1]}/api/v1")
        assert timeouts_s(caught.value) == {0.3}


def test_folder_is_the_owners_alone_and_one_that_exists_keeps_its_mode(empty_catalog, directory):
    directory.chmod(0o750)
    before = directory.stat().st_mode
    with serve(directory):
        pass
    assert empty_catalog.stat().st_mode & 0o777 == 0o700  # which `serve` has made
    assert directory.stat().st_mode == before


class TestServeCommand:
    """Until Ctrl-C, which the visit ends with."""

    @pytest.fixture(autouse=True)
    def loaded(self):
        """The page loads PyTorch in a thread; where it is there already, the next test meets no half of it."""
        import torch  # noqa: F401

    @pytest.fixture
    def served(self, directory, capsys, monkeypatch):
        """Serve with some options and ask for statuses: (what was said, status of reading or writing with a key)."""

        def run(*options, asked):
            seen = []

            def visit():
                said = json.loads(capsys.readouterr().out)
                address, _, key = said["tiled"].partition("?api_key=")
                for writes, offered in asked:
                    url = f"{address}/metadata/" if writes else f"{address}/search/"
                    params = {} if offered is None else {"api_key": key if offered == "the key" else offered}
                    body = {"json": {"structure_family": "container", "metadata": {}, "specs": []}} if writes else {}
                    method = "POST" if writes else "GET"
                    seen.append(httpx.request(method, url, params=params, trust_env=False, **body).status_code)
                seen.append(said)
                raise KeyboardInterrupt

            monkeypatch.setattr(serve_command, "_wait", visit)
            assert main(["serve", str(directory), "--port", "0", "--json", *options]) == 0
            return seen

        return run

    def test_by_default_who_has_the_key_reads(self, served):
        *statuses, said = served(asked=[(False, None), (False, "wrong"), (False, "the key"), (True, "the key")])
        assert statuses == [401, 401, 200, 405]
        assert said["read_only"] and said["page"].startswith("http://127.0.0.1:")

    @pytest.mark.parametrize(("options", "answers"), [((), False), (("--host", "0.0.0.0"), True)])
    def test_by_default_it_listens_at_one_address_alone(self, directory, capsys, monkeypatch, options, answers):
        """On Linux all of 127.0.0.0/8 is this machine: a server at all addresses answers at the next one too."""
        found = []

        def visit():
            port = int(json.loads(capsys.readouterr().out)["page"].partition("/page/")[0].rpartition(":")[2])
            for host in ("127.0.0.1", "127.0.0.2"):
                with socket.socket() as caller:
                    found.append(caller.connect_ex((host, port)) == 0)
            raise KeyboardInterrupt

        monkeypatch.setattr(serve_command, "_wait", visit)
        assert main(["serve", str(directory), "--port", "0", "--json", *options]) == 0
        assert found == [True, answers]

    def test_public_is_for_reading(self, served):
        *statuses, said = served("--public", asked=[(False, None), (True, None), (False, "wrong")])
        assert statuses == [200, 405, 401]
        assert "api_key" not in said["page"]

    def test_writable_needs_the_key(self, served):
        *statuses, said = served("--writable", "--key", "Key1", asked=[(True, None), (True, "wrong"), (True, "Key1")])
        assert statuses == [401, 401, 200]
        assert not said["read_only"]

    def test_beside_an_open_session_the_page_alone(self, directory, capsys, monkeypatch):
        seen = []

        def visit():
            page = json.loads(capsys.readouterr().out)["page"]
            with httpx.Client(trust_env=False, follow_redirects=True, timeout=240.0) as client:
                address = page.partition("/page/")[0]
                seen.append(client.get(f"{address}/page/api/runs").status_code)
                seen.append("bluesky_cdi" in client.get(page).text)
                seen.append(client.get(f"{address}/page/api/runs").json()["runs"])
                seen.append(client.get(f"{address}/api/v1/", params={"api_key": page.partition("=")[2]}).status_code)

        monkeypatch.setattr(serve_command, "_wait", visit)
        with serve(directory):
            assert main(["serve", str(directory), "--port", "0", "--json"]) == 0
            assert seen == [401, True, [], 404]
            assert main(["serve", str(directory), "--port", "0", "--writable"]) == 1
        assert "Leave out --writable" in capsys.readouterr().err
