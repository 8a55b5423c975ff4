"""A small catalog with a page before it: frames that object and probe explain, and texts that browsers could run."""

import contextlib
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from event_model import compose_run

from bluesky_cdi.catalog import Feeder, ResultPublisher, open_catalog, serve
from bluesky_cdi.config import load_config
from bluesky_cdi.journal import Journal
from bluesky_cdi.physics.geometry import HC_EV_M
from bluesky_cdi.protocols import Estimate, RunInfo
from bluesky_cdi.web import Page

KEY = "Key1"
N, GRID, STEP = 16, 48, 5.25
PIXEL_M = 2.5e-8
ORIGIN_M = (-4.1e-7, -7.3e-7)
GEOMETRY = {"energy_ev": 8000.0, "distance_m": 2.0, "detector_pixel_m": HC_EV_M / 8000.0 * 2.0 / (N * PIXEL_M)}
EVIL = "<img src=x onerror=\"document.title='run'\"><script>document.title='run'</script>"


def scene():
    """An object (Y, X), a probe (1, N, N), probe centres (9, 2) in pixels, and the counts that they make expect."""
    y, x = np.indices((GRID, GRID))
    obj = np.where((abs(y - 26) < 7) & (abs(x - 21) < 4), 0.8 * np.exp(-0.7j), 1.0)
    v, u = np.indices((N, N)) - N // 2
    probe = 60 * np.exp(-(v**2 + u**2) / 18 + 0.03j * (v**2 + 1.4 * u**2))
    centres = np.array([(14 + STEP * i, 14 + STEP * k) for i in range(3) for k in range(3)])
    ky, kx = np.meshgrid(np.fft.fftfreq(N), np.fft.fftfreq(N), indexing="ij")
    frames = []
    for centre in centres:
        whole = np.rint(centre).astype(int)
        ramp = np.exp(-2j * np.pi * (ky * (centre - whole)[0] + kx * (centre - whole)[1]))
        moved = np.fft.ifft2(np.fft.fft2(probe) * ramp)
        first = whole - N // 2
        patch = obj[first[0] : first[0] + N, first[1] : first[1] + N]
        frames.append(np.abs(np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(moved * patch), norm="ortho"))) ** 2)
    return obj.astype(np.complex64), probe[None].astype(np.complex64), centres, np.array(frames)


OBJECT, PROBE, CENTRES, EXPECTED = scene()
POSITIONS_M = np.array(ORIGIN_M) + CENTRES * PIXEL_M
COUNTS = np.rint(EXPECTED).astype(np.uint16)
RESOLUTION = {
    "threshold": "half-bit", "seconds": 1.0, "target_m": 8e-8, "n_frames": [8, 9], "resolution_m": [None, 9e-8],
    "frequency_per_m": [1e6, 5e6, 1e7, 1.5e7], "correlation": [0.99, 0.9, 0.5, 0.1], "n_pixels": [8, 16, 30, 50],
}  # fmt: skip


def make_estimate(n=9, **changes):
    rng = np.random.default_rng(n)
    light = np.zeros((GRID, GRID))
    for centre in np.rint(CENTRES[:n]).astype(int):
        row, column = centre - N // 2
        light[row : row + N, column : column + N] += np.abs(PROBE[0]) ** 2
    estimate = Estimate(
        n_frames=n,
        object=OBJECT,
        origin_m=ORIGIN_M,
        pixel_m=PIXEL_M,
        probe=PROBE,
        std_amplitude=rng.random((GRID, GRID)).astype(np.float32),
        std_phase_rad=rng.random((GRID, GRID)).astype(np.float32),
        coverage=light.astype(np.float32),
        frame_seq_nums=np.arange(1, n + 1),
        positions_m=POSITIONS_M[:n],
        embedding=rng.random((n, 5)).astype(np.float32),
        frame_uncertainty=rng.random(n).astype(np.float32),
        residual=rng.random(n).astype(np.float32),
        novelty=rng.random(n).astype(np.float32),
        seconds=0.5,
        source={
            "reconstructor": "lsqml",
            "note": EVIL,
            "verdict": {"word": "doubtful", "reasons": [EVIL], "remarks": [], "measures": {"deviance": 0.5}},
            "resolution": RESOLUTION,
        },
    )
    return replace(estimate, **changes)


def begin_raw(writer, uid, scan_id, n, time, decisions=1, n_told=None):
    """Write a raw run's beginning: frames and positions in events, and decisions; its stop comes by what it returns."""
    metadata = {
        "scan_id": scan_id, "plan_name": "adaptive" if scan_id % 2 else EVIL, "sample": {"name": EVIL}, "budget": 9,
        "geometry": GEOMETRY, "motors": ["stage_y", "stage_x"],
    }  # fmt: skip
    run = compose_run(uid=uid, time=float(time), metadata=metadata)
    length = {"source": "test", "dtype": "number", "shape": [], "units": "um"}
    keys = {
        "stage_y": length,
        "stage_x": length,
        "image": {"source": "test", "dtype": "array", "shape": [N, N], "dtype_numpy": "<u2"},
    }
    primary = run.compose_descriptor(name="primary", data_keys=keys)
    writer("start", run.start_doc)
    writer("descriptor", primary.descriptor_doc)
    for k in range(n):
        y, x = POSITIONS_M[k] * 1e6
        data = {"stage_y": float(y), "stage_x": float(x), "image": COUNTS[k].tolist()}
        writer("event", primary.compose_event(data=data, timestamps=dict.fromkeys(data, time + k), time=time + k))
    if decisions:
        write_decisions(writer, run, time, decisions)
    info = RunInfo(uid, scan_id, run.start_doc, (N, N))
    told = {} if n_told is None else {"num_events": {"primary": n_told}}
    return info, lambda: writer("stop", {**run.compose_stop(), **told})


def write_decisions(writer, run, time, n):
    number, whole, text = ({"dtype": kind, "shape": []} for kind in ("number", "integer", "string"))
    array = {"dtype": "array", "shape": [4], "dtype_numpy": "<f8"}
    kinds = {
        **dict.fromkeys(("agent_y", "agent_x", "agent_expected_gain"), array),
        **dict.fromkeys(("agent_n_proposed", "agent_n_ingested", "agent_n_pending"), whole),
        "agent_decision_s": number, "agent_acquisition": text, "agent_reason": text,
    }  # fmt: skip
    keys = {key: {"source": "test", **kind} for key, kind in kinds.items()}
    agent = run.compose_descriptor(name="agent", data_keys=keys)
    writer("descriptor", agent.descriptor_doc)
    for k in range(n):
        places = np.full((2, 4), np.nan)
        places[:, :3] = POSITIONS_M[3 * k : 3 * k + 3].T
        data = {
            "agent_y": places[0].tolist(), "agent_x": places[1].tolist(),
            "agent_expected_gain": [0.5, 0.25, 0.125, np.nan],
            "agent_n_proposed": 3, "agent_n_ingested": 3 * k, "agent_n_pending": 0, "agent_decision_s": 0.02,
            "agent_acquisition": "gain", "agent_reason": ("fill", "adapt", EVIL)[k],
        }  # fmt: skip
        at = time + 3 * k + 0.5
        writer("event", agent.compose_event(data=data, timestamps=dict.fromkeys(data, at), time=at))


@contextlib.contextmanager
def opened(directory):
    """Serve a folder with its page and fill it: (address, catalog, ...); a run goes on in it."""

    def page(uri):
        return stack.enter_context(
            contextlib.closing(Page(lambda: open_catalog(uri), KEY, public=False, config=load_config()))
        )

    with contextlib.ExitStack() as stack:
        uri = stack.enter_context(serve(directory, api_key=KEY, page=page))
        catalog = stack.enter_context(contextlib.closing(open_catalog(uri)))
        folder = directory / "journal"
        raw, processed = (
            stack.enter_context(contextlib.closing(Journal(folder / each))) for each in ("raw", "processed")
        )
        feeder = stack.enter_context(contextlib.closing(Feeder(folder, catalog)))

        def publisher(info, uid):
            return ResultPublisher(info, directory / "results", processed, derived_uid=uid)

        first, end = begin_raw(raw, "aaaa1111-raw", 7, 9, 1.7e9, decisions=3)
        end()
        result = publisher(first, "dddd4444-complete")
        for n in (3, 6):
            result.publish(make_estimate(n))
        result.close(make_estimate())
        again = publisher(first, "eeee5555-again")
        again.close(make_estimate(object=OBJECT * np.exp(0.1j * (np.arange(GRID) > 24)).astype(np.complex64)))
        _, end = begin_raw(raw, "bbbb2222-raw", 8, 4, 1.7e9 + 100, decisions=0)
        end()
        going, _ = begin_raw(raw, "cccc3333-raw", 9, 6, 1.7e9 + 200, decisions=2)
        live = publisher(going, "ffff6666-going")
        live.publish(make_estimate(3))
        feeder.feed()

        @contextlib.contextmanager
        def begun():
            """A run that is measured, with no image yet; give what publishes some at once. It is gone afterwards."""
            # Begun after all results, which are made now.
            info, _ = begin_raw(raw, "gggg7777-raw", 11, 3, 4e9, decisions=0)
            another = publisher(info, "hhhh8888-begun")
            feeder.feed()
            try:
                yield lambda *numbers: ([another.publish(make_estimate(n)) for n in numbers], feeder.feed())
            finally:
                another.close(None, "abort")
                feeder.feed()
                for container, uid in ((catalog.raw, "gggg7777-raw"), (catalog.processed, "hhhh8888-begun")):
                    container.delete_contents(uid, recursive=True, external_only=False)

        @contextlib.contextmanager
        def written_raw(*uids):
            """Raw runs that have ended; with what writes one again. They are gone afterwards."""

            def write(uid, n):
                _, end = begin_raw(raw, uid, 12, n, 5e9, decisions=0, n_told=3)
                end()
                feeder.feed()

            for uid in uids:
                write(uid, 3)
            try:
                yield uids, write
            finally:
                for uid in uids:
                    catalog.raw.delete_contents(uid, recursive=True, external_only=False)

        yield SimpleNamespace(
            directory=directory, written_raw=written_raw,
            address=uri.partition("/api/v1")[0], catalog=catalog, complete="dddd4444-complete", again="eeee5555-again",
            raw="aaaa1111-raw", without="bbbb2222-raw", going="ffff6666-going", going_raw="cccc3333-raw",
            begun=begun,
            publish_live=lambda n: (live.publish(make_estimate(n)), feeder.feed()),
        )  # fmt: skip
        live.close(None, "abort")


@pytest.fixture(scope="module")
def place(loaded, patient, empty_catalog, tmp_path_factory):
    with opened(shutil.copytree(empty_catalog, tmp_path_factory.mktemp("page") / "catalog")) as found:
        yield found


@pytest.fixture(scope="session")
def loaded():
    """The page loads PyTorch beside its answers; where it is there already, no test meets half of it."""
    import torch

    return torch


@pytest.fixture(scope="session")
def sample():
    """What the catalog was made of."""
    return SimpleNamespace(
        KEY=KEY, EVIL=EVIL, PIXEL_M=PIXEL_M, ORIGIN_M=ORIGIN_M, GEOMETRY=GEOMETRY, OBJECT=OBJECT, PROBE=PROBE,
        POSITIONS_M=POSITIONS_M,
        EXPECTED=EXPECTED, COUNTS=COUNTS, N=N, GRID=GRID, make_estimate=make_estimate,
    )  # fmt: skip
