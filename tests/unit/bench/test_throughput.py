"""The benchmark's simulated batches, its timed path and its report, on the CPU."""

import json
import threading

import numpy as np
import pytest
import torch

from bluesky_cdi.bench.machine import devices_of
from bluesky_cdi.bench.suites import throughput as bench
from bluesky_cdi.cli import main
from bluesky_cdi.errors import ConfigError
from bluesky_cdi.evaluation import complex_nrmse
from bluesky_cdi.models.unrolled import PRESETS, UnrolledConfig, UnrolledNet
from bluesky_cdi.models.weights import load_weights
from bluesky_cdi.physics.forward import to_centre
from bluesky_cdi.physics.illuminated_frames import object_step

CPU = torch.device("cpu")
TINY = "stages=1,channels=8,levels=2"


def test_a_batch_is_scans_of_the_stated_frames():
    work = bench.Workload(32, scans=2, side=3, modes=2)
    measured = bench.simulate(work, CPU)
    assert work.frames == 18 and work.step_px == 4
    assert measured.counts.shape == (18, 32, 32) and measured.counts.dtype == torch.uint16
    assert measured.probe.shape == (2, 2, 32, 32) and measured.scene.tolist() == [0] * 9 + [1] * 9
    energy = measured.probe.abs().square().sum(dim=(1, 2, 3))
    np.testing.assert_allclose(energy, bench.PHOTONS, rtol=1e-4)
    photons = measured.counts.to(torch.float64).sum(dim=(1, 2))
    # The sample absorbs up to 15 % of the intensity.
    assert bool(((photons > 0.8 * bench.PHOTONS) & (photons < 1.02 * bench.PHOTONS)).all())
    # Frames are centred: most light is near the middle.
    assert float(measured.counts.to(torch.float64)[:, 8:24, 8:24].sum() / photons.sum()) > 0.75
    assert not torch.equal(measured.counts[:9], measured.counts[9:])


def test_the_same_seed_is_the_same_batch():
    work = bench.Workload(16, 1, 3)
    one, same, other = (bench.simulate(work, CPU, seed) for seed in (1, 1, 2))
    assert torch.equal(one.counts, same.counts) and not torch.equal(one.counts, other.counts)


@pytest.mark.parametrize(("frames", "scans", "side"), [(64, 1, 8), (70, 1, 8), (4096, 4, 32), (1, 1, 1)])
def test_workloads_have_about_as_many_frames_as_asked(frames, scans, side):
    work = bench.Workload.fitting(64, CPU, frames)
    assert (work.scans, work.side) == (scans, side)


def test_default_workloads_have_as_many_pixels():
    gpu = torch.device("cuda")
    assert [bench.Workload.fitting(n, gpu).frames for n in (64, 128, 256, 512)] == [16384, 4096, 1024, 256]
    assert bench.Workload.fitting(64, CPU).frames == 64
    assert bench.Workload.fitting(2048, CPU).frames == 4


def test_the_timed_path_ends_with_the_image():
    """Its frames are in place: the network finds the sample."""
    work = bench.Workload(64, scans=1, side=7)
    measured = bench.simulate(work, CPU)
    net = load_weights().net
    pipeline = bench.Pipeline(net, measured, work.grid_px, CPU)
    with torch.inference_mode():
        data = pipeline.placed(pipeline.copied())
        image = pipeline.one()
        again = pipeline.streamed()
        _, illumination = object_step(torch.ones_like(image), measured.probe, data)
    assert torch.equal(to_centre(data.counts).to(torch.uint16), measured.counts)
    assert torch.equal(image, again) and image.shape == (1, work.grid_px, work.grid_px)
    side = work.grid_px
    thickness = bench.power_law_texture((side, side), np.random.default_rng(0))
    truth, illuminated = np.exp((-0.08 - 0.9j) * thickness), (illumination > 0.1 * illumination.max())[0].numpy()
    vacuum = complex_nrmse(np.ones_like(truth), truth, illuminated)
    assert complex_nrmse(image[0].numpy(), truth, illuminated) < 0.5 * vacuum


@pytest.mark.parametrize("devices", [1, 2])
def test_the_report_has_a_case_for_each_network_and_size(devices):
    torch.manual_seed(1)
    models = {
        "a": UnrolledNet(bench.model_config(TINY)),
        "b": UnrolledNet(UnrolledConfig(stages=2, channels=8, levels=2)),
    }
    said = []
    found = bench.throughput(models, (16, 32), [CPU] * devices, 0.02, frames=4, on_progress=said.append)
    assert [(c["model"], c["frame_px"]) for c in found["cases"]] == [("a", 16), ("b", 16), ("a", 32), ("b", 32)]
    assert len(said) == 4
    assert json.loads(json.dumps(found)) == found
    assert found["machine"]["threads"] == torch.get_num_threads() and len(found["machine"]["devices"]) == devices
    assert found["settings"]["models"]["b"]["stages"] == 2
    for case in found["cases"]:
        assert case["devices"] == devices and case["batches"] >= 3 * devices and case["gpu_memory_bytes"] is None
        assert 0 < case["frames_per_s_p10"] <= case["frames_per_s"] <= case["frames_per_s_p90"]
        assert case["one_batch_frames_per_s"] * case["one_batch_s"] == pytest.approx(4)
        assert set(case["us_per_frame"]) == {
            "copy",
            "conversion and placement",
            "physics of all stages",
            "networks of all stages",
            "all on the device",
        }
        assert all(value > 0 for value in case["us_per_frame"].values())


def test_a_device_that_fails_stops_the_others(monkeypatch):
    began = threading.Event()

    def broken(pipeline, original=bench.Pipeline.streamed):
        if began.is_set():
            raise RuntimeError("no memory")
        began.set()
        return original(pipeline)

    monkeypatch.setattr(bench.Pipeline, "streamed", broken)
    with pytest.raises(RuntimeError, match="no memory"):
        bench.throughput({"a": UnrolledNet(bench.model_config(TINY))}, (16,), [CPU, CPU], 0.02, frames=4)


def test_models_by_name_and_by_size():
    assert bench.model_config("large") == PRESETS["large"]
    assert bench.model_config("stages=2,channels=16") == UnrolledConfig(stages=2, channels=16)
    assert set(bench.models_of(["canvas-small"], [TINY])) == {"canvas-small", f"{TINY} (untrained)"}


@pytest.mark.parametrize("text", ["quick", "stages", "stages=0", "stages=x", "layers=3", "stages=2,", ""])
def test_a_size_that_means_nothing_is_refused(text):
    with pytest.raises(ConfigError, match="a model is one of tiny, small, large, or positive numbers such as"):
        bench.model_config(text)


def test_devices(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert devices_of("auto", 2) == [CPU, CPU]
    with pytest.raises(ConfigError, match="--device must be auto, cpu, cuda"):
        devices_of("gpu!", 1)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert devices_of("cuda:1", 2) == [torch.device("cuda", 1), torch.device("cuda", 2)]
    with pytest.raises(ConfigError, match=r"3 GPU\(s\) from number 1 on are asked for; PyTorch sees 3"):
        devices_of("cuda:1", 3)


def test_the_command_prints_and_writes_the_numbers(tmp_path, capsys):
    out = tmp_path / "new" / "speed.json"
    arguments = ["--sizes", "16", "--weights", "--model", TINY, "--device", "cpu", "--frames", "4", "--seconds", "0.02"]
    assert main(["bench", "throughput", *arguments, "--json", "--out", str(out)]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads(out.read_text(encoding="utf-8"))
    assert main(["bench", "throughput", *arguments]) == 0
    assert f"{TINY} (untrained), 16x16" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--weights", "nonsense"], "no weights at"),
        (["--weights", "--model", "quick"], "a model is one of"),
        (["--weights"], "no network is named"),
    ],
)
def test_the_command_says_what_is_wrong(arguments, message, capsys):
    assert main(["bench", "throughput", "--device", "cpu", *arguments]) == 1
    assert message in capsys.readouterr().err
