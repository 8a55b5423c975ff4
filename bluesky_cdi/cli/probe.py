"""``bluesky-cdi probe``: what the frames of a recorded scan say about its probe."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from bluesky_cdi.cli.arguments import make_folder, positive
from bluesky_cdi.cli.detector import add_detector_options, detector_settings
from bluesky_cdi.cli.output import refuse_to_replace, say_result
from bluesky_cdi.errors import BlueskyCDIError


def add_probe(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command to `commands`, with the `common` options.

    Parameters
    ----------
    commands : argparse subparsers
        Those of ``bluesky-cdi``.
    common : ArgumentParser
        Options that every command has.
    """
    command = commands.add_parser("probe", parents=[common], help="check the probe of a recorded scan by its frames")
    add = command.add_argument
    add("scan", type=Path, help="CXI, Ptychodus, canonical NPZ or PtychoPINN NPZ")
    add("--modes", type=int, choices=range(1, 9), default=3, help="incoherent probe modes (default: %(default)s)")
    add("--frames", type=positive, default=48, help="frames that are looked at (default: %(default)s)")
    add("--no-guess", action="store_true", help="forget the scan's own probe: begin at the mean frame")
    add("--probe", type=Path, metavar="FILE", help="check the probe in this file instead of the scan's own")
    add("--focus-to-sample", type=float, metavar="METRES", help="near field: distance of the sample behind the focus")
    add("--scale", action="store_true", help="also look for a common scale error of the positions or the pixel")
    add("--trust-orientation", action="store_true", help="don't look which way round the frames lie")
    add("--out", type=Path, default=Path("probe.npz"), metavar="FILE", help="probe file (default: %(default)s)")
    add("--force", action="store_true", help="replace the files that are written, if they exist")
    add_detector_options(command)
    command.set_defaults(run=_probe)


def _probe(args: argparse.Namespace) -> int:
    from dataclasses import replace

    from tqdm import tqdm

    from bluesky_cdi import viz
    from bluesky_cdi.config import load_config
    from bluesky_cdi.io import Preprocessing, ProbeFile, read_probe, read_scan, write_probe
    from bluesky_cdi.reconstruction.probe_checkin import Wanted, check_in_scan
    from bluesky_cdi.reconstruction.probe_guess import fitted

    if args.out.suffix != ".npz":
        raise BlueskyCDIError(f"--out must end in .npz, which is what is written; got {args.out}")
    figure = args.out.with_suffix(".png")
    sources = [path for path in (args.scan, args.probe) if path]
    refuse_to_replace([args.out, figure], sources, force=bool(args.force))
    make_folder(args.out.parent)
    sections = {
        "probe": {"modes": args.modes},
        "reconstructor": {"background": 0.0},
        "detector": detector_settings(args),
    }
    config = load_config(args.config, sections)
    scan = read_scan(args.scan, focus_to_sample_m=args.focus_to_sample, preprocessing=Preprocessing.recorded(config))
    if args.no_guess:
        scan = replace(scan, probe=None)
    if args.probe:
        scan = replace(scan, probe=fitted(read_probe(args.probe), scan.geometry))
    # How many parts there are, what the network finds decides.
    with tqdm(unit="part", desc="check-in", leave=False, disable=bool(args.quiet)) as bar:

        def tell(part: str) -> None:
            bar.set_postfix_str(part, refresh=False)
            bar.update()

        checked = check_in_scan(
            scan,
            config,
            wanted=Wanted(orientation=not args.trust_orientation, scale=args.scale),
            frames=args.frames,
            on_progress=tell,
        )
    viz.save_figure(viz.show_probes({"assumed": checked.assumed, "found": checked.found}, scan.geometry), figure)
    notes = checked.as_notes()
    write_probe(args.out, ProbeFile(checked.found, scan.geometry, scan.name, notes))
    numbers = {**notes, "probe": str(args.out), "figure": str(figure)}
    rows = [("says", checked.says), ("seconds", f"{checked.check.seconds:.1f}")]
    rows += [
        (name, f"{gain.factor:.3f} times better, {gain.in_errors:.1f} standard errors of {gain.frames} frames")
        for name, gain in checked.check.gains.items()
    ]
    say_result(args, numbers, [*rows, ("probe", str(args.out)), ("figure", str(figure))])
    return 0
