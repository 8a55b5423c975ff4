"""Archives that would fill the memory are refused by what they state, before anything of them is unpacked."""

import io
import struct
import zipfile

import numpy as np
import pytest

from bluesky_cdi.errors import ScanFileError
from bluesky_cdi.io import read_frames, read_image, read_reference, read_scan


def stating(path, size, members):
    """An NPZ file whose directory states `size` bytes for each of its members."""
    np.savez_compressed(path, **{name: np.zeros((2, 4, 4), np.uint8) for name in members})
    content = bytearray(path.read_bytes())
    at = content.find(b"PK\x01\x02")
    while at >= 0:
        content[at + 24 : at + 28] = struct.pack("<I", size)
        at = content.find(b"PK\x01\x02", at + 4)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("read", [read_frames, read_scan, read_image, lambda path: read_reference(path, None)])
def test_a_large_archive_is_refused_with_both_sizes(tmp_path, read):
    # 16 TiB: more than any machine has.
    path = stating(tmp_path / "bomb.npz", 2**32 - 16, [f"a{k}" for k in range(4096)])
    with pytest.raises(
        ScanFileError, match=r"MiB\) would take 1.64e\+04 GiB unpacked; at most 50% of the .* GiB of memory"
    ):
        read(path)


def test_archives_of_recorded_scans_may_be_as_large_as_the_memory_allows(tmp_path):
    frames = np.zeros((2000, 64, 64), np.uint16)  # 16 MB, packed into some KB
    np.savez_compressed(tmp_path / "dark.npz", frames=frames)
    assert read_frames(tmp_path / "dark.npz").counts.shape == frames.shape


def npy(shape, dtype, content):
    stream = io.BytesIO()
    np.lib.format.write_array_header_2_0(stream, {"descr": dtype, "fortran_order": False, "shape": shape})
    return stream.getvalue() + content


@pytest.mark.parametrize("shape", [(10**12, 64, 64), (2, 4, 5)])
def test_an_array_that_states_another_size_than_it_has_is_refused(tmp_path, shape):
    header = npy(shape, "<u2", b"\0" * 64)
    (tmp_path / "a.npy").write_bytes(header)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("frames.npy", header)
    for name in ("a.npy", "a.npz"):
        with pytest.raises(ScanFileError, match=r"states uint16 \(.*, \d+ bytes, and holds 64"):
            read_frames(tmp_path / name)


def test_a_single_array_is_no_archive(tmp_path):
    np.save(tmp_path / "a.npz.npy", np.zeros((2, 2)))
    (tmp_path / "a.npz.npy").rename(tmp_path / "reference.npz")
    with pytest.raises(ScanFileError, match="of several arrays; it is a single one"):
        read_reference(tmp_path / "reference.npz", None)
