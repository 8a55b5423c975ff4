"""``bench quality``, ``scan``, ``live``, ``fine-tuning``, ``probe``, ``drift``, ``faults``: how good images are."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bluesky_cdi.cli.arguments import above_0, count, make_folder, positive
from bluesky_cdi.cli.bench.common import (
    Part,
    add_data,
    add_device,
    add_out,
    data_folder,
    finish,
    needed_data_folder,
    prepare,
    tell,
)
from bluesky_cdi.cli.output import say_result
from bluesky_cdi.errors import BlueskyCDIError

if TYPE_CHECKING:
    import torch

    from bluesky_cdi.bench.methods import Network
    from bluesky_cdi.protocols import ComplexArray

logger = logging.getLogger(__name__)

# The names of `bench.suites.quality.SUITES`, which would load torch.
SUITES = ("dose", "overlap", "probe", "rate", "objects", "thick", "passes", "recorded")
# The names of `bench.suites.probe.SAMPLES`, likewise.
CHECKED = ("star", "natural", "cells", "gold")
# The names of `bench.explained.EXPLAINED`, likewise.
TUNED = ("p25", "star", "star64")
# The names of `physics.objects.SAMPLES`, likewise.
PAINTED = ("star", "particles", "cells", "blank", "natural", "leaves", "lines", "circuit", "phase", "gold")


def _quality_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add(
        "--weights",
        nargs="*",
        metavar="NAME",
        help="shipped, or .safetensors files (default: all that are shipped)",
    )
    add("--baseline", type=Path, metavar="FILE", help="weights of another network, whose object nothing refines")
    add("--suites", nargs="+", choices=SUITES, default=list(SUITES), metavar="NAME", help=f"of {', '.join(SUITES)}")
    add("--cases", nargs="+", default=[], metavar="LABEL", help="only these columns, or recorded scans, of the suites")
    add("--seeds", type=positive, default=3, help="scans of each case (default: %(default)s)")
    add("--frame-px", type=int, choices=(64, 128), default=64, help="pixels along a side (default: %(default)s)")
    add(
        "--field",
        type=above_0,
        default=1.25,
        metavar="FRAMES",
        help="side of the simulated scans' field in widths of a frame (default: %(default)s)",
    )
    add("--no-rpie", action="store_true", help="recorded scans: without rPIE and networks that begin at its object")
    add_data(command)
    add_device(command)
    add_out(command)
    add("--figure", type=Path, metavar="DIR", help="draw the default scan at three doses and the recorded ones there")


def _bench_quality(args: argparse.Namespace) -> int:
    from bluesky_cdi.bench.cases import Case
    from bluesky_cdi.bench.machine import devices_of
    from bluesky_cdi.bench.reports.quality import Figures, tables
    from bluesky_cdi.bench.suites.quality import Options, quality
    from bluesky_cdi.models.weights import shipped_weights

    for folder in (args.out.parent if args.out else None, args.figure):
        if folder is not None:
            make_folder(folder)
    [device] = devices_of(args.device, 1)
    weights = shipped_weights() if args.weights is None else args.weights
    networks = _networks(weights, args.baseline, device)
    base = Case(frame_px=args.frame_px, field=args.field)
    options = Options(args.suites, args.seeds, base, data_folder(args), device, args.cases, not args.no_rpie)
    draw = Figures(args.figure, networks) if args.figure else None
    found = quality(networks, options, tell, draw)
    for name, why in found["skipped"].items():
        logger.warning("%s is not measured: %s", name, why)
    return finish(args, found, tables(found))


QUALITY = Part(
    "quality",
    "errors of networks beside iterative engines, on held-out and recorded scans",
    _quality_options,
    _bench_quality,
)


def _scan_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("out", type=Path, help="file to write, ending in .npz (canonical), .cxi, or .h5 (Ptychodus)")
    add("--sample", default="star", metavar="KIND", help="star, natural, circuit, gold, ... (default: %(default)s)")
    add("--dose", type=above_0, default=1e5, metavar="PHOTONS", help="of a frame (default: %(default)s)")
    add("--frame-px", type=int, choices=(64, 128), default=64, help="pixels along a side (default: %(default)s)")
    add("--seed", type=count, default=0, help="of sample, positions and noise (default: %(default)s)")


def _bench_scan(args: argparse.Namespace) -> int:
    from bluesky_cdi.bench.cases import Case, scan_of
    from bluesky_cdi.io import write_scan

    scan = scan_of(Case(dose=args.dose, sample=args.sample, frame_px=args.frame_px), args.seed)
    make_folder(args.out.parent)
    write_scan(args.out, scan)
    found = {"scan": str(args.out), "frames": len(scan), "frame_px": args.frame_px, "name": scan.name}
    say_result(args, found, [("scan", str(args.out)), ("frames", f"{len(scan)} of {args.frame_px}x{args.frame_px}")])
    return 0


SCAN = Part(
    "scan", "write a scan of `bench quality`, for other programs or `train --probe`", _scan_options, _bench_scan
)


def _networks(weights: Sequence[str], baseline: Path | None, device: torch.device) -> list[Network]:
    from bluesky_cdi.bench.methods import Network
    from bluesky_cdi.models.weights import load_weights

    trained = [load_weights(name, device) for name in weights]
    networks = [Network(each.name, each.net) for each in trained]
    if baseline is not None:
        networks.append(Network(baseline.stem, load_weights(baseline, device).net))
    names = [network.name for network in networks]
    if len(set(names)) < len(names):
        raise BlueskyCDIError(f"networks go by their files' names, which must differ; they are {', '.join(names)}")
    return networks


def _live_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add(
        "--suite",
        choices=("dose", "star"),
        default="dose",
        help="simulated, by dose, all faults on; or the recorded star, over time, with and without check-in",
    )
    add("--frames", type=positive, help="of a scan (default: 200 of dose, all of star)")
    add("--seeds", type=positive, default=3, help="dose: scans of each dose (default: %(default)s)")
    add("--rate", type=above_0, default=10.0, help="star: frames a second (default: %(default)s)")
    add("--weights", default="canvas-small", metavar="NAME", help="star: shipped, or a .safetensors file")
    add("--threads", type=positive, default=1, help="CPU threads (default: %(default)s)")
    add_data(command)
    add_out(command)


def _bench_live(args: argparse.Namespace) -> int:
    import torch

    from bluesky_cdi.bench.reports import tables
    from bluesky_cdi.bench.suites.live import live
    from bluesky_cdi.bench.suites.replay import Options, star_replayed

    prepare(args)
    if args.suite == "star":
        data = needed_data_folder(args)
        found = star_replayed(Options(data, args.weights, args.rate, args.frames, args.threads), tell)
        return finish(args, found, tables.replay(found))
    torch.set_num_threads(args.threads)
    found = live(args.frames or 200, args.seeds, tell)
    return finish(args, found, tables.live(found))


LIVE = Part(
    "live", "how good the live image is: by dose, or of the replayed star over time", _live_options, _bench_live
)


def _fine_tuning_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--scan", nargs="+", choices=TUNED, default=list(TUNED), metavar="NAME", help=f"of {', '.join(TUNED)}")
    add("--weights", default="canvas-small", metavar="NAME", help="shipped, or a .safetensors file")
    add("--seconds", type=above_0, default=120.0, help="of tuning (default: %(default)s)")
    add("--epochs", type=positive, default=200, help="of LSQ-ML, the converged engine (default: %(default)s)")
    add("--threads", type=positive, default=2, help="CPU threads (default: %(default)s)")
    add("--cpu-time", action="store_true", help="count the process's CPU time: on a busy machine")
    add("--figure", type=Path, metavar="FILE", help="the phases side by side; of several scans, one file each")
    add_data(command)
    add_device(command, "cpu")
    add_out(command)


def _bench_fine_tuning(args: argparse.Namespace) -> int:
    import torch

    from bluesky_cdi.bench.explained import EXPLAINED
    from bluesky_cdi.bench.machine import devices_of
    from bluesky_cdi.bench.reports import tables
    from bluesky_cdi.bench.reports.figures import draw_phases
    from bluesky_cdi.bench.suites.fine_tuning import Options, fine_tuning
    from bluesky_cdi.models.weights import load_weights

    prepare(args)
    data = needed_data_folder(args)
    torch.set_num_threads(args.threads)
    [device] = devices_of(args.device, 1)
    scans = {name: EXPLAINED[name](data, device) for name in args.scan}

    def draw(name: str, images: Mapping[str, ComplexArray]) -> None:
        several = len(args.scan) > 1
        draw_phases(images, args.figure.with_stem(f"{args.figure.stem}-{name}") if several else args.figure)

    options = Options(args.seconds, args.epochs, args.cpu_time)
    found = fine_tuning(scans, load_weights(args.weights, device), options, tell, draw if args.figure else None)
    return finish(args, found, tables.fine_tuning(found))


FINE_TUNING = Part(
    "fine-tuning", "what tuning on a recorded scan's own frames brings", _fine_tuning_options, _bench_fine_tuning
)


def _probe_checks_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--weights", default="canvas-small", metavar="NAME", help="shipped, or a .safetensors file")
    add("--samples", nargs="*", choices=CHECKED, default=list(CHECKED), metavar="KIND", help=f"of {', '.join(CHECKED)}")
    add("--doses", nargs="+", type=above_0, default=[1e3, 1e4, 1e5, 1e6], metavar="PHOTONS", help="of a frame")
    add("--errors", nargs="+", type=float, default=[0.0, 0.8, 1.6], metavar="RAD", help="of the assumed probe")
    add("--seeds", type=positive, default=1, help="scans of each case (default: %(default)s)")
    add("--frames", type=positive, default=48, help="that a check-in looks at (default: %(default)s)")
    add("--figure", type=Path, metavar="DIR", help="draw the recorded scans there")
    add_data(command)
    add_device(command, "cpu")
    add_out(command)


def _bench_probe(args: argparse.Namespace) -> int:
    import torch

    from bluesky_cdi.bench.machine import devices_of
    from bluesky_cdi.bench.methods import Network
    from bluesky_cdi.bench.reports import tables
    from bluesky_cdi.bench.reports.figures import ObjectFigures
    from bluesky_cdi.bench.suites.probe import Options, probe
    from bluesky_cdi.models.weights import load_weights

    for folder in (args.out.parent if args.out else None, args.figure):
        if folder is not None:
            make_folder(folder)
    data = data_folder(args)
    if data is None:
        logger.warning("recorded scans are not measured: name their folder with --data or BLUESKY_CDI_DATA")
    [device] = devices_of(args.device, 1)
    if device.type == "cpu":
        torch.set_num_threads(1)
    trained = load_weights(args.weights, device)
    options = Options(args.samples, args.doses, args.errors, args.seeds, args.frames, data, device)
    draw = ObjectFigures(args.figure) if args.figure else None
    found = probe(Network(trained.name, trained.net), options, tell, draw)
    return finish(args, found, tables.probe(found))


PROBE_CHECKS = Part("probe", "what the check-in of the probe brings", _probe_checks_options, _bench_probe)


def _drift_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--engines", nargs="+", choices=("rpie", "lsqml"), default=["rpie", "lsqml"], help="that reconstruct")
    add("--doses", nargs="+", type=above_0, default=[1e3, 1e4, 1e5, 1e6], metavar="PHOTONS", help="of a frame")
    add("--errors", nargs="+", type=float, default=[0.0, 0.8], metavar="RAD", help="of the assumed probe")
    add("--seeds", type=positive, default=1, help="scans of each case (default: %(default)s)")
    add("--moved-um", type=above_0, default=50.0, metavar="UM", help="of the focus (default: %(default)s)")
    add_out(command)


def _bench_drift(args: argparse.Namespace) -> int:
    import torch

    from bluesky_cdi.bench.reports import tables
    from bluesky_cdi.bench.suites.drift import Options, drift

    if args.out is not None:
        make_folder(args.out.parent)
    torch.set_num_threads(1)
    options = Options(args.engines, args.doses, args.errors, args.seeds, 1e-6 * args.moved_um)
    found = drift(options, tell)
    return finish(args, found, tables.drift(found))


DRIFT = Part("drift", "when the alarm of a beam that changes rings", _drift_options, _bench_drift)


def _faults_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--engines", nargs="+", choices=("rpie", "lsqml", "pinn"), default=["lsqml"], help="that reconstruct")
    add("--doses", nargs="+", type=above_0, default=[1e3, 1e4, 1e5, 1e6], metavar="PHOTONS", help="of a frame")
    add("--samples", nargs="+", default=["star", "circuit", "particles"], metavar="KIND", help="that are measured")
    add("--seeds", type=positive, default=1, help="scans of each case (default: %(default)s)")
    add("--errors", nargs="+", type=float, default=[0.0], metavar="RAD", help="of the assumed probe, without a fault")
    add("--faults", nargs="*", metavar="FAULT", help="which (default: all; none are given: scans without a fault only)")
    add("--weights", default="canvas-small", help="of pinn (default: %(default)s)")
    add_out(command)


def _bench_faults(args: argparse.Namespace) -> int:
    import torch

    from bluesky_cdi.bench.faults import FAULTS
    from bluesky_cdi.bench.reports import tables
    from bluesky_cdi.bench.suites.faults import Options, faults

    chosen = tuple(FAULTS) if args.faults is None else tuple(args.faults)
    if unknown := sorted(set(chosen) - set(FAULTS)):
        raise BlueskyCDIError(f"a fault is one of {', '.join(FAULTS)}; got {', '.join(unknown)}")
    prepare(args)
    torch.set_num_threads(1)
    found = faults(Options(args.engines, args.doses, args.samples, args.seeds, args.errors, chosen, args.weights), tell)
    return finish(args, found, tables.faults(found))


FAULTS = Part("faults", "whether a run names what goes wrong in it", _faults_options, _bench_faults)


def _latents_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add(
        "--weights",
        default="canvas-small",
        metavar="NAME",
        help="of a network or a frame encoder (default: %(default)s)",
    )
    add("--samples", nargs="+", default=list(PAINTED), metavar="KIND", help=f"of {', '.join(PAINTED)}")
    add("--seeds", type=positive, default=2, help="scans of each sample and dose (default: %(default)s)")
    add("--scenes", type=positive, default=100, help="of the kinds that training draws (default: %(default)s)")
    add_device(command)
    add_out(command)


def _bench_latents(args: argparse.Namespace) -> int:
    from bluesky_cdi.bench.machine import devices_of
    from bluesky_cdi.bench.reports import tables
    from bluesky_cdi.bench.suites.latents import Options, latents
    from bluesky_cdi.models.frame_weights import is_encoder, load_frame_model
    from bluesky_cdi.models.weights import load_weights, path_of

    prepare(args)
    [device] = devices_of(args.device, 1)
    options = Options(args.samples, seeds=args.seeds, scenes=args.scenes)
    path = path_of(args.weights)
    trained = load_frame_model(path, device) if is_encoder(path) else load_weights(args.weights, device)
    found = latents(trained, options, device, tell)
    return finish(args, found, tables.latents(found))


LATENTS = Part(
    "latents",
    "how stable latents of frames are, and how surely unusual frames are recognised",
    _latents_options,
    _bench_latents,
)
