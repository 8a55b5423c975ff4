"""How far the frames of a scan are on their way into the image, as updates and documents tell it."""

import math
import re
from dataclasses import fields

from bluesky_cdi.catalog.result_file import SCALARS
from bluesky_cdi.evaluation.pipeline import pipeline_numbers, pipeline_said
from bluesky_cdi.evaluation.verdict import Measures
from bluesky_cdi.web.application import static_files
from bluesky_cdi.web.run_view import COUNTED, _pipeline

COUNTS = {
    "received": 12, "imaged": 6, "waiting": 3, "thinned": 2, "bad": 1, "dark": 0, "ever_thinned": 4,
    "latency_p50_s": 0.4, "latency_p95_s": 1.2,
}  # fmt: skip
SHOWN = {name: value for name, value in COUNTS.items() if name != "ever_thinned"}


def updates(*sources):
    rows = [pipeline_numbers(source) for source in sources]
    return {name: [row[name] for row in rows] for name in COUNTED} | {"n_frames": [2, 6][-len(rows) :]}


def test_each_update_has_the_counts_as_columns():
    numbers = pipeline_numbers({"pipeline": COUNTS})
    assert list(numbers) == list(COUNTED) and set(numbers) < set(SCALARS)
    assert (numbers["n_received"], numbers["n_thinned"], numbers["latency_p95_s"]) == (12.0, 2.0, 1.2)
    assert all(math.isnan(value) for value in pipeline_numbers({}).values())
    assert math.isnan(pipeline_numbers({"pipeline": {**COUNTS, "latency_p50_s": None}})["latency_p50_s"])
    assert pipeline_said({"pipeline": COUNTS}).startswith("6 of 12 frames in the image, 3 waiting, 2 thinned, 1 bad")


def test_a_run_that_goes_on_shows_those_of_its_newest_image():
    before = {"pipeline": {**COUNTS, "received": 4, "latency_p50_s": None}}
    assert _pipeline({"start": {}}, updates(before, {"pipeline": COUNTS})) == SHOWN


def test_one_that_is_over_shows_those_of_its_end():
    derived = {"start": {}, "stop": {"source": {"pipeline": {**COUNTS, "imaged": 11, "waiting": 0}}}}
    assert _pipeline(derived, updates({"pipeline": COUNTS})) == {**SHOWN, "imaged": 11, "waiting": 0}


def test_where_nobody_counted_there_are_none():
    assert _pipeline({"start": {}}, updates({})) is None
    # As of results of earlier versions.
    assert _pipeline(None, {"n_frames": [], **{name: [] for name in COUNTED}}) is None


def test_what_a_verdict_rests_on_is_told_in_words():
    table = re.search(r"MEASURES = {(.*?)};", static_files()["run-parts.js"].decode(), re.DOTALL)[1]
    assert re.findall(r"^  (\w+):", table, re.MULTILINE) == [each.name for each in fields(Measures)]
