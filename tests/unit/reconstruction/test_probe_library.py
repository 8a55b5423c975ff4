"""Probes kept for the next run: which is offered, how it is brought there, and whose is kept."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from bluesky_cdi.config import load_config
from bluesky_cdi.errors import GeometryError
from bluesky_cdi.io import ProbeFile, read_probe, write_probe
from bluesky_cdi.physics.geometry import Geometry
from bluesky_cdi.physics.probes import aperture_of, focused_probe, propagated
from bluesky_cdi.protocols import RunInfo
from bluesky_cdi.reconstruction.build import build_reconstructor
from bluesky_cdi.reconstruction.probe_guess import first_probe
from bluesky_cdi.reconstruction.probe_library import is_sure, keep, offered
from bluesky_cdi.remote.probe_keeper import ProbeKeeper
from tests.unit.reconstruction.star_scans import FAR, overlap

LENS = {"numerical_aperture": 0.9e-3, "central_stop": 0.3}


def lens(geometry=FAR, defocus_m=0.25e-3, modes=1):
    return focused_probe(geometry, defocus_m=defocus_m, modes=modes, coherent_share=1.0 if modes == 1 else 0.8, **LENS)


def content(geometry=FAR, defocus_m=0.25e-3, modes=1, name="run one"):
    probe = lens(geometry, defocus_m, modes).numpy()
    return ProbeFile(probe, geometry, name, {"defocus_m": defocus_m})


def configured(folder, defocus_m=0.25e-3, modes=1, **probe):
    settings = {"library": str(folder), "defocus_m": defocus_m, "modes": modes, **probe}
    return load_config(overrides={"probe": settings, "reconstructor": {"name": "rpie", "threads": 1}})


@pytest.mark.parametrize("by_m", [0.1e-3, -0.2e-3])
def test_propagation_is_the_lens_further_from_its_focus(by_m):
    moved = propagated(lens(), FAR.pixel_m, FAR.wavelength_m, by_m)
    there = lens(defocus_m=0.25e-3 + by_m)
    torch.testing.assert_close(moved, there, atol=1e-4 * float(there.abs().max()), rtol=0)
    back = propagated(moved, FAR.pixel_m, FAR.wavelength_m, -by_m)
    torch.testing.assert_close(back, lens(), atol=1e-5, rtol=0)


def test_the_probe_of_a_run_is_offered_as_it_is(tmp_path):
    path = keep(tmp_path / "new", content(modes=2))
    offer = offered(FAR, configured(tmp_path / "new", modes=2))
    np.testing.assert_array_equal(offer.probe, lens(modes=2).numpy())
    assert offer.path == path and str(offer) == "8000eV-2000mm-far-250um-40px-of-172um.npz of the probe library"
    # The strongest modes where fewer are wanted.
    assert overlap(torch.from_numpy(offered(FAR, configured(tmp_path / "new", modes=1)).probe), lens(modes=2)) > 0.9999
    assert len(first_probe(FAR, configured(tmp_path / "new", modes=3))) == 3


def test_a_sample_that_stands_elsewhere_gets_the_probe_there(tmp_path):
    keep(tmp_path, content())
    offer = offered(FAR, configured(tmp_path, defocus_m=0.4e-3))
    assert overlap(torch.from_numpy(offer.probe), lens(defocus_m=0.4e-3)) > 0.9999
    assert overlap(torch.from_numpy(offer.probe), lens()) < 0.95
    assert "propagated by +150 um" in str(offer)


def test_another_distance_is_another_grid_of_the_same_wave(tmp_path):
    keep(tmp_path, content())
    further = replace(FAR, distance_m=2.4)
    offer = offered(further, configured(tmp_path, defocus_m=0.3e-3))
    assert overlap(torch.from_numpy(offer.probe), lens(further, 0.3e-3)) > 0.98


def test_the_nearest_place_is_chosen_and_a_newer_run_replaces_the_older(tmp_path):
    for defocus_m in (0.1e-3, 0.3e-3, 0.6e-3):
        keep(tmp_path, content(defocus_m=defocus_m))
    assert (
        offered(FAR, configured(tmp_path, defocus_m=0.35e-3)).path.name == "8000eV-2000mm-far-300um-40px-of-172um.npz"
    )
    path = keep(tmp_path, content(defocus_m=0.3e-3, name="run two"))
    assert read_probe(path).name == "run two" and len(list(tmp_path.iterdir())) == 3


def test_other_energies_fields_and_damaged_files_are_left_out(tmp_path, caplog):
    keep(tmp_path, content(replace(FAR, energy_ev=9000.0)))
    assert offered(FAR, configured(tmp_path)) is None and not caplog.text
    (tmp_path / "broken.npz").write_bytes(b"no probe")
    assert offered(FAR, configured(tmp_path)) is None
    assert "can't be used" in caplog.text and "broken.npz" in caplog.text
    # Then, and without a library, it is the lens; a stated file comes first.
    config = configured(tmp_path / "none", **LENS)
    np.testing.assert_array_equal(first_probe(FAR, config), lens().numpy())
    stated = keep(tmp_path / "own", content(defocus_m=0.5e-3))
    keep(tmp_path / "all", content())
    config = configured(tmp_path / "all", file=str(stated))
    np.testing.assert_array_equal(first_probe(FAR, config), lens(defocus_m=0.5e-3).numpy())


def test_an_unreadable_geometry_is_told_with_its_file(tmp_path, caplog):
    path = keep(tmp_path, content())
    with np.load(path) as file:
        arrays = dict(file)
    np.savez(path, **{**arrays, "geometry": np.array('{"energy_ev": 8000.0}')})
    assert offered(FAR, configured(tmp_path)) is None
    (record,) = caplog.records
    assert record.levelname == "WARNING" and str(path) in record.message and "distance_m" in record.message


@pytest.mark.parametrize("unknown", [None, "some"])
def test_an_unknown_place_comes_last(tmp_path, unknown):
    write_probe(
        tmp_path / "unknown.npz", ProbeFile(lens().numpy(), FAR, "", {} if unknown is None else {"defocus_m": unknown})
    )
    assert offered(FAR, configured(tmp_path)).path.name == "unknown.npz"
    path = keep(tmp_path, content(defocus_m=0.6e-3))
    assert offered(FAR, configured(tmp_path)).path == path


def test_a_beam_that_leaves_the_window_on_its_way_is_not_offered(tmp_path):
    """Its window would be 1.8 um, and the beam 2 um wide there: the lens's own check refuses the same."""
    path = keep(tmp_path, content())
    there = configured(tmp_path, defocus_m=1.2e-3, **LENS)
    assert offered(FAR, there) is None
    with pytest.raises(GeometryError, match="wider than the frame's window"):
        first_probe(FAR, there)
    assert offered(FAR, configured(tmp_path, defocus_m=0.9e-3)).path == path
    assert aperture_of(lens(), FAR.pixel_m, FAR.wavelength_m) == pytest.approx(0.9e-3, rel=0.04)


def test_settings_that_the_library_tells_apart_have_files_of_their_own(tmp_path):
    near = Geometry(8000.0, 2.1e-3, 1.05e-6, 40, "near", 1e-4)
    others = [near, replace(near, distance_m=2.4e-3), replace(near, detector_pixel_m=0.5e-6)]
    others += [replace(near, focus_to_sample_m=each) for each in (1.02e-4, None)] + [
        FAR,
        replace(FAR, energy_ev=8010.0),
    ]
    soft = [replace(FAR, energy_ev=each) for each in (249.6, 250.4)]
    for geometry in (*others, *soft):
        keep(tmp_path, ProbeFile(lens().numpy(), geometry, "", {"defocus_m": 0.25e-3}))
    keep(tmp_path, content(defocus_m=0.2504e-3))
    assert len(list(tmp_path.iterdir())) == len(others) + len(soft) + 1
    # What differs by the noise of a read-back is the same.
    keep(tmp_path, content(replace(FAR, distance_m=2.00001, energy_ev=8000.02)))
    assert len(list(tmp_path.iterdir())) == len(others) + len(soft) + 1


def test_a_parallel_beam_is_not_offered_to_a_diverging_one(tmp_path):
    diverging = Geometry(8000.0, 2e-3, 1.05e-6, 40, "near", 1e-4)
    parallel = replace(diverging, focus_to_sample_m=None)
    for ours, theirs in ((diverging, parallel), (parallel, diverging)):
        folder = tmp_path / str(theirs.focus_to_sample_m)
        path = keep(folder, ProbeFile(lens().numpy(), theirs))
        assert offered(ours, configured(folder)) is None
        assert offered(theirs, configured(folder)).path == path


def info(geometry=FAR):
    metadata = {"geometry": geometry.as_metadata(), "window_m": [[-5e-7, -5e-7], [5e-7, 5e-7]]}
    return RunInfo("raw-uid", 7, metadata, (FAR.frame_px,) * 2)


def test_a_run_says_which_probe_it_begins_with(tmp_path, caplog):
    keep(tmp_path, content())
    (tmp_path / "broken.npz").write_bytes(b"no probe")
    with caplog.at_level("INFO"):
        reconstructor = build_reconstructor(info(), configured(tmp_path))
    # The library is read once.
    assert caplog.text.count("can't be used") == 1
    assert "run 7 begins with 8000eV-2000mm-far-250um-40px-of-172um.npz of the probe library" in caplog.text
    assert reconstructor._source["first_probe"] == "8000eV-2000mm-far-250um-40px-of-172um.npz of the probe library"


class Found:
    """What a keeper looks at of an estimate."""

    def __init__(self, frames=100, verdict="good", **check):
        self.n_frames, self.probe = frames, lens().numpy()
        self.source = {"probe_check_in": check, "verdict": {"word": verdict}}


class Closed:
    """A recorder that was closed before the library gets anything."""

    def __init__(self):
        self.closed = []

    def close(self, *arguments):
        self.closed.append(arguments)


@pytest.mark.parametrize(
    ("found", "status", "kept"),
    [
        (Found(changed=False), "success", True),
        (Found(changed=True, taken=True), "success", True),
        (Found(changed=True, taken=True, again=[{"taken": True}]), "success", True),
        (Found(changed=True, taken=True, again=[{"taken": False}]), "success", False),
        (Found(changed=False), "abort", False),
        (Found(changed=False, verdict="doubtful"), "success", False),
        (Found(changed=False, frames=20), "success", False),
        (Found(), "success", False),
        (None, "success", False),
    ],
)
def test_whose_probe_is_kept(tmp_path, found, status, kept):
    recorder, folder = Closed(), tmp_path / "library"
    ProbeKeeper(recorder, info(), configured(folder)).close(found, status, "")
    assert recorder.closed == [(found, status, "")]
    assert found is None or is_sure(found) == kept or status != "success"
    files = list(folder.glob("*.npz"))
    assert len(files) == int(kept)
    for path in files:
        written = read_probe(path)
        assert written.name == "run raw-uid" and written.source["defocus_m"] == 0.25e-3 and written.geometry == FAR
        np.testing.assert_array_equal(written.probe, found.probe)


def test_a_library_that_cannot_be_written_ends_nothing(tmp_path, caplog):
    (tmp_path / "file").write_text("no folder")
    ProbeKeeper(Closed(), info(), configured(tmp_path / "file")).close(Found(changed=False), "success", "")
    assert "is not kept in the library" in caplog.text


def test_the_near_field_has_no_place_to_go(tmp_path):
    near = Geometry(8000.0, 2e-3, 1.05e-6, 40, "near", 1e-4)
    keep(tmp_path, ProbeFile(lens().numpy(), near, "near", {"defocus_m": 0.1e-3}))
    assert [path.name for path in tmp_path.iterdir()] == ["8000eV-2mm-near-100um-40px-of-1.05um.npz"]
    assert offered(near, configured(tmp_path)).moved_m == 0.0
    assert offered(replace(near, focus_to_sample_m=1.1e-4), configured(tmp_path)) is None
    assert offered(FAR, configured(tmp_path)) is None
