"""``bluesky-cdi convert``: a recorded scan in another form."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bluesky_cdi.cli.arguments import above_0, make_folder
from bluesky_cdi.cli.detector import add_detector_options, detector_settings, said_of
from bluesky_cdi.cli.output import refuse_to_replace, say_result

if TYPE_CHECKING:
    import numpy.typing as npt

    from bluesky_cdi.io import Scan

logger = logging.getLogger(__name__)


def add_convert(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command to `commands`, with the `common` options.

    Parameters
    ----------
    commands : argparse subparsers
        Those of ``bluesky-cdi``.
    common : ArgumentParser
        Options that every command has.
    """
    command = commands.add_parser("convert", parents=[common], help="write a recorded scan in another form")
    add = command.add_argument
    add("scan", type=Path, metavar="IN", help="CXI, Ptychodus patterns, canonical NPZ or PtychoPINN NPZ")
    add("out", type=Path, metavar="OUT", help="file to write; in Ptychodus' form a product goes beside it")
    add(
        "--format",
        type=_scan_format,
        metavar="FORM",
        help="cxi, canonical, ptychopinn or ptychodus (default: what OUT's suffix stands for)",
    )
    add_compression(command)
    add(
        "--round-counts",
        type=above_0,
        metavar="STEP",
        help="lossy: round counts in steps of up to STEP (at most 1) of their Poisson deviations; the file says so",
    )
    how = command.add_mutually_exclusive_group()
    how.add_argument("--product", type=Path, metavar="FILE", help="where Ptychodus patterns have their positions")
    how.add_argument(
        "--focus-to-sample", type=float, metavar="METRES", help="near field: distance of the sample behind the focus"
    )
    add("--force", action="store_true", help="replace OUT if it exists")
    add_detector_options(command)
    command.set_defaults(run=_convert)


def _convert(args: argparse.Namespace) -> int:
    from bluesky_cdi.config import load_config
    from bluesky_cdi.io import (
        ROUNDED,
        Preprocessing,
        Rounding,
        read_ptychodus,
        read_scan,
        scan_files,
        with_rounded_counts,
        write_scan,
    )

    targets = scan_files(args.out, args.format)
    refuse_to_replace(targets, [args.scan, *([args.product] if args.product else [])], force=bool(args.force))
    make_folder(args.out.parent)
    config = load_config(args.config, {"detector": detector_settings(args)})
    wanted = Preprocessing.recorded(config)
    if args.product:
        scan = read_ptychodus(args.scan, args.product, preprocessing=wanted)
    else:
        scan = read_scan(args.scan, focus_to_sample_m=args.focus_to_sample, preprocessing=wanted)
    if companion := scan.source.get("product"):
        refuse_to_replace(targets, [args.scan.with_name(str(companion))], force=True)
    if args.round_counts is not None:
        saturation = scan.saturation(config.detector.saturation)
        scan = with_rounded_counts(scan, Rounding(args.round_counts, saturation))
    read = scan_numbers(scan)
    one = _with_one_mode(scan) if args.format == "ptychopinn" else scan
    write_scan(args.out, one, args.format, compression=args.compression)
    back = read_scan(args.out)
    lost = not_kept(scan, read, back)
    if lost:
        logger.warning("%s does not keep %s", args.out.name, "; ".join(lost))
    files = [str(path) for path in targets]
    preprocessing, rounding = scan.source.get("preprocessing"), scan.source.get(ROUNDED)
    numbers = {
        "read": str(args.scan),
        **read,
        **({} if preprocessing is None else {"preprocessing": preprocessing}),
        **({} if rounding is None else {ROUNDED: rounding}),
        "written": files,
        "written_format": back.source["format"],
    }
    rows = [
        ("read", f"{args.scan} ({read['format']})"),
        ("frames", f"{read['frames']} of {read['frame_px']} x {read['frame_px']} pixels, {read['counts']}"),
        ("sample pixel", f"{read['pixel_m'] * 1e9:.4g} nm{' (nominal)' if read['nominal_geometry'] else ''}"),
        ("geometry", f"{read['energy_ev']:.6g} eV, {read['distance_m']:.6g} m, {read['propagation']}"),
        ("photons per frame", f"{read['photons_per_frame']:.4g}"),
        ("probe", f"{read['probe_modes'] or 'no'} mode{'' if read['probe_modes'] == 1 else 's'}"),
        ("masked pixels", str(read["masked_pixels"])),
        *([] if preprocessing is None else [("preprocessing", said_of(preprocessing))]),
        *([] if rounding is None else [("rounded", f"{rounding['what']}; step {rounding['step']:g}")]),
        ("written", f"{', '.join(files)} ({back.source['format']})"),
    ]
    say_result(args, {**numbers, "not_kept": lost}, rows)
    return 0


def add_compression(command: argparse.ArgumentParser) -> None:
    """Add the option ``--compression``."""
    command.add_argument(
        "--compression",
        type=_compression,
        metavar="NAME",
        help="of frames in HDF5 files, without loss: bitshuffle-zstd (default), bitshuffle-lz4 (faster, larger), or "
        "gzip, which programs without HDF5 plugins read too",
    )


def scan_numbers(scan: Scan) -> dict[str, Any]:
    """Give in numbers what a scan is."""
    return {
        "format": scan.source["format"],
        "frames": len(scan),
        "frame_px": scan.geometry.frame_px,
        "counts": str(scan.counts.dtype),
        "pixel_m": scan.geometry.pixel_m,
        "nominal_geometry": bool(scan.source.get("nominal_geometry")),
        "energy_ev": scan.geometry.energy_ev,
        "distance_m": scan.geometry.distance_m,
        "propagation": scan.source["propagation"],
        "photons_per_frame": scan.mean_photons,
        "probe_modes": 0 if scan.probe is None else len(scan.probe),
        "masked_pixels": 0 if scan.mask is None else int((~scan.mask).sum()),
    }


def _with_one_mode(scan: Scan) -> Scan:
    """Keep the strongest mode of a scan's probe only, which gets the photons of all."""
    from dataclasses import replace

    import numpy as np

    if scan.probe is None or len(scan.probe) == 1:
        return scan
    power = np.square(np.abs(scan.probe.astype(np.complex128))).sum(axis=(1, 2))
    strongest = scan.probe[[int(power.argmax())]] * np.sqrt(power.sum() / power.max())
    return replace(scan, probe=strongest.astype(np.complex64))


def not_kept(scan: Scan, before: dict[str, Any], back: Scan) -> list[str]:
    """List what of a scan its file lost, by reading it back.

    Parameters
    ----------
    scan : Scan
        What was to be written.
    before : dict
        Its `scan_numbers`.
    back : Scan
        What the file gives.
    """
    after = scan_numbers(back)
    lost = [
        f"{key.replace('_', ' ')} ({before[key]:.7g} reads as {after[key]:.7g})"
        for key in ("energy_ev", "distance_m", "pixel_m", "photons_per_frame")
        if not abs(after[key] - before[key]) <= 1e-5 * abs(before[key])
    ]
    lost += [
        f"{key.replace('_', ' ')} ({before[key]} reads as {after[key]})"
        for key in ("frames", "counts", "propagation", "probe_modes", "masked_pixels")
        if before[key] != after[key]
    ]
    if before["nominal_geometry"] != after["nominal_geometry"]:
        lost.append(f"that energy and distance are {'nominal' if before['nominal_geometry'] else 'measured'}")
    if _differ(scan.positions_m, back.positions_m):
        lost.append("positions")
    if scan.probe is not None and back.probe is not None and _differ(scan.probe, back.probe):
        lost.append("the probe")
    if scan.flux is not None and (back.flux is None or _differ(scan.flux, back.flux)):
        lost.append("the monitored flux")
    # A name that is only its file's is nothing that another file could keep.
    if scan.name not in ("", back.name, Path(str(scan.source.get("file", ""))).stem):
        lost.append(f"the name {scan.name!r}")
    if notes := sorted(set(scan.source) - set(back.source) - {"product", "nominal_geometry"}):
        lost.append(f"the notes {', '.join(notes)}")
    return lost


def _differ(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> bool:
    """Tell whether arrays of one shape differ by more than the rounding of complex64."""
    return one.shape == other.shape and bool(abs(one - other).max() > 1e-5 * abs(one).max())


def _compression(text: str) -> str:
    from bluesky_cdi.io import COMPRESSIONS

    if text not in COMPRESSIONS:
        raise argparse.ArgumentTypeError(f"must be one of {', '.join(COMPRESSIONS)}; got {text!r}")
    return text


def _scan_format(text: str) -> str:
    from bluesky_cdi.io import scan_formats

    if text not in scan_formats():
        raise argparse.ArgumentTypeError(f"must be one of {', '.join(scan_formats())}; got {text!r}")
    return text
