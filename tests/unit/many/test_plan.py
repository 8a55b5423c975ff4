"""Which scans are meant, and which of them are done already."""

import os
from dataclasses import replace

import pytest

from bluesky_cdi.config import load_config
from bluesky_cdi.errors import BlueskyCDIError, ScanFileError
from bluesky_cdi.many import CatalogRun, ScanFile, files_in, named, planned
from bluesky_cdi.many.work import reconstruct_one


def test_a_folder_stands_for_its_scans(tmp_path):
    for name in ("b.cxi", "a.npz", ".hidden.cxi", "notes.txt", "c.h5", "c-product.h5", "inner/d.cxi"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    elsewhere = tmp_path / "no such file.cxi"
    found = files_in([elsewhere, tmp_path, tmp_path / "b.cxi"])
    assert found == [elsewhere, *(tmp_path / name for name in ("a.npz", "b.cxi", "c.h5"))]
    with pytest.raises(ScanFileError, match="holds no file that ends in"):
        (tmp_path / "empty").mkdir()
        files_in([tmp_path / "empty"])


def test_names_tell_files_and_runs_apart(tmp_path):
    paths = [tmp_path / "1/data.cxi", tmp_path / "2/data.cxi", tmp_path / "2/other.cxi"]
    runs = [CatalogRun("abcdef0123-4567", 12), CatalogRun("fedcba9876-5432", None)]
    names = named([*map(ScanFile, paths), *runs])
    assert list(names) == ["1-data", "2-data", "other", "scan00012-abcdef01", "fedcba98"]
    with pytest.raises(BlueskyCDIError, match=r"would both be written to 1-data\.cxi"):
        named([ScanFile(paths[0]), ScanFile(tmp_path / "deep/1/data.npz")])


def test_what_is_done_whole_is_not_done_again(write, tasks_of):
    tasks = tasks_of(write("a.cxi"), write("b.cxi", seed=6))
    assert reconstruct_one(tasks[0]) == ""
    rows, left = planned(tasks, force=False)
    assert [(row.scan, row.state, row.earlier, row.frames) for row in rows] == [("a", "done", True, 6)]
    assert left == tasks[1:]
    assert planned(tasks, force=True) == ([], tasks)


def test_a_part_of_a_result_is_none(write, tasks_of):
    (task,) = tasks_of(write("a.cxi"))
    assert reconstruct_one(task) == ""
    whole = task.out.read_bytes()
    task.out.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BlueskyCDIError, match=r"a\.cxi exists and is no result of .*can't read"):
        planned([task], force=False)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"iterations": 2}, "method.iterations was 1, is 2"),
        ({"check_in": True}, "method.check_in was False, is True"),
        (
            {"config": load_config(overrides={"reconstructor": {"name": "epie"}})},
            "reconstructor.name was rpie, is epie",
        ),
    ],
    ids=["iterations", "check-in", "engine"],
)
def test_a_result_of_other_settings_is_not_taken_for_this_one(write, tasks_of, change, said):
    (task,) = tasks_of(write("a.cxi"))
    assert reconstruct_one(task) == ""
    other = replace(task, method=replace(task.method, **change))
    with pytest.raises(BlueskyCDIError) as refused:
        planned([other], force=False)
    assert said in str(refused.value)


def test_threads_and_device_make_no_other_result(write, tasks_of):
    (task,) = tasks_of(write("a.cxi"))
    assert reconstruct_one(task) == ""
    settings = {"name": "rpie", "background": 0.0, "threads": 7, "device": "cuda"}
    config = load_config(overrides={"reconstructor": settings, "probe": {"modes": 1}, "catalog": {"api_key": "secret"}})
    other = replace(task, method=replace(task.method, config=config))
    assert len(planned([other], force=False)[0]) == 1
    assert "secret" not in str(other.as_notes())


def test_a_scan_that_was_measured_again_is_another(write, tasks_of):
    path = write("a.cxi")
    (task,) = tasks_of(path)
    assert reconstruct_one(task) == ""
    changed = path.stat()
    os.utime(path, ns=(changed.st_atime_ns, changed.st_mtime_ns + 1))
    with pytest.raises(BlueskyCDIError, match=r"source\.file\.modified_ns was"):
        planned([task], force=False)


def test_files_of_others_and_measured_data_are_kept(write, tasks_of):
    path = write("a.cxi")
    (task,) = tasks_of(path)
    with pytest.raises(BlueskyCDIError, match="measured data are not replaced"):
        planned([replace(task, out=path)], force=True)
    task.out.write_bytes(path.read_bytes())
    with pytest.raises(BlueskyCDIError, match="is no result of"):
        planned([task], force=False)
