import contextlib
import socket
import threading
import time

import pytest

from bluesky_cdi.catalog import connect as connect_module
from bluesky_cdi.catalog import open_catalog, serve
from bluesky_cdi.errors import CatalogError


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


def test_a_second_server_in_one_process_is_refused(tmp_path):
    with serve(tmp_path / "one"), pytest.raises(CatalogError, match="already serves"), serve(tmp_path / "two"):
        pass
    with serve(tmp_path / "two"):
        pass


def test_containers_are_made_once(session, directory):
    for _ in range(2):
        with session(directory) as catalog:
            assert type(catalog.raw).__name__ == type(catalog.processed).__name__ == "CatalogOfBlueskyRuns"
            assert (len(catalog.raw), len(catalog.processed)) == (0, 0)


def test_another_client_makes_the_container_first(catalog):
    from tiled.client import from_context

    root = from_context(catalog.raw.context)

    class Late:
        """The root as it looked before the other client came."""

        def __contains__(self, key):
            return False

        def __getattr__(self, name):
            return getattr(root, name)

        def __getitem__(self, key):
            return root[key]

    assert connect_module._runs(Late(), "raw").uri == catalog.raw.uri


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
            "not an address": "UnsupportedProtocol",
        }.items():
            with pytest.raises(CatalogError, match=match) as caught:
                open_catalog(wrong)
            assert "right" not in str(caught.value)
        open_catalog(uri.replace("right", "wrong"), api_key="right").close()


def test_nobody_listens_and_server_gone(directory):
    begin = time.monotonic()
    with serve(directory) as uri:
        catalog = open_catalog(uri)
    with contextlib.closing(catalog):
        with pytest.raises(CatalogError, match="ConnectError"):
            open_catalog(uri)
        with pytest.raises(CatalogError, match="ConnectError"), catalog.reaching():
            pass
    assert time.monotonic() - begin < 10


def test_server_that_never_answers(monkeypatch):
    assert connect_module.REACH_TIMEOUT_S <= 5
    monkeypatch.setattr(connect_module, "REACH_TIMEOUT_S", 0.3)
    with contextlib.closing(socket.socket()) as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        begin = time.monotonic()
        with pytest.raises(CatalogError, match="ReadTimeout"):
            open_catalog(f"http://127.0.0.1:{mute.getsockname()[1]}/api/v1")
        assert time.monotonic() - begin < 5
