import dataclasses
import threading
from datetime import datetime

import h5py
import numpy as np
import pytest
from event_model import DocumentNames, schema_validators

from bluesky_cdi.catalog import ResultPublisher, load_result, results
from bluesky_cdi.catalog.result_file import IMAGES, SHOWN
from bluesky_cdi.config import load_config
from bluesky_cdi.errors import CatalogError, DocumentError

SOON_S = 120.0


class Documents(list):
    """Collects documents, each checked against its schema."""

    def __call__(self, name, doc):
        schema_validators[DocumentNames[name]].validate(doc)
        self.append((name, doc))

    def of(self, name):
        return [doc for n, doc in self if n == name]


@pytest.fixture
def documents():
    return Documents()


@pytest.fixture
def publisher(info, tmp_path, documents):
    return ResultPublisher(info, tmp_path / "results", documents, derived_uid="1b1b1b1b-derived")


def read_file(tmp_path):
    return h5py.File(tmp_path / "results" / "1b1b1b1b-derived.h5", "r", libver="latest", swmr=True)


def test_documents_of_a_whole_run(publisher, documents, make_estimate, tmp_path):
    estimates = [make_estimate(seed) for seed in range(3)]
    for estimate in estimates[:2]:
        publisher.publish(estimate)
    publisher.close(estimates[2])

    start, stop = documents[0][1], documents[-1][1]
    assert (documents[0][0], documents[-1][0]) == ("start", "stop")
    assert start["uid"] == publisher.uid == "1b1b1b1b-derived"
    assert (start["plan_name"], start["raw_uid"], start["scan_id"]) == ("cdi_reconstruction", "0a0a0a0a-raw", 7)
    assert start["source"] == estimates[0].source
    assert start["geometry"]["energy_ev"] == 8000
    assert start["tiled_specs"] == ["CDIReconstruction"]
    assert [doc["name"] for doc in documents.of("descriptor")] == ["reconstruction", "frames", "maps"]
    assert stop["num_events"] == {"reconstruction": 3, "frames": 6, "maps": 1}
    assert (stop["exit_status"], stop["complete"], stop["n_frames"]) == ("success", True, 6)
    events = documents.of("event")
    assert [event["seq_num"] for event in events] == [1, 2, 3]
    assert events[1]["data"]["median_residual"] == np.median(estimates[1].residual)
    configuration = documents.of("descriptor")[0]["configuration"]["bluesky_cdi"]["data"]
    assert configuration == {
        "pixel_m": estimates[0].pixel_m,
        "origin_y_m": estimates[0].origin_m[0],
        "origin_x_m": estimates[0].origin_m[1],
    }
    with read_file(tmp_path) as file:
        assert file.attrs["complete"]
        np.testing.assert_array_equal(file["reconstruction/object"], np.stack([e.object for e in estimates]))
        np.testing.assert_array_equal(file["frames/y_m"], estimates[2].positions_m[:, 0])


def test_residuals_lie_where_the_light_fell(publisher, make_estimate, tmp_path):
    estimate = make_estimate(0, n=1, d=1)
    probe = np.zeros((1, 8, 8), np.complex64)
    probe[0, 4, 4:6] = 1.0
    at = np.array([[5, 9]])
    positions_m = np.array(estimate.origin_m) + at * estimate.pixel_m
    publisher.close(dataclasses.replace(estimate, probe=probe, positions_m=positions_m))
    with read_file(tmp_path) as file:
        residual = file["maps/residual_map"][0]
    wanted = np.full((16, 16), np.nan)
    wanted[5, 9:11] = estimate.residual[0]
    np.testing.assert_allclose(residual, wanted, rtol=1e-6)


def test_any_client_can_draw_what_is_written_beside_the_complex_images(publisher, make_estimate, tmp_path):
    """Exit waves are what they were: the phase that the object loses goes to the probe."""
    estimate = dataclasses.replace(make_estimate(0), object=make_estimate(0).object + 3j)
    publisher.close(estimate)
    with read_file(tmp_path) as file:
        shown = {name: file[f"reconstruction/{name}"][0] for name in SHOWN}
    assert {image.dtype for image in shown.values()} == {np.dtype(np.float32)}
    object_, probe = (
        shown[f"{part}amplitude"] * np.exp(1j * shown[f"{part}phase"].astype(float)) for part in ("", "probe_")
    )
    measured = estimate.coverage >= 0.02 * estimate.coverage.max()
    assert abs(np.angle(object_[measured].sum())) < 1e-6
    np.testing.assert_allclose(abs(object_), abs(estimate.object), rtol=1e-6)
    waves = (np.multiply.outer(p, o) for p, o in ((probe, object_), (estimate.probe, estimate.object)))
    np.testing.assert_allclose(*waves, atol=1e-4)


def test_the_title_is_for_people(info, tmp_path, documents):
    noon = datetime(2026, 3, 4, 12, 5).timestamp()
    metadata = {**info.metadata, "plan_name": "ptycho_raster", "time": noon}
    ResultPublisher(dataclasses.replace(info, metadata=metadata), tmp_path, documents).close(None)
    assert documents[0][1]["title"] == "ptycho_raster, scan 7, 2026-03-04 12:05"


def test_frames_belong_to_rows_in_order(publisher, documents, make_estimate):
    publisher.publish(make_estimate(0))
    publisher.publish(make_estimate(1))
    spans = [(d["indices"], d["seq_nums"]) for d in documents.of("stream_datum")]
    assert (
        spans
        == [({"start": 0, "stop": 1}, {"start": 1, "stop": 2})] * 9
        + [({"start": 1, "stop": 2}, {"start": 2, "stop": 3})] * 9
    )
    publisher.close(None, "abort")


def test_file_is_readable_while_it_grows(publisher, make_estimate, tmp_path):
    estimate = make_estimate(3)
    publisher.publish(estimate)
    with read_file(tmp_path) as file:
        assert not file.attrs["complete"]
        np.testing.assert_array_equal(file["reconstruction/object"][0], estimate.object)
        publisher.publish(estimate)
        file["reconstruction/object"].id.refresh()
        assert file["reconstruction/object"].shape[0] == 2
    publisher.close(None, "abort")


def test_failure_leaves_a_stop_document_and_an_incomplete_file(publisher, documents, make_estimate, tmp_path):
    publisher.publish(make_estimate(0))
    publisher.close(None, "fail", "the worker stopped")
    publisher.close(make_estimate(1))
    (stop,) = documents.of("stop")
    assert (stop["exit_status"], stop["reason"], stop["complete"]) == ("fail", "the worker stopped", False)
    with read_file(tmp_path) as file:
        assert not file.attrs["complete"]
    with pytest.raises(DocumentError, match="is closed"):
        publisher.publish(make_estimate(1))


def test_what_a_failed_result_tells_of_its_run_is_kept(publisher, documents, make_estimate):
    estimate = make_estimate(0)
    publisher.publish(estimate)
    publisher.close(dataclasses.replace(estimate, source={**estimate.source, "dropped_frames": 2}), "fail", "broken")
    (stop,) = documents.of("stop")
    assert (stop["complete"], stop["source"], "verdict" in stop) == (False, {"dropped_frames": 2}, False)


def test_no_estimate_at_all(publisher, documents, tmp_path):
    publisher.close(None, "abort", "stopped by the user")
    assert [name for name, _ in documents] == ["start", "stop"]
    assert not (tmp_path / "results").exists()


def test_aborted_scan_may_have_a_complete_reconstruction(publisher, documents, make_estimate):
    publisher.close(make_estimate(0), "abort", "stopped by the user")
    (stop,) = documents.of("stop")
    assert (stop["exit_status"], stop["complete"]) == ("abort", True)


@pytest.mark.parametrize(
    "change", [{"grid": (16, 18)}, {"d": 3}, {"origin_m": (0.0, 0.0)}, {"pixel_m": 1e-9}], ids=lambda c: next(iter(c))
)
def test_another_grid_is_refused_and_the_run_still_ends(publisher, documents, make_estimate, change):
    publisher.publish(make_estimate(0))
    fields = {key: value for key, value in change.items() if key in ("origin_m", "pixel_m")}
    shapes = {key: value for key, value in change.items() if key not in fields}
    other = dataclasses.replace(make_estimate(1, **shapes), **fields)
    with pytest.raises(DocumentError, match="must share one grid"):
        publisher.publish(other)
    with pytest.raises(DocumentError, match="must share one grid"):
        publisher.close(other)
    (stop,) = documents.of("stop")
    assert (stop["exit_status"], stop["complete"]) == ("fail", False)


def test_update_that_failed_half_way_is_overwritten(publisher, documents, make_estimate, tmp_path, monkeypatch):
    from bluesky_cdi.catalog.result_file import ResultFile

    estimates = [make_estimate(seed) for seed in range(3)]
    publisher.publish(estimates[0])
    write = ResultFile.write

    def full_disk(self, group, start, rows):
        write(self, group, start, {"object": rows["object"]})
        raise OSError("no space left on device")

    with monkeypatch.context() as patched, pytest.raises(OSError, match="no space"):
        patched.setattr(ResultFile, "write", full_disk)
        publisher.publish(estimates[1])
    publisher.close(estimates[2])
    assert len(documents.of("event")) == 2
    with read_file(tmp_path) as file:
        for name in ("object", "coverage"):
            np.testing.assert_array_equal(file[f"reconstruction/{name}"][1], getattr(estimates[2], name))
            assert len(file[f"reconstruction/{name}"]) == 2


def test_existing_file_is_not_overwritten(info, tmp_path, documents, make_estimate):
    (tmp_path / "u.h5").write_text("precious")
    publisher = ResultPublisher(info, tmp_path, documents, derived_uid="u")
    with pytest.raises(CatalogError, match="can't create the result's file"):
        publisher.publish(make_estimate(0))
    publisher.close(None, "fail", "disk")
    assert (tmp_path / "u.h5").read_text() == "precious"
    assert documents[-1][0] == "stop"


def test_source_with_things_that_json_lacks(info, tmp_path, documents, make_estimate):
    source = {"lr": np.float32(0.5), "shape": (2, 3), "weights": tmp_path, "scales": np.arange(2)}
    publisher = ResultPublisher(info, tmp_path, documents)
    publisher.close(dataclasses.replace(make_estimate(0), source=source))
    assert documents[0][1]["source"] == {"lr": 0.5, "shape": [2, 3], "weights": str(tmp_path), "scales": [0, 1]}


def test_no_frames_yet(info, tmp_path, documents, make_estimate):
    publisher = ResultPublisher(info, tmp_path, documents)
    publisher.close(make_estimate(0, n=0))
    assert np.isnan(documents.of("event")[0]["data"]["median_residual"])


def test_bit_exact_through_two_sessions(session, journals, directory, info, tmp_path, make_estimate, assert_equal):
    """Written in one session, read in it and in the next one; the folder lies outside the catalog's."""
    outside = tmp_path / "outside"
    estimates = [make_estimate(seed) for seed in range(2)]
    with session(directory, readable=[outside]) as catalog:
        with journals(catalog, tmp_path) as written:
            publisher = ResultPublisher(info, outside, written.processed)
            publisher.publish(estimates[0])
            publisher.close(estimates[1])
        run = catalog.processed[publisher.uid]
        assert run.validate(raise_on_error=True)
        assert {spec.name for spec in run.specs} == {"CDIReconstruction", "BlueskyRun"}
        assert [name for name, _ in run.documents()][-1] == "stop"
        np.testing.assert_array_equal(run["frames/embedding"].read(), estimates[1].embedding)
        images = run["reconstruction"].read()
        assert images["object"].dims == ("time", "canvas_row", "canvas_col")
        np.testing.assert_array_equal(images["object"][0], estimates[0].object)
    with session(directory, readable=[outside]) as catalog:
        assert_equal(load_result(catalog, publisher.uid), estimates[1])


def test_results_of_before_amplitude_and_phase_stay_readable(
    catalog, journals, directory, info, tmp_path, make_estimate, assert_equal, monkeypatch
):
    monkeypatch.setattr(results, "UPDATED", IMAGES)
    estimate = make_estimate(0)
    with journals(catalog, tmp_path) as written:
        publisher = ResultPublisher(info, directory / "results", written.processed)
        publisher.close(estimate)
    assert "amplitude" not in catalog.processed[publisher.uid]["reconstruction"].base
    assert_equal(load_result(catalog, publisher.uid), estimate)
    arrays = catalog.latest().to_xarray()
    np.testing.assert_allclose(arrays.amplitude, abs(estimate.object), rtol=1e-6)


def test_reader_beside_the_writer_sees_every_update(
    catalog, journals, directory, tmp_path, info, make_estimate, beside
):
    n = 5
    estimate = make_estimate(0)
    done, has_read = threading.Event(), threading.Event()
    seen, wrong = [], []

    def read():
        while not done.is_set():
            parts = catalog.processed[publisher.uid]["reconstruction"].base
            rows = parts["internal"].read()["seq_num"].tolist()
            seen.append(len(rows))
            image = parts["object"][len(rows) - 1]
            if rows != list(range(1, len(rows) + 1)) or not np.array_equal(image, estimate.object):
                wrong.append(rows)
            has_read.set()

    with journals(catalog, tmp_path) as written:
        publisher = ResultPublisher(info, directory / "results", written.processed)
        publisher.publish(estimate)
        written.feed()
        with beside(read):
            try:
                for _ in range(n - 1):
                    publisher.publish(estimate)
                    written.feed()
                    has_read.clear()
                    assert has_read.wait(SOON_S)
            finally:
                done.set()
        publisher.close(None, "abort")

    # A reading that ends after an update began after the one before it: of every two updates, one is seen.
    assert len(set(seen)) >= n // 2 and not wrong
    rows = catalog.processed[publisher.uid]["reconstruction"].base["internal"].read()
    assert rows["seq_num"].tolist() == list(range(1, n + 1))


def test_what_is_known_at_the_end_stands_in_the_stop_document_and_nothing_is_written_again(
    publisher, documents, make_estimate, tmp_path
):
    estimate = make_estimate(0)
    publisher.publish(estimate)
    resolution = {"target_m": 1e-7, "resolution_m": [None, 9e-8]}
    verdict = {"word": "doubtful", "reasons": ["why"], "remarks": [], "measures": {"noise": None}}
    causes = [{"cause": "detector", "says": "row 3", "frames": [5, 9], "share": np.float64(0.5), "goes_on": True}]
    told = {"verdict": verdict, "causes": causes, "resolution": resolution}
    publisher.close(dataclasses.replace(estimate, source={**estimate.source, **told}))
    start, stop = documents[0][1], documents[-1][1]
    assert {key: stop[key] for key in told} == told
    assert not set(told) & set(start["source"])
    assert stop["num_events"]["reconstruction"] == 1


def test_what_a_scan_has_counted_is_read_back_as_it_was_at_its_end(catalog, journals, directory, info, make_estimate):
    """The start document goes out with the first update, which knows of the first frames alone."""
    first = make_estimate(0)
    last = dataclasses.replace(
        first, source={**first.source, "pipeline": {"received": 9}, "missing_frames": {"count": 2, "seq_nums": [3, 4]}}
    )
    with journals(catalog, directory) as written:
        publisher = ResultPublisher(info, directory / "results", written.processed)
        publisher.publish(dataclasses.replace(first, source={**first.source, "pipeline": {"received": 1}}))
        publisher.close(last)
    assert load_result(catalog, publisher.uid).source == last.source
    assert catalog.processed[publisher.uid].start["source"]["pipeline"] == {"received": 1}


@pytest.mark.parametrize(
    ("key", "said", "why"),
    [
        ("causes", "a bad day", "causes: Input should be a valid list"),
        ("loss_history", {"iteration": [1], "deviance": [2.0], "mood": "fine"}, "loss_history.mood: Extra inputs"),
        ("verdict", "good", "verdict: Input should be a valid dictionary"),
    ],
)
def test_a_note_without_its_form_costs_no_result(publisher, documents, make_estimate, tmp_path, caplog, key, said, why):
    """A reconstructor of one's own learns what others could not read; what was measured is kept whole."""
    estimate = make_estimate(0)
    publisher.close(dataclasses.replace(estimate, source={**estimate.source, "uncertainty": {"a": 1}, key: said}))
    stop = documents[-1][1]
    assert (stop["exit_status"], stop["complete"], stop["uncertainty"]) == ("success", True, {"a": 1})
    assert key not in stop and f"without its {key}" in caplog.text and why in caplog.text
    with read_file(tmp_path) as file:
        assert file.attrs["complete"]


def test_the_settings_of_a_run_are_told_without_the_key_of_the_catalog(info, tmp_path, documents):
    config = load_config(
        overrides={"scan": {"budget": 99}, "catalog": {"uri": "http://a/?api_key=secret", "api_key": "secret"}}
    )
    ResultPublisher(info, tmp_path, documents, configuration=config.as_notes()).close(None)
    assert documents[0][1]["configuration"] == {"scan": {"budget": 99}}


def test_errors_that_were_checked_at_the_end_are_written_with_what_the_check_said(
    publisher, documents, make_estimate, tmp_path
):
    """The object is the same as before: its errors are not."""
    estimate = make_estimate(0)
    publisher.publish(dataclasses.replace(estimate, source={**estimate.source, "uncertainty": {"calibrated": True}}))
    said = {"calibrated": True, "check": {"factors": {"phase": np.float64(2.0)}, "says": "widened by 2.00"}}
    wider = np.asarray(2 * estimate.std_phase_rad, np.float32)
    source = {**estimate.source, "uncertainty": said}
    publisher.close(dataclasses.replace(estimate, std_phase_rad=wider, source=source))
    assert documents[-1][1]["uncertainty"] == said
    with read_file(tmp_path) as file:
        np.testing.assert_array_equal(file["reconstruction/std_phase_rad"][-1], wider)
