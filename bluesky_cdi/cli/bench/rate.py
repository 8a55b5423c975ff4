"""``bench rate``: what the live pipeline keeps up with."""

from __future__ import annotations

import argparse

from bluesky_cdi.cli.arguments import positive
from bluesky_cdi.cli.bench.common import Part, add_device, add_out, finish, prepare, tell


def _rate_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add(
        "--source",
        choices=("documents", "file"),
        help="documents of a simulated scan at given rates, or a file as fast as it goes (default: documents on a CPU, "
        "file on a GPU)",
    )
    add("--weights", default="canvas-small", metavar="NAME", help="shipped, or a .safetensors file")
    documents = command.add_argument_group("documents")
    add = documents.add_argument
    add("--rates", type=positive, nargs="+", metavar="R", help="frames/s (default: 100 to 1000; 500 to 4000 on a GPU)")
    add("--side", type=positive, metavar="N", help="frames along a side of the scan (default: 64; 128 on a GPU)")
    add("--latency", type=float, metavar="S", help="reconstructor.latency_s, seconds (default: its own)")
    add("--threads", type=positive, default=1, help="CPU threads of the reconstruction (default: %(default)s)")
    add("--share", type=float, default=1.0, help="of the usual time for each rate (default: %(default)s)")
    file = command.add_argument_group("file")
    add = file.add_argument
    add("--frames", type=positive, help="of the scan (default: 100000 on a GPU, 400 on a CPU)")
    add("--size", type=positive, metavar="N", help="pixels along a side of the frames (default: 128; 64 on a CPU)")
    add("--batch", type=positive, help="frames computed at a time (default: 4096 on a GPU, 200 on a CPU)")
    add("--readers", type=positive, help="threads that read and decompress (default: one a core, up to 8)")
    add("--seconds", type=float, help="least time of all passes (default: 60 on a GPU, one pass on a CPU)")
    add_device(command)
    add_out(command)


def _bench_rate(args: argparse.Namespace) -> int:
    from bluesky_cdi.bench.machine import devices_of
    from bluesky_cdi.bench.reports import rate as report

    prepare(args)
    [device] = devices_of(args.device, 1)
    is_gpu = device.type == "cuda"
    if (args.source or ("file" if is_gpu else "documents")) == "documents":
        from bluesky_cdi.bench.suites.rate import SIDE, SIDE_ON_GPU, Options, rate

        side = args.side or (SIDE_ON_GPU if is_gpu else SIDE)
        found = rate(Options(side, args.weights, args.threads, args.rates, args.share, str(device), args.latency), tell)
        return finish(args, found, report.documents(found))
    from bluesky_cdi.bench.suites import file_rate as bench

    frames, size, batch, seconds = (100_000, 128, 4096, 60.0) if is_gpu else (400, 64, 200, 0.0)
    options = bench.Options(
        args.frames or frames,
        args.size or size,
        args.batch or batch,
        seconds if args.seconds is None else args.seconds,
        args.weights,
        args.readers,
    )
    found = bench.file_rate(device, options, tell)
    return finish(args, found, report.file(found))


RATE = Part(
    "rate",
    "frames a second from documents to live images, and their latency; on a GPU from a file to the image",
    _rate_options,
    _bench_rate,
)
