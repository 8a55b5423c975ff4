"""``bluesky-cdi reconstruct``: a recorded scan from its file, or a run of a catalog again."""

from __future__ import annotations

import argparse
import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bluesky_cdi.cli.arguments import (
    count,
    make_folder,
    positive,
    reached_catalog,
    result_writer,
    run_or_result,
)
from bluesky_cdi.cli.detector import add_detector_options, detector_settings, said_of
from bluesky_cdi.cli.output import refuse_to_replace, say_result
from bluesky_cdi.errors import BlueskyCDIError
from bluesky_cdi.signals import INTERRUPTED, FirstInterrupt

if TYPE_CHECKING:
    from bluesky_cdi.config import Config
    from bluesky_cdi.io import Scan
    from bluesky_cdi.protocols import Estimate
    from bluesky_cdi.reconstruction.probe_checkin import ScanCheckIn

logger = logging.getLogger(__name__)


def add_reconstruct(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command to `commands`, with the `common` options.

    Parameters
    ----------
    commands : argparse subparsers
        Those of ``bluesky-cdi``.
    common : ArgumentParser
        Options that every command has.
    """
    from bluesky_cdi.engines import PTYCHOGRAPHY

    command = commands.add_parser(
        "reconstruct", parents=[common], help="reconstruct a recorded scan from its file, or a run of a catalog again"
    )
    add = command.add_argument
    what = command.add_mutually_exclusive_group(required=True)
    what.add_argument("scan", type=Path, nargs="?", help="CXI, Ptychodus, canonical NPZ or PtychoPINN NPZ")
    what.add_argument(
        "--run", dest="of_run", metavar="RUN",
        help="a run of a catalog: scan number, beginning of a uid, or -1 for the newest; the result is a new one there",
    )  # fmt: skip
    add("--directory", type=Path, metavar="DIR", help="folder of an embedded catalog (default: the configured one)")
    add("--unfinished", action="store_true", help="with --run: a run without a stop document, whose process is gone")
    add(
        "--engine",
        choices=("pinn", *PTYCHOGRAPHY),
        default="lsqml",
        help="an iterative engine, or the network and then LSQ-ML (default: %(default)s)",
    )
    add("--iterations", type=count, default=100, help="most iterations (default: %(default)s)")
    add(
        "--tolerance",
        type=float,
        default=1e-3,
        help="end when five iterations lower the deviance by less than this share; 0: never (default: %(default)s)",
    )
    add("--modes", type=int, choices=range(1, 9), default=3, help="incoherent probe modes (default: %(default)s)")
    add("--batch", type=positive, help="frames a mini-batch (default: the engine's own)")
    add("--fixed-positions", action="store_true", help="keep the positions (lsqml and pinn refine them)")
    add(
        "--fine-tune",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="tune the network on this scan for so long (pinn only; default: not at all)",
    )
    add("--uncertainty", metavar="NAME", help="what predicts errors (reconstructor.uncertainty of a configuration)")
    add("--half", type=int, choices=(1, 2), help="use every other frame only, for two independent halves")
    add("--focus-to-sample", type=float, metavar="METRES", help="near field: distance of the sample behind the focus")
    add("--probe", type=Path, metavar="FILE", help="first guess of the probe, a file that `bluesky-cdi probe` wrote")
    add("--trust-probe", action="store_true", help="don't check the probe by the frames before")
    add("--trust-orientation", action="store_true", help="don't check which way round the frames lie")
    add(
        "--out",
        type=Path,
        action="append",
        metavar="FILE",
        help="Ptychodus product (.h5) or CXI (.cxi); repeatable (default: reconstruction.h5; of a run: the catalog)",
    )
    add("--force", action="store_true", help="replace the files that are written, if they exist")
    add_detector_options(command)
    command.set_defaults(run=_reconstruct)


def _reconstruct(args: argparse.Namespace) -> int:
    outputs = args.out or ([] if args.of_run else [Path("reconstruction.h5")])
    writers = [result_writer(path) for path in outputs]
    figure = [path.with_suffix(".png") for path in outputs[:1]]
    sources = [path for path in (args.scan, args.probe) if path]
    refuse_to_replace([*outputs, *figure], sources, force=bool(args.force))
    for path in outputs:
        make_folder(path.parent)
    config = _reconstruct_config(args)
    with contextlib.ExitStack() as stack:
        given = _run_given(args, config, stack) if args.of_run else _file_given(args, config)
        return _reconstruct_given(args, config, given, list(zip(outputs, writers, strict=True)), figure)


@dataclass(frozen=True, eq=False)
class _Given:
    """What is reconstructed.

    Attributes
    ----------
    scan : Scan
    numbers : tuple of int
        Of its frames.
    keep : callable or None
        Writes the result to the catalog that the scan came from, and gives the uid.
    """

    scan: Scan
    numbers: tuple[int, ...]
    keep: Callable[[Estimate], str] | None = None


def _file_given(args: argparse.Namespace, config: Config) -> _Given:
    from bluesky_cdi.io import Preprocessing, read_scan

    scan = read_scan(args.scan, focus_to_sample_m=args.focus_to_sample, preprocessing=Preprocessing.recorded(config))
    return _Given(scan if scan.name else replace(scan, name=args.scan.stem), tuple(range(1, len(scan) + 1)))


def _run_given(args: argparse.Namespace, config: Config, stack: contextlib.ExitStack) -> _Given:
    """Read a run; its catalog stays open until the result is in it."""
    from bluesky_cdi.recorded_run import keep_result, recorded_run, with_known_probe

    if args.focus_to_sample is not None:
        raise BlueskyCDIError("--focus-to-sample is for files; a run states its geometry itself. Leave it out.")
    catalog, directory = stack.enter_context(reached_catalog(args.directory, config.catalog))
    # A folder has one session at a time, and this is it: nobody else measures.
    is_alone = args.directory is not None or config.catalog.uri is None
    run = recorded_run(catalog, run_or_result(args.of_run), config, unfinished=args.unfinished or is_alone)
    if args.probe is None and config.probe.file is None and config.probe.library is None:
        run = with_known_probe(catalog, run)
    if args.out:
        return _Given(run.scan, run.numbers)
    return _Given(run.scan, run.numbers, lambda estimate: keep_result(catalog, run, estimate, directory, config))


def _reconstruct_given(
    args: argparse.Namespace,
    config: Config,
    given: _Given,
    outputs: Sequence[tuple[Path, Callable[..., None]]],
    figure: Sequence[Path],
) -> int:
    import numpy as np
    from tqdm import tqdm

    from bluesky_cdi import viz
    from bluesky_cdi.evaluation.verdict import verdict_said
    from bluesky_cdi.io import read_probe
    from bluesky_cdi.reconstruction.batch import reconstruct, without_dark
    from bluesky_cdi.reconstruction.probe_guess import fitted

    scan, chosen = given.scan, np.asarray(given.numbers)
    if args.half:
        scan, chosen = scan.subset(np.arange(args.half - 1, len(scan), 2)), chosen[args.half - 1 :: 2]
    scan, names = without_dark(scan, chosen.tolist())
    if args.probe:
        scan = replace(scan, probe=fitted(read_probe(args.probe), scan.geometry))
    if not args.trust_orientation:
        _warn_of_orientation(scan, config, quiet=bool(args.quiet))
    checked = None if args.trust_probe else _checked(scan, config, args)
    if checked is not None:
        scan = checked.scan
    with tqdm(total=args.iterations, unit="iteration", disable=bool(args.quiet)) as bar:

        def on_progress(done: int, deviance: float) -> None:
            bar.update(done - bar.n)
            bar.set_postfix_str(f"deviance {deviance:.4g} a pixel")

        with FirstInterrupt("the iteration is finished, and what there is by then is written") as ctrl_c:
            estimate = reconstruct(
                scan, config, args.iterations, on_progress, numbers=names, interrupted=lambda: ctrl_c.came
            )
    if checked is not None:
        estimate = replace(estimate, source={**estimate.source, "probe_check_in": checked.as_notes()})
    verdict = estimate.source["verdict"]
    if not np.isfinite(estimate.object).all():
        raise BlueskyCDIError(f"the reconstruction {verdict_said(estimate.source)}: nothing is written")
    for path, write in outputs:
        write(path, estimate, scan.geometry, scan.name)
    for path in figure:
        viz.save_figure(viz.show_estimate(estimate), path)
    kept = None if given.keep is None else given.keep(estimate)
    numbers = {
        **({} if checked is None else {"probe": checked.says}),
        "frames": estimate.n_frames,
        "engine": args.engine,
        "iterations": estimate.source["iterations"],
        "ended": estimate.source["ended"],
        "verdict": verdict,
        "deviance_per_pixel": float(np.mean(estimate.residual)),
        "pixel_m": estimate.pixel_m,
        **({"preprocessing": notes} if (notes := scan.source.get("preprocessing")) is not None else {}),
        "seconds": round(estimate.seconds, 1),
        "result": [str(path) for path, _ in outputs],
        **({"figure": str(figure[0])} if figure else {}),
        **({"reconstruction_uid": kept} if kept else {}),
    }
    result = ", ".join(["catalog"] if kept else numbers["result"])
    rows = {**numbers, "result": result, "verdict": verdict_said(estimate.source)}
    if notes is not None:
        rows["preprocessing"] = said_of(notes)
    say_result(args, numbers, [(key.replace("_", " "), str(value)) for key, value in rows.items()])
    if verdict["word"] == "failed":
        logger.error("the result can't be believed: %s", "; ".join(verdict["reasons"]))
        return 1
    return INTERRUPTED if ctrl_c.came else 0


def _reconstruct_config(args: argparse.Namespace) -> Config:
    from bluesky_cdi.config import load_config

    settings = {
        "name": args.engine,
        "tolerance": args.tolerance,
        "batch": args.batch,
        "refine_positions": args.engine in ("lsqml", "pinn") and not args.fixed_positions,
        "fine_tune_s": args.fine_tune,
        "background": 0.0,
        "threads": 0,
        **({"uncertainty": args.uncertainty} if args.uncertainty else {}),
    }
    sections = {"reconstructor": settings, "probe": {"modes": args.modes}, "detector": detector_settings(args)}
    return load_config(args.config, sections)


def _checked(scan: Scan, config: Config, args: argparse.Namespace) -> ScanCheckIn | None:
    """Check the probe; a scan of too few frames has to be trusted."""
    from bluesky_cdi.reconstruction.probe_checkin import LEAST_FRAMES, Wanted, check_in_scan

    if len(scan) < LEAST_FRAMES:
        logger.warning("%d frames are too few to check the probe by (at least %d): trusted", len(scan), LEAST_FRAMES)
        return None
    # The orientation is checked before, with more frames, and only warned of: it may not be changed here.
    return check_in_scan(
        scan, config, wanted=Wanted(orientation=False), on_progress=lambda what: logger.info("probe check-in: %s", what)
    )


def _warn_of_orientation(scan: Scan, config: Config, *, quiet: bool) -> None:
    from tqdm import tqdm

    from bluesky_cdi.reconstruction.orientation import ALL, AS_STATED, check_orientation
    from bluesky_cdi.reconstruction.probe_guess import first_guess

    with tqdm(total=len(ALL), unit="orientation", desc="orientation", leave=False, disable=quiet) as bar:
        check = check_orientation(scan, first_guess(scan, config), on_progress=lambda _: bar.update())
    if check.better is not None:
        logger.warning(
            "%s is explained better with its positions %s (deviance %.3g a pixel) than as they are (%.3g): "
            "look at the axes and signs of the stage and the detector",
            scan.name,
            check.better,
            check.deviance[check.better],
            check.deviance[AS_STATED],
        )
