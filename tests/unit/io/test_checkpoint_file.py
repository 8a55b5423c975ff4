"""Checkpoint files: what is read is what was saved, or the file is refused."""

import io
import json
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bluesky_cdi.errors import ScanFileError
from bluesky_cdi.io import CheckpointFile, CheckpointHeader, read_checkpoint, remove_checkpoint

HEADER = CheckpointHeader("raw-1", "made-1", (64, 32), {"probe": {"modes": 2}}, {"reconstructor.name": "rpie"})
EXAMPLES = settings(derandomize=True, deadline=None, max_examples=200, database=None)


def some_state(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "object/object": (rng.normal(size=(1, 9, 8)) + 1j * rng.normal(size=(1, 9, 8))).astype(np.complex64),
        "frames/seq_num": np.arange(1, 6),
        "frames/mask": rng.random((8, 8)) > 0.1,
        "scheduler/round_misfit": np.array(np.nan),
        "solver/iterations": np.array(12),
        "solver/ended": np.array("epochs"),
        "metrics/embedding": np.zeros((0, 4), np.float32),
    }


def assert_same(found, wanted):
    assert found.keys() == wanted.keys()
    for name, values in wanted.items():
        assert found[name].dtype == values.dtype, name
        np.testing.assert_array_equal(found[name], values, strict=True)


@pytest.fixture
def saved(tmp_path):
    """A saved file's path."""
    file = CheckpointFile(tmp_path / "checkpoints", HEADER)
    file.save(some_state())
    return file.path


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    """Bytes of a saved file."""
    file = CheckpointFile(tmp_path_factory.mktemp("good"), HEADER)
    file.save(some_state())
    return file.path.read_bytes()


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    """The path of a file that is written anew with other bytes."""
    folder = tmp_path_factory.mktemp("damaged")

    def write(content):
        path = folder / "made-1.npz"
        path.write_bytes(content)
        return path

    return write


def test_what_is_saved_is_read(saved):
    header, state = read_checkpoint(saved)
    assert_same(state, some_state())
    assert (header.raw_uid, header.reconstruction_uid, header.frame_shape) == ("raw-1", "made-1", (64, 32))
    assert header.settings == HEADER.settings and header.fingerprint == HEADER.fingerprint
    assert header.saved_at > 1e9
    assert saved.name == "made-1.npz"


def test_numpy_reads_it_too(saved):
    with np.load(saved, allow_pickle=False) as file:
        np.testing.assert_array_equal(file["object/object"], some_state()["object/object"])


def test_single_arrays_are_read(saved):
    _, state = read_checkpoint(saved, ["frames/seq_num"])
    assert_same(state, {"frames/seq_num": np.arange(1, 6)})
    with pytest.raises(ScanFileError, match=r"lacks frames/other\.npy"):
        read_checkpoint(saved, ["frames/other"])


def test_the_newest_one_counts(saved):
    file = CheckpointFile(saved.parent, HEADER)
    file.save(some_state(1))
    assert_same(read_checkpoint(saved)[1], some_state(1))
    assert list(saved.parent.iterdir()) == [saved]


def test_a_failure_leaves_the_earlier_one(saved):
    """An object among the arrays can't be saved; by then half of the file is written."""
    file = CheckpointFile(saved.parent, HEADER)
    with pytest.raises(ValueError, match="allow_pickle"):
        file.save({**some_state(1), "worse/object": np.array([{}])})
    assert_same(read_checkpoint(saved)[1], some_state())
    assert list(saved.parent.iterdir()) == [saved]


def test_no_room_is_told(tmp_path):
    (tmp_path / "checkpoints").write_text("a file is in the way")
    with pytest.raises(ScanFileError, match="can't make the folder of checkpoints"):
        CheckpointFile(tmp_path / "checkpoints", HEADER).save(some_state())


def test_removed_with_what_a_killed_process_left(saved):
    (saved.parent / f".{saved.name}.4711.partial").write_bytes(b"half")
    other = saved.parent / ".made-2.npz.4711.partial"
    other.write_bytes(b"half")
    CheckpointFile(saved.parent, HEADER).remove()
    assert list(saved.parent.iterdir()) == [other]
    remove_checkpoint(saved)  # there is none: nothing to do


@EXAMPLES
@given(data=st.data())
def test_a_cut_file_is_refused(content, damaged, data):
    length = data.draw(st.integers(0, len(content) - 1))
    path = damaged(content[:length])
    with pytest.raises(ScanFileError, match=r"can't read .*made-1\.npz as a checkpoint"):
        read_checkpoint(path)


@EXAMPLES
@given(data=st.data())
def test_changed_bytes_never_pass_for_the_saved_ones(content, damaged, data):
    place = data.draw(st.integers(0, len(content) - 1))
    changed = bytearray(content)
    changed[place] ^= data.draw(st.integers(1, 255))
    try:
        header, state = read_checkpoint(damaged(bytes(changed)))
    except ScanFileError:
        return
    # Some bytes of a ZIP archive carry nothing, such as the time of a member.
    assert header.raw_uid == "raw-1"
    assert_same(state, some_state())


def test_missing_file(tmp_path):
    with pytest.raises(ScanFileError, match="there is no file"):
        read_checkpoint(tmp_path / "made-1.npz")


def test_another_programs_file(tmp_path):
    np.savez(tmp_path / "made-1.npz", object=np.zeros(3))
    with pytest.raises(ScanFileError, match="no checkpoint of this package"):
        read_checkpoint(tmp_path / "made-1.npz")


def test_compressed_members_are_not_unpacked(tmp_path):
    """A few bytes may claim to be gigabytes."""
    path = tmp_path / "made-1.npz"
    np.savez_compressed(path, header=np.zeros(10_000_000))
    with pytest.raises(ScanFileError, match=r"states 80000128 bytes \(compression 8\)"):
        read_checkpoint(path)


def rewritten(path, name, content):
    """Replace one member of a file."""
    with zipfile.ZipFile(path) as archive:
        members = {member: archive.read(member) for member in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for member, held in {**members, name: content}.items():
            archive.writestr(member, held)


def test_a_size_that_is_not_there_is_not_made_room_for(saved):
    member = io.BytesIO()
    np.lib.format.write_array_header_1_0(member, {"descr": "<i8", "fortran_order": False, "shape": (10**13,)})
    rewritten(saved, "frames/seq_num.npy", member.getvalue() + bytes(40))
    with pytest.raises(ScanFileError, match=r"states int64 \(10000000000000,\), but holds something else"):
        read_checkpoint(saved)


@pytest.mark.parametrize(
    ("about", "message"),
    [({"format": 0}, "has the format 0"), ({}, "has the format None"), (["format"], "has the format None")],
)
def test_other_versions_are_refused(saved, tmp_path, about, message):
    np.save(tmp_path / "header.npy", np.array(json.dumps(about)))
    rewritten(saved, "header.npy", (tmp_path / "header.npy").read_bytes())
    with pytest.raises(ScanFileError, match=message):
        read_checkpoint(saved)


def test_a_header_with_other_entries_is_refused(saved, tmp_path):
    about = {"format": 1, "raw_uid": "raw-1", "frame_shape": [64, 32], "colour": "blue"}
    np.save(tmp_path / "header.npy", np.array(json.dumps(about)))
    rewritten(saved, "header.npy", (tmp_path / "header.npy").read_bytes())
    with pytest.raises(ScanFileError, match="colour"):
        read_checkpoint(saved)
