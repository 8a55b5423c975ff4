"""The same code path on a GPU gives the same physics, and nearly the same network."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from bluesky_cdi.bench.suites.throughput import Pipeline, Workload, simulate
from bluesky_cdi.config import ReconstructorConfig
from bluesky_cdi.engines import PTYCHOGRAPHY, make_engine
from bluesky_cdi.engines.ptychography import Schedule, Solution, iterate
from bluesky_cdi.evaluation import complex_nrmse
from bluesky_cdi.models.unrolled import UnrolledConfig, UnrolledNet
from bluesky_cdi.models.weights import load_weights
from bluesky_cdi.physics.forward import Diffraction, extract, rate, to_centre
from bluesky_cdi.physics.geometry import ObjectGrid
from bluesky_cdi.protocols import Frame
from bluesky_cdi.reconstruction.fine_tuning import FineTuner
from bluesky_cdi.reconstruction.online import PtychoReconstructor
from bluesky_cdi.training.graphs import record_graphs
from bluesky_cdi.training.pretrain import PretrainConfig, scene_losses
from bluesky_cdi.training.stream import Batch, SceneShape, SceneStream

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")


@pytest.fixture(scope="module")
def scan() -> Batch:
    return SceneStream(torch.device("cpu"), 5, photons=(1e5, 1.001e5), pool=8, object_px=160).draw(
        SceneShape(64, 112, (25, 25), 1, 1.0), exact=True
    )


def on_cuda(data: Diffraction) -> Diffraction:
    return Diffraction(
        data.counts.cuda(),
        data.corner.cuda(),
        data.shift_px.cuda(),
        data.object_shape,
        None if data.flux is None else data.flux.cuda(),
        None if data.scene is None else data.scene.cuda(),
    )


def test_rates_agree(scan):
    data = scan.data
    here = rate(data.probes(scan.probe), extract(scan.truth, data.corner, 64))
    there_data = on_cuda(data)
    there = rate(there_data.probes(scan.probe.cuda()), extract(scan.truth.cuda(), there_data.corner, 64))
    torch.testing.assert_close(there.cpu(), here, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", PTYCHOGRAPHY)
def test_engines_agree(scan, name):
    start = torch.ones_like(scan.truth)
    found = []
    for obj, probe, data in (
        (start, scan.probe, scan.data),
        (start.cuda(), scan.probe.cuda(), on_cuda(scan.data)),
    ):
        outcome = iterate(make_engine(name), Solution.start(obj, probe, data), Schedule(5))
        found.append(outcome.solution.object.cpu())
    here, there = found
    assert float((there - here).abs().max()) < 1e-2 * float(here.abs().max())


def test_the_reconstructor_agrees(scan):
    data = scan.data
    grid = ObjectGrid((0.0, 0.0), data.object_shape[1:], 1e-8, 64)
    positions = (data.corner + 32 + data.shift_px).double().numpy() * 1e-8
    counts = to_centre(data.counts).numpy()
    flux = np.ones(len(data)) if data.flux is None else data.flux.numpy()
    frames = [Frame(i + 1, positions[i], counts[i], 0.1, float(flux[i])) for i in range(len(data))]
    found = {}
    for device in ("cpu", "cuda"):
        config = ReconstructorConfig(device=device, refine_probe=False)
        trained = load_weights(device=device)
        reconstructor = PtychoReconstructor(grid, scan.probe[0].numpy(), config, trained=trained, device=device)
        reconstructor.add(frames)
        found[device] = reconstructor.step(60.0)
    illuminated = found["cpu"].coverage > 0.1 * found["cpu"].coverage.max()
    error = {d: complex_nrmse(e.object, scan.truth[0].numpy(), illuminated) for d, e in found.items()}
    # The network runs in bf16 on the GPU: as good, not the same to the last digit.
    assert error["cuda"] == pytest.approx(error["cpu"], rel=0.15)
    assert found["cuda"].embedding.shape == found["cpu"].embedding.shape


@pytest.mark.parametrize("steps", [1, 2])
def test_recorded_graphs_give_the_same_gradients(steps):
    torch.manual_seed(6)
    config = PretrainConfig(model=UnrolledConfig(stages=2, steps=steps, channels=16, levels=2))
    net = UnrolledNet(config.model).to("cuda", memory_format=torch.channels_last)
    shape = SceneShape(32, 64, (4, 9), 3, 1.0)
    record_graphs(net, [shape], torch.device("cuda"))
    unets = [*net.stages, net.critic]
    assert all(unet.graphs for unet in unets)
    stream = SceneStream(torch.device("cuda"), 7, pool=8, object_px=96)
    batch, found = stream.draw(shape), []
    for graphs in ([unet.graphs for unet in unets], [{}] * len(unets)):
        for unet, recorded in zip(unets, graphs, strict=True):
            unet.graphs = recorded
        net.zero_grad(set_to_none=True)
        stream.draws.reseed(8)
        sum(scene_losses(net, batch, config, stream.draws).values()).backward()
        found.append((torch.cat([p.grad.reshape(-1) for p in net.parameters()]), net.step_size.grad.clone()))
    # Of all parameters, and of the few step lengths, which would be lost among them.
    for graphed, plain, most in zip(*found, (0.02, 0.05), strict=True):
        assert float((graphed - plain).norm() / plain.norm()) < most


def test_a_recorded_batch_gives_the_same_image():
    work, cuda = Workload(64, scans=2, side=6), torch.device("cuda")
    measured, net = simulate(work, cuda), load_weights(device="cuda").unrolled_net
    with torch.inference_mode():
        pipeline = Pipeline(net, measured, work.grid_px, cuda)
        raw = measured.on(cuda)
        expected = net(raw.probe, pipeline.placed(raw))[-1]
        blank = replace(measured, counts=torch.zeros_like(measured.counts))
        for run in (pipeline.one, pipeline.streamed, pipeline.streamed, pipeline.computed):
            if run == pipeline.one:
                # The counts come from the host.
                pipeline._batch.take(blank)
                pipeline._arriving.take(blank)
            found = run()
            # Sums are added up in another order each time, and rounded to bf16.
            assert float((found - expected).abs().max()) < 0.05 * float(expected.abs().max())
            assert float((found - expected).norm() / expected.norm()) < 5e-3
            found.zero_()


def test_a_network_is_tuned_on_the_gpu(scan):
    net = load_weights(device="cuda").unrolled_net
    data = on_cuda(scan.data)
    found = FineTuner(net).tune(scan.probe.cuda(), data, 2.0)
    assert found.steps > 0 and found.after <= found.before
