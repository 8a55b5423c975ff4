"""What each writer writes comes back: bit by bit where the form allows."""

import json
from dataclasses import replace

import h5py
import numpy as np
import pytest

from bluesky_cdi.errors import GeometryError, ScanFileError
from bluesky_cdi.io import (
    LazyFrames,
    Scan,
    read_canonical,
    read_ptychodus,
    read_ptychopinn,
    read_scan,
    scan_formats,
    write_canonical,
    write_ptychodus,
    write_ptychopinn,
    write_scan,
)
from bluesky_cdi.physics.geometry import HC_EV_M, Geometry

FAR = Geometry(8000.3, 2.0, 172e-6, 16)
NEAR = Geometry(12658.0, 1.12, 55e-6, 16, "near", 3.65e-3)
PARALLEL = Geometry(12658.0, 0.05, 1e-6, 16, "near")


def make_scan(dtype=np.uint16, geometry=FAR, modes=1, mask=True, probe=True) -> Scan:
    rng = np.random.default_rng(5)
    counts = rng.poisson(5.0, (6, 16, 16)).astype(dtype)
    if np.dtype(dtype).kind == "f":
        counts = counts + rng.random(counts.shape).astype(dtype)
    bare = Scan(
        counts=counts,
        positions_m=rng.uniform(-0.4, 0.4, (6, 2)) * 16 * geometry.pixel_m,
        geometry=geometry,
        mask=rng.random((16, 16)) > 0.1 if mask else None,
        name="ä scan",
        source={"propagation": "near field" if geometry.propagation == "near" else "far field", "dwell_s": 0.1},
    )
    if not probe:
        return bare
    values = rng.normal(size=(modes, 16, 16)) + 1j * rng.normal(size=(modes, 16, 16))
    return replace(bare, probe=(values * np.sqrt(bare.mean_photons / (abs(values) ** 2).sum())).astype(np.complex64))


EXACT = [("cxi", "a.cxi"), ("canonical", "a.npz"), ("ptychodus", "a.h5")]


class TestEveryForm:
    @pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.int32, np.float32, np.float64, ">u2"])
    @pytest.mark.parametrize(("form", "name"), EXACT)
    def test_bit_by_bit(self, tmp_path, form, name, dtype):
        scan = make_scan(dtype, modes=3)
        write_scan(tmp_path / name, scan)
        back = read_scan(tmp_path / name)
        assert back.counts.dtype == scan.counts.dtype
        for part in ("counts", "positions_m", "probe", "mask"):
            np.testing.assert_array_equal(getattr(back, part), getattr(scan, part), err_msg=part)
        assert back.positions_m.dtype == np.float64 and back.probe.dtype == np.complex64
        assert back.source["format"] == form and back.source["probe_scale"] == 1.0

    @pytest.mark.parametrize("geometry", [FAR, NEAR, PARALLEL], ids=["far", "near", "parallel"])
    @pytest.mark.parametrize(("form", "name"), EXACT)
    def test_geometry(self, tmp_path, form, name, geometry):
        write_scan(tmp_path / name, make_scan(geometry=geometry), form)
        back = read_scan(tmp_path / name)
        assert back.geometry.propagation == geometry.propagation
        assert back.geometry.focus_to_sample_m == geometry.focus_to_sample_m
        for value in ("energy_ev", "distance_m", "detector_pixel_m", "frame_px", "pixel_m"):
            assert getattr(back.geometry, value) == pytest.approx(getattr(geometry, value), rel=1e-14)
        assert back.source["propagation"] == ("far field" if geometry is FAR else "near field")

    @pytest.mark.parametrize(("form", "name"), EXACT[:2])
    def test_without_probe_and_mask(self, tmp_path, form, name):
        write_scan(tmp_path / name, make_scan(mask=False, probe=False))
        back = read_scan(tmp_path / name)
        assert back.probe is None and back.mask is None and back.source["probe_scale"] is None
        assert back.source["dwell_s"] == 0.1

    @pytest.mark.parametrize("to", scan_formats())
    @pytest.mark.parametrize("of", scan_formats())
    def test_from_each_to_each(self, tmp_path, of, to):
        scan = make_scan(np.float32)
        write_scan(tmp_path / f"first-{of}", scan, of)
        write_scan(tmp_path / f"second-{to}", read_scan(tmp_path / f"first-{of}"), to)
        back = read_scan(tmp_path / f"second-{to}")
        np.testing.assert_allclose(np.where(back.mask, back.counts, 0), np.where(scan.mask, scan.counts, 0), rtol=5e-7)
        np.testing.assert_allclose(back.positions_m, scan.positions_m, rtol=1e-14)
        np.testing.assert_allclose(back.geometry.pixel_m, FAR.pixel_m, rtol=1e-14)

    def test_names(self, tmp_path):
        assert scan_formats() == ("cxi", "canonical", "ptychopinn", "ptychodus")
        with pytest.raises(ScanFileError, match=r"suffixes \.cxi, \.npz, \.h5, \.hdf5 stand for; 'a.mat' is none"):
            write_scan(tmp_path / "a.mat", make_scan())
        with pytest.raises(ScanFileError, match="'matlab' is none of them"):
            write_scan(tmp_path / "a.cxi", make_scan(), "matlab")

    @pytest.mark.parametrize("form", [f for f in scan_formats() if f != "cxi"])
    def test_focus_makes_no_sense(self, tmp_path, form):
        write_scan(tmp_path / "a", make_scan(), form)
        with pytest.raises(GeometryError, match="focus_to_sample_m declares a CXI file"):
            read_scan(tmp_path / "a", focus_to_sample_m=1e-3)

    @pytest.mark.parametrize("form", scan_formats())
    def test_no_such_folder(self, tmp_path, form):
        with pytest.raises(ScanFileError, match="can't write"):
            write_scan(tmp_path / "none" / "a", make_scan(), form)


class TestCanonical:
    def test_keys_of_the_form(self, tmp_path):
        scan = make_scan()
        write_canonical(tmp_path / "a.npz", scan)
        with np.load(tmp_path / "a.npz") as file:
            np.testing.assert_allclose(file["positions_px"] * FAR.pixel_m, scan.positions_m)
            assert {"frames", "probe_guess", "mask"} <= set(file.files)
            assert json.loads(str(file["geometry"])) == FAR.as_metadata()

    def test_reading_a_nominal_one_again(self, tmp_path):
        np.savez(tmp_path / "a.npz", frames=np.ones((2, 16, 16)), positions_px=np.eye(2) * 4)
        scan = read_canonical(tmp_path / "a.npz", pixel_m=5e-9)
        assert scan.source["nominal_geometry"] is True
        write_canonical(tmp_path / "b.npz", scan)
        assert read_scan(tmp_path / "b.npz").source["nominal_geometry"] is True
        assert read_scan(tmp_path / "b.npz").geometry == scan.geometry


class TestPtychopinn:
    def test_keys_of_the_form(self, tmp_path):
        scan = make_scan()
        write_ptychopinn(tmp_path / "a.npz", scan)
        with np.load(tmp_path / "a.npz") as file:
            assert file["diffraction"].dtype == np.float32
            valid = np.where(scan.mask, scan.counts, 0)
            np.testing.assert_allclose(file["diffraction"], np.sqrt(valid), rtol=1e-7)
            for axis, column in (("x", 1), ("y", 0)):
                np.testing.assert_allclose(file[f"{axis}coords"] * FAR.pixel_m, scan.positions_m[:, column])
                np.testing.assert_array_equal(file[f"{axis}coords_start"], file[f"{axis}coords"])
            assert file["probeGuess"].shape == (16, 16) and file["probeGuess"].dtype == np.complex64
            extent = np.ptp(scan.positions_m, axis=0) / FAR.pixel_m
            assert (file["objectGuess"].shape >= extent + 16).all() and (file["objectGuess"] == 1).all()

    def test_round_trip(self, tmp_path):
        scan = make_scan(np.uint32)
        write_ptychopinn(tmp_path / "a.npz", scan)
        back = read_ptychopinn(tmp_path / "a.npz")
        # Within float32's rounding of a root and its square, so that counts below a million are told apart.
        np.testing.assert_array_equal(np.rint(back.counts[:, scan.mask]), scan.counts[:, scan.mask])
        np.testing.assert_array_equal(back.probe, scan.probe)
        np.testing.assert_array_equal(back.mask, scan.mask)
        np.testing.assert_allclose(back.positions_m, scan.positions_m, rtol=1e-15)

    def test_given_sample(self, tmp_path):
        sample = np.full((40, 41), 0.5j, np.complex64)
        write_ptychopinn(tmp_path / "a.npz", make_scan(), sample)
        with np.load(tmp_path / "a.npz") as file:
            np.testing.assert_array_equal(file["objectGuess"], sample)

    def test_integers_are_counts(self, tmp_path):
        counts = np.arange(2 * 16 * 16, dtype=np.uint16).reshape(2, 16, 16)
        np.savez(tmp_path / "a.npz", diff3d=counts, xcoords=[0.0, 3.0], ycoords=[0.0, 0.0])
        scan = read_scan(tmp_path / "a.npz")
        np.testing.assert_array_equal(scan.counts, counts)
        assert "integers" in scan.source["counts"]

    @pytest.mark.parametrize(
        ("scan", "error", "match"),
        [
            (make_scan(modes=2), ScanFileError, "one probe mode; the scan has 2"),
            (make_scan(probe=False), ScanFileError, "one probe mode; the scan has 0"),
            (make_scan(geometry=NEAR), GeometryError, "near field"),
        ],
    )
    def test_refuses(self, tmp_path, scan, error, match):
        with pytest.raises(error, match=match):
            write_ptychopinn(tmp_path / "a.npz", scan)
        assert not list(tmp_path.iterdir())


class TestPtychodus:
    def test_keys_of_the_form(self, tmp_path):
        """As Ptychodus' own functions for assembled patterns and products read them."""
        scan = make_scan()
        write_ptychodus(tmp_path / "diffraction.h5", scan)
        with h5py.File(tmp_path / "diffraction.h5") as file:
            np.testing.assert_array_equal(file["patterns"], scan.counts)
            assert file["patterns"].attrs["detector_pixel_width_m"] == 172e-6
            assert file["patterns"].attrs["detector_pixel_height_m"] == 172e-6
            np.testing.assert_array_equal(file["bad_pixels"], ~scan.mask)
            np.testing.assert_array_equal(file["indexes"], np.arange(6))
        with h5py.File(tmp_path / "product-in.h5") as file:
            np.testing.assert_array_equal(file["probe_position_x_m"], scan.positions_m[:, 1])
            assert file["probe"].shape == (1, 1, 16, 16) and (file["object"][()] == 1).all()
            assert file.attrs["probe_energy_eV"] == 8000.3 and str(file.attrs["name"]) == "ä scan"
        assert isinstance(read_scan(tmp_path / "diffraction.h5").counts, LazyFrames)

    def test_patterns_and_positions_by_index(self, tmp_path):
        scan = make_scan()
        write_ptychodus(tmp_path / "d.h5", scan, tmp_path / "p.h5")
        with h5py.File(tmp_path / "d.h5", "a") as file:
            file["indexes"][...] = [5, 4, 3, 2, 1, 77]
        back = read_ptychodus(tmp_path / "d.h5", tmp_path / "p.h5")
        assert len(back) == 5
        np.testing.assert_array_equal(back.positions_m, scan.positions_m[1:])
        np.testing.assert_array_equal(back.counts, scan.counts[[4, 3, 2, 1, 0]])

    def test_other_scan(self, tmp_path):
        write_ptychodus(tmp_path / "d.h5", make_scan())
        with h5py.File(tmp_path / "d.h5", "a") as file:
            file["indexes"][...] += 100
        with pytest.raises(ScanFileError, match="no index in common"):
            read_scan(tmp_path / "d.h5")

    def test_other_detector(self, tmp_path):
        write_ptychodus(tmp_path / "d.h5", make_scan())
        with h5py.File(tmp_path / "d.h5", "a") as file:
            for side in ("width", "height"):
                file["patterns"].attrs[f"detector_pixel_{side}_m"] = 75e-6
        with pytest.raises(GeometryError, match="the product states"):
            read_scan(tmp_path / "d.h5")

    def test_alone(self, tmp_path):
        write_ptychodus(tmp_path / "d.h5", make_scan())
        (tmp_path / "d-product.h5").unlink()
        with pytest.raises(ScanFileError, match=r"no positions; none of d-product.h5, product-in.h5, product-out.h5"):
            read_scan(tmp_path / "d.h5")

    def test_product_for_patterns(self, tmp_path):
        write_ptychodus(tmp_path / "d.h5", make_scan())
        with pytest.raises(ScanFileError, match="Ptychodus product, which holds no frames"):
            read_scan(tmp_path / "d-product.h5")

    def test_needs_a_probe(self, tmp_path):
        with pytest.raises(ScanFileError, match="must hold a probe"):
            write_ptychodus(tmp_path / "d.h5", make_scan(probe=False))
        assert not list(tmp_path.iterdir())

    def test_one_file_for_two(self, tmp_path):
        with pytest.raises(ScanFileError, match="need two files"):
            write_ptychodus(tmp_path / "d.h5", make_scan(), tmp_path / "d.h5")

    def test_dp_with_para(self, tmp_path):
        """The pair of PtychoViT and pty-chi: only the sample pixel is known."""
        scan = make_scan(np.float32)
        with h5py.File(tmp_path / "x_dp.hdf5", "w") as file:
            file["dp"] = scan.counts
        with h5py.File(tmp_path / "x_para.hdf5", "w") as file:
            file["probe"], file["object"] = scan.probe, np.ones((1, 40, 40), np.complex64)
            file["object"].attrs["pixel_height_m"] = 12e-9
            file["probe_position_y_m"], file["probe_position_x_m"] = np.arange(6) * 1e-8, np.zeros(6)
        back = read_scan(tmp_path / "x_dp.hdf5")
        assert back.geometry.pixel_m == pytest.approx(12e-9) and back.source["nominal_geometry"] is True
        np.testing.assert_array_equal(back.counts, scan.counts)
        np.testing.assert_array_equal(back.positions_m[:, 0], np.arange(6) * 1e-8)
        assert back.probe.shape == (1, 16, 16) and back.name == "x"

    def test_fold_slice(self, tmp_path):
        with h5py.File(tmp_path / "data_roi0_dp.hdf5", "w") as file:
            file["dp"] = np.ones((3, 16, 16), np.float32)
        with h5py.File(tmp_path / "data_roi0_para.hdf5", "w") as file:
            file["ppX"], file["ppY"] = [[0.0, 1e-8, 2e-8]], [[0.0, 0.0, 5e-8]]
            file["dx"], file["lambda"] = [[9e-9]], [[HC_EV_M / 8800.0]]
        back = read_scan(tmp_path / "data_roi0_dp.hdf5")
        assert back.geometry.pixel_m == pytest.approx(9e-9) and back.geometry.energy_ev == pytest.approx(8800.0)
        np.testing.assert_array_equal(back.positions_m, [[0, 0], [0, 1e-8], [5e-8, 2e-8]])
        assert back.probe is None


def test_the_saturation_of_converted_frames():
    """What was only chosen can still be told; what was computed without it can't."""
    scan = make_scan()
    assert scan.saturation(900.0) == 900.0 and scan.saturation(None) is None
    chosen = replace(scan, source={"preprocessing": {"bin": 1, "saturation": None}})
    assert chosen.saturation(900.0) == 900.0 and chosen.saturation(None) is None
    known = replace(scan, source={"preprocessing": {"bin": 2, "saturation": 3600.0}})
    assert known.saturation(900.0) == known.saturation(None) == 3600.0
    for notes in ({"bin": 2}, {"dark": {}}, {"flat": {}}):
        computed = replace(scan, source={"preprocessing": {**notes, "saturation": None}})
        assert computed.saturation(None) is None
        with pytest.raises(ScanFileError, match="which pixels reached 900 counts can't be told"):
            computed.saturation(900.0)
