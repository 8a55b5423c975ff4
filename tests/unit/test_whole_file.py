"""Files that are there whole or not at all."""

import threading

import pytest

from bluesky_cdi.whole_file import whole_file, write_whole


def test_a_block_that_fails_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "notes.json"
    write_whole(path, b"old")
    with pytest.raises(ValueError, match="halfway"), whole_file(path) as partial:
        partial.write_bytes(b"ne")
        raise ValueError("halfway")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_an_error_names_the_file(tmp_path):
    path = tmp_path / "nowhere" / "notes.json"
    for _ in range(2):
        with pytest.raises(FileNotFoundError) as told:
            write_whole(path, b"new")
        assert str(told.value) == f"[Errno 2] No such file or directory: '{path}'"


def test_two_threads_that_write_one_file_do_not_meet(tmp_path):
    path, both = tmp_path / "notes.json", threading.Barrier(2, timeout=60)

    def write(blob):
        with whole_file(path) as partial:
            partial.write_bytes(blob[:1])
            both.wait()
            with partial.open("ab") as file:
                file.write(blob[1:])
            both.wait()

    other = threading.Thread(target=write, args=(b"bbbb",))
    other.start()
    write(b"aaaa")
    other.join()
    assert path.read_bytes() in (b"aaaa", b"bbbb") and list(tmp_path.iterdir()) == [path]
