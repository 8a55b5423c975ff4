"""Frames without positions, masks and supports, and single-shot results in files."""

from dataclasses import replace

import h5py
import numpy as np
import pytest

from bluesky_cdi.errors import BlueskyCDIError, FrameError, GeometryError, ScanFileError
from bluesky_cdi.io import (
    Scan,
    SingleShotImage,
    read_frames,
    read_image,
    read_reconstruction,
    read_scan,
    read_single_shot,
    scan_formats,
    write_scan,
    write_single_shot,
)
from bluesky_cdi.physics.geometry import Geometry

GEOMETRY = Geometry(8000.0, 1.0, 75e-6, 12)


def frames(n=3, shape=(12, 12)):
    return np.random.default_rng(1).poisson(9.0, (n, *shape)).astype(np.int32)


def scan():
    rng = np.random.default_rng(2)
    mask = np.ones((12, 12), bool)
    mask[3, 4] = False
    probe = (rng.normal(size=(1, 12, 12)) + 1j * rng.normal(size=(1, 12, 12))).astype(np.complex64)
    return Scan(frames(), rng.uniform(-1e-7, 1e-7, (3, 2)), GEOMETRY, probe, mask, "a", {"propagation": "far field"})


@pytest.mark.parametrize("form", [f for f in scan_formats() if f != "ptychopinn"])
def test_the_frames_of_a_recorded_scan(tmp_path, form):
    path = tmp_path / {"cxi": "a.cxi", "canonical": "a.npz", "ptychodus": "a.h5"}[form]
    write_scan(path, scan(), form)
    found = read_frames(path)
    np.testing.assert_array_equal(found.counts, frames())
    np.testing.assert_array_equal(found.mask, scan().mask)
    assert found.geometry.pixel_m == pytest.approx(GEOMETRY.pixel_m, rel=1e-9)
    # As many photons or not, it is the same beam.
    overlap = np.vdot(found.probe, scan().probe) / np.linalg.norm(found.probe) / np.linalg.norm(scan().probe)
    assert abs(overlap) == pytest.approx(1, abs=1e-5)


def test_a_canonical_file_without_positions(tmp_path):
    np.savez(tmp_path / "a.npz", frames=frames(), mask=scan().mask)
    found = read_frames(tmp_path / "a.npz")
    np.testing.assert_array_equal(found.counts, frames())
    np.testing.assert_array_equal(found.mask, scan().mask)
    assert found.geometry is None and found.probe is None


def test_a_cxi_file_without_positions_keeps_its_geometry(tmp_path):
    path = tmp_path / "a.cxi"
    write_scan(path, scan())
    with h5py.File(path, "a") as file:
        for name in ("data_1/translation", "sample_1", "instrument_1/detector_1/translation"):
            del file[f"entry_1/{name}"]
    with pytest.raises(BlueskyCDIError):
        read_scan(path)
    found = read_frames(path)
    np.testing.assert_array_equal(found.counts, frames())
    assert found.geometry.pixel_m == pytest.approx(GEOMETRY.pixel_m, rel=1e-9)


def test_a_cxi_file_of_single_particles(tmp_path, caplog):
    """Frames and mask in an image, and nothing else."""
    mask = np.zeros((12, 12), np.uint32)
    mask[3, 4] = 1
    with h5py.File(tmp_path / "a.cxi", "w") as file:
        file["entry_1/image_1/data"], file["entry_1/image_1/mask"] = frames(), mask
    found = read_frames(tmp_path / "a.cxi")
    np.testing.assert_array_equal(found.counts, frames())
    np.testing.assert_array_equal(found.mask, mask == 0)
    assert found.geometry is None
    assert "states no geometry" in caplog.text


@pytest.mark.parametrize("shape", [(12, 9), (3, 12, 9)])
@pytest.mark.parametrize("form", ["npy", "npz", "h5"])
def test_plain_arrays(tmp_path, shape, form):
    values = frames(int(np.prod(shape[:-2])), shape[-2:]).reshape(shape)
    path = tmp_path / f"a.{form}"
    if form == "npy":
        np.save(path, values)
    elif form == "npz":
        np.savez(path, anything=values)
    else:
        with h5py.File(path, "w") as file:
            file["deep/anything"], file["number"] = values, 3
    found = read_frames(path)
    np.testing.assert_array_equal(found.counts, values.reshape(-1, 12, 9))
    assert found.mask is None and found.name == "a"


def test_flags_stay_what_they_are(tmp_path):
    values = frames().astype(np.float32)
    values[0, 1, 2], values[1, 0, 0] = np.nan, -1
    np.save(tmp_path / "a.npy", values)
    np.testing.assert_array_equal(read_frames(tmp_path / "a.npy").counts, values)


def test_of_several_arrays_one_must_be_named(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["dark"], file["run/bright"] = frames(2), frames(4)
    with pytest.raises(ScanFileError, match=r"name the dataset. It holds dark \(2, 12, 12\), run/bright \(4, 12, 12\)"):
        read_frames(tmp_path / "a.h5")
    assert len(read_frames(tmp_path / "a.h5", dataset="run/bright")) == 4
    np.savez(tmp_path / "a.npz", one=frames(1), two=frames(2))
    with pytest.raises(ScanFileError, match="name the dataset"):
        read_frames(tmp_path / "a.npz")
    assert len(read_frames(tmp_path / "a.npz", dataset="two")) == 2
    for name in ("a.h5", "a.npz"):
        with pytest.raises(ScanFileError):
            read_frames(tmp_path / name, dataset="none")


def write_text(path):
    path.write_text("no array")


def write_other_mask(path):
    with path.open("wb") as file:
        np.savez(file, frames=np.ones((4, 4)), mask=np.ones((3, 3)))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda path: None, ScanFileError, "there is no file"),
        (write_text, ScanFileError, "can't read"),
        (lambda path: np.save(path, np.ones(5)), ScanFileError, r"\(H, W\) or \(n, H, W\); they have \(5,\)"),
        (lambda path: np.save(path, np.ones((2, 3, 4, 4))), ScanFileError, "shape"),
        (lambda path: np.save(path, np.ones((0, 4, 4))), ScanFileError, "shape"),
        (lambda path: np.save(path, np.ones((4, 4), complex)), FrameError, "real numbers; their type is complex128"),
        (write_other_mask, ScanFileError, "a mask must have the frames' shape"),
    ],
)
def test_files_that_hold_no_frames_are_refused(tmp_path, make, error, message):
    path = tmp_path / "a.npy"
    make(path)
    with pytest.raises(error, match=message):
        read_frames(path)


def test_a_focus_declares_only_a_cxi_files_near_field(tmp_path):
    write_scan(tmp_path / "a.cxi", scan())
    assert read_frames(tmp_path / "a.cxi", focus_to_sample_m=0.01).geometry.propagation == "near"
    np.save(tmp_path / "a.npy", frames())
    with pytest.raises(GeometryError, match="Leave it out"):
        read_frames(tmp_path / "a.npy", focus_to_sample_m=0.01)


@pytest.mark.parametrize("form", ["npy", "npz", "h5"])
def test_an_image_of_zeros_and_ones(tmp_path, form):
    image = np.eye(5, dtype=np.uint8)
    path = tmp_path / f"a.{form}"
    if form == "npy":
        np.save(path, image)
    elif form == "npz":
        np.savez(path, support=image)
    else:
        with h5py.File(path, "w") as file:
            file["support"] = image
    found = read_image(path)
    assert found.dtype == bool
    np.testing.assert_array_equal(found, image == 1)


@pytest.mark.parametrize("values", [np.arange(9).reshape(3, 3), np.ones((2, 3, 3)), np.full((3, 3), np.nan)])
def test_other_images_are_refused(tmp_path, values):
    np.save(tmp_path / "a.npy", values)
    with pytest.raises(ScanFileError, match="zeros and ones"):
        read_image(tmp_path / "a.npy")


def image(number=0, pixel_m=1e-8):
    rng = np.random.default_rng(number)
    return SingleShotImage(
        frames=(number, number + 7),
        object=(rng.normal(size=(12, 12)) + 1j * rng.normal(size=(12, 12))).astype(np.complex64),
        support=rng.random((12, 12)) > 0.5,
        r_factor=np.array([0.1, np.nan, 0.05]),
        noise_r_factor=0.04,
        status=("stagnated", "diverged", "converged"),
        best=2,
        transfer=np.array([np.nan, 1.0, 0.9, 0.8, 0.7, 0.6, 0.5]),
        unmeasured_share=0.125,
        history=rng.random((5, 3)),
        iterations=170,
        pixel_m=pixel_m,
        provenance={"file": "a.npy", "settings": {"cycles": 4, "cycle": [["hio", 80, 0.9]]}},
    )


@pytest.mark.parametrize("geometry", [None, GEOMETRY])
def test_a_written_result_reads_back_bit_by_bit(tmp_path, geometry):
    pixel_m = None if geometry is None else geometry.pixel_m
    written = [image(0, pixel_m), image(1, pixel_m)]
    write_single_shot(tmp_path / "a.cxi", written, geometry, "two")
    read = read_single_shot(tmp_path / "a.cxi")
    assert len(read) == 2
    for found, wanted in zip(read, written, strict=True):
        for name, value in vars(wanted).items():
            np.testing.assert_array_equal(getattr(found, name), value, err_msg=name)
        assert found.object.dtype == np.complex64 and found.verdict == "converged"
    with h5py.File(tmp_path / "a.cxi") as file:
        np.testing.assert_array_equal(file["entry_1/data_1/data"], written[0].object)
        np.testing.assert_array_equal(file["entry_1/image_2/mask"], np.where(written[1].support, 0x10000, 0))


def test_results_and_scans_are_not_taken_for_each_other(tmp_path):
    write_single_shot(tmp_path / "a.cxi", [image(), image(1)])
    for read in (read_scan, read_reconstruction):
        with pytest.raises(ScanFileError, match="read_single_shot reads it"):
            read(tmp_path / "a.cxi")
    with pytest.raises(FrameError, match="complex64"):
        read_frames(tmp_path / "a.cxi")
    write_scan(tmp_path / "b.cxi", scan())
    with pytest.raises(ScanFileError, match="must be a single-shot reconstruction"):
        read_single_shot(tmp_path / "b.cxi")


def test_an_interrupted_write_leaves_what_was_there(tmp_path):
    """A provenance that is no JSON ends the write after most of the file has been written."""
    path = tmp_path / "a.cxi"
    write_single_shot(path, [image()])
    before = path.read_bytes()
    with pytest.raises(TypeError):
        write_single_shot(path, [image(1), replace(image(2), provenance={("no", "text"): 1})])
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
