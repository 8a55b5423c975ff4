"""``bluesky-cdi reconstruct``: a recorded scan from its file, or a run of a catalog again."""

from __future__ import annotations

import argparse
import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bluesky_cdi.cli.arguments import (
    make_folder,
    reached_catalog,
    result_writer,
    run_or_result,
)
from bluesky_cdi.cli.detector import said_of
from bluesky_cdi.cli.method import add_method_options, method_config
from bluesky_cdi.cli.output import refuse_to_replace, say_result
from bluesky_cdi.errors import BlueskyCDIError
from bluesky_cdi.signals import INTERRUPTED, FirstInterrupt

if TYPE_CHECKING:
    from bluesky_cdi.config import Config
    from bluesky_cdi.protocols import Estimate
    from bluesky_cdi.reconstruction.recorded import Recorded

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
    add_method_options(command)
    add("--half", type=int, choices=(1, 2), help="use every other frame only, for two independent halves")
    add(
        "--out",
        type=Path,
        action="append",
        metavar="FILE",
        help="Ptychodus product (.h5) or CXI (.cxi); repeatable (default: reconstruction.h5; of a run: the catalog)",
    )
    add("--force", action="store_true", help="replace the files that are written, if they exist")
    command.set_defaults(run=_reconstruct)


def _reconstruct(args: argparse.Namespace) -> int:
    outputs = args.out or ([] if args.of_run else [Path("reconstruction.h5")])
    writers = [result_writer(path) for path in outputs]
    figure = [path.with_suffix(".png") for path in outputs[:1]]
    sources = [path for path in (args.scan, args.probe) if path]
    refuse_to_replace([*outputs, *figure], sources, force=bool(args.force))
    for path in outputs:
        make_folder(path.parent)
    config = method_config(args)
    with contextlib.ExitStack() as stack:
        given = _run_given(args, config, stack) if args.of_run else _file_given(args, config)
        return _reconstruct_given(args, config, given, list(zip(outputs, writers, strict=True)), figure)


@dataclass(frozen=True, eq=False)
class _Given:
    """What is reconstructed.

    Attributes
    ----------
    recorded : Recorded
    keep : callable or None
        Writes the result to the catalog that the scan came from, and gives the uid.
    """

    recorded: Recorded
    keep: Callable[[Estimate], str] | None = None


def _file_given(args: argparse.Namespace, config: Config) -> _Given:
    from bluesky_cdi.reconstruction.recorded import recorded_file

    return _Given(recorded_file(args.scan, config, args.focus_to_sample))


def _run_given(args: argparse.Namespace, config: Config, stack: contextlib.ExitStack) -> _Given:
    """Read a run; its catalog stays open until the result is in it."""
    from bluesky_cdi.reconstruction.recorded import Recorded
    from bluesky_cdi.recorded_run import keep_result, recorded_run, with_known_probe

    if args.focus_to_sample is not None:
        raise BlueskyCDIError("--focus-to-sample is for files; a run states its geometry itself. Leave it out.")
    catalog, directory = stack.enter_context(reached_catalog(args.directory, config.catalog))
    # A folder has one session at a time, and this is it: nobody else measures.
    is_alone = args.directory is not None or config.catalog.uri is None
    run = recorded_run(catalog, run_or_result(args.of_run), config, unfinished=args.unfinished or is_alone)
    if args.probe is None and config.probe.file is None and config.probe.library is None:
        run = with_known_probe(catalog, run)
    recorded = Recorded(run.scan, run.numbers)
    if args.out:
        return _Given(recorded)
    return _Given(recorded, lambda estimate: keep_result(catalog, run, estimate, directory, config))


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
    from bluesky_cdi.reconstruction.batch import reconstruct
    from bluesky_cdi.reconstruction.orientation import ALL
    from bluesky_cdi.reconstruction.recorded import noted, prepared

    with tqdm(
        total=len(ALL),
        unit="orientation",
        desc="orientation",
        leave=False,
        disable=args.quiet or args.trust_orientation,
    ) as bar:
        ready = prepared(
            given.recorded,
            config,
            probe=read_probe(args.probe) if args.probe else None,
            half=args.half,
            orientation=not args.trust_orientation,
            check_in=not args.trust_probe,
            on_orientation=bar.update,
        )
    scan, checked = ready.scan, ready.checked
    with tqdm(total=args.iterations, unit="iteration", disable=bool(args.quiet)) as bar:

        def on_progress(done: int, deviance: float) -> None:
            bar.update(done - bar.n)
            bar.set_postfix_str(f"deviance {deviance:.4g} a pixel")

        with FirstInterrupt("the iteration is finished, and what there is by then is written") as ctrl_c:
            estimate = reconstruct(
                scan, config, args.iterations, on_progress, numbers=ready.numbers, interrupted=lambda: ctrl_c.came
            )
    estimate = noted(estimate, checked)
    verdict = estimate.source["verdict"]
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
