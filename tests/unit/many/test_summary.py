"""The summary as table, JSON, CSV and page; and the command."""

import base64
import csv
import io
import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from html.parser import HTMLParser

import pytest
from PIL import Image

from bluesky_cdi.cli import main
from bluesky_cdi.errors import BlueskyCDIError
from bluesky_cdi.many import Row, summary_of, table, workers, write_page, write_summary
from bluesky_cdi.many.page import page

COMMAND = ["--engine", "rpie", "--modes", "1", "--iterations", "1", "--trust-probe", "--trust-orientation", "-q"]
HOSTILE = '<script>alert("1")</script>&\'"'


def png():
    file = io.BytesIO()
    Image.new("L", (3, 2), 90).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


ROWS = [
    Row(
        "a",
        "/s/a.cxi",
        "done",
        "few\nframes",
        "doubtful",
        6,
        "rpie",
        1,
        "epochs",
        None,
        1.25,
        2e-8,
        0.5,
        (),
        "/r/a.cxi",
    ),
    Row("b", "/s/b.cxi", "done", verdict="failed", result="/r/b.cxi", earlier=True),
    Row("=cmd", "/s/c.cxi", "failed", "there is no file"),
    Row("d", "/s/d.cxi", "not done", "interrupted"),
]


def test_the_table_has_a_line_a_scan_and_the_counts():
    lines = table(ROWS).splitlines()
    assert lines[1].split() == ["a", "done", "doubtful", "6", "1", "1.25", "0.5", "few", "frames"]
    assert lines[2].split() == ["b", "earlier", "failed"]
    assert lines[-1] == "4 scans: 2 done (1 of them earlier): 1 doubtful, 1 failed; 1 failed, 1 not done"


def test_json_and_csv_say_the_same(tmp_path):
    write_summary(tmp_path, ROWS)
    found = json.loads((tmp_path / "summary.json").read_text())
    assert found == json.loads(json.dumps(summary_of(ROWS)))
    assert (found["done"], found["failed"], found["not_done"], found["earlier"]) == (2, 1, 1, 1)
    with (tmp_path / "summary.csv").open(newline="") as file:
        listed = list(csv.DictReader(file))
    assert [row["state"] for row in listed] == [row["state"] for row in found["scans"]]
    assert listed[0]["reason"] == "few\nframes" and float(listed[0]["pixel_m"]) == 2e-8
    # No spreadsheet takes it for a formula.
    assert listed[2]["scan"] == "'=cmd" and "thumbnail" not in listed[0]


class Tags(HTMLParser):
    """Lists the tags of a page with their attributes, and its text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def test_the_page_shows_text_as_text_and_fetches_nothing(tmp_path):
    said = Row(HOSTILE, HOSTILE, "done", HOSTILE, HOSTILE, 6, HOSTILE, 1, probe=HOSTILE, warnings=(HOSTILE,),
               result="/r/<script>#?.cxi", thumbnail=png())  # fmt: skip
    not_png = Row("e", "e", "done", result="/r/e.cxi", thumbnail=base64.b64encode(b"<svg onload='1'>").decode())
    found = Tags(page([said, not_png, *ROWS], HOSTILE))
    assert "script" not in {tag for tag, _ in found.tags}
    assert found.text.count(HOSTILE) >= 7
    images = [attrs for tag, attrs in found.tags if tag == "img"]
    assert [image["src"] for image in images] == [f"data:image/png;base64,{png()}"] and HOSTILE in images[0]["alt"]
    assert not any(name.startswith("on") or name == "style" for _, attrs in found.tags for name in attrs)
    links = [attrs["href"] for tag, attrs in found.tags if tag == "a"]
    assert links[2] == "./%3Cscript%3E%23%3F.cxi" and all(":" not in link and "//" not in link for link in links)
    path = write_page(tmp_path, ROWS, "night")
    assert path.name == "index.html" and "http" not in path.read_text().replace("http-equiv", "")


@pytest.fixture
def in_process(monkeypatch):
    """Workers that are threads of this process; how many were asked for."""
    asked = []

    @contextmanager
    def threads(number, gpus=()):
        asked.append(number)
        with ThreadPoolExecutor(1) as pool:
            yield pool

    monkeypatch.setattr(workers, "local_workers", threads)
    monkeypatch.setattr(workers, "check_installed", lambda: None)
    return asked


def test_the_command_goes_on_where_it_was(write, tmp_path, capsys, in_process):
    scans, out = write("scans/a.cxi").parent, tmp_path / "out"
    write("scans/b.npz", seed=6)
    broken = scans / "c.npz"
    broken.write_bytes(b"PK\x03\x04")
    line = ["reconstruct-many", str(scans), "--out", str(out), "--workers", "2", *COMMAND]
    assert main([*line, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert [row["state"] for row in found["scans"]] == ["done", "done", "failed"]
    made = (out / "a.cxi").stat().st_mtime_ns, (out / "b.cxi").stat().st_mtime_ns
    assert {path.name for path in out.iterdir()} == {"a.cxi", "b.cxi", "index.html", "summary.csv", "summary.json"}

    broken.unlink()
    write("scans/c.npz", seed=7)
    main(line)
    said = capsys.readouterr().out
    assert "3 done (2 of them earlier)" in said and said.count("earlier") == 3
    assert made == ((out / "a.cxi").stat().st_mtime_ns, (out / "b.cxi").stat().st_mtime_ns)
    assert in_process == [2, 2]
    # All is there: no worker is started.
    main(line)
    assert in_process == [2, 2]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "name files or folders"),
        (["a.cxi", "--scheduler", "tcp://h:1", "--workers", "2"], "Leave one out"),
        (["--runs", "3", "--focus-to-sample", "0.1"], "a run states its geometry"),
        (["a.cxi", "--directory", "d"], "--runs names runs"),
        ([".", "--out", "."], "Name another one for the results"),
    ],
)
def test_wrong_words_are_refused_before_the_work(words, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["reconstruct-many", *words]) == 1
    assert said in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_range_of_runs_that_is_none_is_a_usage_error(capsys):
    with pytest.raises(SystemExit):
        main(["reconstruct-many", "--runs", "9-5"])
    assert "a range such as 5-9" in capsys.readouterr().err


def test_without_dask_the_extra_is_named(monkeypatch, write, tmp_path, capsys):
    import sys

    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(BlueskyCDIError, match=r"pip install 'bluesky-cdi\[many\]'"):
        workers.check_installed()
    assert main(["reconstruct-many", str(write("a.cxi")), "--out", str(tmp_path / "out")]) == 1
    assert "extra `many`" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_gpus_are_shared_out_as_they_are_visible(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert workers.gpus_of("auto") == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,GPU-3")
    assert workers.gpus_of("cuda") == ["5", "GPU-3"]
    assert workers.gpus_of("cuda:1") == workers.gpus_of("cpu") == []
