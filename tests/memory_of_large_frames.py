"""Peak memory with a large detector of which a part is used: ``python tests/memory_of_large_frames.py FOLDER``.

2,000 frames of 1536 x 2048 pixels, a frame a chunk (bitshuffle with LZ4), 12.6 GB that are 88 MB on disk, are written
to ``FOLDER/large.cxi`` unless they are there. 256 x 256 pixels of them are reconstructed: by the command, and live,
from documents that announce them faster than they can be taken in. Each has a process of its own.
"""

import contextlib
import io
import multiprocessing
import resource
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import event_model
import h5py
import hdf5plugin
import numpy as np

from bluesky_cdi.callbacks import FrameAssembler
from bluesky_cdi.cli import main
from bluesky_cdi.config import load_config
from bluesky_cdi.io import Preprocessing
from bluesky_cdi.live.parts import Pace, WorkerParts
from bluesky_cdi.live.worker import LiveWorker
from bluesky_cdi.physics.geometry import Geometry
from bluesky_cdi.reconstruction.build import build_reconstructor

N, RAW, SIDE, BEAM = 2000, (1536, 2048), 256, (700, 1011)
STATED = {"energy_ev": 8000.0, "distance_m": 2.0, "detector_pixel_m": 75e-6}
DETECTOR = "entry_1/instrument_1/detector_1"
OPTIONS = "--beam-centre 700,1011 --crop 256 --modes 1 --iterations 1 --trust-probe --trust-orientation --force"


def simulated():
    """Positions (N, 2) in pixels, a probe, and the frames one by one."""
    rng = np.random.default_rng(0)
    y, x = np.indices((SIDE, SIDE)) - SIDE // 2
    probe = np.exp(-(y**2 + x**2) / (2 * 18**2) + 0.0008j * (y**2 + 1.3 * x**2))
    probe *= np.sqrt(1e6 / (abs(probe) ** 2).sum())
    at = np.stack(np.divmod(np.arange(N), 45), axis=1) * 16 + rng.integers(0, 3, (N, 2))
    f = np.hypot(*np.meshgrid(*(np.fft.fftfreq(at.max() + SIDE + 1),) * 2))
    smooth = np.fft.ifft2(np.fft.fft2(rng.normal(size=f.shape)) * np.exp(-((f / 0.08) ** 2))).real
    sample = np.exp(0.5j * smooth / smooth.std())

    def frames():
        frame = np.zeros(RAW, np.uint16)
        rows, columns = (slice(middle - SIDE // 2, middle + SIDE // 2) for middle in BEAM)
        for r, c in at:
            far = np.fft.fft2(np.fft.ifftshift(probe * sample[r : r + SIDE, c : c + SIDE])) / SIDE
            frame[rows, columns] = np.minimum(rng.poisson(np.fft.fftshift(abs(far) ** 2)), 60000)
            yield frame

    return at, probe, frames()


def write(path: Path) -> None:
    at, probe, frames = simulated()
    with h5py.File(path, "w") as file:
        options = hdf5plugin.Bitshuffle(cname="lz4")
        data = file.create_dataset(f"{DETECTOR}/data", (N, *RAW), "u2", chunks=(1, *RAW), **options)
        for k, frame in enumerate(frames):
            data[k] = frame
        file[f"{DETECTOR}/distance"] = STATED["distance_m"]
        for name in ("x_pixel_size", "y_pixel_size"):
            file[f"{DETECTOR}/{name}"] = STATED["detector_pixel_m"]
        file["entry_1/instrument_1/source_1/energy"] = STATED["energy_ev"] * 1.602176634e-19
        file["entry_1/instrument_1/source_1/illumination"] = probe[None].astype(np.complex64)
        y, x = (at * Geometry(**STATED, frame_px=SIDE).pixel_m).T
        file["entry_1/sample_1/geometry_1/translation"] = np.column_stack([x, y, 0 * x])


def command(path: Path, *options: str) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        main(["-q", "reconstruct", str(path), *OPTIONS.split(), "--out", str(path.with_name("out.h5")), *options])


class Forget:
    """A recorder that keeps nothing."""

    def __init__(self, *_):
        pass

    def publish(self, estimate):
        pass

    def close(self, estimate, exit_status, reason):
        pass


def live(path: Path) -> None:
    with h5py.File(path) as file:
        x, y = file["entry_1/sample_1/geometry_1/translation"][:, :2].T
        probe = file["entry_1/instrument_1/source_1/illumination"][()]
    settings = {
        "geometry": {**STATED, "frame_px": SIDE},
        "detector": {"beam_centre_px": BEAM, "crop_px": SIDE},
        "reconstructor": {"name": "lsqml", "refine_iterations": 1},
        "probe": {"modes": 1, "trust": True},
    }
    config = load_config(overrides=settings)
    parts = WorkerParts(lambda info: build_reconstructor(info, config, probe=probe), None, Forget, None)
    worker = LiveWorker(parts, Pace(final_steps=2))
    assembler = FrameAssembler(worker, preprocessing=Preprocessing.live(config))
    window_m = [[y.min(), x.min()], [y.max(), x.max()]]
    run = event_model.compose_run(metadata={"motors": ["y", "x"], "geometry": STATED, "window_m": window_m})
    number = {"source": "file", "dtype": "number", "shape": [], "units": "m"}
    image = {"source": "file", "dtype": "array", "shape": list(RAW), "external": "STREAM:"}
    stream = run.compose_descriptor(
        name="primary",
        data_keys={"image": image, "y": number, "x": number},
        object_keys={"det": ["image"], "y": ["y"], "x": ["x"]},
        configuration={},
    )
    frames = run.compose_stream_resource(
        mimetype="application/x-hdf5", uri=path.as_uri(), data_key="image", parameters={"dataset": f"/{DETECTOR}/data"}
    )
    for name, doc in (
        ("start", run.start_doc),
        ("descriptor", stream.descriptor_doc),
        ("stream_resource", frames.stream_resource_doc),
    ):
        assembler(name, doc)
    for k in range(N):
        data = {"y": y[k], "x": x[k]}
        assembler("event", stream.compose_event(data=data, timestamps=dict.fromkeys(data, 0.0), seq_num=k + 1))
        at = {"start": k, "stop": k + 1}, {"start": k + 1, "stop": k + 2}
        datum = frames.compose_stream_datum(indices=at[0], seq_nums=at[1], descriptor=stream.descriptor_doc)
        assembler("stream_datum", datum)
    assembler("stop", run.compose_stop())
    worker.wait(3600)
    worker.close()


def peak_mib(job, *args) -> int:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measured, job, *args).result()


def measured(job, *args) -> int:
    job(*args)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


if __name__ == "__main__":
    large = Path(sys.argv[1]).resolve() / "large.cxi"
    if not large.exists():
        write(large)
    for name, job, *args in (
        ("reconstruct", command),
        ("reconstruct --bin 2", command, "--bin", "2"),
        ("live", live),
    ):
        print(f"{name:20} {peak_mib(job, large, *args):6} MiB", flush=True)
