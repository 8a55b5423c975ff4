"""The command line as a user calls it."""

from __future__ import annotations

import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bluesky_cdi.agent.patterns import raster
from bluesky_cdi.cli import main
from bluesky_cdi.config import load_config
from bluesky_cdi.evaluation import compare, crop_to
from bluesky_cdi.io import read_cxi_result, read_probe, read_product
from bluesky_cdi.many import workers
from bluesky_cdi.physics.geometry import Geometry
from bluesky_cdi.reconstruction.probe_guess import first_probe
from bluesky_cdi.sim_devices import SimulatedSource

SMALL = """
scan: {extent_um: [1.2, 1.2], step_um: 0.2, budget: 24, batch: 8, exposure_s: 0.0, decision_timeout_s: 60}
reconstructor: {final_steps: 1}
"""


# All in one process: those of a session take seconds to begin.
ALONE = """
catalog: {in_process: true}
reconstructor: {in_process: true}
"""


def demonstrated(folder, *texts):
    """A small demonstration: its folder, the output's, and the exit code."""
    line = ["demo", "--quiet", "--json", "--out", str(folder / "out")]
    for k, text in enumerate(texts):
        (folder / f"{k}.yaml").write_text(text)
        line += ["-c", str(folder / f"{k}.yaml")]
    return folder, folder / "out", main(line)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    return demonstrated(tmp_path_factory.mktemp("demo"), SMALL, ALONE)


def succeeded(demo):
    _, out, code = demo
    assert code == 0
    assert (out / "demo.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "catalog.db").is_file()


def test_demo_succeeds_and_leaves_figure_and_catalog(demo):
    succeeded(demo)


@pytest.mark.end_to_end
def test_demo_as_users_start_it(tmp_path):
    succeeded(demonstrated(tmp_path, SMALL))


def test_browse_lists_and_shows_after_the_server_was_stopped(demo, capsys, tmp_path):
    _, out, _ = demo
    assert main(["browse", str(out), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["plan_name"] for row in rows] == ["adaptive_ptycho"]
    assert rows[0]["complete"] and rows[0]["n_frames"] == 24
    figure = tmp_path / "again.png"
    line = [
        "browse",
        str(out),
        "--show",
        "-1",
        "--figure",
        str(figure),
        "--probe",
        str(tmp_path / "probe.npz"),
        "--json",
    ]
    assert main(line) == 0
    shown = json.loads(capsys.readouterr().out)
    # A first guess for the next run, on its own grid or on another.
    config = load_config(overrides={"probe": {"file": str(tmp_path / "probe.npz"), "modes": 1}})
    geometry = Geometry(**config.geometry.model_dump())
    probe = first_probe(geometry, config)
    np.testing.assert_array_equal(probe, read_probe(tmp_path / "probe.npz").probe)
    coarser = first_probe(replace(geometry, frame_px=48), config)
    assert coarser.shape == (len(probe), 48, 48)
    assert np.sum(np.abs(coarser) ** 2) == pytest.approx(np.sum(np.abs(probe) ** 2), rel=0.02)
    assert shown["frames"] == 24 and shown["source"]["network"] == "canvas-small"
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_a_result_is_handed_on(demo, capsys, tmp_path):
    """Reconstructed again with another engine, and exported by its uid."""
    _, out, _ = demo
    again = ["--engine", "rpie", "--iterations", "2", "--modes", "1", "--trust-probe", "--trust-orientation", "--quiet"]
    main(["reconstruct", "--run", "-1", "--directory", str(out), *again, "--json"])
    made = json.loads(capsys.readouterr().out)
    assert (made["engine"], made["frames"], made["result"], "figure" in made) == ("rpie", 24, [], False)
    line = [
        "export",
        made["reconstruction_uid"],
        *(str(tmp_path / name) for name in ("a.cxi", "a.png")),
        "--directory",
        str(out),
        "--json",
    ]
    assert main(line) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["verdict"]["word"] == made["verdict"]["word"]
    assert said["written"] == [str(tmp_path / "a.cxi"), str(tmp_path / "a.png")]
    product = read_cxi_result(tmp_path / "a.cxi")
    assert (len(product.positions_m), list(product.object.shape)) == (24, said["pixels"])
    # Before anything is read: what is there is kept, and a suffix that means nothing is told.
    assert main(line) == 1 and "a.cxi exists" in capsys.readouterr().err
    assert main(["export", "-1", str(tmp_path / "a.jpg")]) == 1 and "'a.jpg' is none" in capsys.readouterr().err


def test_runs_are_reconstructed_by_workers(demo, capsys, caplog, tmp_path, monkeypatch):
    """By threads in place of Dask's processes; each worker opens the catalog for itself."""
    _, out, _ = demo
    monkeypatch.setattr(workers, "local_workers", lambda number, gpus: ThreadPoolExecutor(number))
    monkeypatch.setattr(workers, "check_installed", lambda: None)
    line = ["reconstruct-many", "--runs", "-1", "1-2", "--directory", str(out), "--out", str(tmp_path / "many")]
    line += ["--engine", "rpie", "--iterations", "2", "--modes", "1", "--trust-probe", "--trust-orientation"]
    main([*line, "--json"])
    (row,) = json.loads(capsys.readouterr().out)["scans"]
    assert (row["state"], row["frames"], row["scan"][:10]) == ("done", 24, "scan00001-")
    assert len(read_cxi_result(row["result"]).positions_m) == 24
    assert "of scans 1-2 the catalog holds no run of 2" in caplog.text
    assert main([*line, "--runs", "7-9"]) == 1 and "holds no run of scans 7-9" in capsys.readouterr().err


def test_browse_without_a_catalog_says_so(tmp_path, capsys):
    assert main(["browse", str(tmp_path / "none")]) == 1
    assert "holds no catalog yet" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_show_of_an_unknown_result_fails(demo, capsys):
    _, out, _ = demo
    assert main(["browse", str(out), "--show", "99"]) == 1
    assert "99" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [("scan: {budgett: 3}", "budgett"), ("scan: {budget: 4, batch: 8}", "exceeds scan.budget"), ("[1, 2]", "mapping")],
)
def test_a_wrong_configuration_is_named(tmp_path, capsys, text, message):
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    assert main(["demo", "-c", str(path), "--out", str(tmp_path / "out")]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_no_scan_is_named(tmp_path, capsys):
    path = tmp_path / "scan.npz"
    path.write_bytes(b"PK\x03\x04 and then nothing")
    assert main(["demo", "--replay", str(path), "--out", str(tmp_path / "out")]) == 1
    assert "scan.npz" in capsys.readouterr().err


def test_a_missing_argument_is_a_usage_error(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["train"])
    assert stopped.value.code == 2
    assert "out" in capsys.readouterr().err


def test_train_refuses_another_ending(tmp_path, capsys):
    assert main(["train", str(tmp_path / "weights.bin")]) == 1
    assert ".safetensors" in capsys.readouterr().err


# Orientation and probe are checked by engines of their own: whatever reconstructs afterwards, the check is the same.
@pytest.mark.parametrize(
    ("engine", "more"),
    [("pinn", []), *((name, ["--trust-orientation", "--trust-probe"]) for name in ("rpie", "lsqml"))],
)
def test_reconstruct_a_file(tmp_path, capsys, caplog, engine, more):
    scan, source, number = recorded_file(tmp_path / "scan.npz")
    out, other = tmp_path / "new" / "product.h5", tmp_path / "again.cxi"
    line = ["reconstruct", str(scan), "--engine", engine, "--iterations", "12", "--modes", "2", *more]
    assert main([*line, "--out", str(out), "--out", str(other), "--json"]) == 0
    numbers = json.loads(capsys.readouterr().out)
    assert "explained better" not in caplog.text
    assert numbers["frames"] == number and 3 <= numbers["iterations"] <= 12
    assert numbers["result"] == [str(out), str(other)]
    assert Path(numbers["figure"]).read_bytes().startswith(b"\x89PNG")
    product, same = read_product(out), read_cxi_result(other)
    np.testing.assert_array_equal(product.object, same.object)
    # The file states no pixel; the reader's nominal one scales everything alike.
    pixel_m = source.truth.pixel_m
    origin_m = tuple(np.array(product.origin_m) / numbers["pixel_m"] * pixel_m)
    truth = crop_to(source.truth.object, source.truth.origin_m, origin_m, product.object.shape, pixel_m)
    inner = np.zeros(product.object.shape)
    inner[40:-40, 40:-40] = 1
    assert compare(product.object, truth, inner).numbers["complex_nrmse"] < 0.35


def recorded_file(path, turned=False):
    """A canonical file of the simulated beamline, the source of its frames, and how many there are."""
    source = SimulatedSource(load_config(overrides={"simulation": {"dead_pixels": 0, "hot_pixels": 0}}))
    positions_m = raster((-0.5e-6, -0.5e-6), (0.5e-6, 0.5e-6), 0.2e-6)
    frames = [source.expose((float(y), float(x)), 0.02, 1.0) for y, x in positions_m]
    stated = positions_m * [1.0, -1.0] if turned else positions_m
    np.savez(path, frames=frames, positions_px=stated / source.truth.pixel_m, probe_guess=source.truth.probe)
    return path, source, len(frames)


def test_reconstruct_warns_of_a_wrong_orientation(tmp_path, caplog):
    scan, _, _ = recorded_file(tmp_path / "scan.npz", turned=True)
    line = ["reconstruct", str(scan), "--engine", "lsqml", "--iterations", "1", "--out", str(tmp_path / "a.h5")]
    line.append("--trust-probe")
    assert main(line) == 0
    assert "explained better with its positions x's sign turned" in caplog.text
    caplog.clear()
    assert main([*line, "--trust-orientation", "--force"]) == 0
    assert "explained better" not in caplog.text


def test_halves_share_no_frame(tmp_path, capsys):
    scan, _, number = recorded_file(tmp_path / "scan.npz")
    found = []
    for half in ("1", "2"):
        out = tmp_path / f"half{half}.h5"
        line = ["reconstruct", str(scan), "--half", half, "--iterations", "1", "--out", str(out)]
        assert main([*line, "--trust-orientation", "--trust-probe", "-q", "--json"]) == 0
        found.append(json.loads(capsys.readouterr().out)["frames"])
    assert sum(found) == number and abs(found[0] - found[1]) <= 1


def test_reconstruct_refuses_another_ending_before_the_work(tmp_path, capsys):
    assert main(["reconstruct", str(tmp_path / "none.npz"), "--out", str(tmp_path / "image.tif")]) == 1
    assert "must end in .h5, .hdf5, .cxi" in capsys.readouterr().err


def small_scan(path, number):
    source = SimulatedSource(load_config(overrides={"simulation": {"dead_pixels": 0, "hot_pixels": 0}}))
    positions_m = raster((-0.2e-6, -0.2e-6), (0.2e-6, 0.2e-6), 0.2e-6)[:number]
    frames = [source.expose((float(y), float(x)), 0.02, 1.0) for y, x in positions_m]
    np.savez(path, frames=frames, positions_px=positions_m / source.truth.pixel_m, probe_guess=source.truth.probe)
    return path


@pytest.mark.parametrize(("frames", "iterations"), [(1, 3), (4, 0), (9, 7)])
def test_no_more_iterations_than_asked_for(tmp_path, capsys, frames, iterations):
    scan = small_scan(tmp_path / "scan.npz", frames)
    line = ["reconstruct", str(scan), "--iterations", str(iterations), "--out", str(tmp_path / "product.h5")]
    assert main([*line, "-q", "--json"]) == 0
    numbers = json.loads(capsys.readouterr().out)
    assert numbers["frames"] == frames and numbers["iterations"] <= iterations
    assert np.isfinite(numbers["deviance_per_pixel"])


def test_iterations_below_zero_are_a_usage_error(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["reconstruct", str(tmp_path / "scan.npz"), "--iterations", "-1"])
    assert stopped.value.code == 2
    assert "positive whole number" in capsys.readouterr().err


@pytest.mark.end_to_end
def test_replay_of_the_real_siemens_star_shows_the_star(tmp_path, empty_catalog, capsys):
    data = os.environ.get("BLUESKY_CDI_DATA")
    scan = Path(data or "", "siemens_velociprobe", "canonical.npz")
    if not data or not scan.is_file():
        pytest.skip("BLUESKY_CDI_DATA names no folder with siemens_velociprobe/canonical.npz")
    config = tmp_path / "short.yaml"
    config.write_text(
        "scan: {budget: 60}\ncatalog: {in_process: true}\n"
        "reconstructor: {final_steps: 1, refine_iterations: 1, in_process: true, threads: 1}\n"
    )
    out = shutil.copytree(empty_catalog, tmp_path / "out")
    code = main(["demo", "-q", "--json", "-c", str(config), "--replay", str(scan), "--out", str(out)])
    numbers = json.loads(capsys.readouterr().out)
    assert code == 0
    assert numbers["frames"] == 60 and numbers["full_scan_frames"] == 516
    # Vacuum is 1; 60 frames, 12 % of the scan, are far from converged but show the star.
    assert numbers["complex_nrmse"] < 0.85
    assert numbers["phase_mae_rad"] < 0.25
