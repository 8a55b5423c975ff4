"""Results as files for other programs, opened again by other libraries."""

import json
from dataclasses import dataclass, replace

import h5py
import numpy as np
import pytest
from PIL import Image

from bluesky_cdi.cli import main
from bluesky_cdi.errors import ScanFileError
from bluesky_cdi.evaluation.gauge import shown_images
from bluesky_cdi.export import FORMATS, export_result, exported_files, format_of
from bluesky_cdi.io import read_cxi_result, read_npz_result, read_product
from bluesky_cdi.physics.geometry import Geometry
from bluesky_cdi.protocols import Estimate

GEOMETRY = Geometry(9000.0, 1.9, 75e-6, 16)
VERDICT = {"word": "doubtful", "reasons": ["too few frames"], "remarks": [], "measures": {}}


@dataclass(frozen=True, eq=False)
class Made:
    """What is exported: a result as a catalog would give it."""

    estimate: Estimate
    geometry: Geometry
    name: str
    phase_rad: np.ndarray


@pytest.fixture(scope="module")
def result():
    """An object of 20 x 30 pixels whose first row is darker and whose phase is off by 1 rad; a border has no light."""
    rng = np.random.default_rng(3)
    shape, n = (20, 30), 4
    amplitude = np.full(shape, 1.0)
    amplitude[2] = 0.5
    phase = 1.0 + 0.1 * rng.normal(size=shape)
    coverage = np.zeros(shape)
    coverage[2:-2, 3:-3] = 100.0
    estimate = Estimate(
        n_frames=n,
        object=(amplitude * np.exp(1j * phase)).astype(np.complex64),
        origin_m=(-1e-6, 2e-6),
        pixel_m=GEOMETRY.pixel_m,
        probe=np.ones((2, 16, 16), np.complex64),
        std_amplitude=np.full(shape, 0.02, np.float32),
        std_phase_rad=np.full(shape, 0.03, np.float32),
        coverage=coverage.astype(np.float32),
        frame_seq_nums=np.arange(1, n + 1) * 2,
        positions_m=rng.normal(size=(n, 2)) * 1e-7,
        embedding=np.zeros((n, 2), np.float32),
        frame_uncertainty=np.ones(n, np.float32),
        residual=np.ones(n, np.float32),
        novelty=np.ones(n, np.float32),
        source={"reconstructor": "lsqml", "verdict": VERDICT},
    )
    return Made(estimate, GEOMETRY, "scan 7", shown_images(estimate)["phase"])


@pytest.fixture(scope="module")
def phase_rad(result):
    """The mean of the illuminated area is what no measurement fixes."""
    inside = result.estimate.object[2:-2, 3:-3].astype(np.complex128)
    return np.angle(result.estimate.object * np.conj(inside.sum()))


def test_the_phase_is_that_of_the_figures(result, phase_rad):
    np.testing.assert_allclose(result.phase_rad, phase_rad, atol=1e-6)
    assert abs(np.angle(np.exp(1j * phase_rad)[2:-2, 3:-3].mean())) < 0.02


def test_tiff_holds_float32_images_with_their_pixel(result, phase_rad, tmp_path):
    tifffile = pytest.importorskip("tifffile", reason="opens the TIFF again; `pip install tifffile`")
    files = export_result(tmp_path / "a.tif", result)
    assert [path.name for path in files] == ["a_phase.tif", "a_amplitude.tif"]
    for path, wanted in zip(files, (phase_rad, abs(result.estimate.object)), strict=True):
        with tifffile.TiffFile(path) as file:
            (page,) = file.pages
            image, tags = page.asarray(), page.tags
        assert image.dtype == np.float32
        np.testing.assert_allclose(image, wanted, atol=1e-6)
        for name in ("XResolution", "YResolution"):
            top, bottom = tags[name].value
            assert 0.01 * bottom / top == pytest.approx(GEOMETRY.pixel_m, rel=1e-6)
        assert tags["ResolutionUnit"].value == 3  # centimetres
        notes = json.loads(tags["ImageDescription"].value)
        assert (notes["verdict"]["word"], notes["pixel_m"]) == ("doubtful", pytest.approx(GEOMETRY.pixel_m))


def test_nexus_plots_the_phase_by_itself_and_is_read_as_cxi(result, phase_rad, tmp_path):
    path = tmp_path / "a.nxs"
    export_result(path, result)
    with h5py.File(path) as file:
        group = file
        while group.attrs["NX_class"] != b"NXdata":
            group = group[group.attrs["default"].decode()]
        signal = group[group.attrs["signal"].decode()]
        np.testing.assert_allclose(signal, phase_rad, atol=1e-6)
        assert signal.attrs["units"] == b"rad"
        y, x = (group[name.decode()] for name in group.attrs["axes"])
        assert (y.shape, x.shape, y.attrs["units"]) == ((20,), (30,), b"m")
        assert y[-1] == pytest.approx(-1e-6 + 19 * GEOMETRY.pixel_m)
        assert x[0] == pytest.approx(2e-6)
        np.testing.assert_allclose(file["entry_1/amplitude/data"], abs(result.estimate.object), rtol=1e-6)
        note = json.loads(file["entry_1/process_1/note_1/data"][()])
        assert note["verdict"] == VERDICT
    np.testing.assert_array_equal(read_cxi_result(path).object, result.estimate.object)


def test_npz(result, phase_rad, tmp_path):
    export_result(tmp_path / "a.npz", result)
    with np.load(tmp_path / "a.npz", allow_pickle=False) as file:
        for name in ("object", "probe", "std_phase_rad", "coverage", "positions_m", "frame_seq_nums"):
            np.testing.assert_array_equal(file[name], getattr(result.estimate, name), strict=True)
        assert file["phase_rad"].dtype == file["amplitude"].dtype == np.float32
        np.testing.assert_allclose(file["phase_rad"], phase_rad, atol=1e-6)
        assert float(file["pixel_m"]) == GEOMETRY.pixel_m
        notes = json.loads(str(file["notes"]))
    assert notes["verdict"] == VERDICT and notes["geometry"]["energy_ev"] == 9000.0
    read = read_npz_result(tmp_path / "a.npz")
    for name in Estimate.__dataclass_fields__:
        if name not in ("seconds", "vacuum_residual"):
            np.testing.assert_array_equal(getattr(read, name), getattr(result.estimate, name), strict=True)


def test_of_a_file_the_latents_are_told_too(result, tmp_path, capsys):
    export_result(tmp_path / "a.npz", result)
    assert main(["latents", str(tmp_path / "a.npz"), "--out", str(tmp_path / "latents.png")]) == 0
    assert "a.npz, 4 frames" in capsys.readouterr().out
    np.savez(tmp_path / "scan.npz", frames=np.ones(3))
    assert main(["latents", str(tmp_path / "scan.npz")]) == 1
    assert "must hold `notes`" in capsys.readouterr().err


def test_cxi_and_ptychodus_are_what_their_readers_read(result, tmp_path):
    for name, read in (("a.cxi", read_cxi_result), ("a.h5", read_product)):
        export_result(tmp_path / name, result)
        found = read(tmp_path / name)
        assert found.name == "scan 7"
        np.testing.assert_array_equal(found.object, result.estimate.object)
        np.testing.assert_allclose(found.positions_m, result.estimate.positions_m)
    with h5py.File(tmp_path / "a.h5") as file:
        assert "doubtful" in file.attrs["comments"]


def test_png_says_its_verdict(result, tmp_path):
    export_result(tmp_path / "a", result, "png")
    with Image.open(tmp_path / "a") as image:
        assert image.text["Title"] == "scan 7"
        assert json.loads(image.text["Description"])["verdict"] == VERDICT


def test_the_form_that_is_named_wins_over_the_suffix(result, tmp_path):
    export_result(tmp_path / "a.dat", result, "npz")
    assert (tmp_path / "a.dat").read_bytes().startswith(b"PK")
    with pytest.raises(ScanFileError, match=r"cxi, nexus, npz, tiff, png, ptychodus, .*; 'a.dat' is none"):
        format_of(tmp_path / "a.dat")


@pytest.mark.parametrize("form", FORMATS)
def test_what_is_not_finite_leaves_the_file_that_was_there(result, tmp_path, form):
    path = tmp_path / "a"
    for each in exported_files(path, form):
        each.write_text("before")
    broken = result.estimate.object.copy()
    broken[5, 5] = np.nan
    with pytest.raises(ScanFileError, match="must be finite; 1 pixels are not"):
        export_result(path, replace(result, estimate=replace(result.estimate, object=broken)), form)
    assert {each.read_text() for each in tmp_path.iterdir()} == {"before"}
