"""Readers and writers of scans, on the real files where they are at hand and on small ones made here."""

import json
import os
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest

from bluesky_cdi.errors import FrameError, GeometryError, ScanFileError
from bluesky_cdi.io import Scan, read_canonical, read_cxi, read_frames, read_ptychopinn, read_scan, write_cxi
from bluesky_cdi.io.cxi import DETECTOR, HAS_SIGNAL, JOULES_PER_EV
from bluesky_cdi.physics.geometry import Geometry

GEOMETRY = Geometry(8000.0, 2.0, 172e-6, 16)


def real_file(name: str) -> Path:
    folder = os.environ.get("BLUESKY_CDI_DATA")
    if not folder:
        pytest.skip("BLUESKY_CDI_DATA doesn't name the folder of real data")
    path = Path(folder) / name
    if not path.is_file():
        pytest.skip(f"{path} is absent")
    return path


def star_file() -> Path:
    return real_file("siemens_velociprobe/canonical.npz")


def petra_file() -> Path:
    return real_file("petra_p25_nearfield/PETRAIII_P25_Near_Field_Ptycho.cxi")


def make_scan(**changes) -> Scan:
    rng = np.random.default_rng(0)
    values = {
        "counts": rng.poisson(5.0, (6, 16, 16)).astype(np.uint16),
        "positions_m": rng.uniform(-1e-6, 1e-6, (6, 2)),
        "geometry": GEOMETRY,
        "probe": rng.normal(size=(2, 16, 16)).astype(np.complex64),
        "mask": rng.random((16, 16)) > 0.1,
        "name": "made",
        "source": {"nominal_geometry": True, "propagation": "far field"},
    }
    return Scan(**(values | changes))


class TestScan:
    def test_subset_keeps_order_and_pairs(self):
        scan = make_scan()
        part = scan.subset([4, 1])
        np.testing.assert_array_equal(part.counts, scan.counts[[4, 1]])
        np.testing.assert_array_equal(part.positions_m, scan.positions_m[[4, 1]])
        assert len(scan.subset(np.arange(6) % 2 == 0)) == 3

    def test_mean_photons_does_not_overflow(self):
        scan = make_scan(counts=np.full((6, 16, 16), 60000, np.uint16), mask=None)
        assert scan.mean_photons == 60000 * 256

    def test_masked_pixels_may_hold_anything(self):
        counts, mask = np.ones((6, 16, 16)), np.ones((16, 16), bool)
        mask[3, 4] = False
        counts[:, 3, 4] = [np.nan, -1, np.inf, -2, 2**32 - 1, 0]
        assert make_scan(counts=counts, mask=mask).mean_photons == 255

    @pytest.mark.parametrize(
        ("changes", "error", "match"),
        [
            ({"counts": np.ones((6, 16))}, ScanFileError, r"\(n, H, W\)"),
            ({"counts": np.ones((0, 16, 16)), "positions_m": np.ones((0, 2))}, ScanFileError, "n > 0"),
            ({"counts": np.ones((6, 16, 12))}, GeometryError, "16 x 12"),
            ({"positions_m": np.ones((5, 2))}, ScanFileError, r"6 frames need positions of shape \(6, 2\)"),
            ({"positions_m": np.full((6, 2), np.nan)}, GeometryError, "positions must be finite"),
            ({"probe": np.ones((16, 16), np.complex64)}, ScanFileError, r"\(modes, 16, 16\)"),
            ({"probe": np.zeros((1, 16, 16), np.complex64)}, ScanFileError, "not 0 everywhere"),
            ({"mask": np.ones((16, 16))}, ScanFileError, "must be bool"),
            ({"mask": np.zeros((16, 16), bool)}, FrameError, "no valid pixel"),
            ({"counts": np.full((6, 16, 16), np.nan)}, FrameError, "must be finite"),
            ({"counts": np.full((6, 16, 16), -1)}, FrameError, "not negative"),
            ({"counts": np.ones((6, 16, 16), complex)}, FrameError, "real numbers"),
            ({"counts": np.zeros((6, 16, 16))}, FrameError, "must hold photons"),
        ],
    )
    def test_refuses(self, changes, error, match):
        with pytest.raises(error, match=match):
            make_scan(**changes)


class TestRealFiles:
    def test_siemens_star(self):
        scan = read_scan(star_file())
        assert scan.counts.shape == (516, 128, 128)
        assert scan.counts.dtype.kind == "u"
        assert scan.mean_photons == pytest.approx(4.6e5, rel=0.01)
        assert scan.geometry.pixel_m == pytest.approx(10e-9, rel=1e-12)
        assert scan.source["nominal_geometry"] is True
        with np.load(star_file()) as file:
            np.testing.assert_allclose(scan.positions_m / 10e-9, file["positions_px"], rtol=1e-6)
            # Only the gauge of the probe changes.
            ratio = scan.probe / file["probe_guess"]
        np.testing.assert_allclose(ratio, scan.source["probe_scale"], rtol=1e-4)
        assert (np.abs(scan.probe.astype(complex)) ** 2).sum() == pytest.approx(scan.mean_photons, rel=1e-5)

    def test_petra(self):
        scan = read_scan(petra_file())
        assert scan.counts.shape == (200, 100, 100)
        assert scan.mean_photons == pytest.approx(9.7e6, rel=0.01)
        assert scan.geometry.energy_ev == pytest.approx(12658, rel=1e-4)
        assert scan.geometry.distance_m == pytest.approx(1.12)
        assert scan.geometry.detector_pixel_m == pytest.approx(55e-6)
        assert (~scan.mask).sum() == 5
        assert scan.source["propagation"] == "far field (assumed)"

    def test_petra_near_field(self, tmp_path):
        """The README of the data states the numbers, from the instrument's own example."""
        scan = read_scan(petra_file(), focus_to_sample_m=3.65e-3)
        assert scan.source["propagation"] == "near field"
        assert scan.geometry.magnification == pytest.approx(307.8, rel=1e-3)
        assert scan.geometry.pixel_m == pytest.approx(178.66e-9, rel=1e-4)
        assert scan.geometry.effective_distance_m == pytest.approx(3.638e-3, rel=1e-3)
        write_cxi(tmp_path / "copy.cxi", scan)
        copy = read_scan(tmp_path / "copy.cxi")
        assert copy.geometry.pixel_m == pytest.approx(scan.geometry.pixel_m, rel=1e-14)
        assert copy.source["propagation"] == "near field"
        np.testing.assert_array_equal(copy.counts, scan.counts)
        np.testing.assert_array_equal(copy.positions_m, scan.positions_m)
        np.testing.assert_array_equal(copy.mask, scan.mask)

    def test_petra_positions_agree_with_cdtools(self):
        """cdtools negates the translations and maps them through its object basis (y, x) -> laboratory."""
        with np.load(real_file("petra_p25_nearfield/reference.npz")) as file:
            pixels = file["translation"].astype(float) @ np.linalg.pinv(file["obj_basis"].astype(float)).T
            pixel_m = np.abs(file["obj_basis"]).max()
        np.testing.assert_allclose(read_scan(petra_file()).positions_m / pixel_m, pixels, rtol=1e-5)

    @pytest.mark.parametrize("share", [0.0, 1e-5, 0.01, 0.3, 0.9, 0.99, 0.99999])
    @pytest.mark.parametrize("file", [star_file, petra_file])
    def test_truncated_copies(self, tmp_path, file, share):
        whole = file().read_bytes()
        copy = tmp_path / "copy"
        copy.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(ScanFileError, match="copy"):
            read_scan(copy)


class TestReadScan:
    def test_absent(self, tmp_path):
        with pytest.raises(ScanFileError, match="no file"):
            read_scan(tmp_path / "nowhere.cxi")

    def test_folder(self, tmp_path):
        with pytest.raises(ScanFileError, match="is no file but a folder"):
            read_scan(tmp_path)

    @pytest.mark.parametrize("read", [read_scan, read_frames])
    def test_empty(self, tmp_path, read):
        (tmp_path / "a.h5").touch()
        with pytest.raises(ScanFileError, match="is empty, 0 bytes"):
            read(tmp_path / "a.h5")

    def test_neither_hdf5_nor_npz(self, tmp_path):
        (tmp_path / "notes.txt").write_text("no frames here")
        with pytest.raises(ScanFileError, match=r"must be a CXI \(HDF5\), Ptychodus \(HDF5\) or NPZ file"):
            read_scan(tmp_path / "notes.txt")

    def test_other_npz(self, tmp_path):
        np.savez(tmp_path / "other.npz", a=np.ones(3))
        with pytest.raises(ScanFileError, match=r"it holds a\."):
            read_scan(tmp_path / "other.npz")

    def test_metres_with_a_geometry_are_enough(self, tmp_path):
        scan = make_scan()
        arrays = {"frames": scan.counts, "positions_m": scan.positions_m}
        np.savez(tmp_path / "a.npz", **arrays, geometry=json.dumps(GEOMETRY.as_metadata()))
        back = read_scan(tmp_path / "a.npz")
        np.testing.assert_array_equal(back.positions_m, scan.positions_m)
        assert back.geometry == GEOMETRY and not back.source.get("nominal_geometry")

    def test_metres_without_a_geometry_are_not_on_a_nominal_pixel(self, tmp_path):
        arrays = {"frames": make_scan().counts, "positions_m": make_scan().positions_m}
        np.savez(tmp_path / "a.npz", **arrays)
        with pytest.raises(ScanFileError, match="`positions_m` need a `geometry`"):
            read_scan(tmp_path / "a.npz")
        pixels = np.arange(12.0).reshape(6, 2)
        np.savez(tmp_path / "b.npz", **arrays, positions_px=pixels)
        np.testing.assert_allclose(read_scan(tmp_path / "b.npz").positions_m, pixels * 10e-9)

    def test_a_scan_is_called_after_its_file_wherever_one_stands(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        for name, called in (("star.npz", "star"), ("canonical.npz", tmp_path.name)):
            np.savez(name, frames=make_scan().counts, positions_px=np.arange(12.0).reshape(6, 2))
            assert read_scan(name).name == read_scan(tmp_path / name).name == called

    def test_other_zip(self, tmp_path):
        with zipfile.ZipFile(tmp_path / "some.zip", "w") as file:
            file.writestr("a.txt", "text")
        with pytest.raises(ScanFileError, match="must hold `frames`"):
            read_scan(tmp_path / "some.zip")

    def test_other_hdf5(self, tmp_path):
        with h5py.File(tmp_path / "other.h5", "w") as file:
            file["object"] = 1  # neither a scan nor a product
        with pytest.raises(ScanFileError, match="must be a CXI file"):
            read_scan(tmp_path / "other.h5")

    def test_pickled_arrays_are_not_loaded(self, tmp_path):
        np.savez(tmp_path / "p.npz", frames=np.array([{}], object), positions_px=np.zeros((1, 2)))
        with pytest.raises(ScanFileError, match="allow_pickle"):
            read_scan(tmp_path / "p.npz")

    def test_suffix_does_not_matter(self, tmp_path):
        write_cxi(tmp_path / "scan.dat", make_scan())
        assert len(read_scan(tmp_path / "scan.dat")) == 6


class TestCxi:
    def test_round_trip(self, tmp_path):
        scan = make_scan()
        write_cxi(tmp_path / "a.cxi", scan)
        first = read_cxi(tmp_path / "a.cxi")
        np.testing.assert_array_equal(first.counts, scan.counts)
        assert first.counts.dtype == scan.counts.dtype
        np.testing.assert_allclose(first.positions_m, scan.positions_m, rtol=1e-14)
        np.testing.assert_array_equal(first.mask, scan.mask)
        for name in ("energy_ev", "distance_m", "detector_pixel_m", "frame_px"):
            assert getattr(first.geometry, name) == pytest.approx(getattr(scan.geometry, name), rel=1e-14)
        assert first.source["nominal_geometry"] is True
        assert first.source["propagation"] == "far field"
        write_cxi(tmp_path / "b.cxi", first)
        np.testing.assert_array_equal(read_cxi(tmp_path / "b.cxi").probe, first.probe)

    def test_energy_in_joules_and_places(self, tmp_path):
        scan = make_scan()
        write_cxi(tmp_path / "a.cxi", scan)
        with h5py.File(tmp_path / "a.cxi") as file:
            assert file["entry_1/instrument_1/source_1/energy"][()] == pytest.approx(8000 * JOULES_PER_EV)
            # As Ptychodus reads it: x first, no sign.
            np.testing.assert_array_equal(file["entry_1/data_1/translation"][:, 0], scan.positions_m[:, 1])
            np.testing.assert_array_equal(file["entry_1/data_1/translation"][:, 1], scan.positions_m[:, 0])
            np.testing.assert_array_equal(file["entry_1/data_1/data"][()], scan.counts)

    def test_turned_detector(self, tmp_path):
        """Rows along +x and columns along -y: the sample's translation is seen along these."""
        scan = make_scan()
        write_cxi(tmp_path / "a.cxi", scan)
        with h5py.File(tmp_path / "a.cxi", "a") as file:
            translation = file["entry_1/data_1/translation"][()]
            file[f"{DETECTOR}/basis_vectors"][...] = np.array([[1, 0, 0], [0, -1, 0]]) * 172e-6
        np.testing.assert_allclose(
            read_cxi(tmp_path / "a.cxi").positions_m, np.stack([-translation[:, 0], translation[:, 1]], axis=1)
        )

    def test_mask_bits(self, tmp_path):
        write_cxi(tmp_path / "a.cxi", make_scan(mask=np.ones((16, 16), bool)))
        with h5py.File(tmp_path / "a.cxi", "a") as file:
            file[f"{DETECTOR}/mask"][0, :4] = [0, HAS_SIGNAL, 2, HAS_SIGNAL | 1]
        assert read_cxi(tmp_path / "a.cxi").mask[0, :5].tolist() == [True, True, False, False, True]

    @pytest.mark.parametrize(
        ("place", "match"),
        [
            (f"{DETECTOR}/distance", "must hold one of .*distance"),
            (f"{DETECTOR}/data", "must hold one of .*data_1/data"),
            ("entry_1/sample_1/geometry_1/translation", "must hold one of .*translation"),
        ],
    )
    def test_missing_parts(self, tmp_path, place, match):
        write_cxi(tmp_path / "a.cxi", make_scan())
        with h5py.File(tmp_path / "a.cxi", "a") as file:
            del file[place]
            del file["entry_1/sample_1/transformations"]
        with pytest.raises(ScanFileError, match=match):
            read_scan(tmp_path / "a.cxi")

    def test_oblong_pixels(self, tmp_path):
        write_cxi(tmp_path / "a.cxi", make_scan())
        with h5py.File(tmp_path / "a.cxi", "a") as file:
            file[f"{DETECTOR}/y_pixel_size"][()] = 100e-6
        with pytest.raises(GeometryError, match="must be square"):
            read_cxi(tmp_path / "a.cxi")

    def test_focus_behind_sample(self, tmp_path):
        write_cxi(tmp_path / "a.cxi", make_scan())
        with pytest.raises(GeometryError, match="focus_to_sample_m must be a finite positive number"):
            read_cxi(tmp_path / "a.cxi", focus_to_sample_m=0.0)

    def test_failed_write_leaves_what_was_there(self, tmp_path):
        path = tmp_path / "a.cxi"
        path.write_bytes(b"before")
        with pytest.raises(TypeError):
            write_cxi(path, make_scan(source={("no", "text"): 1}))
        assert path.read_bytes() == b"before"
        assert [p.name for p in tmp_path.iterdir()] == ["a.cxi"]

    def test_no_such_folder(self, tmp_path):
        with pytest.raises(ScanFileError, match="can't write"):
            write_cxi(tmp_path / "none" / "a.cxi", make_scan())


class TestPtychopinn:
    def write(self, path: Path, **changes) -> dict:
        rng = np.random.default_rng(1)
        values = {
            "diffraction": np.sqrt(rng.poisson(9.0, (5, 16, 16))).astype(np.float32),
            "xcoords": rng.uniform(0, 50, 5),
            "ycoords": rng.uniform(0, 50, 5),
            "probeGuess": rng.normal(size=(16, 16)).astype(np.complex64),
        }
        values = {k: v for k, v in (values | changes).items() if v is not None}
        np.savez(path, **values)
        return values

    def test_amplitudes_become_counts(self, tmp_path):
        values = self.write(tmp_path / "a.npz")
        scan = read_scan(tmp_path / "a.npz")
        np.testing.assert_allclose(scan.counts, values["diffraction"] ** 2)
        np.testing.assert_allclose(scan.positions_m[:, 0], values["ycoords"] * 10e-9)
        np.testing.assert_allclose(scan.positions_m[:, 1], values["xcoords"] * 10e-9)
        assert scan.probe.shape == (1, 16, 16)
        assert (np.abs(scan.probe) ** 2).sum() == pytest.approx(scan.mean_photons, rel=1e-5)
        assert scan.source["nominal_geometry"] is True

    def test_older_name_and_axis_order(self, tmp_path):
        new = self.write(tmp_path / "new.npz")
        self.write(tmp_path / "old.npz", diffraction=None, diff3d=np.moveaxis(new["diffraction"], 0, 2))
        np.testing.assert_array_equal(read_scan(tmp_path / "old.npz").counts, read_scan(tmp_path / "new.npz").counts)

    def test_pixel(self, tmp_path):
        self.write(tmp_path / "a.npz", probeGuess=None)
        scan = read_ptychopinn(tmp_path / "a.npz", pixel_m=25e-9)
        assert scan.geometry.pixel_m == pytest.approx(25e-9)
        assert scan.probe is None

    def test_lengths_differ(self, tmp_path):
        self.write(tmp_path / "a.npz", xcoords=np.zeros(4), ycoords=np.zeros(4))
        with pytest.raises(ScanFileError, match="4 positions need amplitudes"):
            read_scan(tmp_path / "a.npz")


class TestCanonical:
    def test_missing_key(self, tmp_path):
        np.savez(tmp_path / "a.npz", frames=np.ones((2, 16, 16)))
        with pytest.raises(ScanFileError, match=r"a\.npz must hold `positions_px`; it holds frames"):
            read_canonical(tmp_path / "a.npz")

    def test_probe_and_mask_may_lack(self, tmp_path):
        np.savez(tmp_path / "a.npz", frames=np.ones((2, 16, 16)), positions_px=np.zeros((2, 2)))
        scan = read_scan(tmp_path / "a.npz")
        assert scan.probe is None and scan.mask is None
