"""Preprocessing of a detector's frames: each operation against a result that is written down, or computed otherwise."""

import itertools
import json

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bluesky_cdi.config import Config, DetectorConfig, load_config
from bluesky_cdi.errors import ConfigError, FrameError, GeometryError, ScanFileError
from bluesky_cdi.io import FrameDataset, LazyFrames, Preprocessing
from bluesky_cdi.io.detector import MOST_COUNTS, prepared
from bluesky_cdi.physics.geometry import Geometry

# Asymmetric, and not square.
FRAME = np.array(
    [
        [11, 12, 13, 14, 15, 16],
        [21, 22, 23, 24, 25, 26],
        [31, 32, 33, 34, 35, 36],
        [41, 42, 43, 44, 45, 46],
        [51, 52, 53, 54, 55, 56],
    ],
    np.uint16,
)
SQUARE = FRAME[1:, :4]


def plan_of(frame, frame_px=None, valid=None, frames=None, **settings):
    return Preprocessing(DetectorConfig(**settings), frame_px).plan(frame.shape, frame.dtype, mask=valid, frames=frames)


def made(frame, **settings):
    plan = plan_of(frame, **settings)
    counts = plan.apply(frame[np.newaxis])[0]
    assert counts.shape == plan.shape == plan.mask.shape and counts.dtype == plan.dtype
    return counts, plan


WRITTEN_DOWN = {
    # The largest even square about the middle pixel (2, 3).
    "nothing": ({}, [[12, 13, 14, 15], [22, 23, 24, 25], [32, 33, 34, 35], [42, 43, 44, 45]]),
    "crop": ({"beam_centre_px": (3, 4), "crop_px": 2}, [[34, 35], [44, 45]]),
    "odd crop": ({"beam_centre_px": (3, 4), "crop_px": 3}, [[34, 35, 36], [44, 45, 46], [54, 55, 56]]),
    "beam off the middle": ({"beam_centre_px": (1, 4)}, [[14, 15], [24, 25]]),
    "between pixels": ({"beam_centre_px": (2.4, 3.6), "crop_px": 2}, [[24, 25], [34, 35]]),
    "region": ({"region_px": (1, 5, 0, 4)}, [[21, 22, 23, 24], [31, 32, 33, 34], [41, 42, 43, 44], [51, 52, 53, 54]]),
    "transpose": ({"region_px": (1, 5, 0, 4), "transpose": True}, SQUARE.T),
    # The beam, pixel (2, 2) of the square, stays there; what would come from beyond the edge is 0 and masked.
    "flip rows": ({"region_px": (1, 5, 0, 4), "flip_rows": True}, [[0] * 4, SQUARE[3], SQUARE[2], SQUARE[1]]),
    "flip columns": (
        {"region_px": (1, 5, 0, 4), "flip_columns": True},
        [[0, 24, 23, 22], [0, 34, 33, 32], [0, 44, 43, 42], [0, 54, 53, 52]],
    ),
    "rotated by 90": (
        {"region_px": (1, 4, 0, 3), "rotate_deg": 90},
        [[23, 33, 43], [22, 32, 42], [21, 31, 41]],
    ),
    "rotated by 180": (
        {"region_px": (1, 4, 0, 3), "rotate_deg": 180},
        [[43, 42, 41], [33, 32, 31], [23, 22, 21]],
    ),
    "rotated by 270": (
        {"region_px": (1, 4, 0, 3), "rotate_deg": 270},
        [[41, 31, 21], [42, 32, 22], [43, 33, 23]],
    ),
    "rotated, transposed, flipped": (
        {"region_px": (1, 4, 0, 3), "rotate_deg": 90, "transpose": True, "flip_rows": True},
        [[43, 42, 41], [33, 32, 31], [23, 22, 21]],
    ),
    "bin": ({"region_px": (1, 5, 0, 4), "bin": 2}, [[106, 114], [186, 194]]),
    "pad": (
        {"region_px": (0, 2, 0, 3), "pad": True},
        [[0, 0, 0, 0], [0, 11, 12, 13], [0, 21, 22, 23], [0, 0, 0, 0]],
    ),
    "pad a crop": (
        {"beam_centre_px": (0, 5), "crop_px": 4, "pad": True},
        [[0] * 4, [0] * 4, [14, 15, 16, 0], [24, 25, 26, 0]],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRITTEN_DOWN)
def test_each_operation_gives_what_is_written_down(name):
    settings, expected = WRITTEN_DOWN[name]
    counts, plan = made(FRAME, **settings)
    np.testing.assert_array_equal(counts, expected)
    np.testing.assert_array_equal(plan.mask, np.asarray(expected) > 0)


@pytest.mark.parametrize(
    ("turns", "swaps", "rows", "columns"), [*itertools.product((0, 1, 2, 3), *[(False, True)] * 3)]
)
def test_orientations_are_numpys(turns, swaps, rows, columns):
    frame = FRAME[:5, :5]
    expected = np.rot90(frame, turns)
    expected = expected.T if swaps else expected
    expected = np.flip(expected, [axis for axis, flips in enumerate((rows, columns)) if flips])
    counts, plan = made(frame, rotate_deg=90 * turns, transpose=swaps, flip_rows=rows, flip_columns=columns)
    np.testing.assert_array_equal(counts, expected)
    assert plan.mask.all() and plan.window.offset_px == (0, 0)


# What the plan does, from its words alone: a pixel of the square is the sum of the raw pixels that lie there.
SETTINGS = st.fixed_dictionaries(
    {
        "bin": st.integers(1, 3),
        "pad": st.booleans(),
        "rotate_deg": st.sampled_from((0, 90, 180, 270)),
        "transpose": st.booleans(),
        "flip_rows": st.booleans(),
        "flip_columns": st.booleans(),
        "beam_centre_px": st.tuples(st.floats(6, 12), st.floats(6, 14)),
    },
    optional={"crop_px": st.sampled_from((6, 12)), "region_px": st.just((1, 18, 2, 20))},
)


def numpys(frame, plan, settings, fill):
    """Embed the frame in a large one with the beam's window, and use NumPy's own turns and a loop."""
    wide, side, step = 60, plan.window.side, settings["bin"]
    large = np.full((frame.shape[0] + 2 * wide, frame.shape[1] + 2 * wide), fill, float)
    top, bottom, left, right = settings.get("region_px", (0, frame.shape[0], 0, frame.shape[1]))
    large[wide + top : wide + bottom, wide + left : wide + right] = frame[top:bottom, left:right]
    row = wide + plan.window.rows.start - plan.window.missing[0][0]
    column = wide + plan.window.columns.start - plan.window.missing[1][0]
    out = np.empty((side, side))
    for i, j in np.ndindex(side, side):
        out[i, j] = large[row + i * step : row + (i + 1) * step, column + j * step : column + (j + 1) * step].sum()
    out = np.rot90(out, settings["rotate_deg"] // 90)
    out = out.T if settings["transpose"] else out
    return np.flip(out, [k for k, name in enumerate(("flip_rows", "flip_columns")) if settings[name]])


@given(SETTINGS)
def test_mask_and_frames_go_the_same_way(settings):
    rng = np.random.default_rng(0)
    frame = rng.integers(1, 50, (19, 21)).astype(np.uint16)
    valid = rng.random(frame.shape) > 0.05
    try:
        plan = plan_of(frame, valid=valid, **settings)
    except GeometryError:
        assert "crop_px" in settings and not settings["pad"]
        return
    counts = plan.apply(frame[np.newaxis])[0]
    # Sums of NaN tell where a raw pixel is not valid, or there is none.
    expected = numpys(np.where(valid, frame, np.nan), plan, settings, np.nan)
    np.testing.assert_array_equal(plan.mask, np.isfinite(expected))
    np.testing.assert_array_equal(counts[plan.mask], expected[plan.mask])
    # The beam is in the middle pixel, where the plan says in it.
    offset, n = np.array(plan.window.offset_px), plan.window.side
    assert (abs(offset) <= 0.5 + 1e-9).all()
    at = np.indices(frame.shape) - np.reshape(settings["beam_centre_px"], (2, 1, 1))
    mean = [numpys(axis, plan, settings, np.nan) / settings["bin"] ** 2 for axis in at]
    if np.isfinite(mean).all(axis=0)[n // 2, n // 2]:
        distance = np.hypot(*(axis[n // 2, n // 2] / settings["bin"] for axis in mean))
        assert distance == pytest.approx(np.hypot(*offset), abs=1e-9)


def test_without_a_crop_no_pixel_is_lost_but_for_the_square():
    for side in (63, 64, 65):
        counts, plan = made(np.ones((side, side), np.uint8))
        assert counts.shape == (side, side) and plan.mask.all()
    assert made(np.ones((195, 487), np.uint32))[0].shape == (194, 194)
    padded, plan = made(np.ones((195, 487), np.uint32), pad=True)
    assert padded.shape == (488, 488) and plan.mask.sum() == padded.sum() == 195 * 487
    binned, plan = made(np.ones((512, 512), np.uint16), bin=4)
    assert binned.shape == (128, 128) and (binned == 16).all()


def test_nothing_wanted_is_nothing_done():
    assert Preprocessing.recorded(Config()) is None and Preprocessing.live(Config()) is None
    saturated = Config.model_validate({"detector": {"saturation": 60000}})
    assert Preprocessing.recorded(saturated) is None


def test_frames_that_are_only_chosen_are_not_copied():
    frames = np.stack([FRAME, FRAME + 100])
    counts = plan_of(FRAME, crop_px=2, transpose=True, flip_rows=True, saturation=50).apply(frames)
    assert np.shares_memory(counts, frames)


def test_saturated_pixels_that_are_only_chosen_stay_what_they_are():
    plan = plan_of(FRAME, crop_px=4, saturation=33)
    assert plan.saturation == 33


@pytest.fixture
def files(tmp_path):
    """Images of the frame's size in every form."""
    dark, flat = np.full(FRAME.shape, 10.0), np.full(FRAME.shape, 0.5)
    dark[0, 0], dark[1, 1], flat[2, 2], flat[3, 3] = 12.5, np.nan, 0.0, 2.0
    bad = np.zeros(FRAME.shape, np.uint32)
    bad[4, 4] = 0x10
    np.save(tmp_path / "dark.npy", dark)
    np.savez(tmp_path / "flat.npz", other=flat + 1, flat=flat)
    with h5py.File(tmp_path / "bad.h5", "w") as file:
        file["entry/pixel_mask"], file["entry/other"] = bad, bad
    from PIL import Image

    mask = np.ones(FRAME.shape, np.uint8)
    mask[4, 0] = 0
    Image.fromarray(mask).save(tmp_path / "mask.tif")
    Image.fromarray(dark.astype(np.float32)).save(tmp_path / "dark.tiff")
    return {
        "dark": str(tmp_path / "dark.npy"),
        "flat": f"{tmp_path / 'flat.npz'}::flat",
        "bad_pixels": f"{tmp_path / 'bad.h5'}::entry/pixel_mask",
        "mask": str(tmp_path / "mask.tif"),
    }


def test_dark_frame_and_sensitivity(files):
    counts, plan = made(FRAME, pad=True, **files)
    assert counts.dtype == np.float32
    expected = (FRAME - 10.0) / 0.5
    # 11 counts, 12.5 of them dark: not below 0.
    expected[0, 0], expected[3, 3] = 0.0, (44 - 10) / 2
    valid = np.ones(FRAME.shape, bool)
    for place in ((1, 1), (2, 2), (4, 4), (4, 0)):
        valid[place] = False
    top, left = plan.window.missing[0][0], plan.window.missing[1][0]
    inside = (slice(top, top + 5), slice(left, left + 6))
    np.testing.assert_array_equal(plan.mask[inside], valid)
    np.testing.assert_allclose(counts[inside], np.where(valid, expected, 0), rtol=1e-6)
    assert plan.mask.sum() == valid.sum() and counts[~plan.mask].max() == 0


def test_images_are_named_with_a_checksum(files):
    notes = plan_of(FRAME, **files).as_notes()
    assert json.loads(json.dumps(notes)) == notes
    assert notes["dark"]["file"] == files["dark"] and len(notes["dark"]["sha256"]) == 64
    assert notes["bad_pixels"]["sha256"] != notes["mask"]["sha256"]


def test_a_dark_frame_in_tiff_is_the_same(files, tmp_path):
    in_npy, in_tiff = (made(FRAME, dark=name)[0] for name in (files["dark"], str(tmp_path / "dark.tiff")))
    np.testing.assert_array_equal(in_npy, in_tiff)


@pytest.mark.parametrize("settings", [{"bin": 2}, {"bin": 2, "flat": True}, {"dark": True}, {"flat": True}])
def test_a_saturated_pixel_is_saturated_in_what_comes_out_and_no_other_is(settings, tmp_path):
    rng = np.random.default_rng(2)
    frames = rng.integers(0, 1000, (20, 8, 8)).astype(np.uint16)
    frames[3, 2, 3] = 1000
    frames[4, 0, 7] = 65535
    np.save(tmp_path / "flat.npy", rng.uniform(0.5, 1.5, (8, 8)))
    np.save(tmp_path / "dark.npy", rng.uniform(-1, 3, (8, 8)))
    named = {key: str(tmp_path / f"{key}.npy") if value is True else value for key, value in settings.items()}
    plan = plan_of(frames[0], saturation=1000, transpose=True, **named)
    saturated = plan.apply(frames).astype(np.float32) >= plan.saturation
    b = settings.get("bin", 1)
    expected = (frames >= 1000).reshape(20, 8 // b, b, 8 // b, b).any(axis=(2, 4))
    np.testing.assert_array_equal(saturated, expected.swapaxes(1, 2))
    assert saturated.sum() == 2


def test_the_largest_number_of_a_type_is_saturated_not_refused():
    frame = np.ones((4, 4), np.uint32)
    frame[0, 0] = 2**32 - 1
    plan = plan_of(frame, bin=2, saturation=1000)
    np.testing.assert_array_equal(plan.apply(frame[np.newaxis])[0], [[plan.saturation, 4], [4, 4]])


def test_sums_beyond_counts_are_refused():
    frame = np.full((4, 4), 2**31, np.uint32)
    with pytest.raises(FrameError, match=f"binned counts must be below {MOST_COUNTS}"):
        made(frame, bin=2)


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.uint16, np.uint32, np.float32, np.float64, bool])
def test_types(kind):
    frame = np.ones((8, 8), kind)
    assert made(frame, crop_px=4)[0].dtype == kind
    binned, _ = made(frame, bin=4)
    assert binned.dtype == (np.float32 if np.dtype(kind).kind == "f" else np.uint32) and (binned == 16).all()


@pytest.mark.parametrize(("kind", "flag"), [(np.int32, -1), (np.uint32, 2**32 - 1), (np.float32, np.nan)])
@pytest.mark.parametrize("settings", [{"crop_px": 4}, {"bin": 2}, {"flip_rows": True}])
def test_flags_are_masked_and_never_computed_with(kind, flag, settings):
    frames = np.ones((5, 8, 8), kind)
    frames[:, 3, 5] = flag
    plan = plan_of(frames[0], frames=frames, mask_flagged=True, **settings)
    clean = np.ones((8, 8), bool)
    clean[3, 5] = False
    np.testing.assert_array_equal(plan.mask, plan_of(frames[0], valid=clean, **settings).mask)
    assert plan.notes["flagged_pixels"] == 1 and not plan.mask.all()
    assert np.unique(plan.apply(frames)[:, plan.mask]) == settings.get("bin", 1) ** 2


@pytest.mark.parametrize(("kind", "flag"), [(np.int32, -1), (np.float32, np.nan), (np.float32, np.inf)])
def test_a_flag_in_one_frame_is_refused_before_it_is_summed(kind, flag):
    frames = np.ones((5, 8, 8), kind)
    frames[3, 2, 2] = flag
    plan = plan_of(frames[0], frames=frames, mask_flagged=True, bin=2)
    with pytest.raises(FrameError, match=r"1 valid pixels of frame 3 \(from 0\) do not"):
        plan.apply(frames)


BAD = [
    ({"region_px": (0, 6, 0, 6)}, GeometryError, r"within frames of 5 x 6 pixels; it is \[0, 6, 0, 6\]"),
    ({"region_px": (3, 3, 0, 6)}, GeometryError, "region_px must be"),
    ({"crop_px": 6}, GeometryError, r"the square of 6 pixels \(crop_px\) around .* row 2 and column 3"),
    ({"beam_centre_px": (0, 0)}, GeometryError, "a square around the direct beam at row 0 and column 0 must lie in"),
    ({"beam_centre_px": (90, 90), "crop_px": 4, "pad": True}, GeometryError, "must have pixels in the region"),
    ({"frame_px": 64}, GeometryError, r"it is 64, and frames of 5 x 6 pixels become 4 x 4.*crop_px to 64"),
    ({"frame_px": 64, "crop_px": 4, "bin": 2}, GeometryError, r"become 2 x 2.*crop_px to 128"),
    ({"beam_centre_px": "find"}, FrameError, "no frame came in which the beam's centre could be found"),
    ({"mask": "absent.npy"}, ScanFileError, "no file absent.npy"),
]


@pytest.mark.parametrize(("settings", "kind", "message"), BAD)
def test_what_does_not_fit_is_named(settings, kind, message):
    with pytest.raises(kind, match=message):
        plan_of(FRAME, **settings)


@pytest.mark.parametrize("key", ["dark", "flat", "mask", "bad_pixels"])
def test_images_of_another_shape_are_refused(key, tmp_path):
    np.save(tmp_path / "a.npy", np.ones((6, 5)))
    with pytest.raises(ScanFileError, match=rf"detector\.{key} must have the shape .*\(5, 6\); .*a.npy has \(6, 5\)"):
        plan_of(FRAME, **{key: str(tmp_path / "a.npy")})


def test_an_inverted_mask_is_recognised(tmp_path):
    np.save(tmp_path / "a.npy", np.ones(FRAME.shape))
    with pytest.raises(FrameError, match="no valid pixel: is a mask inverted"):
        plan_of(FRAME, bad_pixels=str(tmp_path / "a.npy"))


def test_a_damaged_tiff_is_named(tmp_path):
    (tmp_path / "a.tif").write_bytes(b"II*\0" + b"\7" * 40)
    with pytest.raises(ScanFileError, match=r"can't read .*a\.tif as a TIFF file"):
        plan_of(FRAME, dark=str(tmp_path / "a.tif"))


def test_frames_of_another_shape_are_refused():
    with pytest.raises(FrameError, match=r"must have the shape \(5, 6\) .* they have \(6, 5\)"):
        plan_of(FRAME, crop_px=2).apply(np.ones((1, 6, 5)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"crop_px": 10, "bin": 4}, r"crop_px \(10\) must be a multiple of bin \(4\): 8 is"),
        ({"beam_centre_px": "middle"}, "beam_centre_px"),
        ({"rotate_deg": 45}, "rotate_deg"),
        ({"bin": 0}, "bin"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        load_config(overrides={"detector": settings})


def test_the_earlier_key_of_the_saturation_is_refused_with_its_new_name():
    with pytest.raises(ConfigError, match=r"reconstructor\.saturation is called detector\.saturation now"):
        load_config(overrides={"reconstructor": {"saturation": 60000}})


def test_geometry_follows():
    raw = Geometry(8000.0, 2.0, 50e-6, 6)
    plan = plan_of(np.ones((16, 16)), crop_px=12, bin=3)
    made_of = plan.geometry(raw)
    assert (made_of.frame_px, made_of.detector_pixel_m) == (4, pytest.approx(150e-6))
    # The sample pixel is that of the largest angle that is kept: of 12 raw pixels.
    assert made_of.pixel_m == pytest.approx(raw.wavelength_m * 2.0 / (12 * 50e-6))


def write(path, frames, **options):
    with h5py.File(path, "w") as file:
        file.create_dataset("d", data=frames, **options)
    return LazyFrames(FrameDataset(path, "d"))


@pytest.mark.parametrize("shape", [(12,), (3, 4)])
@pytest.mark.parametrize("settings", [{"crop_px": 8}, {"crop_px": 8, "bin": 2, "flip_rows": True}, {"pad": True}])
def test_frames_of_a_file_are_those_in_memory(tmp_path, settings, shape):
    frames = np.random.default_rng(1).poisson(5.0, (12, 14, 18)).astype(np.uint16)
    lazy = write(tmp_path / "a.h5", frames.reshape(*shape, 14, 18))
    plan = plan_of(frames[0], beam_centre_px=(6.2, 9.7), **settings)
    seen, expected = lazy.seen(plan), prepared(frames, plan)
    assert seen.shape == expected.shape and seen.dtype == expected.dtype
    np.testing.assert_array_equal(seen, expected)
    np.testing.assert_array_equal(seen[[7, 2]], expected[[7, 2]])
    np.testing.assert_array_equal(seen.select(np.arange(12) % 2 == 1), expected[1::2])
    np.testing.assert_array_equal(seen[5, 1:3], expected[5, 1:3])


class CountingDataset:
    """A dataset that counts what is asked of it."""

    def __init__(self, dataset, asked):
        self._dataset, self._asked = dataset, asked
        self.dtype = dataset.dtype

    def __getitem__(self, key):
        block = self._dataset[key]
        self._asked.append(block.shape)
        return block


@pytest.fixture
def asked(monkeypatch):
    """Shapes of all blocks that are read from HDF5 files."""
    from contextlib import contextmanager

    from bluesky_cdi.io import frame_dataset as module

    found, open_dataset = [], module.open_dataset

    @contextmanager
    def counting(*args):
        with open_dataset(*args) as dataset:
            counted = CountingDataset(dataset, found)
            counted.shape = dataset.shape
            yield counted

    monkeypatch.setattr(module, "open_dataset", counting)
    return found


def test_only_the_region_is_read(tmp_path, asked, monkeypatch):
    frames = np.random.default_rng(1).poisson(5.0, (40, 96, 128)).astype(np.uint16)
    lazy = write(tmp_path / "a.h5", frames)
    monkeypatch.setattr("bluesky_cdi.io.frame_dataset.BLOCK_BYTES", 16 * 16 * 2 * 10)
    wanted = Preprocessing(DetectorConfig(beam_centre_px=(30, 80), crop_px=16))
    plan = wanted.plan((96, 128), frames.dtype, frames=lazy, mask_flagged=True)
    np.testing.assert_array_equal(lazy.seen(plan), frames[:, 22:38, 72:88])
    assert {shape[1:] for shape in asked} == {(16, 16)}
    # In blocks, so that no more than the result and one of them is held.
    assert max(shape[0] for shape in asked) == 10


def test_where_the_beam_is_looked_for_few_frames_of_the_region_are_read(tmp_path, asked):
    frames = np.random.default_rng(1).poisson(disc((96, 128), (40.0, 70.0)), (40, 96, 128)).astype(np.uint16)
    lazy = write(tmp_path / "a.h5", frames)
    wanted = Preprocessing(DetectorConfig(region_px=(8, 80, 32, 112), beam_centre_px="find", crop_px=32))
    plan = wanted.plan((96, 128), frames.dtype, frames=lazy)
    assert {shape[1:] for shape in asked} == {(72, 80)} and sum(shape[0] for shape in asked) < 40
    assert plan.notes["beam_centre_px"] == pytest.approx([40, 70], abs=0.1)


def disc(shape, centre, radius=9.0, photons=2e4):
    """A bright ring on a weak background, as a lens with a central stop makes it."""
    y, x = np.indices(shape)
    distance = np.hypot(y - centre[0], x - centre[1])
    ring = 1 / (1 + np.exp(np.clip(distance - radius, -30, 30))) - 0.9 / (1 + np.exp(np.clip(distance - 3, -30, 30)))
    return ring * photons / ring.sum() + 0.05


@pytest.mark.parametrize("shape", [(64, 64), (48, 80), (65, 63)])
@pytest.mark.parametrize("centre", [(32, 31), (20.3, 44.6), (17.5, 30.0)])
def test_the_beam_of_a_simulated_pattern_is_found(shape, centre):
    frames = np.random.default_rng(4).poisson(disc(shape, centre), (6, *shape)).astype(np.int32)
    # Module gaps with flags, one of them through the pattern.
    frames[:, :, 28:30], frames[:, 12] = -1, -2
    found = plan_of(frames[0], frames=frames, beam_centre_px="find", pad=True, mask_flagged=True)
    assert found.notes["beam_centre_px"] == pytest.approx(centre, abs=0.15)
    stated = plan_of(frames[0], frames=frames, beam_centre_px=centre, pad=True, mask_flagged=True)
    if np.allclose(centre, np.round(centre)):
        np.testing.assert_array_equal(found.apply(frames), stated.apply(frames))


def test_frames_without_light_have_no_centre():
    frames = np.zeros((3, 16, 16), np.uint16)
    with pytest.raises(FrameError, match="no valid pixel of the frames holds light"):
        plan_of(frames[0], frames=frames, beam_centre_px="find")


def test_hot_pixels_do_not_hide_the_beam():
    frames = np.random.default_rng(4).poisson(disc((48, 64), (20.0, 30.0)), (6, 48, 64)).astype(np.uint32)
    frames[:, 40, 50], frames[2, 5, 5] = 10**6, 2**32 - 1
    plan = plan_of(frames[0], frames=frames, beam_centre_px="find", pad=True)
    assert plan.notes["beam_centre_px"] == pytest.approx([20, 30], abs=0.15)
