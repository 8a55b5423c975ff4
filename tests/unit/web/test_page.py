"""What the page's server answers, and what it refuses; one server for all of these tests."""

import asyncio
import contextlib
import io
import json
import os
import socket
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from types import SimpleNamespace

import h5py
import httpx
import numpy as np
import pytest
from PIL import Image

from bluesky_cdi.catalog import columns, list_results, open_catalog
from bluesky_cdi.catalog.columns import Columns, RunColumns
from bluesky_cdi.cli import main
from bluesky_cdi.config import load_config
from bluesky_cdi.errors import CatalogError
from bluesky_cdi.io import read_scan
from bluesky_cdi.reconstruction import bad_pixels
from bluesky_cdi.web import Page, reader, run_list

FOREVER_S = 240.0


@pytest.fixture(scope="module")
def ask(place, sample):
    """Ask the page for something with its key."""
    with httpx.Client(base_url=f"{place.address}/page/", trust_env=False, timeout=FOREVER_S) as client:
        client.headers["Authorization"] = f"Apikey {sample.KEY}"
        yield client.get


@pytest.fixture
def stranger(place):
    """Ask without a key, or with another one."""
    with httpx.Client(base_url=place.address, trust_env=False, timeout=FOREVER_S) as client:
        yield client


def pixels(answer):
    """An image that was answered, as an array, and what its colours mean."""
    assert answer.status_code == 200, answer.text
    return np.asarray(Image.open(io.BytesIO(answer.content))), json.loads(answer.headers["x-picture"])


PRIVATE = (
    "/page/static/main.js", "/page/api/runs", "/page/api/run/dddd4444-complete",
    "/page/api/run/dddd4444-complete/file/npz",
    "/page/api/run/dddd4444-complete/image/phase.png", "/page/nothing",
    "/page/api/pair/dddd4444-complete/eeee5555-again",
)  # fmt: skip


class TestWhoMaySee:
    @pytest.mark.parametrize("path", PRIVATE)
    @pytest.mark.parametrize("key", [None, "Key2", "", "Key", "Key11"])
    def test_nothing_without_the_key(self, stranger, path, key):
        answer = stranger.get(path, params={} if key is None else {"api_key": key})
        assert (answer.status_code, answer.json()) == (401, {"detail": "the page needs its key"})

    def test_without_the_key_the_page_asks_for_it(self, stranger):
        answer = stranger.get("/page/?api_key=Key2")
        assert answer.status_code == 401 and 'name="api_key"' in answer.text
        assert "set-cookie" not in answer.headers

    def test_the_key_goes_from_the_address_into_a_cookie(self, stranger, sample):
        """Neither history nor bookmarks keep it, no script reads it, and no other page sends it."""
        answer = stranger.get(f"/?api_key={sample.KEY}")
        assert answer.status_code == 303 and answer.headers["location"] == f"/page/?api_key={sample.KEY}"
        answer = stranger.get(answer.headers["location"] + "&more=1")
        assert answer.status_code == 303 and answer.headers["location"] == "/page/?more=1"
        assert {"HttpOnly", "SameSite=Strict", "Path=/page"} <= set(answer.headers["set-cookie"].split("; "))
        assert "bluesky_cdi" in stranger.get("/page/").text
        assert stranger.get("/page/api/runs").status_code == 200

    def test_tiled_is_where_it_was(self, stranger, sample):
        assert stranger.get("/api/v1/search/").status_code == 401
        assert stranger.get("/api/v1/search/", params={"api_key": sample.KEY}).status_code == 200

    def test_public(self):
        page = Page(refuses, "Key1", public=True, config=load_config())
        assert asked(page, "/page/").status_code == 200
        page.close()


class TestWhatIsRefused:
    @pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
    def test_nothing_can_be_changed(self, stranger, sample, method):
        answer = stranger.request(method, "/page/api/runs", params={"api_key": sample.KEY})
        assert answer.status_code == 405

    @pytest.mark.parametrize(
        "path",
        [
            "static/../application.py", "static/%2e%2e/application.py", "static/..%2fapplication.py",
            "static/vendor/../../reader.py", "static//etc/passwd", "static/%2fetc%2fpasswd", "static/index.html",
            "static/vendor", "static/README.md", "api/run/../runs/x", "api/run/%2e%2e%2f%2e%2e%2fapi%2fv1",
            "api/run/..%2Fraw%2Faaaa1111-raw", "api/run/aaaa1111-raw%2Fprimary", "api/run/%00",
            "api/run/dddd4444-complete/file/..%2fcxi", "api/run/dddd4444-complete/file/sh",
            "api/run/dddd4444-complete/image/object.png", "api/run/dddd4444-complete/frame/1/..%2fmeasured.png",
            "api/run/dddd4444-complete/image/phase.png?update=99", "api/run/dddd4444-complete/frame/99",
            "api/run/dddd4444-complete/image/probe_phase.png?mode=5", "api/pair/dddd4444-complete/zzzz",
            "api/run/bbbb2222-raw/image/phase.png", "api/run/dddd4444",
        ],
    )  # fmt: skip
    def test_names_lead_nowhere_else(self, place, sample, path):
        """Sent as they are: a client would tidy them."""
        host, port = place.address.removeprefix("http://").split(":")
        head = (
            f"GET /page/{path} HTTP/1.1\r\nHost: x\r\nAuthorization: Apikey {sample.KEY}\r\nConnection: close\r\n\r\n"
        )
        with contextlib.closing(socket.create_connection((host, int(port)), FOREVER_S)) as connection:
            connection.sendall(head.encode())
            answer = connection.makefile("rb").read()
        assert answer.split(b" ", 2)[1] == b"404", answer[:300]
        assert b"root:" not in answer and b"import" not in answer

    @pytest.mark.parametrize(
        "query", ["update=a", "update=1e3", "low=0", "low=1&high=0", "low=nan&high=1", "mode=1" + "0" * 30]
    )
    def test_numbers_that_are_none(self, ask, place, query):
        assert ask(f"api/run/{place.complete}/image/phase.png?{query}").status_code == 400

    def test_an_oversized_request(self, place, stranger, sample):
        """A head without end is cut off; a body is refused by the size that it states."""
        host, port = place.address.removeprefix("http://").split(":")
        with contextlib.closing(socket.create_connection((host, int(port)), FOREVER_S)) as connection:
            with contextlib.suppress(OSError):
                connection.sendall(b"GET /page/?" + b"a" * 200_000)
            with contextlib.suppress(OSError):
                assert not connection.makefile("rb").read().startswith(b"HTTP/1.1 200")
        headers = {"Content-Length": str(10**9), "Authorization": f"Apikey {sample.KEY}"}
        with contextlib.closing(socket.create_connection((host, int(port)), FOREVER_S)) as connection:
            told = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
            connection.sendall(f"GET /page/api/runs HTTP/1.1\r\nHost: x\r\n{told}\r\n".encode())
            assert connection.makefile("rb").readline().startswith(b"HTTP/1.1 413")
        assert stranger.get("/page/").status_code == 401

    @pytest.mark.parametrize("path", ["", "static/main.js", "static/style.css", "api/runs", "api/run/zzzz", "nothing"])
    def test_browsers_are_told_to_run_and_load_nothing_else(self, ask, path):
        headers = ask(path).headers
        policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
        assert policy["default-src"] == "'none'" and policy["script-src"] == policy["style-src"] == "'self'"
        assert headers["x-content-type-options"] == "nosniff"

    def test_html_in_metadata_is_text(self, ask, place, sample):
        for path in ("api/runs", f"api/run/{place.complete}"):
            answer = ask(path)
            assert answer.headers["content-type"] == "application/json"
            assert sample.EVIL in json.dumps(answer.json(), ensure_ascii=False).replace('\\"', '"')
        assert sample.EVIL not in ask("").text


def refuses():
    raise CatalogError("there is none") from httpx.ConnectError("refused")


def asked(page, path):
    async def get():
        transport = httpx.ASGITransport(page, raise_app_exceptions=False)
        async with httpx.AsyncClient(
            transport=transport, base_url="http://here", headers={"Authorization": "Apikey Key1"}
        ) as client:
            return await client.get(path)

    return asyncio.run(get())


def test_a_catalog_that_is_gone_is_looked_for_again(place):
    there = iter([refuses, lambda: place.catalog])
    page = Page(lambda: next(there)(), "Key1", public=False, config=load_config())
    assert asked(page, "/page/api/runs").status_code == 503
    assert "there is none" not in asked(page, "/page/api/runs").text


@pytest.mark.parametrize("is_there", [True, False])
def test_the_catalog_is_opened_before_somebody_asks(place, is_there):
    """The first who asks would wait while Tiled's client and PyTorch are loaded; one that is not there is no fault."""
    tried, opened = [], threading.Event()

    def connect():
        tried.append(is_there)
        opened.set()
        return place.catalog if is_there or len(tried) > 1 else refuses()

    page = Page(connect, "Key1", public=False, config=load_config())
    page.prepare()
    assert opened.wait(FOREVER_S)
    assert asked(page, "/page/api/runs").status_code == 200
    assert len(tried) == (1 if is_there else 2)


class TestList:
    def test_runs(self, ask, place, sample):
        found = ask("api/runs").json()
        rows = {row["uid"]: row for row in found["runs"] if not row["replaced"]}
        assert found["whole"]
        assert set(rows) == {place.complete, place.again, place.without, place.going}
        assert rows[place.complete] | {"time": 0, "title": ""} == {
            "uid": place.complete, "raw_uid": place.raw, "scan_id": 7, "plan_name": "adaptive", "sample": sample.EVIL,
            "time": 0, "raw_time": 1.7e9, "title": "",
            "made_by": "lsqml", "n_frames": 9, "exit_status": "success", "complete": True, "verdict": "doubtful",
            "has_image": True, "replaced": False,
        }  # fmt: skip
        assert (rows[place.without]["n_frames"], rows[place.without]["exit_status"]) == (4, "success")
        assert rows[place.going]["exit_status"] is None

    def test_rows_are_those_of_the_catalogs_own_list(self, ask, place):
        rows = {row["uid"]: row for row in ask("api/runs").json()["runs"] if not row["replaced"]}
        for known in list_results(place.catalog):
            row = rows[known.uid or known.raw_uid]
            assert {**row, "uid": known.uid} == {
                **asdict(known), "has_image": row["has_image"], "replaced": False
            }  # fmt: skip

    def test_only_what_changed(self, ask):
        found = ask("api/runs").json()
        again = ask("api/runs", params={"epoch": found["epoch"], "after": found["version"]}).json()
        assert again["version"] == found["version"] and again["runs"] == []
        other = ask("api/runs", params={"epoch": "of another server", "after": found["version"]}).json()
        assert len(other["runs"]) == len(found["runs"])

    def test_thumbnail(self, ask, place):
        image = Image.open(io.BytesIO(ask(f"api/run/{place.complete}/thumbnail.png").content))
        assert image.format == "PNG" and max(image.size) <= 160
        assert ask(f"api/run/{place.without}/thumbnail.png").status_code == 404


class TestRun:
    @pytest.fixture
    def view(self, ask, place):
        return ask(f"api/run/{place.complete}").json()

    def test_frames_and_updates(self, view, sample):
        estimate = sample.make_estimate()
        assert view["updates"]["n_frames"] == [3, 6, 9]
        assert view["grid"] == {
            "pixel_m": sample.PIXEL_M, "origin_m": list(sample.ORIGIN_M), "shape": [sample.GRID] * 2, "modes": 1,
        }  # fmt: skip
        np.testing.assert_allclose(
            np.transpose([view["frames"]["y_m"], view["frames"]["x_m"]]), sample.POSITIONS_M, rtol=1e-5
        )
        np.testing.assert_allclose(view["frames"]["residual"], estimate.residual, rtol=1e-5)
        assert len(view["frames"]["latents"]) == 9 and len(view["frames"]["colour"][0]) == 3

    def test_what_was_measured(self, view, sample):
        np.testing.assert_allclose(
            np.transpose([view["measured"]["y_m"], view["measured"]["x_m"]]), sample.POSITIONS_M, rtol=1e-5
        )
        assert view["measured"]["rate_hz"] == pytest.approx(1.0)

    def test_decisions(self, view, sample):
        assert [each["reason"] for each in view["decisions"]] == ["fill", "adapt", sample.EVIL]
        second = view["decisions"][1]
        np.testing.assert_allclose(np.transpose([second["y_m"], second["x_m"]]), sample.POSITIONS_M[3:6], rtol=1e-5)
        assert (second["gain"], second["n_ingested"], second["decision_s"]) == ([0.5, 0.25, 0.125], 3, 0.02)

    def test_halves(self, view):
        halves = view["result"]["halves"]
        assert halves["frequency_per_um"] == [1, 5, 10, 15] and halves["resolution_m"] == 9e-8
        assert len(halves["threshold"]) == 4

    def test_other_results(self, view, place):
        assert [each["uid"] for each in view["results"]] == [place.complete, place.again]

    def test_a_run_that_goes_on(self, ask, place):
        view = ask(f"api/run/{place.going_raw}").json()
        assert view["result"]["uid"] == place.going and view["frames"] is None
        assert view["updates"]["n_frames"] == [3]
        place.publish_live(6)
        assert ask(f"api/run/{place.going}/image/phase.png", params={"update": 1}).status_code == 200

    def test_without_a_result(self, ask, place):
        view = ask(f"api/run/{place.without}").json()
        assert view["result"] is None and len(view["measured"]["y_m"]) == 4 and view["decisions"] == []


class TestImages:
    def test_phase(self, ask, place, sample):
        """Grey from the lowest to the highest phase, row 0 above, transparent where nothing was measured."""
        found, told = pixels(
            ask(f"api/run/{place.complete}/image/phase.png", params={"update": 2, "low": -1, "high": 1})
        )
        coverage = sample.make_estimate().coverage
        covered = coverage >= 0.02 * coverage.max()
        mean = np.angle(sample.OBJECT[covered].sum())
        wanted = 255 * (np.angle(sample.OBJECT) - mean + 1) / 2
        np.testing.assert_array_equal(found[..., 1] > 0, covered)
        assert np.abs(found[..., 0].astype(float) - wanted)[covered].max() <= 1
        assert (told["low"], told["high"], told["unit"], told["shape"]) == (-1, 1, "rad", [sample.GRID] * 2)

    @pytest.mark.parametrize(
        "name",
        ["amplitude", "std_phase_rad", "std_amplitude", "coverage", "probe_amplitude", "probe_phase", "latent_map"],
    )
    def test_others(self, ask, place, sample, name):
        found, told = pixels(ask(f"api/run/{place.complete}/image/{name}.png", params={"update": 2}))
        side = sample.N if name.startswith("probe") else sample.GRID
        assert found.shape[:2] == (side, side)
        assert (told["colours"] == "") == (name == "latent_map")

    def test_what_frames_say_by_themselves(self, ask, place, sample, monkeypatch):
        """Painted where each frame's light fell: near its place are its photons, and the phase that is there."""
        # The beam of this sample is two pixels wide on the detector: they would be taken for hot ones.
        monkeypatch.setattr(bad_pixels, "valid_pixels", lambda frames: np.ones(frames.shape[1:], bool))
        sums, phases = sample.COUNTS.sum(axis=(1, 2)), []
        rows, columns = np.rint((sample.POSITIONS_M - sample.ORIGIN_M) / sample.PIXEL_M).astype(int).T
        for row, column in zip(rows, columns, strict=True):
            part = sample.OBJECT[row - 8 : row + 8, column - 8 : column + 8]
            phases.append((np.angle(part) * np.abs(sample.PROBE[0]) ** 2).sum())
        # Nine places sample the slopes coarsely.
        for name, expected, alike in (("transmission", sums, 0.9), ("integrated_phase", phases, 0.5)):
            found, told = pixels(ask(f"api/run/{place.complete}/image/{name}.png"))
            assert found.shape[:2] == (sample.GRID, sample.GRID) and found[0, 0, -1] == 0
            assert np.corrcoef(found[rows, columns, 0], expected)[0, 1] > alike, name
        assert told["unit"] == "rad"
        found, told = pixels(ask(f"api/run/{place.complete}/image/dark_field.png"))
        assert 0 <= told["low"] < told["high"] < sums.max()
        # A run that goes on has no grid of its own yet; other names there are none.
        for path in (f"{place.going}/image/transmission.png", f"{place.complete}/image/nothing.png"):
            assert ask(f"api/run/{path}").status_code == 404

    def test_frames_are_summed_once_for_all_who_wait(self, counted, place, monkeypatch):
        asked, _ = counted
        both_came, came, summed, lock = threading.Event(), [], [], threading.Lock()

        class Large:
            def __enter__(self):
                came.append(1)
                if len(came) == 2:
                    both_came.set()
                lock.acquire()

            def __exit__(self, *_):
                lock.release()

        def sums(run):
            summed.append(1)
            assert both_came.wait(FOREVER_S)
            return sums_of_frames(run)

        sums_of_frames = reader.sums_of_frames
        monkeypatch.setattr(reader, "sums_of_frames", sums)
        monkeypatch.setattr(asked, "_summing", Large())
        with ThreadPoolExecutor(2) as pool:
            found = [pool.submit(asked.image, place.complete, "transmission", -1, 0, None) for _ in range(2)]
            assert found[0].result().png == found[1].result().png
        assert len(summed) == 1

    def test_who_asks_for_sums_does_not_wait_for_an_export(self, place, monkeypatch, tmp_path):
        asked = reader.Reader(place.catalog, load_config())
        begun, may_end = threading.Event(), threading.Event()

        def export(path, *_):
            begun.set()
            assert may_end.wait(FOREVER_S)
            return (path,)

        monkeypatch.setattr(reader, "export_result", export)
        with ThreadPoolExecutor(2) as pool:
            written = pool.submit(asked.export, place.complete, "npz", tmp_path)
            try:
                assert begun.wait(FOREVER_S)
                summed = pool.submit(asked.image, place.complete, "transmission", -1, 0, None)
                assert summed.result(FOREVER_S).unit == "photons of a frame" and not written.done()
            finally:
                may_end.set()
            assert written.result().suffix == ".npz"

    def test_more_frames_than_can_be_summed(self, ask, place, monkeypatch):
        monkeypatch.setattr(reader, "PIXELS_MAX", 9 * 16 * 16 - 1)
        answer = ask(f"api/run/{place.again}/image/transmission.png")
        assert answer.status_code == 404 and "too many" in answer.json()["detail"]

    def test_frame_and_fit(self, ask, place, sample):
        """The expected counts are those of a model of their own, in NumPy."""
        told = ask(f"api/run/{place.complete}/frame/5").json()
        assert told["counts"] == sample.COUNTS[4].sum()
        assert told["flux"] == pytest.approx(sample.COUNTS[4].sum() / sample.EXPECTED[4].sum(), rel=1e-4)
        top = np.log10(1 + np.quantile(sample.COUNTS[4], 0.9999))
        for name in ("measured", "fit", "misfit"):
            found, scale = pixels(ask(f"api/run/{place.complete}/frame/5/{name}.png"))
            assert found.shape[:2] == (sample.N, sample.N)
            assert scale["high"] == pytest.approx(5 if name == "misfit" else top)

    def test_a_frame_without_a_result(self, ask, place):
        assert ask(f"api/run/{place.without}/frame/2").json()["flux"] is None
        assert ask(f"api/run/{place.without}/frame/2/fit.png").status_code == 404


def test_a_frame_that_was_seen_while_its_run_went_on_has_its_fit_later(sample, monkeypatch):
    counts = sample.COUNTS[4].astype(np.float32)
    monkeypatch.setattr(reader, "measured_frame", lambda *_: (counts, np.ones(counts.shape, bool)))
    monkeypatch.setattr(reader.Reader, "_estimate", lambda *_: sample.make_estimate())
    asked = reader.Reader(SimpleNamespace(raw=None, processed=None), load_config())
    start = {"uid": "d", "raw_uid": "r", "frame_shape": [sample.N, sample.N], "geometry": sample.GEOMETRY}
    raw, derived = (
        SimpleNamespace(start=each, metadata={"start": each, "stop": None}) for each in ({"uid": "r"}, start)
    )
    monkeypatch.setattr(asked.runs, "find", lambda _: run_list.Found(raw, derived, ("r", 1), ("d", 1)))
    assert asked.frame("r", 5).fitted is None
    derived.metadata["stop"] = {"complete": True}
    assert asked.frame("r", 5).fitted.deviance < 1


@pytest.mark.parametrize("name", ["a.npz", "a.cxi", "a.h5"])
def test_the_raw_scan_is_written_while_others_look_and_read_again(place, sample, tmp_path, name):
    """With the probe that the newest result found, which is brought to the photons of the frames."""
    assert main(["export", "7", str(tmp_path / name), "--scan", "--directory", str(place.directory), "--quiet"]) == 0
    scan = read_scan(tmp_path / name)
    np.testing.assert_array_equal(scan.counts, sample.COUNTS)
    np.testing.assert_allclose(scan.positions_m, sample.POSITIONS_M, atol=1e-12)
    found, expected = (each / np.linalg.norm(each) for each in (scan.probe, sample.PROBE))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert scan.geometry.pixel_m == pytest.approx(sample.PIXEL_M)


class TestPair:
    def test_difference(self, ask, place, sample):
        """The second object has a step of 0.1 rad that the first has not."""
        found = ask(f"api/pair/{place.complete}/{place.again}").json()
        assert 0.01 < found["numbers"]["phase_mae_rad"] < 0.06
        image, told = pixels(ask(f"api/pair/{place.complete}/{place.again}/difference/phase.png"))
        assert told["low"] == -told["high"] and 0.02 < told["high"] < 0.15
        for side in ("first", "second"):
            assert pixels(ask(f"api/pair/{place.complete}/{place.again}/{side}/amplitude.png"))[0].shape == (
                *image.shape[:2],
                2,
            )

    def test_of_one_and_the_same(self, ask, place):
        assert ask(f"api/pair/{place.complete}/{place.complete}").json()["numbers"]["phase_mae_rad"] == pytest.approx(
            0, abs=1e-6
        )

    def test_one_that_is_not_complete(self, ask, place):
        answer = ask(f"api/pair/{place.complete}/{place.going}")
        assert answer.status_code == 404 and "has no stop document" in answer.json()["detail"]


class TestFiles:
    @pytest.mark.parametrize("form", ["cxi", "nexus", "ptychodus", "npz", "tiff", "png"])
    def test_files(self, ask, place, form):
        answer = ask(f"api/run/{place.complete}/file/{form}")
        assert answer.status_code == 200, answer.text
        name = answer.headers["content-disposition"].partition('filename="')[2].rstrip('"')
        assert name.startswith("scan_7.")
        content = io.BytesIO(answer.content)
        if form in ("cxi", "nexus", "ptychodus"):
            assert len(h5py.File(content)) > 0
        elif form == "tiff":
            assert {each.rpartition("_")[2] for each in zipfile.ZipFile(content).namelist()} == {
                "phase.tif",
                "amplitude.tif",
            }
        else:
            assert Image.open(content).size[0] > 100 if form == "png" else "object" in np.load(content)

    def test_of_what_is_not_complete(self, ask, place):
        assert ask(f"api/run/{place.going}/file/npz").status_code == 404


@pytest.fixture
def counted(place):
    """A reader of its own, and the requests about single runs that it sends to the catalog's server."""
    sent = []

    def note(request):
        if any(f"/{uid}" in request.url.path for uid in (place.raw, place.complete, place.going_raw, place.going)):
            sent.append(request.url.raw_path)

    with contextlib.closing(open_catalog(place.catalog.uri, place.catalog.raw.context.api_key)) as catalog:
        catalog.raw.context.http_client.event_hooks["request"].append(note)
        yield reader.Reader(catalog, load_config()), sent


class TestRequestsToTheCatalog:
    """Each request takes the server tens of milliseconds: what is counted here is how long a user waits."""

    def test_a_first_result_asks_for_nothing_twice(self, counted, place):
        asked, sent = counted
        view = asked.view(place.complete)
        assert len(view["frames"]["number"]) == 9 and len(view["updates"]["n_frames"]) == 3
        # Two runs, their streams, columns of four streams, three tables, three arrays of decisions, one file.
        assert len(set(sent)) == len(sent) <= 15
        before = len(sent)
        for name in ("phase", "amplitude", "coverage", "probe_phase"):
            asked.image(place.complete, name, 2, 0, None)
        # Where the file of the images lies.
        assert len(sent) - before <= 1

    def test_what_was_looked_at_is_not_asked_for_again(self, counted, place):
        asked, sent = counted
        asked.view(place.complete)
        asked.image(place.complete, "phase", 1, 0, None)
        sent.clear()
        asked.view(place.complete)
        asked.image(place.complete, "phase", 1, 0, None)
        asked.image(place.complete, "phase", 0, 0, None)
        asked.thumbnail(place.complete)
        assert sent == []

    def test_a_run_that_goes_on_is_looked_at_anew(self, counted, place):
        """A new image is in the next look after a second, and can be asked for from then on."""
        asked, sent = counted
        before = len(asked.view(place.going)["updates"]["n_frames"])
        asked.image(place.going, "phase", before - 1, 0, None)
        place.publish_live(5)
        until = time.monotonic() + FOREVER_S
        while len((view := asked.view(place.going))["updates"]["n_frames"]) == before:
            assert time.monotonic() < until
            time.sleep(0.05)
        assert view["updates"]["n_frames"][before:] == [5] and view["frames"] is None
        sent.clear()
        asked.image(place.going, "phase", before, 0, None)
        assert len(set(sent)) == len(sent) <= 3

    def test_files_hold_what_the_server_gives(self, place, monkeypatch):
        run = RunColumns(place.catalog.processed[place.complete])
        images, frames = run.of("reconstruction"), run.of("frames")
        wanted = [
            *(partial(images.row, name, 1) for name in ("object", "probe", "phase", "coverage")),
            *(partial(frames.read, name) for name in ("frame_seq_num", "y_m", "residual", "latents")),
        ]
        from_files = [read() for read in wanted]
        monkeypatch.setattr(Columns, "_from_file", lambda *_: None)
        for read, found in zip(wanted, from_files, strict=True):
            from_server = read()
            assert found.dtype == from_server.dtype
            np.testing.assert_array_equal(found, from_server)

    @pytest.mark.parametrize("what", ["nothing", "a pipe", "no HDF5", "fewer rows", "another result"])
    def test_where_the_file_is_not_seen_the_server_is_asked(self, place, monkeypatch, tmp_path, what):
        """As on another machine, where the same path may lead to something else."""
        path = tmp_path / "result.h5"
        if what == "no HDF5":
            path.write_text("not this")
        if what == "a pipe":
            os.mkfifo(path)
        if what in ("fewer rows", "another result"):
            with h5py.File(path, "w", libver="latest") as file:
                file["frames/y_m"] = np.zeros(4 if what == "fewer rows" else 9)
                file.attrs["uid"] = place.complete if what == "fewer rows" else place.again
        expected = RunColumns(place.catalog.processed[place.complete]).of("frames").read("y_m")
        monkeypatch.setattr(columns, "_place_of", lambda *_: (path, "/frames"))
        found = RunColumns(place.catalog.processed[place.complete]).of("frames").read("y_m")
        assert len(found) == 9
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("which", "tail"), [([0, 1], 1), ([2], run_list.TAIL)], ids=["older ones", "the last"])
def test_a_run_that_is_written_again_is_noticed(place, monkeypatch, which, tail):
    monkeypatch.setattr(run_list, "FRESH_S", 0.0)
    monkeypatch.setattr(run_list, "TAIL", tail)
    with place.written_raw("iiii8888-raw", "jjjj9999-raw", "kkkk0000-raw") as (uids, write):
        runs, asked = run_list.RunList(place.catalog), reader.Reader(place.catalog, load_config())
        before, keys = runs.changes("", -1), [runs.find(uid).raw_key for uid in uids]
        assert [len(asked.view(uid)["measured"]["y_m"]) for uid in uids] == [3, 3, 3]
        assert runs.changes(before["epoch"], before["version"])["runs"] == []
        # Nobody looks while it is not there; its documents say what they said, but for what came late.
        for k in which:
            write(uids[k], 5)
        after = runs.changes(before["epoch"], before["version"])
        for k in which:
            assert uids[k] in {row["uid"] for row in after["runs"]}
            assert runs.find(uids[k]).raw_key != keys[k]
            assert len(asked.view(uids[k])["measured"]["y_m"]) == 5
        assert runs.changes(after["epoch"], after["version"])["runs"] == []
