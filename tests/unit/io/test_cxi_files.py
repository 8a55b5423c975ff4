"""CXI as NXcxi_ptycho and by other programs, near-field scans, and reconstructions."""

import logging
from dataclasses import replace

import h5py
import numpy as np
import pytest

from bluesky_cdi.errors import GeometryError, ScanFileError
from bluesky_cdi.io import (
    LazyFrames,
    Product,
    Scan,
    read_cxi,
    read_cxi_result,
    read_product,
    read_scan,
    write_cxi,
    write_cxi_result,
    write_product,
)
from bluesky_cdi.io.cxi import DETECTOR, JOULES_PER_EV
from bluesky_cdi.physics.geometry import HC_EV_M, Geometry
from bluesky_cdi.protocols import Estimate

FAR = Geometry(8000.0, 2.0, 172e-6, 16)
NEAR = Geometry(12658.0, 1.12, 55e-6, 16, "near", 3.65e-3)


def make_scan(geometry=FAR, n=6) -> Scan:
    rng = np.random.default_rng(0)
    return Scan(
        counts=rng.poisson(5.0, (n, 16, 16)).astype(np.uint16),
        positions_m=rng.uniform(-0.5, 0.5, (n, 2)) * 16 * geometry.pixel_m,
        geometry=geometry,
        name="run 3",
        source={"propagation": "near field" if geometry.propagation == "near" else "far field"},
    )


@pytest.fixture
def written(tmp_path):
    write_cxi(tmp_path / "a.cxi", make_scan())
    return tmp_path / "a.cxi"


def edit(path, **changes):
    """Replace datasets, given as place=value with __ for /; None deletes."""
    with h5py.File(path, "a") as file:
        for place, value in changes.items():
            name = place.replace("__", "/")
            if name in file:
                del file[name]
            if value is not None:
                file[name] = value


class TestNexus:
    def test_required_by_the_definition(self, written):
        """Names, classes, units and links that NXcxi_ptycho requires."""
        scan = make_scan()
        with h5py.File(written) as file:
            assert file["cxi_version"][()] == 160
            entry = file["entry_1"]
            assert entry["definition"][()] == b"NXcxi_ptycho"
            for place, name in {
                ".": "NXentry",
                "instrument_1": "NXinstrument",
                "instrument_1/source_1": "NXsource",
                "instrument_1/beam_1": "NXbeam",
                "instrument_1/detector_1": "NXdetector",
                "data_1": "NXcollection",
                "instrument_1/detector_1/transformations": "NXtransformations",
                "sample_1": "NXsample",
                "sample_1/transformations": "NXtransformations",
                "sample_1/geometry_1": "NXcollection",
                "plot_1": "NXdata",
            }.items():
                assert entry[place].attrs["NX_class"].decode() == name, place
            beam, detector, source = (entry[f"instrument_1/{p}"] for p in ("beam_1", "detector_1", "source_1"))
            for name in ("energy", "incident_beam_energy", "incident_energy_spread"):
                assert beam[name].attrs["units"] == b"J"
            assert beam["energy"][()] == pytest.approx(8000 * JOULES_PER_EV)
            assert {"name", "energy", "probe", "type"} <= set(source)
            for name in ("x_pixel_size", "y_pixel_size", "distance"):
                assert detector[name].attrs["units"] == b"m"
            assert detector["transformations/vector"].shape == (3,)
            translation = detector["translation"]
            assert translation.attrs["units"] == b"m" and translation.attrs["interpretation"] == b"image"
            assert translation.attrs["axes"] == b"translation:y:x"
            same = ("data_1/translation", "sample_1/geometry_1/translation", "instrument_1/detector_1/translation")
            assert all(entry[place] == translation for place in same)
            for place in ("data_1/data", "plot_1/data", "instrument_1/detector_1/data_1"):
                assert entry[place] == detector["data"]
            for column, axis in enumerate("xy"):
                np.testing.assert_array_equal(entry[f"plot_1/{axis}"], scan.positions_m[:, 1 - column])
                assert entry[f"sample_1/transformations/{axis}"].attrs["units"] == b"m"
            assert entry["plot_1"].attrs["signal"] == b"data"

    def test_basis_as_cxi_states_it(self, written):
        with h5py.File(written) as file:
            np.testing.assert_array_equal(file[f"{DETECTOR}/basis_vectors"], [[0, -172e-6, 0], [-172e-6, 0, 0]])
            np.testing.assert_allclose(file[f"{DETECTOR}/corner_position"], [8.5 * 172e-6, 8.5 * 172e-6, 2.0])

    def test_by_others(self, tmp_path):
        """A raster of frames, motors in micrometres, energies in keV: only NeXus' own places."""
        scan = make_scan()
        with h5py.File(tmp_path / "n.nxs", "w") as file:
            detector = file.create_group(DETECTOR)
            detector["data"] = scan.counts.reshape(2, 3, 16, 16)
            stated = {"x_pixel_size": (172, "um"), "y_pixel_size": (0.172, "mm"), "distance": (2e3, "mm")}
            for name, (value, unit) in stated.items():
                detector[name] = value
                detector[name].attrs["units"] = unit
            file["entry_1/instrument_1/beam_1/incident_beam_energy"] = 8.0
            file["entry_1/instrument_1/beam_1/incident_beam_energy"].attrs["units"] = "keV"
            file["entry_1/instrument_1/source_1/energy"] = 3e9 * JOULES_PER_EV  # the ring's
            for axis, column in (("x", 1), ("y", 0)):
                motor = f"entry_1/sample_1/transformations/{axis}"
                file[motor] = scan.positions_m[:, column].reshape(2, 3) * 1e6
                file[motor].attrs["units"] = "um"
        back = read_scan(tmp_path / "n.nxs")
        np.testing.assert_array_equal(back.counts, scan.counts)
        np.testing.assert_allclose(back.positions_m, scan.positions_m, rtol=1e-14)
        assert back.geometry.energy_ev == pytest.approx(8000) and back.geometry.distance_m == pytest.approx(2.0)
        assert back.geometry.detector_pixel_m == pytest.approx(172e-6)

    def test_pynx_has_translations_as_rows(self, written):
        scan = make_scan()
        with h5py.File(written, "a") as file:
            rows = file["entry_1/sample_1/geometry_1/translation"][()].T
        edit(written, entry_1__sample_1__geometry_1__translation=rows)
        np.testing.assert_array_equal(read_cxi(written).positions_m, scan.positions_m)

    @pytest.mark.parametrize("basis", [[[0, -1], [-1, 0], [0, 0]], [[0, -1, 0], [-1, 0, 0]]])
    def test_basis_of_cdtools_and_of_cxi(self, written, basis):
        edit(written, **{f"{DETECTOR}/basis_vectors".replace("/", "__"): np.array(basis) * 1e-4})
        np.testing.assert_array_equal(read_cxi(written).positions_m, make_scan().positions_m)

    def test_energy_of_the_ring_is_refused(self, written):
        edit(written, entry_1__instrument_1__beam_1=None, entry_1__instrument_1__source_1__energy=6e9 * JOULES_PER_EV)
        with pytest.raises(GeometryError, match="looks like the storage ring's"):
            read_cxi(written)

    @pytest.mark.parametrize("value", [HC_EV_M / 9000 * 1e10, HC_EV_M / 9000 * 1e9, 0.0, -1e-10])
    @pytest.mark.parametrize("focus_to_sample_m", [None, 3e-3])
    def test_a_wavelength_that_is_not_in_metres_is_refused(self, written, value, focus_to_sample_m):
        """Angstroms and nanometres without a unit: in the near field the sample pixel would not tell."""
        edit(written, entry_1__instrument_1__beam_1=None, entry_1__instrument_1__source_1__energy=None)
        edit(written, entry_1__instrument_1__source_1__wavelength=value)
        with pytest.raises(GeometryError, match=r"wavelength.* must be in metres, or state its unit"):
            read_cxi(written, focus_to_sample_m=focus_to_sample_m)

    def test_neither_energy_nor_wavelength(self, written):
        edit(written, entry_1__instrument_1__beam_1=None, entry_1__instrument_1__source_1__energy=None)
        edit(written, entry_1__instrument_1__source_1__wavelength=None)
        with pytest.raises(ScanFileError, match=r"source_1/energy, .*source_1/wavelength"):
            read_cxi(written)

    def test_wavelength_alone(self, written):
        edit(written, entry_1__instrument_1__beam_1=None, entry_1__instrument_1__source_1__energy=None)
        edit(written, entry_1__instrument_1__source_1__wavelength=HC_EV_M / 9000)
        assert read_cxi(written).geometry.energy_ev == pytest.approx(9000)

    def test_unknown_unit(self, written):
        with h5py.File(written, "a") as file:
            file[f"{DETECTOR}/distance"].attrs["units"] = "furlong"
        with pytest.raises(ScanFileError, match="'furlong'; known are"):
            read_cxi(written)


class TestNearField:
    def test_round_trip(self, tmp_path):
        write_cxi(tmp_path / "a.cxi", make_scan(NEAR))
        back = read_scan(tmp_path / "a.cxi")
        assert back.source["propagation"] == "near field"
        assert (back.geometry.propagation, back.geometry.focus_to_sample_m) == ("near", 3.65e-3)
        assert back.geometry.magnification == pytest.approx(NEAR.magnification, rel=1e-14)

    def test_declared_when_reading(self, tmp_path):
        with h5py.File(tmp_path / "a.cxi", "w") as file:
            detector = file.create_group(DETECTOR)
            detector["x_pixel_size"] = detector["y_pixel_size"] = 55e-6
            detector["distance"], detector["data"] = 1.12, make_scan().counts
            file["entry_1/instrument_1/source_1/energy"] = 12658 * JOULES_PER_EV
            detector["translation"] = np.arange(18).reshape(6, 3) * 1e-7
        scan = read_scan(tmp_path / "a.cxi", focus_to_sample_m=3.65e-3)
        assert scan.source["propagation"] == "near field"
        assert scan.geometry.pixel_m == pytest.approx(178.66e-9, rel=1e-4)
        assert scan.geometry.effective_distance_m == pytest.approx(3.638e-3, rel=1e-3)

    def test_assumption_is_told(self, written, caplog):
        with h5py.File(written, "a") as file:
            for name in ("bluesky_cdi_source", "bluesky_cdi_propagation"):
                del file["entry_1"].attrs[name]
        with caplog.at_level(logging.WARNING):
            scan = read_scan(written)
        assert scan.source["propagation"] == "far field (assumed)" and "does not say that it is" in caplog.text
        write_cxi(written, scan)
        assert read_scan(written).source["propagation"] == "far field (assumed)"


def make_estimate(geometry=FAR) -> Estimate:
    rng = np.random.default_rng(2)
    shape, n = (40, 31), 5
    coverage = np.zeros(shape, np.float32)
    coverage[5:30, 6:20] = 3.0
    return Estimate(
        n_frames=n,
        object=(rng.normal(size=shape) + 1j * rng.normal(size=shape)).astype(np.complex64),
        origin_m=(-2e-6, 3e-6),
        pixel_m=geometry.pixel_m,
        probe=(rng.normal(size=(3, 16, 16)) + 1j).astype(np.complex64),
        std_amplitude=np.ones(shape, np.float32),
        std_phase_rad=np.ones(shape, np.float32),
        coverage=coverage,
        frame_seq_nums=np.arange(1, n + 1),
        positions_m=rng.uniform(-1e-6, 1e-6, (n, 2)),
        embedding=np.zeros((n, 2), np.float32),
        frame_uncertainty=np.ones(n, np.float32),
        residual=np.ones(n, np.float32),
        novelty=np.ones(n, np.float32),
        source={"engine": "rpie", "iterations": 30},
    )


class TestResult:
    @pytest.mark.parametrize("geometry", [FAR, NEAR], ids=["far", "near"])
    @pytest.mark.parametrize("pair", [(write_cxi_result, read_cxi_result), (write_product, read_product)])
    def test_round_trip(self, tmp_path, pair, geometry):
        """Products and CXI results are one type, and bit by bit what was written."""
        write, read = pair
        estimate = make_estimate(geometry)
        write(tmp_path / "r", estimate, geometry, "run 7")
        product = read(tmp_path / "r")
        assert isinstance(product, Product) and product.name == "run 7"
        for part in ("object", "probe", "positions_m"):
            np.testing.assert_array_equal(getattr(product, part), getattr(estimate, part))
        np.testing.assert_array_equal(product.indexes, estimate.frame_seq_nums)
        np.testing.assert_allclose(product.origin_m, estimate.origin_m, rtol=1e-12)
        assert product.geometry.propagation == geometry.propagation
        assert product.geometry.focus_to_sample_m == geometry.focus_to_sample_m
        for name in ("energy_ev", "distance_m", "detector_pixel_m", "pixel_m"):
            assert getattr(product.geometry, name) == pytest.approx(getattr(geometry, name), rel=1e-12)

    def test_as_cxi_asks(self, tmp_path):
        estimate = make_estimate()
        write_cxi_result(tmp_path / "r.cxi", estimate, FAR, "run 7")
        with h5py.File(tmp_path / "r.cxi") as file:
            image = file["entry_1/image_1"]
            assert image["data_space"][()] == b"real" and image["data_type"][()] == b"electron density"
            assert image["dimensionality"][()] == 2
            np.testing.assert_allclose(image["image_size"], [31 * FAR.pixel_m, 40 * FAR.pixel_m, 0])
            np.testing.assert_array_equal(image["mask"][()] == 0x10000, estimate.coverage > 0)
            assert image["process_1/program"][()] == b"bluesky_cdi"
            assert b'"engine": "rpie"' in image["process_1/note_1/data"][()]
            for link, target in {"object": "image_1", "probe": "image_2", "data_1/data": "image_1/data"}.items():
                assert file[f"entry_1/{link}"] == file[f"entry_1/{target}"]
            assert image["source_1/energy"][()] == pytest.approx(8000 * JOULES_PER_EV)
            assert image["detector_1/distance"][()] == 2.0

    def test_no_scan(self, tmp_path):
        write_cxi_result(tmp_path / "r.cxi", make_estimate(), FAR)
        with pytest.raises(ScanFileError, match="a reconstruction, no frames; read_cxi_result reads it"):
            read_scan(tmp_path / "r.cxi")

    def test_scan_is_no_result(self, written):
        with pytest.raises(ScanFileError, match="must hold entry_1/image_1 and entry_1/image_2"):
            read_cxi_result(written)

    @pytest.mark.parametrize("write", [write_cxi_result, write_product])
    def test_other_pixel(self, tmp_path, write):
        with pytest.raises(GeometryError, match="the estimate's pixel must be the geometry's"):
            write(tmp_path / "r", replace(make_estimate(), pixel_m=1e-9), FAR)
        assert not list(tmp_path.iterdir())


class TestProductsOfPtychodus:
    def test_coherent_modes_are_refused(self, tmp_path):
        write_product(tmp_path / "p.h5", make_estimate(), FAR)
        edit(tmp_path / "p.h5", probe=np.ones((2, 3, 16, 16), np.complex64))
        with pytest.raises(ScanFileError, match="coherent probe modes are not supported"):
            read_product(tmp_path / "p.h5")

    def test_older_and_newer_names(self, tmp_path):
        """Older probes and objects lack the first axis; newer files name the energy differently."""
        estimate = make_estimate()
        write_product(tmp_path / "p.h5", estimate, FAR)
        with h5py.File(tmp_path / "p.h5", "a") as file:
            del file.attrs["probe_energy_eV"], file.attrs["bluesky_cdi_name"]
            attributes = dict(file["object"].attrs)
            del file["object"], file["probe"]
            file["object"], file["probe"] = estimate.object, estimate.probe
            file["object"].attrs.update(attributes)
        product = read_product(tmp_path / "p.h5")
        np.testing.assert_array_equal(product.probe, estimate.probe)
        np.testing.assert_array_equal(product.object, estimate.object)
        assert product.geometry.energy_ev == 8000 and product.name == "bluesky_cdi"


def test_frames_stay_in_the_file(written):
    assert isinstance(read_cxi(written).counts, LazyFrames)
