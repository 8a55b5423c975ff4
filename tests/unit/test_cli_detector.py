"""The section `detector` on the command line: options of several commands, and ``inspect``."""

import argparse
import json

import numpy as np
import pytest

from bluesky_cdi.cli import main
from bluesky_cdi.cli.detector import add_detector_options, detector_settings, said_of
from bluesky_cdi.config import DetectorConfig
from bluesky_cdi.io import Scan, read_scan, write_scan
from bluesky_cdi.physics.geometry import Geometry

SIDE = 32
GEOMETRY = Geometry(8000.0, 2.0, 200e-6, SIDE)


def ring(shape, centre, photons=1e4):
    y, x = np.indices(shape)
    distance = np.hypot(y - centre[0], x - centre[1])
    light = np.exp(-(((distance - 5) / 2) ** 2))
    return light * photons / light.sum() + 0.02


@pytest.fixture
def scan_file(tmp_path):
    rng = np.random.default_rng(0)
    counts = rng.poisson(ring((SIDE, SIDE), (14, 17)), (16, SIDE, SIDE)).astype(np.uint16)
    positions = np.stack(np.divmod(np.arange(16), 4), axis=1) * 3 * GEOMETRY.pixel_m
    write_scan(tmp_path / "a.cxi", Scan(counts, positions, GEOMETRY, name="a", source={"propagation": "far field"}))
    return tmp_path / "a.cxi"


@pytest.fixture
def stack_file(tmp_path):
    """Frames that are not square, with a gap, a dark frame, and one that is saturated."""
    frames = np.random.default_rng(1).poisson(ring((48, 64), (20.4, 41.7)), (12, 48, 64)).astype(np.uint32)
    frames[6] = 0
    frames[:, :, 30:33] = 2**32 - 1
    frames[3, 20, 46] = 5000
    np.save(tmp_path / "a.npy", frames)
    return tmp_path / "a.npy"


def parsed(*words):
    parser = argparse.ArgumentParser()
    add_detector_options(parser)
    return detector_settings(parser.parse_args(words))


OPTIONS = {
    "region_px": (["--region", "100:612,80:592"], (100, 612, 80, 592)),
    "beam_centre_px": (["--beam-centre", "356.5,336"], (356.5, 336.0)),
    "crop_px": (["--crop", "256"], 256),
    "pad": (["--pad"], True),
    "bin": (["--bin", "2"], 2),
    "rotate_deg": (["--rotate", "270"], 270),
    "transpose": (["--transpose"], True),
    "flip_rows": (["--flip-rows"], True),
    "flip_columns": (["--flip-columns"], True),
    "dark": (["--dark", "d.h5::dark"], "d.h5::dark"),
    "flat": (["--flat", "f.npy"], "f.npy"),
    "mask": (["--mask", "m.tif"], "m.tif"),
    "bad_pixels": (["--bad-pixels", "b.h5"], "b.h5"),
    "saturation": (["--saturation", "6e4"], 60000.0),
}


@pytest.mark.parametrize("key", OPTIONS)
def test_each_option_is_a_key(key):
    words, value = OPTIONS[key]
    assert parsed(*words) == {key: value}
    assert getattr(DetectorConfig(**parsed(*words)), key) == value


def test_every_key_but_the_live_one_has_an_option():
    assert {*OPTIONS, "mask_flagged"} == set(DetectorConfig.model_fields)
    assert parsed() == {} and parsed("--beam-centre", "find") == {"beam_centre_px": "find"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--region", "1:2:3,4:5"], "must be rows and columns"),
        (["--region", "10:20"], "must be rows and columns"),
        (["--beam-centre", "middle"], "must be ROW,COLUMN in pixels from 0, or find"),
        (["--bin", "0"], "must be a positive whole number"),
        (["--saturation", "-1"], "must be a positive number"),
    ],
)
def test_options_that_cannot_be_read(words, message, capsys):
    with pytest.raises(SystemExit):
        parsed(*words)
    assert message in capsys.readouterr().err


def test_convert(scan_file, tmp_path, capsys):
    out = tmp_path / "b.cxi"
    options = ["--beam-centre", "14,17", "--crop", "24", "--bin", "2", "--flip-columns", "--saturation", "60000"]
    assert main(["convert", str(scan_file), str(out), "--json", *options]) == 0
    said = json.loads(capsys.readouterr().out)
    notes = said["preprocessing"]
    assert (said["frame_px"], notes["beam_centre_px"], notes["beam_centre"]) == (12, [14, 17], "stated")
    assert said["not_kept"] == [] and said["pixel_m"] == pytest.approx(GEOMETRY.pixel_m * 32 / 24)
    before, after = read_scan(scan_file), read_scan(out)
    assert after.source["preprocessing"] == notes and after.geometry.detector_pixel_m == pytest.approx(400e-6)
    first = (notes["read_px"][0], notes["read_px"][2])
    raw = np.asarray(before.counts)[:, first[0] : first[0] + 24, first[1] : first[1] + 24].astype(int)
    expected = raw.reshape(16, 12, 2, 12, 2).sum(axis=(2, 4))[:, :, ::-1]
    np.testing.assert_array_equal(after.counts, expected)


def test_convert_without_options_says_nothing_of_it(scan_file, tmp_path, capsys):
    assert main(["convert", str(scan_file), str(tmp_path / "b.cxi"), "--json"]) == 0
    assert "preprocessing" not in json.loads(capsys.readouterr().out)
    np.testing.assert_array_equal(read_scan(tmp_path / "b.cxi").counts, read_scan(scan_file).counts)


def test_a_configuration_is_used_and_options_win(scan_file, tmp_path, capsys):
    (tmp_path / "c.yaml").write_text("detector: {crop_px: 16, transpose: true}\n")
    words = ["convert", str(scan_file), str(tmp_path / "b.cxi"), "-c", str(tmp_path / "c.yaml"), "--json"]
    assert main([*words, "--crop", "20"]) == 0
    notes = json.loads(capsys.readouterr().out)["preprocessing"]
    assert notes["frame_px"] == 20 and notes["transpose"]


def test_a_frame_size_that_is_stated_must_come_out(scan_file, tmp_path, capsys):
    (tmp_path / "c.yaml").write_text("geometry: {frame_px: 20}\ndetector: {crop_px: 16}\n")
    words = ["convert", str(scan_file), str(tmp_path / "b.cxi"), "-c", str(tmp_path / "c.yaml")]
    assert main(words) == 1
    assert "it is 20, and frames of 32 x 32 pixels become 16 x 16" in capsys.readouterr().err
    assert main([*words, "--crop", "20"]) == 0


def test_reconstruct(scan_file, tmp_path, capsys):
    out = tmp_path / "o.h5"
    words = ["reconstruct", str(scan_file), "--out", str(out), "--json", "-q", "--engine", "rpie", "--modes", "1"]
    words += ["--iterations", "1", "--trust-orientation", "--trust-probe", "--crop", "20", "--beam-centre", "find"]
    assert main(words) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["pixel_m"] == pytest.approx(GEOMETRY.pixel_m * 32 / 20)
    assert said["preprocessing"]["beam_centre_px"] == pytest.approx([14, 17], abs=0.2)
    assert "(found); 20 x 20 pixels, 0 of them masked" in said_of(said["preprocessing"])


def inspected(capsys, *words):
    code = main(["inspect", *map(str, words), "--json"])
    return code, json.loads(capsys.readouterr().out)


class TestInspect:
    def test_frames_as_they_are(self, stack_file, capsys):
        code, said = inspected(capsys, stack_file, "--beam-centre", "find", "--saturation", "4000")
        assert code == 0 and said["shape"] == [12, 48, 64] and said["dtype"] == "uint32"
        assert (said["flagged_pixels"], said["masked_pixels"]) == (48 * 3, 0)
        assert said["dark_frames"] == [7] and said["unusable_frames"] == []
        assert (said["highest_count"], said["frames_at_highest_count"], said["saturated_frames"]) == (5000, 1, 1)
        assert said["beam_centre_px"] == pytest.approx([20.4, 41.7], abs=0.15)
        frames = np.load(stack_file)
        frames[:, :, 30:33] = 0
        photons = frames.sum(axis=(1, 2))
        assert said["photons_per_frame"] == {
            "lowest": 0,
            "median": pytest.approx(np.median(photons)),
            "highest": photons.max(),
        }
        notes = said["preprocessing"]
        # The largest even square around the beam: 20 rows above it.
        assert notes["frame_px"] == 40 and notes["masked_pixels"] == 3 * 40

    def test_frames_that_are_not_square_are_refused_without_options(self, stack_file, capsys):
        code, said = inspected(capsys, stack_file)
        assert code == 1 and "frames must be square; they are 48 x 64" in said["refused"]
        assert said["preprocessing"] is None

    def test_what_cannot_be_done_is_said(self, stack_file, capsys):
        code, said = inspected(capsys, stack_file, "--crop", "64")
        assert code == 1 and "crop_px" in said["refused"]
        assert main(["inspect", str(stack_file), "--crop", "64"]) == 1
        assert "does not. Crop to fewer pixels" in capsys.readouterr().out

    def test_a_scan_has_a_sample_pixel(self, scan_file, capsys):
        code, said = inspected(capsys, scan_file, "--crop", "16")
        assert code == 0 and said["pixel_m"] == pytest.approx(GEOMETRY.pixel_m)
        assert said["pixel_after_m"] == pytest.approx(2 * GEOMETRY.pixel_m)
        assert main(["inspect", str(scan_file)]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert ["would", "be", "done", "nothing"] in [line.split() for line in lines] and any(
            "16 of 32 x 32 pixels, uint16" in line for line in lines
        )

    def test_frames_with_numbers_that_are_no_counts(self, tmp_path, capsys):
        frames = np.random.default_rng(0).poisson(ring((16, 16), (8, 8)), (5, 16, 16)).astype(np.float32)
        frames[2, 3, 3], frames[4, 1, 1] = np.nan, -5
        np.save(tmp_path / "a.npy", frames)
        code, said = inspected(capsys, tmp_path / "a.npy")
        assert code == 0 and said["unusable_frames"] == [3, 5] and said["flagged_pixels"] == 0

    def test_a_near_field_has_no_beam(self, scan_file, capsys):
        code, said = inspected(capsys, scan_file, "--focus-to-sample", "0.5")
        assert code == 0 and said["beam_centre_px"] is None

    def test_the_figure(self, stack_file, tmp_path, capsys):
        from PIL import Image

        figure = tmp_path / "new" / "a.png"
        words = [stack_file, "--out", figure, "--beam-centre", "find", "--crop", "64", "--pad", "--flip-rows"]
        code, said = inspected(capsys, *words)
        assert code == 0 and said["figure"] == str(figure)
        with Image.open(figure) as image:
            assert image.size == (1300, 600)
        assert main(["inspect", *map(str, words)]) == 1
        assert "exists" in capsys.readouterr().err
        assert inspected(capsys, stack_file, "--out", figure, "--force")[0] == 1
        with Image.open(figure) as image:
            assert image.size == (700, 600)

    def test_what_is_read_is_not_replaced(self, stack_file, capsys):
        assert main(["inspect", str(stack_file), "--out", str(stack_file), "--force"]) == 1
        assert "is what is read" in capsys.readouterr().err
