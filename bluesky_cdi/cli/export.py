"""``bluesky-cdi export``: a result of a catalog, or its raw scan, as files for other programs."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bluesky_cdi.cli.arguments import configured, make_folder, reached_catalog, run_or_result
from bluesky_cdi.cli.convert import add_compression, not_kept, scan_numbers
from bluesky_cdi.cli.output import refuse_to_replace, say_result
from bluesky_cdi.errors import BlueskyCDIError

if TYPE_CHECKING:
    from bluesky_cdi.catalog import Catalog

logger = logging.getLogger(__name__)


def add_export(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command to `commands`, with the `common` options.

    Parameters
    ----------
    commands : argparse subparsers
        Those of ``bluesky-cdi``.
    common : ArgumentParser
        Options that every command has.
    """
    command = commands.add_parser(
        "export", parents=[common], help="write a result of a catalog, or its raw scan, to files for other programs"
    )
    add = command.add_argument
    add("which", metavar="RUN", help="a result: scan number, beginning of a uid, or -1 for the newest")
    add(
        "out", type=Path, nargs="+", metavar="OUT",
        help="file to write: .cxi, .nxs (NeXus), .npz, .tif (one for the phase, one for the amplitude), .png, "
        ".h5 (Ptychodus product)",
    )  # fmt: skip
    add("--format", metavar="FORM", help="cxi, nexus, npz, tiff, png or ptychodus (default: what OUT's suffix says)")
    add(
        "--scan", action="store_true",
        help="write the raw scan and not its result: .npz (canonical), .cxi, .h5 (Ptychodus), or --format ptychopinn",
    )  # fmt: skip
    add_compression(command)
    add("--directory", type=Path, metavar="DIR", help="folder of an embedded catalog (default: the configured one)")
    add("--unfinished", action="store_true", help="with --scan: a run without a stop document, whose process is gone")
    add("--force", action="store_true", help="replace OUT if it exists")
    command.set_defaults(run=_export)


def _export(args: argparse.Namespace) -> int:
    from bluesky_cdi.export import exported_files
    from bluesky_cdi.io import scan_files

    if args.compression and not args.scan:
        raise BlueskyCDIError("--compression is that of frames, which --scan writes. Add --scan, or leave it out.")
    files_of = scan_files if args.scan else exported_files
    # All that could be wrong with a name is found before anything is read.
    targets = [target for path in args.out for target in files_of(path, args.format)]
    if twice := {str(path) for path in targets if targets.count(path) > 1}:
        raise BlueskyCDIError(f"{', '.join(sorted(twice))} would be written twice. Name each file once.")
    refuse_to_replace(targets, [], force=bool(args.force))
    for path in args.out:
        make_folder(path.parent)
    with reached_catalog(args.directory, configured(args).catalog, beside=True) as (catalog, _):
        (_export_scan if args.scan else _export_result)(args, catalog, [str(path) for path in targets])
    return 0


def _export_result(args: argparse.Namespace, catalog: Catalog, written: list[str]) -> None:
    from bluesky_cdi.evaluation.verdict import verdict_said
    from bluesky_cdi.export import export_result, load_to_export

    result = load_to_export(catalog, run_or_result(args.which))
    for path in args.out:
        export_result(path, result, args.format)
    estimate = result.estimate
    numbers = {
        "result": result.name,
        "frames": estimate.n_frames,
        "pixels": list(estimate.object.shape),
        "pixel_m": estimate.pixel_m,
        "verdict": estimate.source.get("verdict"),
        "written": written,
    }
    rows = [
        ("result", f"{result.name}, {estimate.n_frames} frames"),
        ("object", "{} x {} pixels of {:.3g} nm".format(*estimate.object.shape, estimate.pixel_m * 1e9)),
        ("verdict", verdict_said(estimate.source) or "not known"),
        ("written", ", ".join(written)),
    ]
    say_result(args, numbers, rows)


def _export_scan(args: argparse.Namespace, catalog: Catalog, written: list[str]) -> None:
    from bluesky_cdi.io import read_scan, write_scan
    from bluesky_cdi.recorded_run import recorded_run, with_known_probe

    run = recorded_run(catalog, run_or_result(args.which), configured(args), unfinished=args.unfinished)
    scan = with_known_probe(catalog, run).scan
    for path in args.out:
        write_scan(path, scan, args.format, compression=args.compression)
        if lost := not_kept(scan, scan_numbers(scan), read_scan(path)):
            logger.warning("%s does not keep %s", path.name, "; ".join(lost))
    numbers = {
        "run": run.info.uid,
        "scan_id": run.info.scan_id,
        "frames": len(scan),
        "frame_px": scan.geometry.frame_px,
        "pixel_m": scan.geometry.pixel_m,
        "photons_per_frame": scan.mean_photons,
        "probe_modes": 0 if scan.probe is None else len(scan.probe),
        "written": written,
    }
    rows = [
        ("run", f"{scan.name} ({run.info.uid})"),
        ("frames", f"{len(scan)} of {scan.geometry.frame_px} x {scan.geometry.frame_px} pixels, {scan.counts.dtype}"),
        ("sample pixel", f"{scan.geometry.pixel_m * 1e9:.3g} nm"),
        ("photons per frame", f"{scan.mean_photons:.3g}"),
        ("probe", "none" if scan.probe is None else f"{len(scan.probe)} mode(s), of the newest result"),
        ("written", ", ".join(written)),
    ]
    say_result(args, numbers, rows)
