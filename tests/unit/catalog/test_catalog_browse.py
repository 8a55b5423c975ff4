import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from event_model import compose_run

from bluesky_cdi.catalog import ResultPublisher, find_raw, find_results, list_results, load_result
from bluesky_cdi.errors import CatalogError
from bluesky_cdi.evaluation.verdict import with_verdict
from bluesky_cdi.export import load_to_export
from bluesky_cdi.physics.geometry import HC_EV_M, Geometry
from bluesky_cdi.plain import as_plain
from bluesky_cdi.protocols import RunInfo

# Its sample pixel is that of the estimates.
GEOMETRY = {"energy_ev": 8000.0, "distance_m": 2.0, "detector_pixel_m": HC_EV_M / 8000.0 * 2.0 / (8 * 2.8e-8 / 3)}


def write_raw(writer, uid, scan_id, n, finished=True):
    run = compose_run(
        uid=uid, time=float(scan_id), metadata={"scan_id": scan_id, "plan_name": "adaptive", "geometry": GEOMETRY}
    )
    keys = {"x": {"source": "test", "dtype": "number", "shape": []}}
    described = run.compose_descriptor(name="primary", data_keys=keys)
    writer("start", run.start_doc)
    writer("descriptor", described.descriptor_doc)
    for i in range(n):
        writer("event", described.compose_event(data={"x": float(i)}, timestamps={"x": 0.0}))
    if finished:
        writer("stop", run.compose_stop())
    return RunInfo(uid, scan_id, run.start_doc, (8, 8))


@pytest.fixture(scope="module")
def estimates(make_estimate):
    first, second = (make_estimate(seed) for seed in range(2))
    causes = [{"cause": "detector", "says": "row 3", "frames": [1, 2], "share": 0.5, "goes_on": True}]
    return [with_verdict(replace(first, source={**first.source, "causes": causes})), second]


@pytest.fixture(scope="module")
def catalog(session, journals, empty_catalog, tmp_path_factory, info, estimates):
    """Scan 1 with a complete and an empty result, scans 2 and 3 without; of another run a failed and an open one."""
    directory = shutil.copytree(empty_catalog, tmp_path_factory.mktemp("browse") / "catalog")
    with session(directory) as opened, journals(opened, directory) as written:

        def publisher(of, uid):
            return ResultPublisher(of, directory / "results", written.processed, derived_uid=uid)

        scan_1 = write_raw(written.raw, "aaaa1111-raw", 1, n=4)
        write_raw(written.raw, "bbbb2222-raw", 2, n=3)
        write_raw(written.raw, "cccc3333-raw", 3, n=3, finished=False)
        publisher(scan_1, "dddd4444-complete").close(estimates[0])
        publisher(scan_1, "eeee5555-empty").close(None, "abort", "stopped by the user")
        failed = publisher(info, "ffff6666-failed")
        for estimate in estimates:
            failed.publish(estimate)
        failed.close(None, "fail", "the worker stopped")
        going = publisher(info, "abcd7777-going")
        going.publish(estimates[0])
        written.feed()
        yield opened


def test_list(catalog, estimates):
    rows = {row.uid or row.raw_uid: row for row in list_results(catalog)}
    assert list(rows) == [
        *("bbbb2222-raw", "cccc3333-raw"),
        *("dddd4444-complete", "eeee5555-empty", "ffff6666-failed", "abcd7777-going"),
    ]
    complete = rows["dddd4444-complete"]
    assert (complete.raw_uid, complete.scan_id, complete.plan_name) == ("aaaa1111-raw", 1, "adaptive")
    assert (complete.n_frames, complete.exit_status, complete.complete) == (6, "success", True)
    assert complete.verdict == estimates[0].source["verdict"]["word"]
    assert {row.verdict for row in rows.values() if row is not complete} == {None}
    bare = rows["bbbb2222-raw"]
    assert (bare.uid, bare.scan_id, bare.time, bare.n_frames, bare.complete) == (None, 2, 2.0, 3, False)
    going = rows["cccc3333-raw"]
    assert (going.n_frames, going.exit_status) == (None, None)
    assert (rows["eeee5555-empty"].exit_status, rows["eeee5555-empty"].complete) == ("abort", False)
    assert (rows["ffff6666-failed"].exit_status, rows["abcd7777-going"].exit_status) == ("fail", None)
    assert rows["ffff6666-failed"].plan_name is None


def test_links_both_ways(catalog):
    found = find_results(catalog, "aaaa1111-raw")
    assert [row.uid for row in found] == ["dddd4444-complete", "eeee5555-empty"]
    assert find_results(catalog, "bbbb2222-raw") == []
    for result in (found[0], "dddd4444", 1):
        assert find_raw(catalog, result).start["uid"] == "aaaa1111-raw"
    with pytest.raises(CatalogError, match="does not hold the raw run 0a0a0a0a-raw"):
        find_raw(catalog, -1)


def test_load(catalog, estimates, assert_equal):
    assert_equal(load_result(catalog, "dddd"), estimates[0])
    assert load_result(catalog, "dddd").source["verdict"] == as_plain(estimates[0].source["verdict"])
    assert load_result(catalog, "dddd").source["causes"] == estimates[0].source["causes"]
    of_failed = load_result(catalog, "ffff6666", update=1)
    assert "verdict" not in of_failed.source
    np.testing.assert_array_equal(of_failed.object, estimates[1].object)
    assert of_failed.embedding.shape == (0, 0)


@pytest.mark.parametrize(
    ("which", "update", "match"),
    [
        (99, -1, "no result of scan 99"),
        ("zzzz", -1, "begins with 'zzzz'"),
        (-5, -1, r"no result \[-5\].*holds 4 result"),
        ("aaaa1111", -1, "2 results match 'aaaa1111': dddd4444-complete, eeee5555-empty"),
        ("dddd", 1, "holds 1 update.*no update 1"),
        ("dddd", -2, "holds 1 update.*no update -2"),
        ("ffff", -1, r"ended with 'fail' \(the worker stopped\); it holds 2 .*pass update=1"),
        (-1, -1, "abcd7777-going has no stop document.*holds 1 update"),
        # The newest result of scan 1.
        (1, -1, r"ended with 'abort' \(stopped by the user\); it holds 0 update\(s\): there is nothing to load"),
    ],
)
def test_what_can_not_be_loaded(catalog, which, update, match):
    with pytest.raises(CatalogError, match=match):
        load_result(catalog, which, update)


def test_importing_the_package_is_cheap():
    code = "import sys, bluesky_cdi.catalog; print([m for m in ('tiled', 'torch', 'bluesky') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_public_names_resolve():
    import bluesky_cdi.catalog as package

    for name in package.__all__:
        assert getattr(package, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = package.nothing


def test_what_is_exported_has_its_geometry_and_says_a_bad_verdict(catalog, estimates, assert_equal, caplog):
    result = load_to_export(catalog, "dddd4444")
    assert_equal(result.estimate, estimates[0])
    assert result.geometry == Geometry(**GEOMETRY, frame_px=8)
    assert result.name.startswith("adaptive, scan 1, 19")
    (said,) = (record.getMessage() for record in caplog.records)
    assert said == f"the verdict on {result.name} is doubtful: {'; '.join(estimates[0].source['verdict']['reasons'])}"
