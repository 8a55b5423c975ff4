"""Frames that a file announces and doesn't hold are no measured zeros."""

from pathlib import Path

import h5py
import numpy as np
import pytest

from bluesky_cdi.errors import ScanFileError
from bluesky_cdi.io import FrameDataset, LazyFrames, Scan, inspect_frames, read_frames, read_scan, write_cxi
from bluesky_cdi.io.hdf5 import CheckedFile
from bluesky_cdi.io.unwritten import unwritten_frames
from bluesky_cdi.physics.geometry import Geometry

SHAPE = (6, 8, 8)


def frames(number=6, seed=0):
    return np.random.default_rng(seed).poisson(20, (number, 8, 8)).astype(np.uint16)


@pytest.fixture
def file(tmp_path):
    with h5py.File(tmp_path / "scan.h5", "w") as opened:
        yield opened


def found(dataset, *part):
    return np.flatnonzero(unwritten_frames(dataset, *part).frames).tolist()


@pytest.mark.parametrize(
    ("chunks", "written", "missing"),
    [((1, 8, 8), 4, [4, 5]), ((2, 8, 8), 3, [4, 5]), ((1, 4, 8), 6, []), ((1, 8, 8), 0, [0, 1, 2, 3, 4, 5])],
)
def test_a_scan_that_was_aborted(file, chunks, written, missing):
    data = file.create_dataset("data", SHAPE, "u2", chunks=chunks)
    data[:written] = frames()[:written]
    assert found(data) == missing
    assert found(data, 3, 5) == [each - 3 for each in missing if 3 <= each < 5]
    assert bool(unwritten_frames(data).why) == bool(missing)


def test_a_frame_of_which_a_part_was_written(file):
    data = file.create_dataset("data", SHAPE, "u2", chunks=(1, 4, 8))
    data[:] = frames()
    part = file.create_dataset("part", SHAPE, "u2", chunks=(1, 4, 8))
    part[:3] = frames()[:3]
    part[3, :4] = 1
    assert found(data) == [] and found(part) == [3, 4, 5]


def test_a_raster_of_rows_and_columns(file):
    data = file.create_dataset("data", (2, 3, 8, 8), "u2", chunks=(1, 1, 8, 8))
    data[0] = frames(3)
    data[1, 0] = 1
    assert found(data) == [4, 5]


def test_a_dataset_in_one_piece(file):
    empty, whole = file.create_dataset("empty", SHAPE, "u2"), file.create_dataset("whole", SHAPE, "u2")
    whole[:] = 0
    assert found(empty) == [0, 1, 2, 3, 4, 5] and found(whole) == []


@pytest.mark.parametrize(
    ("place", "missing"), [((slice(0, 3), slice(3, 6)), [3, 4, 5]), ((slice(0, None, 2), slice(1, None, 2)), [1, 3, 5])]
)
def test_a_virtual_dataset_whose_source_is_missing(tmp_path, file, place, missing):
    with h5py.File(tmp_path / "one.h5", "w") as one:
        one["data"] = frames(3)
    layout = h5py.VirtualLayout(SHAPE, "u2")
    layout[place[0]] = h5py.VirtualSource("one.h5", "data", (3, 8, 8))
    layout[place[1]] = h5py.VirtualSource("other.h5", "data", (3, 8, 8))
    data = file.create_virtual_dataset("data", layout)
    assert found(data) == missing
    assert "other.h5:data" in unwritten_frames(data).why and "one.h5" not in unwritten_frames(data).why
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["data"] = frames(3)
    assert found(data) == []


@pytest.fixture
def scattered(tmp_path):
    """A virtual dataset of six frames, and in each of some other folders a source with as many as its number."""
    layout = h5py.VirtualLayout(SHAPE, "u2")
    layout[:] = h5py.VirtualSource("source.h5", "data", SHAPE)
    (tmp_path / "scan").mkdir()
    with h5py.File(tmp_path / "scan" / "virtual.h5", "w") as main:
        main.create_virtual_dataset("data", layout)
    for number in (1, 2, 3):
        (tmp_path / str(number)).mkdir()
        with h5py.File(tmp_path / str(number) / "source.h5", "w") as source:
            source.create_dataset("data", SHAPE, "u2", chunks=(1, 8, 8))[:number] = number
    return tmp_path / "scan" / "virtual.h5"


def held(dataset):
    """How many frames HDF5 itself gives, by the folder whose number they hold, and how many are found."""
    values = dataset[:].max(axis=(1, 2))
    return int(values.max(initial=0)), int((~unwritten_frames(dataset).frames).sum()), int((values > 0).sum())


@pytest.mark.parametrize(
    ("variable", "prefix", "expected"),
    [
        ("", "", 0),
        ("{0}/1", "", 1),
        ("{0}/none:{0}/2:{0}/1", "", 2),
        ("", "{0}/3", 3),
        ("{0}/1", "{0}/3", 1),
        ("", "${{ORIGIN}}/../2", 2),
    ],
)
@pytest.mark.parametrize("beside", [False, True])
def test_sources_are_looked_for_where_hdf5_does(scattered, monkeypatch, variable, prefix, expected, beside):
    root = scattered.parents[1]
    monkeypatch.setenv("HDF5_VDS_PREFIX", variable.format(root))
    if beside:
        # Comes last.
        (scattered.parent / "source.h5").write_bytes((root / "3" / "source.h5").read_bytes())
        expected = expected or 3
    with h5py.File(scattered) as file:
        access = h5py.h5p.create(h5py.h5p.DATASET_ACCESS)
        access.set_virtual_prefix(prefix.format(root).encode())
        assert held(h5py.Dataset(h5py.h5d.open(file.id, b"data", access))) == (expected,) * 3


def test_a_prefix_may_lead_where_links_may(scattered, monkeypatch):
    root = scattered.parents[1]
    monkeypatch.setenv("HDF5_VDS_PREFIX", str(root / "2"))
    with CheckedFile(scattered) as file, pytest.raises(ScanFileError, match=f"leads to {root}/2/source.h5, outside"):
        file["data"]
    monkeypatch.setenv("BLUESKY_CDI_LINKS", str(root / "2"))
    with CheckedFile(scattered) as file:
        assert held(file["data"]) == (2, 2, 2)


def test_a_virtual_dataset_whose_source_was_aborted_or_that_has_none(tmp_path, file):
    with h5py.File(tmp_path / "one.h5", "w") as one:
        one.create_dataset("data", (3, 8, 8), "u2", chunks=(1, 8, 8))[:2] = 1
    layout = h5py.VirtualLayout(SHAPE, "u2")
    layout[0:3] = h5py.VirtualSource("one.h5", "data", (3, 8, 8))
    data = file.create_virtual_dataset("data", layout)
    assert found(data) == [2, 3, 4, 5]


def test_a_virtual_dataset_of_the_same_file(file):
    file["raw"] = frames()
    layout = h5py.VirtualLayout(SHAPE, "u2")
    layout[:] = h5py.VirtualSource(".", "raw", SHAPE)
    assert found(file.create_virtual_dataset("data", layout)) == []


def test_lazy_frames_know_theirs_in_their_own_order(file):
    file.create_dataset("data", SHAPE, "u2", chunks=(1, 8, 8))[:4] = frames()[:4]
    path = Path(file.filename)
    file.close()
    lazy = LazyFrames(FrameDataset(path, "data"))
    assert lazy.unwritten().frames.tolist() == [False] * 4 + [True] * 2
    assert lazy.select([5, 0, 4]).unwritten().frames.tolist() == [True, False, True]


FAR = Geometry(8000.0, 2.0, 172e-6, 8)
PLACE = "entry_1/instrument_1/detector_1/data"


@pytest.fixture
def aborted(tmp_path):
    """A CXI file of six frames, of which the writer came to four."""
    positions = np.stack(np.divmod(np.arange(6), 3), axis=1) * 2 * FAR.pixel_m
    write_cxi(tmp_path / "a.cxi", Scan(np.ones((6, 8, 8), np.float32), positions, FAR))
    with h5py.File(tmp_path / "a.cxi", "a") as opened:
        del opened[PLACE]
        data = opened.create_dataset(PLACE, SHAPE, "f4", chunks=(1, 8, 8), fillvalue=np.nan)
        data[[0, 1, 3, 4]] = frames()[[0, 1, 3, 4]]
    return tmp_path / "a.cxi", positions


def test_a_scan_leaves_them_out_and_says_so(aborted, caplog):
    path, positions = aborted
    scan = read_scan(path)
    assert scan.source["unwritten_frames"] == [3, 6]
    assert "2 of 6 frames were never written" in caplog.text and "the first is number 3" in caplog.text
    np.testing.assert_array_equal(scan.counts, frames()[[0, 1, 3, 4]])
    np.testing.assert_allclose(scan.positions_m, positions[[0, 1, 3, 4]])


def test_a_file_without_any_is_refused(aborted):
    path, _ = aborted
    with h5py.File(path, "a") as opened:
        del opened[PLACE]
        opened.create_dataset(PLACE, SHAPE, "f4", chunks=(1, 8, 8))
    with pytest.raises(ScanFileError, match="none of the 6 frames was ever written"):
        read_scan(path)


def test_an_inspection_tells_their_numbers_and_looks_at_the_others(aborted):
    path, _ = aborted
    seen = inspect_frames(read_frames(path).counts)
    assert seen.unwritten.tolist() == [3, 6] and seen.numbers.tolist() == [1, 2, 4, 5] and not seen.dark.any()
    np.testing.assert_allclose(seen.mean, frames()[[0, 1, 3, 4]].mean(axis=0))
