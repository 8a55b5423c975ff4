import io
import shutil
import subprocess
import sys
from dataclasses import replace
from datetime import date, datetime

import numpy as np
import pytest
from event_model import compose_run
from PIL import Image

from bluesky_cdi.catalog import ResultPublisher, find_raw, find_results, list_results, load_result
from bluesky_cdi.errors import CatalogError
from bluesky_cdi.evaluation.verdict import with_verdict
from bluesky_cdi.export import load_to_export
from bluesky_cdi.physics.geometry import HC_EV_M, Geometry
from bluesky_cdi.plain import as_plain
from bluesky_cdi.protocols import RunInfo

# Its sample pixel is that of the estimates.
GEOMETRY = {"energy_ev": 8000.0, "distance_m": 2.0, "detector_pixel_m": HC_EV_M / 8000.0 * 2.0 / (8 * 2.8e-8 / 3)}
MORNING = datetime(2026, 3, 4, 8).timestamp()
SAMPLE = "<b>Star</b> & co"


def write_raw(writer, uid, scan_id, n, finished=True):
    run = compose_run(
        uid=uid,
        time=MORNING + 3600.0 * scan_id,
        metadata={"scan_id": scan_id, "plan_name": "adaptive", "geometry": GEOMETRY, "sample": SAMPLE},
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
    assert (bare.uid, bare.scan_id, bare.n_frames, bare.complete) == (None, 2, 3, False)
    assert bare.time == bare.raw_time == MORNING + 7200.0
    assert complete.raw_time == MORNING + 3600.0
    assert complete.title == "adaptive, scan 1, 2026-03-04 09:00"
    assert {row.sample for row in rows.values() if row.plan_name} == {SAMPLE}
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
    assert result.name.startswith("adaptive, scan 1, 2026-03-04 09:00")
    (said,) = (record.getMessage() for record in caplog.records)
    assert said == f"the verdict on {result.name} is doubtful: {'; '.join(estimates[0].source['verdict']['reasons'])}"


def found(catalog, **wanted):
    return [result.uid[:4] for result in catalog.search(**wanted)]


def test_the_latest_is_the_newest_that_is_complete(catalog, estimates, assert_equal):
    assert catalog.latest().uid == "dddd4444-complete"
    assert_equal(catalog.latest().estimate, estimates[0])


@pytest.mark.parametrize(
    ("wanted", "is_found"),
    [
        ({}, True),
        ({"sample": SAMPLE}, True),
        ({"sample": "*star*"}, True),
        ({"sample": "star"}, False),
        ({"plan": "ADAPTIVE"}, True),
        ({"plan": "raster"}, False),
        ({"quality": "doubtful"}, True),
        ({"quality": ("good", "doubtful")}, True),
        ({"quality": "good"}, False),
        ({"since": "2026-03-04"}, True),
        ({"since": "2026-03-04 09:01"}, False),
        ({"until": "2026-03-04"}, True),
        ({"until": date(2026, 3, 3)}, False),
        ({"since": datetime(2026, 3, 4, 9), "until": datetime(2026, 3, 4, 9)}, True),
        ({"sample": "*star*", "quality": "failed"}, False),
    ],
)
def test_search(catalog, wanted, is_found):
    assert found(catalog, **wanted) == ["dddd"] * is_found


def test_what_is_not_complete_is_found_where_that_is_asked_for(catalog):
    assert found(catalog, complete=False) == ["dddd", "eeee", "ffff", "abcd"]
    assert found(catalog, complete=False, plan="adaptive") == ["dddd", "eeee"]


@pytest.mark.parametrize(
    ("wanted", "match"), [({"quality": "nice"}, "one of good, doubtful, failed; got nice"), ({"since": "May"}, "'May'")]
)
def test_what_can_not_be_searched_for(catalog, wanted, match):
    with pytest.raises(CatalogError, match=match):
        catalog.search(**wanted)


def test_a_result_has_its_axes_in_metres(catalog, estimates):
    (wanted, _), result = estimates, catalog["dddd"]
    arrays = result.to_xarray()
    np.testing.assert_array_equal(arrays.object, wanted.object)
    np.testing.assert_allclose(arrays.y, wanted.origin_m[0] + wanted.pixel_m * np.arange(16), rtol=1e-12)
    assert float(arrays.x[3] - arrays.x[0]) == pytest.approx(3 * wanted.pixel_m)
    assert float(arrays.probe_x[4]) == 0.0 and arrays.probe.dims == ("probe_mode", "probe_y", "probe_x")
    np.testing.assert_array_equal(arrays.frame_seq_num, wanted.frame_seq_nums)
    np.testing.assert_array_equal(arrays.x_m, wanted.positions_m[:, 1])
    assert (arrays.y.units, arrays.phase.units, arrays.std_phase_rad.units) == ("m", "rad", "rad")
    assert arrays.attrs["sample"] == SAMPLE and arrays.attrs["verdict"] == "doubtful"
    # Every pixel is where the stage's axes say, also after a selection.
    nearest = arrays.amplitude.sel(y=wanted.origin_m[0] + 5.2 * wanted.pixel_m, x=arrays.x[7], method="nearest")
    assert float(nearest) == np.float32(abs(wanted.object[5, 7]))


def test_how_a_result_came_about(catalog, estimates):
    result = catalog["dddd"]
    assert result.updates.n_frames.values.tolist() == [6]
    assert float(result.updates.median_residual[0]) == np.median(estimates[0].residual)
    assert result.decisions == [] and result.loss_history is None
    assert result.verdict.startswith("doubtful: ")
    versions = result.start["versions"]
    assert versions["numpy"] == np.__version__ and versions["bluesky_cdi"]


def test_the_thumbnail_is_a_small_picture(catalog):
    with Image.open(io.BytesIO(catalog["dddd"].thumbnail)) as image:
        assert (image.format, image.size) == ("PNG", (16, 16))
    assert catalog["ffff"].thumbnail is None


def test_metadata_in_a_notebook_is_text(catalog):
    for shown in (catalog["dddd"], catalog.search(), catalog):
        page = shown._repr_html_()
        assert "&lt;b&gt;Star&lt;/b&gt; &amp; co" in page and "<b>" not in page
    assert "not complete" in catalog["ffff"]._repr_html_()
    said = f"adaptive, scan 1, 2026-03-04 09:00, {SAMPLE}, 6 frames, doubtful"
    assert repr(catalog.search()[0]) == f"<Result dddd4444: {said}>"


def test_of_what_is_not_complete_there_is_no_image(catalog):
    for show in ("plot", "to_xarray"):
        with pytest.raises(CatalogError, match="ended with 'fail'"):
            getattr(catalog["ffff"], show)()
