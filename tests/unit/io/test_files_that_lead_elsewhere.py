"""HDF5 files that keep their values elsewhere: other files are followed where they may be, and nowhere else."""

import os

import h5py
import numpy as np
import pytest

from bluesky_cdi.errors import ScanFileError
from bluesky_cdi.io import read_frames
from bluesky_cdi.io.hdf5 import LINK_FOLDERS, CheckedFile

FRAMES = np.arange(2 * 16 * 16, dtype=np.uint16).reshape(2, 16, 16)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The folder of the files, beside one that is not theirs; the working directory is a third one."""
    for name in ("data", "data/below", "private", "work"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.delenv(LINK_FOLDERS, raising=False)
    return tmp_path / "data"


def source(path):
    with h5py.File(path, "w") as file:
        file["frames"] = FRAMES
    return path


def virtual(path, name):
    layout = h5py.VirtualLayout(FRAMES.shape, FRAMES.dtype)
    layout[:] = h5py.VirtualSource(name, "frames", FRAMES.shape)
    with h5py.File(path, "w", libver="latest") as file:
        file.create_virtual_dataset("frames", layout, fillvalue=7)
    return path


def linked(path, name):
    with h5py.File(path, "w") as file:
        file["frames"] = h5py.ExternalLink(name, "/frames")
    return path


def behind_a_soft_link(path, name):
    with h5py.File(path, "w") as file:
        file["far/away"] = h5py.ExternalLink(name, "/")
        file["near"] = h5py.SoftLink("/far/away")
        file["frames"] = h5py.SoftLink("near/frames")
    return path


def read(path):
    return np.asarray(read_frames(path, dataset="frames").counts)


WAYS = pytest.mark.parametrize("way", [virtual, linked, behind_a_soft_link])


@WAYS
@pytest.mark.parametrize("place", ["s.h5", "below/s.h5"])
def test_files_in_the_folder_and_below_are_followed(folder, way, place):
    source(folder / place)
    np.testing.assert_array_equal(read(way(folder / "a.h5", place)), FRAMES)
    np.testing.assert_array_equal(read(way(folder / "b.h5", str(folder / place))), FRAMES)


@WAYS
@pytest.mark.parametrize("form", ["relative", "absolute", "symbolic link"])
def test_files_elsewhere_are_refused_until_their_folder_is_named(folder, way, form, monkeypatch):
    private = source(folder.parent / "private" / "s.h5")
    name = {"relative": "../private/s.h5", "absolute": str(private), "symbolic link": "s.h5"}[form]
    if form == "symbolic link":
        (folder / name).symlink_to(private)
    path = way(folder / "a.h5", name)
    with pytest.raises(
        ScanFileError, match=rf"leads to {private}, outside of the file's folder {folder}.*{LINK_FOLDERS}"
    ):
        read(path)
    monkeypatch.setenv(LINK_FOLDERS, os.pathsep.join(["/nowhere", str(private.parent)]))
    np.testing.assert_array_equal(read(path), FRAMES)


@WAYS
def test_what_lies_in_the_working_directory_is_not_taken_for_a_file_beside(folder, way):
    source(folder.parent / "work" / "s.h5")
    with pytest.raises(ScanFileError, match="outside of the file's folder"):
        read(way(folder / "a.h5", "s.h5"))


@WAYS
@pytest.mark.parametrize("second", [virtual, linked])
def test_a_file_that_may_be_followed_is_looked_at_too(folder, way, second):
    private = source(folder.parent / "private" / "s.h5")
    second(folder / "middle.h5", str(private))
    with pytest.raises(ScanFileError, match="outside of the file's folder"):
        read(way(folder / "a.h5", "middle.h5"))


@WAYS
def test_a_file_that_is_reached_by_a_symbolic_link_has_two_folders(folder, way):
    source(folder / "s.h5")
    (folder.parent / "work" / "a.h5").symlink_to(way(folder / "a.h5", "s.h5"))
    np.testing.assert_array_equal(read(folder.parent / "work" / "a.h5"), FRAMES)


def raw(path, name):
    with h5py.File(path, "w") as file:
        file.create_dataset("frames", FRAMES.shape, FRAMES.dtype, external=[(str(name), 0, FRAMES.nbytes)])
    return path


def test_external_storage_is_refused_wherever_it_is(folder, monkeypatch):
    (folder / "secret").write_bytes(FRAMES.tobytes())
    monkeypatch.setenv(LINK_FOLDERS, "/")
    path = raw(folder / "a.h5", folder / "secret")
    for way in (None, virtual, linked):
        asked = path if way is None else way(folder / "b.h5", "a.h5")
        with pytest.raises(ScanFileError, match=r"a\.h5: the values of `/frames` lie in .*secret.*external storage"):
            read(asked)
    with pytest.raises(ScanFileError, match="external storage"):
        read_frames(path)


def numbered(path, name):
    """A virtual dataset that grows by a file with every frame."""
    unlimited = h5py.h5s.UNLIMITED
    space = h5py.h5s.create_simple(FRAMES.shape, (unlimited, 16, 16))
    space.select_hyperslab((0, 0, 0), (unlimited, 1, 1), (1, 1, 1), (1, 16, 16))
    made = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    made.set_virtual(space, str(name).encode(), b"frames", h5py.h5s.create_simple((1, 16, 16)))
    with h5py.File(path, "w", libver="latest") as file:
        space.select_all()
        h5py.h5d.create(file.id, b"frames", h5py.h5t.NATIVE_UINT16, space, made)
    return path


def test_numbered_sources_are_looked_at(folder):
    for k, frame in enumerate(FRAMES):
        for place in (folder, folder.parent / "private"):
            with h5py.File(place / f"s-{k}.h5", "w") as file:
                file["frames"] = frame[np.newaxis]
    np.testing.assert_array_equal(read(numbered(folder / "a.h5", "s-%b.h5")), FRAMES)
    with pytest.raises(ScanFileError, match="outside of the file's folder"):
        read(numbered(folder / "b.h5", "../private/s-%b.h5"))
    (folder / "s-1.h5").unlink()
    raw(folder / "s-1.h5", folder / "s-0.h5")
    with pytest.raises(ScanFileError, match="external storage"):
        read(folder / "a.h5")


def test_a_source_that_is_not_there_yet_is_the_fill_value_as_ever(folder):
    assert (read(virtual(folder / "a.h5", "later.h5")) == 7).all()


def test_a_pipe_is_not_opened(folder):
    os.mkfifo(folder / "pipe.h5")
    for way in (virtual, linked):
        with pytest.raises(ScanFileError, match="which is no file"):
            read(way(folder / "a.h5", "pipe.h5"))


def test_links_in_a_circle_end(folder):
    with h5py.File(folder / "a.h5", "w") as file:
        file["frames"] = h5py.SoftLink("/other")
        file["other"] = h5py.ExternalLink("a.h5", "/frames")
    with pytest.raises(ScanFileError, match="in a circle"):
        read(folder / "a.h5")


def test_groups_of_a_checked_file_are_checked_as_well(folder):
    private = source(folder.parent / "private" / "s.h5")
    with h5py.File(folder / "a.h5", "w") as file:
        file["entry/frames"] = h5py.ExternalLink(str(private), "/frames")
        file["entry/ours"] = FRAMES
    with CheckedFile(folder / "a.h5") as file:
        entry = file["entry"]
        np.testing.assert_array_equal(entry["ours"][()], FRAMES)
        np.testing.assert_array_equal(file["entry"]["/entry/ours"][()], FRAMES)
        assert "ours" in entry and "absent" not in entry and entry.get("absent", 3) == 3
        for ask in (entry.get, entry.__getitem__, entry.__contains__):
            with pytest.raises(ScanFileError, match="outside of the file's folder"):
                ask("frames")
