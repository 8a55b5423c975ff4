"""Images of runs as files."""

from bluesky_cdi.follow.pictures import Pictures


def test_a_run_of_others_names_no_file_elsewhere(tmp_path, make_estimate):
    folder = tmp_path / "images"
    folder.mkdir()
    path = Pictures(folder).draw(make_estimate(3), "../7-a1b2c3d4")
    assert path == folder / "___7-a1b2c3d4.png" and list(tmp_path.iterdir()) == [folder]
    assert path.read_bytes().startswith(b"\x89PNG") and list(folder.iterdir()) == [path]
