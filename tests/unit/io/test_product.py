"""Ptychodus products: written as its schema asks, and read back."""

import json
from dataclasses import replace

import h5py
import numpy as np
import pytest

from bluesky_cdi.errors import ScanFileError
from bluesky_cdi.io import read_product, write_cxi_result, write_product
from bluesky_cdi.physics.geometry import Geometry
from bluesky_cdi.protocols import Estimate

GEOMETRY = Geometry(9000.0, 1.9, 75e-6, 16)


def make_estimate(shape=(40, 31)) -> Estimate:
    rng = np.random.default_rng(2)
    n = 5
    return Estimate(
        n_frames=n,
        object=(rng.normal(size=shape) + 1j * rng.normal(size=shape)).astype(np.complex64),
        origin_m=(-2e-6, 3e-6),
        pixel_m=GEOMETRY.pixel_m,
        probe=rng.normal(size=(3, 16, 16)).astype(np.complex64),
        std_amplitude=np.ones(shape, np.float32),
        std_phase_rad=np.ones(shape, np.float32),
        coverage=np.ones(shape, np.float32),
        frame_seq_nums=np.arange(1, n + 1),
        positions_m=rng.uniform(-1e-6, 1e-6, (n, 2)),
        embedding=np.zeros((n, 2), np.float32),
        frame_uncertainty=np.ones(n, np.float32),
        residual=np.ones(n, np.float32),
        novelty=np.ones(n, np.float32),
    )


def test_round_trip(tmp_path):
    estimate = make_estimate()
    write_product(tmp_path / "p.h5", estimate, GEOMETRY, name="run 7")
    product = read_product(tmp_path / "p.h5")
    np.testing.assert_array_equal(product.positions_m, estimate.positions_m)
    np.testing.assert_array_equal(product.indexes, estimate.frame_seq_nums)
    np.testing.assert_array_equal(product.probe, estimate.probe)
    np.testing.assert_array_equal(product.object, estimate.object)
    np.testing.assert_allclose(product.origin_m, estimate.origin_m, rtol=1e-12)
    assert product.name == "run 7"
    assert product.geometry.detector_pixel_m == pytest.approx(GEOMETRY.detector_pixel_m)
    assert product.geometry.pixel_m == pytest.approx(GEOMETRY.pixel_m)


def test_schema(tmp_path):
    """Names, shapes and attributes as Ptychodus' `load_product` reads them."""
    estimate = make_estimate()
    write_product(tmp_path / "p.h5", estimate, GEOMETRY)
    with h5py.File(tmp_path / "p.h5") as file:
        assert file.attrs["probe_energy_eV"] == 9000.0
        assert file.attrs["detector_object_distance_m"] == 1.9
        assert file["probe"].shape == (1, 3, 16, 16)
        assert file["object"].shape == (1, 40, 31)
        assert len(file["object_layer_spacing_m"]) == 0
        for name in ("probe_position_indexes", "probe_position_x_m", "probe_position_y_m"):
            assert file[name].shape == (5,)
        # Pixel i lies at centre + (i - (n - 1) / 2) pixels.
        attributes = file["object"].attrs
        corner_x = attributes["center_x_m"] - (31 - 1) / 2 * attributes["pixel_width_m"]
        assert corner_x == pytest.approx(estimate.origin_m[1])


def test_several_layers(tmp_path):
    write_product(tmp_path / "p.h5", make_estimate(), GEOMETRY)
    with h5py.File(tmp_path / "p.h5", "a") as file:
        del file["object"]
        file["object"] = np.ones((2, 4, 4), np.complex64)
    with pytest.raises(ScanFileError, match="Several object layers"):
        read_product(tmp_path / "p.h5")


@pytest.mark.parametrize("share", [0.0, 0.1, 0.7, 0.99])
def test_truncated(tmp_path, share):
    write_product(tmp_path / "p.h5", make_estimate(), GEOMETRY)
    whole = (tmp_path / "p.h5").read_bytes()
    (tmp_path / "p.h5").write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ScanFileError, match="Ptychodus product"):
        read_product(tmp_path / "p.h5")


def test_absent(tmp_path):
    with pytest.raises(ScanFileError, match="no file"):
        read_product(tmp_path / "p.h5")


@pytest.mark.parametrize("write", [write_product, write_cxi_result])
@pytest.mark.parametrize("part", ["object", "probe"])
def test_nothing_is_written_that_is_not_finite(tmp_path, write, part):
    estimate = make_estimate()
    spoiled = getattr(estimate, part).copy()
    spoiled[..., 3] = np.nan
    with pytest.raises(ScanFileError, match=f"the {part} of a result must be finite"):
        write(tmp_path / "p.h5", replace(estimate, **{part: spoiled}), GEOMETRY)
    assert not list(tmp_path.iterdir())


def test_the_verdict_is_in_the_files_as_json(tmp_path):
    notes = {"word": "doubtful", "reasons": ["why"], "remarks": [], "measures": {"noise": float("nan")}}
    estimate = replace(make_estimate(), source={"verdict": notes})
    write_product(tmp_path / "p.h5", estimate, GEOMETRY)
    write_cxi_result(tmp_path / "p.cxi", estimate, GEOMETRY)
    with h5py.File(tmp_path / "p.h5") as product, h5py.File(tmp_path / "p.cxi") as cxi:
        texts = product.attrs["comments"].removeprefix("verdict: "), cxi["entry_1/process_1/note_1/data"][()].decode()
    found = json.loads(texts[0], parse_constant=pytest.fail), json.loads(texts[1], parse_constant=pytest.fail)
    assert found[0] == found[1]["verdict"] == {**notes, "measures": {"noise": None}} and found[1]["seconds"] is None
