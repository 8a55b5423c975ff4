"""``bluesky-cdi probe``, the probe file, and what ``reconstruct`` does with both."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch

from bluesky_cdi import viz
from bluesky_cdi.bench.cases import Case, scan_of
from bluesky_cdi.bench.methods import Network
from bluesky_cdi.bench.reports import tables
from bluesky_cdi.bench.suites.probe import Options, overlap, probe
from bluesky_cdi.catalog import probe_file_of
from bluesky_cdi.cli import main
from bluesky_cdi.errors import GeometryError, ScanFileError
from bluesky_cdi.io import ProbeFile, read_probe, write_probe, write_scan
from bluesky_cdi.models.unrolled import UnrolledConfig, UnrolledNet
from bluesky_cdi.physics.geometry import Geometry
from bluesky_cdi.reconstruction.probe_guess import fitted

GEOMETRY = Geometry(8000.0, 2.0, 172e-6, 16)
SCAN = Case(frame_px=64, probe_error_rad=0.8, field=0.6)


@pytest.fixture(scope="module")
def scan():
    return scan_of(SCAN, 0)


@pytest.fixture(scope="module")
def true():
    return scan_of(replace(SCAN, probe_error_rad=0.0), 0).probe


@pytest.fixture
def path(scan, tmp_path):
    write_scan(tmp_path / "scan.npz", scan)
    return tmp_path / "scan.npz"


def nearness(found, true):
    return overlap(torch.from_numpy(found), torch.from_numpy(true))


def test_the_command_writes_a_better_probe_that_reconstruct_takes(path, scan, true, tmp_path, capsys):
    out = tmp_path / "new" / "probe.npz"
    assert main(["probe", str(path), "--modes", "1", "--out", str(out), "-q", "--json"]) == 0
    numbers = json.loads(capsys.readouterr().out)
    assert numbers["changed"] and "standard errors" in numbers["says"]
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    found = read_probe(out)
    assert nearness(found.probe, true) > 0.98 > 0.8 > nearness(scan.probe, true)
    assert found.geometry.pixel_m == pytest.approx(scan.geometry.pixel_m)
    assert found.source["says"] == numbers["says"]

    result = tmp_path / "result.h5"
    common = ["reconstruct", str(path), "--modes", "1", "--iterations", "0", "--engine", "lsqml", "--trust-orientation"]
    assert main([*common, "--probe", str(out), "--trust-probe", "--out", str(result), "-q", "--json"]) == 0
    assert "probe" not in json.loads(capsys.readouterr().out)
    with h5py.File(result) as file:
        assert nearness(file["probe"][0], true) > 0.98 and file.attrs["comments"].startswith("verdict: ")


def test_reconstruct_checks_the_probe_and_keeps_what_was_said(path, true, tmp_path, capsys):
    outs = [tmp_path / "a.h5", tmp_path / "a.cxi"]
    line = ["reconstruct", str(path), "--modes", "1", "--iterations", "0", "--engine", "lsqml", "--trust-orientation"]
    assert main([*line, "--out", str(outs[0]), "--out", str(outs[1]), "-q", "--json"]) == 0
    says = json.loads(capsys.readouterr().out)["probe"]
    assert says.startswith("Changed: ")
    with h5py.File(outs[0]) as file:
        assert file.attrs["comments"].startswith(f"{says}; verdict: ")
        assert nearness(file["probe"][0], true) > 0.98
    with h5py.File(outs[1]) as file:
        note = json.loads(file["entry_1/image_1/process_1/note_1/data"][()])
    assert note["probe_check_in"]["says"] == says and "astigmatism" in note["probe_check_in"]["gains"]


def test_nothing_is_replaced_unless_that_is_wanted(scan, tmp_path, capsys):
    few = tmp_path / "few.npz"
    write_scan(few, scan.subset(range(5)))
    line = ["reconstruct", str(few), "--modes", "1", "--iterations", "1", "--trust-orientation", "--trust-probe"]
    out = tmp_path / "a.h5"
    assert main([*line, "--out", str(out), "-q"]) == 0
    figure = out.with_suffix(".png")
    before = out.read_bytes(), figure.read_bytes()
    assert main([*line, "--out", str(out), "-q"]) == 1
    assert f"{out} exists" in capsys.readouterr().err and (out.read_bytes(), figure.read_bytes()) == before
    out.unlink()
    assert main([*line, "--out", str(out), "-q"]) == 1
    assert f"{figure} exists" in capsys.readouterr().err and not out.exists() and figure.read_bytes() == before[1]
    assert main([*line, "--out", str(out), "-q", "--force"]) == 0 and out.exists()
    source = few.with_suffix(".h5")
    few.rename(source)
    assert main(["reconstruct", str(source), "--out", str(source), "--force"]) == 1
    assert "measured data are not replaced" in capsys.readouterr().err


def test_a_probe_replaces_neither_the_scan_nor_another_file_unasked(scan, tmp_path, capsys):
    few = tmp_path / "few.npz"
    write_scan(few, scan.subset(range(5)))
    before = few.read_bytes()
    assert main(["probe", str(few), "--out", str(few), "--force", "-q"]) == 1
    assert "measured data are not replaced" in capsys.readouterr().err and few.read_bytes() == before
    for name in ("mine.npz", "mine.png"):
        (tmp_path / name).write_bytes(b"mine")
        assert main(["probe", str(few), "--out", str(tmp_path / "mine.npz"), "-q"]) == 1
        assert f"{name} exists" in capsys.readouterr().err
        (tmp_path / name).unlink()
    assert main(["browse", str(tmp_path), "--show", "-1", "--probe", str(few)]) == 1
    assert f"{few} exists" in capsys.readouterr().err and few.read_bytes() == before
    assert main(["probe", str(few), "--out", str(tmp_path / "p.npy"), "-q"]) == 1
    assert "--out must end in .npz" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder in which nobody can write: /proc")
def test_a_place_that_cannot_be_written_is_told_before_the_work(scan, tmp_path, capsys, monkeypatch):
    write_scan(tmp_path / "few.npz", scan.subset(range(5)))
    monkeypatch.setattr("bluesky_cdi.reconstruction.batch.reconstruct", lambda *_, **__: pytest.fail("worked in vain"))
    assert main(["reconstruct", str(tmp_path / "few.npz"), "--out", "/proc/object.h5", "-q"]) == 1
    assert "can't write into /proc" in capsys.readouterr().err


def test_a_run_that_diverges_has_an_exit_code(scan, tmp_path, monkeypatch, caplog):
    from bluesky_cdi.reconstruction import region_solver

    real = region_solver.iterate
    monkeypatch.setattr(region_solver, "iterate", lambda *args, **kw: replace(real(*args, **kw), ended="diverged"))
    write_scan(tmp_path / "few.npz", scan.subset(range(5)))
    line = ["reconstruct", str(tmp_path / "few.npz"), "--modes", "1", "--iterations", "1", "--trust-orientation"]
    assert main([*line, "--trust-probe", "--engine", "rpie", "--out", str(tmp_path / "a.h5"), "-q"]) == 1
    assert "the iterations diverged" in caplog.text and (tmp_path / "a.h5").exists()


def test_a_probe_of_too_few_frames_is_trusted(scan, tmp_path, capsys, caplog):
    write_scan(tmp_path / "few.npz", scan.subset(range(5)))
    line = ["reconstruct", str(tmp_path / "few.npz"), "--modes", "1", "--iterations", "1", "--trust-orientation"]
    assert main([*line, "--out", str(tmp_path / "a.h5"), "--json"]) == 0
    assert "probe" not in json.loads(capsys.readouterr().out)
    assert "5 frames are too few" in caplog.text
    assert main(["probe", str(tmp_path / "few.npz"), "--out", str(tmp_path / "p.npz")]) == 1
    assert "at least 12 frames" in capsys.readouterr().err


def test_a_probe_file_comes_back_and_is_for_its_geometry(tmp_path):
    values = np.random.default_rng(0).normal(size=(2, 16, 16, 2)).astype(np.float32).view(np.complex64)[..., 0]
    write_probe(tmp_path / "probe.npz", ProbeFile(values, GEOMETRY, "a scan", {"says": "so", "scale": 1.0}))
    found = read_probe(tmp_path / "probe.npz")
    np.testing.assert_array_equal(fitted(found, GEOMETRY), values)
    assert found.geometry == GEOMETRY and found.name == "a scan" and found.source == {"says": "so", "scale": 1.0}
    with pytest.raises(GeometryError, match="a far field at 8100 eV"):
        fitted(found, replace(GEOMETRY, energy_ev=8100.0))
    np.savez(tmp_path / "wrong.npz", probe=values[0], geometry="{}", name="", source="{}")
    with pytest.raises(ScanFileError, match=r"a probe \(modes, N, N\)"):
        read_probe(tmp_path / "wrong.npz")


def test_the_probe_of_a_binned_run_has_the_pixel_of_its_frames():
    probe = np.ones((1, 16, 16), np.complex64)
    source = {"preprocessing": {"bin": 2}}
    start = {"uid": "a", "geometry": GEOMETRY.as_metadata()}
    found = probe_file_of(SimpleNamespace(probe=probe, source=source), start)
    assert found.geometry == replace(GEOMETRY, detector_pixel_m=2 * GEOMETRY.detector_pixel_m)
    assert probe_file_of(SimpleNamespace(probe=probe, source={}), start).geometry == GEOMETRY


def test_the_caustic_has_its_focus_where_the_lens_has_it():
    from bluesky_cdi.physics.probes import focused_probe

    geometry = Geometry(8000.0, 2.0, 172e-6, 64)
    lens = {"numerical_aperture": 0.9e-3, "central_stop": 0.2}
    probes = {str(z): focused_probe(geometry, defocus_m=z, **lens).numpy() for z in (-0.2e-3, 0.3e-3)}
    figure = viz.show_probes(probes, geometry)
    drawn = [ax for ax in figure.axes if ax.get_title().startswith("along the beam")]
    for ax, z in zip(drawn, (-0.2e-3, 0.3e-3), strict=True):
        image = ax.images[0]
        values, (left, right, _, _) = np.asarray(image.get_array()), image.get_extent()
        focus = left + (right - left) * (values.max(axis=0).argmax() + 0.5) / values.shape[1]
        # The sample is downstream of the focus by the defocus.
        assert "(mm)" in ax.get_xlabel() and focus == pytest.approx(-1e3 * z, abs=0.025)
        sign, size = ("+", 0.2) if z < 0 else ("\N{MINUS SIGN}", 0.3)
        stated, unit = ax.get_title().split(f"focus at {sign}")[1].split()
        assert (float(stated) * {"mm": 1.0, "µm": 1e-3}[unit]) == pytest.approx(size, abs=0.001)


def test_a_near_field_is_drawn_at_the_detector():
    geometry = Geometry(8000.0, 2e-3, 1.05e-6, 40, "near", 1e-4)
    y, x = np.indices((40, 40)) - 20
    modes = np.exp(-(y**2 + x**2) / 60.0 + 0.02j * (y**2 + x**2))[None].astype(np.complex64)
    figure = viz.show_probes({"found": modes}, geometry)
    titles = [ax.get_title() for ax in figure.axes]
    assert "amplitude at the detector" in titles and not any("pupil" in title for title in titles)


def test_the_suite_measures_assumed_found_and_true_probes():
    net = UnrolledNet(UnrolledConfig(stages=1, channels=8, levels=2))
    options = Options(samples=("star",), doses=(1e5,), errors_rad=(0.8,), frames=36)
    found = probe(Network("tiny", net), options)
    (row,) = found["rows"]
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert row["assumed"]["overlap"] < 0.8 and row["check-in"]["overlap"] > 0.98
    assert row["true"]["overlap"] == pytest.approx(1)
    assert "0.8 rad" in tables.probe(found) and row["says"] in tables.probe(found)
