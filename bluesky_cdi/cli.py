"""The command ``bluesky-cdi``.

Results go to standard output, everything else to standard error. Exit codes: 0, 1 (failed), 2
(usage), 130 (Ctrl-C).
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bluesky_cdi import __version__
from bluesky_cdi.errors import BlueskyCDIError

if TYPE_CHECKING:
    import numpy.typing as npt

    from bluesky_cdi.catalog import ResultSummary
    from bluesky_cdi.comparison import Comparison
    from bluesky_cdi.config import Config
    from bluesky_cdi.io import Scan

logger = logging.getLogger(__name__)

DEMO_OUTPUT = Path("demo_output")
# The networks that can be trained: `models.canvas.PRESETS`, which would load torch, and the baseline.
MODELS = ("fast", "small", "large", "ptychonn")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    from bluesky_cdi.log import configure_logging

    args = _parser().parse_args(argv)
    configure_logging(logging.WARNING - 10 * args.verbose + 10 * args.quiet)
    try:
        return int(args.run(args))
    except BlueskyCDIError as err:
        print(f"bluesky-cdi: {err}", file=sys.stderr)  # noqa: T201 (a command line's own output)
        return 1
    except KeyboardInterrupt:
        print("bluesky-cdi: interrupted", file=sys.stderr)  # noqa: T201 (a command line's own output)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bluesky-cdi", description="Live, adaptive coherent diffraction imaging with Bluesky."
    )
    parser.add_argument("--version", action="version", version=f"bluesky-cdi {__version__}")
    common = argparse.ArgumentParser(add_help=False)
    add = common.add_argument
    add("-c", "--config", type=Path, action="append", default=[], metavar="FILE", help="YAML file; later ones win")
    add("-v", "--verbose", action="count", default=0, help="say more (twice: even more)")
    add("-q", "--quiet", action="count", default=0, help="say less, no progress bar")
    add("--json", action="store_true", help="print the result as JSON")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add_command in (
        _add_demo, _add_reconstruct, _add_convert, _add_compare, _add_browse, _add_shell, _add_train, _add_bench,
    ):  # fmt: skip
        add_command(commands, common)
    return parser


def _add_demo(commands: Any, common: argparse.ArgumentParser) -> None:
    demo = commands.add_parser(
        "demo", parents=[common], help="an adaptive scan, reconstructed live, on a simulated or replayed beamline"
    )
    add = demo.add_argument
    add("--out", type=Path, default=DEMO_OUTPUT, metavar="DIR", help="catalog and figure (default: %(default)s)")
    add("--replay", type=Path, metavar="FILE", help="a recorded scan instead of the simulated beamline")
    add("--reference", type=Path, metavar="FILE", help="its reference (default: reference.npz beside it)")
    demo.set_defaults(run=_demo)


def _demo(args: argparse.Namespace) -> int:
    from bluesky_cdi import demo

    config = _config(args)
    _set_threads(config)
    setting = demo.replayed(config, args.replay, args.reference) if args.replay else demo.simulated(config)
    outcome = demo.run(setting, args.out, show_progress=not args.quiet)
    _say_result(args, dict(outcome.numbers), [*outcome.table.items(), ("figure", str(outcome.figure))])
    return 0


def _add_reconstruct(commands: Any, common: argparse.ArgumentParser) -> None:
    from bluesky_cdi.engines import PTYCHOGRAPHY

    command = commands.add_parser("reconstruct", parents=[common], help="reconstruct a recorded scan from its file")
    add = command.add_argument
    add("scan", type=Path, help="CXI, Ptychodus, canonical NPZ or PtychoPINN NPZ")
    add(
        "--engine", choices=("pinn", *PTYCHOGRAPHY), default="lsqml",
        help="an iterative engine, or the network and then rPIE (default: %(default)s)",
    )  # fmt: skip
    add("--iterations", type=_count, default=100, help="most iterations (default: %(default)s)")
    add(
        "--tolerance", type=float, default=1e-3,
        help="end when five iterations lower the deviance by less than this share; 0: never (default: %(default)s)",
    )  # fmt: skip
    add("--modes", type=int, choices=range(1, 9), default=3, help="incoherent probe modes (default: %(default)s)")
    add("--batch", type=_positive, help="frames a mini-batch (default: the engine's own)")
    add("--fixed-positions", action="store_true", help="keep the positions (lsqml refines them)")
    add("--half", type=int, choices=(1, 2), help="use every other frame only, for two independent halves")
    add("--focus-to-sample", type=float, metavar="METRES", help="near field: distance of the sample behind the focus")
    add("--trust-orientation", action="store_true", help="don't check which way round the frames lie")
    add(
        "--out", type=Path, action="append", metavar="FILE",
        help="Ptychodus product (.h5) or CXI (.cxi); repeatable (default: reconstruction.h5)",
    )  # fmt: skip
    command.set_defaults(run=_reconstruct)


def _reconstruct(args: argparse.Namespace) -> int:
    import numpy as np
    from tqdm import tqdm

    from bluesky_cdi import viz
    from bluesky_cdi.io import read_scan
    from bluesky_cdi.offline import reconstruct

    outputs = args.out or [Path("reconstruction.h5")]
    writers = [_result_writer(path) for path in outputs]
    for path in outputs:
        _make_folder(path.parent)
    config = _reconstruct_config(args)
    scan = read_scan(args.scan, focus_to_sample_m=args.focus_to_sample)
    chosen = np.arange(args.half - 1, len(scan), 2) if args.half else np.arange(len(scan))
    if args.half:
        scan = scan.subset(chosen)
    if not args.trust_orientation:
        _warn_of_orientation(scan, config, quiet=bool(args.quiet))
    with tqdm(total=args.iterations, unit="iteration", disable=bool(args.quiet)) as bar:

        def told(done: int, deviance: float) -> None:
            bar.update(done - bar.n)
            bar.set_postfix_str(f"deviance {deviance:.4g} a pixel")

        estimate = reconstruct(scan, config, args.iterations, told, numbers=(chosen + 1).tolist())
    for path, write in zip(outputs, writers, strict=True):
        write(path, estimate, scan.geometry, scan.name or args.scan.stem)
    figure = outputs[0].with_suffix(".png")
    viz.save_figure(viz.show_estimate(estimate), figure)
    numbers = {
        "frames": estimate.n_frames,
        "engine": args.engine,
        "iterations": estimate.source["iterations"],
        "ended": estimate.source["ended"],
        "deviance_per_pixel": float(np.mean(estimate.residual)),
        "pixel_m": estimate.pixel_m,
        "seconds": round(estimate.seconds, 1),
        "result": [str(path) for path in outputs],
        "figure": str(figure),
    }
    rows = {**numbers, "result": ", ".join(numbers["result"])}
    _say_result(args, numbers, [(key.replace("_", " "), str(value)) for key, value in rows.items()])
    return 0


def _reconstruct_config(args: argparse.Namespace) -> Config:
    from bluesky_cdi.config import load_config

    settings = {
        "name": args.engine,
        "tolerance": args.tolerance,
        "batch": args.batch,
        "refine_positions": args.engine == "lsqml" and not args.fixed_positions,
        "background": 0.0,
        "threads": 0,
    }
    return load_config(args.config, {"reconstructor": settings, "probe": {"modes": args.modes}})


def _result_writer(path: Path) -> Callable[..., None]:
    from bluesky_cdi.io import write_cxi_result, write_product

    writers: dict[str, Callable[..., None]] = {".h5": write_product, ".hdf5": write_product, ".cxi": write_cxi_result}
    if path.suffix not in writers:
        raise BlueskyCDIError(f"--out must end in {', '.join(writers)}, which tells the format; got {path}")
    return writers[path.suffix]


def _warn_of_orientation(scan: Scan, config: Config, *, quiet: bool) -> None:
    from tqdm import tqdm

    from bluesky_cdi.offline import first_guess
    from bluesky_cdi.orientation import ALL, AS_STATED, check_orientation

    with tqdm(total=len(ALL), unit="orientation", desc="orientation", leave=False, disable=quiet) as bar:
        check = check_orientation(scan, first_guess(scan, config), told=lambda _: bar.update())
    if check.better is not None:
        logger.warning(
            "%s is explained better with its positions %s (deviance %.3g a pixel) than as they are (%.3g): "
            "look at the axes and signs of the stage and the detector",
            scan.name, check.better, check.deviance[check.better], check.deviance[AS_STATED],
        )  # fmt: skip


def _add_convert(commands: Any, common: argparse.ArgumentParser) -> None:
    command = commands.add_parser("convert", parents=[common], help="write a recorded scan in another form")
    add = command.add_argument
    add("scan", type=Path, metavar="IN", help="CXI, Ptychodus patterns, canonical NPZ or PtychoPINN NPZ")
    add("out", type=Path, metavar="OUT", help="file to write; in Ptychodus' form a product goes beside it")
    add(
        "--format", type=_scan_format, metavar="FORM",
        help="cxi, canonical, ptychopinn or ptychodus (default: what OUT's suffix stands for)",
    )  # fmt: skip
    how = command.add_mutually_exclusive_group()
    how.add_argument("--product", type=Path, metavar="FILE", help="where Ptychodus patterns have their positions")
    how.add_argument(
        "--focus-to-sample", type=float, metavar="METRES", help="near field: distance of the sample behind the focus"
    )
    add("--force", action="store_true", help="replace OUT if it exists")
    command.set_defaults(run=_convert)


def _convert(args: argparse.Namespace) -> int:
    from bluesky_cdi.io import read_ptychodus, read_scan, write_scan

    targets = _scan_files(args.out, args.format)
    _refuse_to_replace(targets, [args.scan, *([args.product] if args.product else [])], force=bool(args.force))
    _make_folder(args.out.parent)
    if args.product:
        scan = read_ptychodus(args.scan, args.product)
    else:
        scan = read_scan(args.scan, focus_to_sample_m=args.focus_to_sample)
    if companion := scan.source.get("product"):
        _refuse_to_replace(targets, [args.scan.with_name(str(companion))], force=True)
    read = _scan_numbers(scan)
    write_scan(args.out, _with_one_mode(scan) if args.format == "ptychopinn" else scan, args.format)
    back = read_scan(args.out)
    not_kept = _not_kept(scan, read, back)
    if not_kept:
        logger.warning("%s does not keep %s", args.out.name, "; ".join(not_kept))
    files = [str(path) for path in targets]
    numbers = {"read": str(args.scan), **read, "written": files, "written_format": back.source["format"]}
    rows = [
        ("read", f"{args.scan} ({read['format']})"),
        ("frames", f"{read['frames']} of {read['frame_px']} x {read['frame_px']} pixels, {read['counts']}"),
        ("sample pixel", f"{read['pixel_m'] * 1e9:.4g} nm{' (nominal)' if read['nominal_geometry'] else ''}"),
        ("geometry", f"{read['energy_ev']:.6g} eV, {read['distance_m']:.6g} m, {read['propagation']}"),
        ("photons per frame", f"{read['photons_per_frame']:.4g}"),
        ("probe", f"{read['probe_modes'] or 'no'} mode{'' if read['probe_modes'] == 1 else 's'}"),
        ("masked pixels", str(read["masked_pixels"])),
        ("written", f"{', '.join(files)} ({back.source['format']})"),
    ]
    _say_result(args, {**numbers, "not_kept": not_kept}, rows)
    return 0


def _scan_files(out: Path, form: str | None) -> list[Path]:
    """What `write_scan` makes: Ptychodus' form is two files."""
    from bluesky_cdi.io.ptychodus import companion_path

    pair = form == "ptychodus" or (form is None and out.suffix.lower() in (".h5", ".hdf5"))
    return [out, companion_path(out)] if pair else [out]


def _refuse_to_replace(targets: Sequence[Path], sources: Sequence[Path], *, force: bool) -> None:
    own = {path.resolve() for path in sources}
    for path in targets:
        if path.resolve() in own:
            raise BlueskyCDIError(f"{path} is what is read; measured data are not replaced. Name another OUT.")
        if path.exists() and not force:
            raise BlueskyCDIError(f"{path} exists. Name another OUT, or give --force to replace it.")


def _scan_numbers(scan: Scan) -> dict[str, Any]:
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
    """The scan with the strongest mode of its probe only, which gets the photons of all."""
    from dataclasses import replace

    import numpy as np

    if scan.probe is None or len(scan.probe) == 1:
        return scan
    power = np.square(np.abs(scan.probe.astype(np.complex128))).sum(axis=(1, 2))
    strongest = scan.probe[[int(power.argmax())]] * np.sqrt(power.sum() / power.max())
    return replace(scan, probe=strongest.astype(np.complex64))


def _not_kept(scan: Scan, before: dict[str, Any], back: Scan) -> list[str]:
    """What of a scan (and of its `_scan_numbers`) its file lost, told by reading it back."""
    after = _scan_numbers(back)
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
    if scan.name != back.name:
        lost.append(f"the name {scan.name!r}")
    if notes := sorted(set(scan.source) - set(back.source) - {"product", "nominal_geometry"}):
        lost.append(f"the notes {', '.join(notes)}")
    return lost


def _differ(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> bool:
    """Tell whether arrays of one shape differ by more than the rounding of complex64."""
    return one.shape == other.shape and bool(abs(one - other).max() > 1e-5 * abs(one).max())


def _add_compare(commands: Any, common: argparse.ArgumentParser) -> None:
    command = commands.add_parser(
        "compare", parents=[common], help="how far two reconstructions agree, and the resolution of two halves"
    )
    add = command.add_argument
    add("a", type=Path, metavar="A", help="Ptychodus product or CXI reconstruction; it is aligned with B")
    add("b", type=Path, metavar="B", help="the same of another half of the data, or of another program")
    add("--truth", action="store_true", help="B is the known truth: no resolution is claimed")
    add("--figure", type=Path, default=Path("comparison.png"), metavar="FILE", help="(default: %(default)s)")
    command.set_defaults(run=_compare)


def _compare(args: argparse.Namespace) -> int:
    from bluesky_cdi import viz
    from bluesky_cdi.comparison import compare_products
    from bluesky_cdi.io import read_reconstruction

    _make_folder(args.figure.parent)
    found = compare_products(read_reconstruction(args.a), read_reconstruction(args.b))
    square = found.square
    figure = viz.show_comparison(
        found.a,
        found.b,
        found.mask,
        found.frc,
        origin_m=found.origin_m,
        pixel_m=found.pixel_m,
        square_px=(square.row, square.column, square.side),
        names=(f"A: {args.a.name}", f"{'truth' if args.truth else 'B'}: {args.b.name}"),
        against_truth=bool(args.truth),
    )
    try:
        viz.save_figure(figure, args.figure)
    except (ValueError, OSError) as err:
        raise BlueskyCDIError(f"can't draw {args.figure}: {err}. Give --figure another name.") from err
    claim = (
        "against a truth, no resolution from independent halves"
        if args.truth
        else "a resolution only if A and B come from independent halves of the data"
    )
    _warn_of_gaps(found)
    if not args.truth and found.shared_frames:
        logger.warning("A and B share %d frames by number: no independent halves", found.shared_frames)
    numbers = {**_comparison_numbers(found), "frc_claim": claim, "figure": str(args.figure)}
    _say_result(args, numbers, [*_comparison_rows(found, claim), ("figure", str(args.figure))])
    return 0


def _warn_of_gaps(found: Comparison) -> None:
    """A resolution is where the correlation *first* falls below: a single weak ring can decide it."""
    import numpy as np

    for name, threshold in (("half-bit", found.frc.half_bit), ("one-bit", found.frc.one_bit)):
        above = found.frc.correlation >= threshold
        first = int(np.argmin(above))
        if not above[first] and above[first:].sum() > max(first, 2):
            last_m = 1 / found.frc.frequency_per_m[np.flatnonzero(above)[-1]]
            logger.warning(
                "the FRC falls below the %s threshold at ring %d of %d, but is above it in %d later rings, down to "
                "%s: the first crossing may understate the agreement. Look at the curve for rings without signal.",
                name, first + 1, len(above), above[first:].sum(), _length(last_m),
            )  # fmt: skip


def _comparison_numbers(found: Comparison) -> dict[str, Any]:
    """Plain values; JSON has no infinity and no NaN, which become null."""
    frc, square = found.frc, found.square
    return {
        "pixels": int(found.mask.sum()),
        "pixel_m": found.pixel_m,
        **{
            key: _finite(getattr(found, key))
            for key in (
                "complex_nrmse", "phase_mae_rad", "ssim_amplitude", "ssim_phase", "psnr_amplitude_db", "psnr_phase_db",
            )
        },
        "shift_m": list(found.shift_m),
        "ramp_rad_per_px": list(found.ramp_rad_per_px),
        "scale": [found.scale.real, found.scale.imag],
        "resolution_half_bit_m": _finite(frc.resolution_half_bit_m),
        "resolution_one_bit_m": _finite(frc.resolution_one_bit_m),
        "resolution_half_bit": _resolution(frc.resolution_half_bit_m, found.pixel_m),
        "resolution_one_bit": _resolution(frc.resolution_one_bit_m, found.pixel_m),
        "frc_square_px": {"row": square.row, "column": square.column, "side": square.side},
        "frc": {
            key: getattr(frc, key).tolist()
            for key in ("frequency_per_m", "correlation", "n_pixels", "half_bit", "one_bit")
        },
    }  # fmt: skip


def _comparison_rows(found: Comparison, claim: str) -> list[tuple[str, str]]:
    import cmath

    side, pixel = found.square.side, found.pixel_m
    (shift_y, shift_x), (ramp_y, ramp_x) = found.shift_m, found.ramp_rad_per_px
    factor, phase = cmath.polar(found.scale)
    return [
        ("common area", f"{int(found.mask.sum())} pixels of {pixel * 1e9:.4g} nm"),
        ("shift of A", f"({shift_y * 1e9:.3g}, {shift_x * 1e9:.3g}) nm (y, x), removed"),
        ("ramp of A", f"({ramp_y:.2g}, {ramp_x:.2g}) rad per pixel (y, x), removed"),
        ("scale of A to B", f"{factor:.4g}, {phase:.3g} rad, applied"),
        ("complex NRMSE", f"{found.complex_nrmse:.4g}"),
        ("phase MAE", f"{found.phase_mae_rad:.4g} rad"),
        ("SSIM", f"amplitude {found.ssim_amplitude:.4f}, phase {found.ssim_phase:.4f} (range: B's own)"),
        ("PSNR", f"amplitude {found.psnr_amplitude_db:.2f}, phase {found.psnr_phase_db:.2f} dB (peak: B's own range)"),
        ("half-bit FRC", _resolution(found.frc.resolution_half_bit_m, pixel)),
        ("one-bit FRC", _resolution(found.frc.resolution_one_bit_m, pixel)),
        ("FRC is", f"of a square of {side} pixels, told in full periods; {claim}"),
    ]


def _resolution(period_m: float | None, pixel_m: float) -> str:
    """A ring correlation that stays above its threshold tells a limit only; one that never is above, nothing."""
    if period_m is None:
        return f"better than {_length(2 * pixel_m)} (2 pixels, the finest that they show)"
    return _length(period_m) if math.isfinite(period_m) else "none"


def _length(metres: float) -> str:
    return f"{metres * 1e9:.3g} nm" if metres < 1e-6 else f"{metres * 1e6:.3g} µm"


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _add_browse(commands: Any, common: argparse.ArgumentParser) -> None:
    browse = commands.add_parser("browse", parents=[common], help="list what a catalog holds, or show one result")
    add = browse.add_argument
    add("directory", type=Path, nargs="?", help="folder of an embedded catalog (default: the configured one)")
    add("--show", metavar="WHICH", help="a result: scan number, beginning of a uid, or -1 for the newest")
    add("--figure", type=Path, metavar="FILE", help="where to draw the shown result (default: reconstruction.png)")
    browse.set_defaults(run=_browse)


def _browse(args: argparse.Namespace) -> int:
    import contextlib

    from bluesky_cdi.catalog import list_results, load_result, open_catalog, serve

    settings = _config(args).catalog
    with contextlib.ExitStack() as stack:
        local = args.directory or (None if settings.uri else settings.directory)
        if local is not None and not (local.expanduser() / "catalog.db").is_file():
            raise BlueskyCDIError(
                f"{local} holds no catalog yet: give the folder of a session, or run `bluesky-cdi demo` first"
            )
        uri = stack.enter_context(serve(local)) if local is not None else str(settings.uri)
        key = settings.api_key if local is None else None
        catalog = stack.enter_context(contextlib.closing(open_catalog(uri, key)))
        if args.show is None:
            _say_list(args, list_results(catalog))
            return 0
        estimate = load_result(catalog, int(args.show) if _is_integer(args.show) else args.show)
    from bluesky_cdi import viz

    path = args.figure or Path("reconstruction.png")
    viz.save_figure(viz.show_estimate(estimate), path)
    numbers = {
        "frames": estimate.n_frames,
        "pixels": list(estimate.object.shape),
        "pixel_m": estimate.pixel_m,
        "origin_m": list(estimate.origin_m),
        "source": dict(estimate.source),
        "figure": str(path),
    }
    rows = [
        ("frames", str(estimate.n_frames)),
        ("object", "{} x {} pixels of {:.2f} nm".format(*estimate.object.shape, estimate.pixel_m * 1e9)),
        ("made by", f"{estimate.source.get('reconstructor')} with {estimate.source.get('network') or 'no network'}"),
        ("figure", str(path)),
    ]
    _say_result(args, numbers, rows)
    return 0


def _add_shell(commands: Any, common: argparse.ArgumentParser) -> None:
    shell = commands.add_parser(
        "shell", parents=[common], help="IPython with RE, devices, plans and catalog of a profile"
    )
    shell.add_argument("--profile", default="sim", metavar="NAME", help="its name, or a folder (default: %(default)s)")
    shell.add_argument("--script", type=Path, metavar="FILE", help="run this file in the session, then end")
    shell.set_defaults(run=_shell)


def _shell(args: argparse.Namespace) -> int:
    from IPython import start_ipython
    from traitlets.config import Config as IPythonConfig

    from bluesky_cdi.profiles import profile_directory

    folder = profile_directory(args.profile)
    if args.config:
        os.environ["BLUESKY_CDI_CONFIG"] = os.pathsep.join(str(path.resolve()) for path in args.config)
    settings = IPythonConfig()
    settings.InteractiveShellApp.exec_files = [str(path) for path in sorted((folder / "startup").glob("*.py"))]
    if args.script:
        settings.InteractiveShellApp.file_to_run = str(args.script)
    start_ipython(argv=[], config=settings)
    return 0


def _add_train(commands: Any, common: argparse.ArgumentParser) -> None:
    train = commands.add_parser("train", parents=[common], help="train the network on simulated scans")
    add = train.add_argument
    add("out", type=Path, help="file to write, ending in .safetensors; its record goes beside it")
    add("--seconds", type=float, default=525.0, help="time to train (default: %(default)s)")
    add("--seed", type=int, default=1)
    add("--learning-rate", type=float, default=1.5e-3)
    add("--model", choices=MODELS, default="small", help="size of the network (default: %(default)s)")
    add("--supervised", type=float, default=1.0, metavar="WEIGHT", help="of the error to the truth; 0: without labels")
    add("--physics", type=float, default=1.0, metavar="WEIGHT", help="of the frames' deviance; 0: labels alone")
    add("--photons", type=float, nargs=2, default=(1e3, 1e8), metavar=("LEAST", "MOST"), help="of a frame")
    add("--start", metavar="FILE", help="weights to go on from, shipped or a file, of this size or with fewer stages")
    add("--resume", action="store_true", help="go on with an interrupted run of the same options")
    add("--device", default="auto", help="several GPUs: torchrun -m bluesky_cdi train ... (default: %(default)s)")
    train.set_defaults(run=_train)


def _train(args: argparse.Namespace) -> int:
    import torch

    from bluesky_cdi.log import configure_logging
    from bluesky_cdi.models.canvas import PRESETS
    from bluesky_cdi.models.ptychonn import PtychoNNConfig
    from bluesky_cdi.training.pretrain import PretrainConfig, pretrain
    from bluesky_cdi.training.team import joined

    configure_logging(logging.INFO + 10 * args.quiet)
    if args.out.suffix != ".safetensors":
        raise BlueskyCDIError(f"the weights file must end in .safetensors; got {args.out}")
    if args.supervised <= 0 and args.physics <= 0:
        raise BlueskyCDIError("one of --supervised and --physics must be above 0: there is nothing to learn from")
    # Matrix products in TF32 and convolutions tuned to their sizes: speed, at no cost to bf16 training.
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    config = PretrainConfig(
        seconds=args.seconds,
        seed=args.seed,
        learning_rate=args.learning_rate,
        supervised=args.supervised,
        physics=args.physics,
        photons=(args.photons[0], args.photons[1]),
        model=PtychoNNConfig() if args.model == "ptychonn" else PRESETS[args.model],
    )
    with joined(args.device) as team:
        record = pretrain(config, team, args.out, args.start, resume=args.resume, quiet=bool(args.quiet))
    if not team.leads:
        return 0
    rows = [
        (f"{dose} photons, {method}", f"NRMSE {value}")
        for dose, row in record["validation"].items()
        for method, value in row.items()
    ]
    _say_result(args, record, [("steps", str(record["steps"])), *rows, ("weights", str(args.out))])
    return 0


def _add_bench(commands: Any, common: argparse.ArgumentParser) -> None:
    bench = commands.add_parser("bench", help="measure this machine")
    parts = bench.add_subparsers(dest="part", required=True, metavar="WHAT")
    command = parts.add_parser(
        "throughput", parents=[common], help="frames a second, from counts in memory to the stitched object"
    )
    add = command.add_argument
    add(
        "--sizes", type=_positive, nargs="+", default=[64, 128, 256, 512], metavar="N",
        help="pixels along a side of the frames (default: 64 128 256 512)",
    )  # fmt: skip
    add("--weights", nargs="*", default=["canvas-small"], metavar="NAME", help="shipped, or a .safetensors file")
    add(
        "--model", action="append", default=[], metavar="SIZE",
        help="an untrained network too: fast, small, large, or stages=2,channels=16; repeatable",
    )  # fmt: skip
    add("--device", default="auto", help="auto, cpu, cuda or cuda:0 (default: %(default)s)")
    add("--devices", type=_positive, default=1, metavar="N", help="GPUs at work at the same time, each on its scans")
    add("--frames", type=_positive, metavar="N", help="frames of a batch (default: what keeps the device busy)")
    add("--modes", type=int, choices=range(1, 9), default=1, help="incoherent probe modes (default: %(default)s)")
    add("--seconds", type=float, default=3.0, help="least time for each number (default: %(default)s)")
    add("--out", type=Path, metavar="FILE", help="write the JSON there as well")
    command.set_defaults(run=_bench_throughput)


def _bench_throughput(args: argparse.Namespace) -> int:
    from bluesky_cdi import bench

    if args.out:
        _make_folder(args.out.parent)
    devices = bench.devices_of(args.device, args.devices)
    models = bench.models_of(args.weights, args.model)
    found = bench.throughput(
        models, args.sizes, devices, args.seconds, args.frames, args.modes, told=lambda case: logger.info("%s", case)
    )
    if args.out:
        args.out.write_text(json.dumps(found, indent=1), encoding="utf-8")
    rows = [("machine", f"{', '.join(found['machine']['devices'])}, {found['machine']['threads']} CPU threads")]
    rows += [(f"{case['model']}, {case['frame_px']}x{case['frame_px']}", _speed(case)) for case in found["cases"]]
    _say_result(args, found, rows)
    return 0


def _speed(case: dict[str, Any]) -> str:
    parts = case["us_per_frame"]
    split = ", ".join(f"{name} {value:.3g}" for name, value in parts.items())
    low, high = case["frames_per_s_p10"], case["frames_per_s_p90"]
    memory = case["gpu_memory_bytes"]
    used = "" if memory is None else f"; {memory / 2**30:.1f} GiB"
    return (
        f"{case['frames_per_s']:.0f} frames/s ({low:.0f} to {high:.0f}), one batch of {case['frames']} alone "
        f"{case['one_batch_frames_per_s']:.0f}; µs a frame: {split}{used}"
    )


def _config(args: argparse.Namespace) -> Config:
    from bluesky_cdi.config import load_config

    return load_config(args.config)


def _set_threads(config: Config) -> None:
    """Keep PyTorch from taking the cores that the RunEngine and the simulated detector need."""
    import torch

    if config.reconstructor.threads:
        torch.set_num_threads(config.reconstructor.threads)


def _make_folder(folder: Path) -> None:
    """Before the work, not after it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise BlueskyCDIError(f"can't write into {folder}: {err}. Name another place.") from err


def _scan_format(text: str) -> str:
    from bluesky_cdi.io import scan_formats

    if text not in scan_formats():
        raise argparse.ArgumentTypeError(f"must be one of {', '.join(scan_formats())}; got {text!r}")
    return text


def _count(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"must be 0 or a positive whole number; got {text!r}")
    return int(text)


def _positive(text: str) -> int:
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"must be a positive whole number; got {text!r}")
    return int(text)


def _is_integer(text: str) -> bool:
    # A uid may consist of digits only; a scan number never has eight of them.
    return text.lstrip("-").isdigit() and len(text) < 8


def _say_list(args: argparse.Namespace, results: Sequence[ResultSummary]) -> None:
    from dataclasses import asdict
    from datetime import datetime

    if args.json:
        _say(json.dumps([asdict(r) for r in results], indent=1))
        return
    _say(f"{'scan':>5}  {'time':<19}  {'plan':<16} {'frames':>6}  {'status':<8} {'result':<8}")
    for r in results:
        when = datetime.fromtimestamp(r.time).strftime("%Y-%m-%d %H:%M:%S")
        uid = (r.uid or "none")[:8]
        state = r.exit_status or "running"
        _say(f"{r.scan_id or '':>5}  {when:<19}  {r.plan_name or '':<16} {r.n_frames or '':>6}  {state:<8} {uid:<8}")


def _say_result(args: argparse.Namespace, numbers: dict[str, Any], rows: Sequence[tuple[str, str]]) -> None:
    if args.json:
        _say(json.dumps(numbers, indent=1, default=str))
        return
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        _say(f"{name:<{width}}  {value}")


def _say(text: str) -> None:
    print(text)  # noqa: T201 (a command line's own output)
