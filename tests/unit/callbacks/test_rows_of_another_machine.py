"""Rows of files that lie on another machine: sent compressed, read as they were."""

import h5py
import hdf5plugin
import numpy as np
import pytest

from bluesky_cdi.callbacks._frame_files import FrameFiles, Part
from bluesky_cdi.callbacks._raw_rows import rows_of
from bluesky_cdi.errors import ScanFileError

COUNTS = np.random.default_rng(5).poisson(0.3, (7, 24, 20)).astype(np.uint16)
PART = Part((slice(4, 20), slice(2, 18)), (24, 20))


def resource(path, dataset="frames"):
    return {"uri": f"file://localhost{path}", "mimetype": "application/x-hdf5", "parameters": {"dataset": dataset}}


@pytest.fixture
def written(tmp_path):
    with h5py.File(tmp_path / "frames.h5", "w") as file:
        file.create_dataset(
            "frames", data=COUNTS, chunks=(1, 24, 20), maxshape=(None, 24, 20), **hdf5plugin.Bitshuffle()
        )
        file.create_dataset("tiles", data=COUNTS, chunks=(1, 8, 7), compression="gzip", shuffle=True)
        file.create_dataset("together", data=COUNTS, chunks=(3, 24, 20), compression="gzip")
        file.create_dataset("bare", data=COUNTS)
        file.create_dataset("numbers", data=np.arange(7.0))
    return tmp_path / "frames.h5"


@pytest.mark.parametrize("name", ["frames", "tiles"])
def test_compressed_frames_are_sent_as_their_chunks_are(written, name):
    sent = FrameFiles().raw(resource(written, name), 2, 5, None)
    assert isinstance(sent, bytes)
    with h5py.File(h5py.h5f.open_file_image(sent)) as copy, h5py.File(written) as file:
        assert [copy["rows"].id.read_direct_chunk((k, 0, 0)) for k in range(3)] == [
            file[name].id.read_direct_chunk((k + 2, 0, 0)) for k in range(3)
        ]
    np.testing.assert_array_equal(rows_of(sent, None), COUNTS[2:5])
    np.testing.assert_array_equal(rows_of(sent, PART.region), COUNTS[2:5, 4:20, 2:18])


@pytest.mark.parametrize("name", ["together", "bare", "numbers"])
def test_what_has_no_chunk_a_row_is_sent_as_numbers(written, name):
    sent = FrameFiles().raw(resource(written, name), 2, 5, PART)
    np.testing.assert_array_equal(sent, np.arange(2.0, 5.0) if name == "numbers" else COUNTS[2:5, 4:20, 2:18])


def test_a_small_part_is_cut_where_the_file_is(written):
    part = Part((slice(0, 2), slice(0, 2)), (24, 20))
    np.testing.assert_array_equal(FrameFiles().raw(resource(written), 0, 7, part), COUNTS[:, :2, :2])


def test_rows_that_are_not_there_are_told(written):
    with pytest.raises(ScanFileError, match=r"announce rows 5 to 7 of frames of .*, which holds 7"):
        FrameFiles().raw(resource(written), 5, 8, None)


class Far:
    """What another machine holds: it is told, or lies here under another name."""

    def __init__(self, there=None, here=None):
        self._there, self._here, self.asked = there, here, []

    def path(self, _):
        return None if self._here is None else str(self._here)

    def rows(self, _, start, stop, part):
        self.asked.append((start, stop))
        if self._there is None or stop > len(self._there):
            raise ScanFileError("not there")
        return self._there[start:stop] if part is None else self._there[(slice(start, stop), *part.region)]


def test_rows_come_from_where_they_are(written):
    far = Far(COUNTS)
    files = FrameFiles(elsewhere=far)
    there = resource("/beamline/frames.h5")
    np.testing.assert_array_equal([files.images(there, k, stop=7)[0] for k in range(7)], COUNTS)
    # The first tells how large rows are, the others come together.
    assert far.asked == [(0, 1), (1, 7)]
    np.testing.assert_array_equal(files.images(there, 3, part=PART)[0], COUNTS[3, 4:20, 2:18])
    with files.apart() as apart:
        np.testing.assert_array_equal(apart.images(there, 6)[0], COUNTS[6])
    with pytest.raises(ScanFileError, match="not there"):
        files.images(there, 7)
    seen = FrameFiles(elsewhere=Far(here=written))
    np.testing.assert_array_equal(seen.images(there, 2)[0], COUNTS[2])


@pytest.mark.parametrize("kind", ["garbage", "link", "virtual", "external"])
def test_bytes_that_lead_elsewhere_are_refused(written, kind):
    with h5py.File("made.h5", "w", driver="core", backing_store=False) as file:
        if kind == "link":
            file["rows"] = h5py.ExternalLink(str(written), "frames")
        elif kind == "virtual":
            layout = h5py.VirtualLayout((7, 24, 20), np.uint16)
            layout[:] = h5py.VirtualSource(str(written), "frames", shape=(7, 24, 20))
            file.create_virtual_dataset("rows", layout)
        elif kind == "external":
            file.create_dataset("rows", (4, 4), np.uint8, external=[(str(written), 0, 16)])
        file.flush()
        data = b"no HDF5" if kind == "garbage" else file.id.get_file_image()
    with pytest.raises(ScanFileError, match="rows that were sent"):
        rows_of(data, None)
