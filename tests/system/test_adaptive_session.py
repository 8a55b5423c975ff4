"""One adaptive scan, from the devices to the result read back from the catalog."""

import contextlib
import threading
from dataclasses import fields
from types import SimpleNamespace

import numpy as np
import pytest

from bluesky_cdi import evaluation
from bluesky_cdi.catalog import find_raw, find_results, load_result, open_catalog, serve
from bluesky_cdi.protocols import Estimate
from bluesky_cdi.session import Session

BUDGET = 28
# Twice what this seed gives; vacuum has about 0.9.
NRMSE_BOUND = 0.4


@pytest.fixture(scope="module")
def scan(open_lab, make_config):
    config, before = make_config(), set(threading.enumerate())
    with open_lab(config) as lab:
        reason = lab.run(lab.adaptive(budget=BUDGET))
        lab.session.wait()
        raw = lab.session.catalog.raw[lab.docs.of("start")[0]["uid"]]
        in_catalog = SimpleNamespace(
            frames=raw["primary"]["diff_image"].read(), agent=raw["agent"].read(), valid=raw.validate()
        )
    threads = [thread.name for thread in set(threading.enumerate()) - before]
    return SimpleNamespace(
        config=config, lab=lab, docs=lab.docs, derived=lab.derived, history=lab.history, reason=reason,
        raw=in_catalog, latest=lab.session.live.latest, directory=lab.session.directory, threads=threads,
        truth=lab.beamline.truth, raw_uid=lab.docs.of("start")[0]["uid"],
    )  # fmt: skip


def test_every_document_is_valid(scan):
    for documents in (scan.docs, scan.derived):
        documents.validate()
        assert documents[0][0] == "start" and documents[-1][0] == "stop"
        assert documents[-1][1]["exit_status"] == "success"


def test_the_budget_is_used_exactly(scan):
    assert scan.reason == "budget"
    assert scan.docs.of("stop")[0]["num_events"]["primary"] == BUDGET
    assert scan.latest.n_frames == BUDGET


def test_proposals_are_what_was_measured(scan):
    np.testing.assert_allclose(scan.docs.decided_m, scan.docs.measured_m, atol=1e-12)
    decided = np.column_stack([scan.raw.agent["agent_y"].values.ravel(), scan.raw.agent["agent_x"].values.ravel()])
    decided = decided[np.isfinite(decided).all(axis=1)]
    np.testing.assert_allclose(decided, scan.docs.measured_m, atol=1e-12)
    assert len(np.unique(scan.docs.measured_m.round(10), axis=0)) == BUDGET


def test_decisions_rest_on_what_was_measured_before(scan):
    known, measured = 0, 0
    *decisions, end = scan.docs.of("event", "agent")
    assert end["data"]["agent_reason"] == "budget" and end["data"]["agent_n_proposed"] == 0
    for event in decisions:
        data = event["data"]
        assert known <= data["agent_n_ingested"] <= measured
        assert data["agent_decision_s"] > 0
        known, measured = data["agent_n_ingested"], measured + data["agent_n_proposed"]
    assert known > 0


def test_frames_are_in_the_catalog(scan):
    totals = [e["data"]["diff_total"] for e in scan.docs.of("event", "primary")]
    np.testing.assert_array_equal(scan.raw.frames.sum(axis=(1, 2)), totals)


def test_runs_refer_to_each_other(scan):
    (raw,), (derived,) = scan.docs.of("start"), scan.derived.of("start")
    assert raw["reconstruction_uid"] == derived["uid"]
    assert derived["raw_uid"] == raw["uid"]
    assert derived["scan_id"] == raw["scan_id"] == 1


def test_estimates_grow_and_stay_on_one_grid(scan):
    frames = [e.n_frames for e in scan.history]
    # Every decision but the first two waits for frames, however late the updates are.
    assert frames == sorted(frames) and frames[-1] == BUDGET and len(set(frames)) >= 2
    assert len({(e.object.shape, e.origin_m, e.pixel_m) for e in scan.history}) == 1
    np.testing.assert_allclose(scan.latest.positions_m, scan.docs.measured_m, atol=1e-12)


def assert_is_latest(found, scan):
    for f in fields(Estimate):
        a, b = getattr(found, f.name), getattr(scan.latest, f.name)
        if isinstance(b, np.ndarray):
            np.testing.assert_array_equal(a, b, err_msg=f.name)
        elif f.name != "source":
            assert a == b, f.name
    assert found.source["weights_sha256"] == scan.latest.source["weights_sha256"]


def test_a_second_session_finds_result_and_number(scan):
    with contextlib.closing(Session(scan.config, scan.directory)) as session:
        assert session.RE.md["scan_id"] == 1
        assert_is_latest(load_result(session.catalog, -1), scan)


def test_a_server_on_the_folder_finds_the_result(scan):
    with serve(scan.directory) as uri, contextlib.closing(open_catalog(uri)) as catalog:
        assert_is_latest(load_result(catalog, scan.raw_uid), scan)
        (result,) = find_results(catalog, scan.raw_uid)
        assert (result.complete, result.n_frames, result.exit_status) == (True, BUDGET, "success")
        assert find_raw(catalog, result).start["uid"] == scan.raw_uid


def test_the_image_is_good(scan):
    e, truth = scan.latest, scan.truth
    found = evaluation.compare_estimate(e, truth.object, truth.origin_m).numbers
    assert found["complex_nrmse"] < NRMSE_BOUND
    assert found["complex_nrmse"] < 0.5  # vacuum has 1


def test_nothing_is_left_running(scan):
    assert not [name for name in scan.threads if name.startswith("bluesky_cdi")]
    assert not {"tiled-server", "bluesky-run-engine"} & set(scan.threads)
    scan.lab.session.close()
    scan.lab.session.close()
