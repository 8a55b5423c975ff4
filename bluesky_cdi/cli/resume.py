"""``bluesky-cdi resume``: an interrupted reconstruction goes on."""

from __future__ import annotations

import argparse
import contextlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bluesky_cdi.cli.arguments import (
    above_0,
    configured,
    make_folder,
    reached_catalog,
    result_writer,
    run_or_result,
)
from bluesky_cdi.cli.output import say, say_result
from bluesky_cdi.plain import to_json

if TYPE_CHECKING:
    from bluesky_cdi.catalog import Catalog
    from bluesky_cdi.config import Config
    from bluesky_cdi.resume import Resumable, Resumed


def add_resume(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command to `commands`, with the `common` options."""
    command = commands.add_parser(
        "resume", parents=[common], help="go on with an interrupted reconstruction, or list what can be resumed"
    )
    add = command.add_argument
    add(
        "which", metavar="RUN", nargs="?",
        help="a run: scan number, beginning of a uid, or -1 for the newest (default: list what can be resumed)",
    )  # fmt: skip
    add("--directory", type=Path, metavar="DIR", help="folder of an embedded catalog (default: the configured one)")
    add("--seconds", type=above_0, default=math.inf, help="end after this time (default: when it is done)")
    add("--anew", action="store_true", help="from the start, without the checkpoint")
    add("--unfinished", action="store_true", help="a run without a stop document, whose process is gone")
    add("--monitor", metavar="KEY", help="data key of the incident flux (default: the one that the run names)")
    add("--figure", type=Path, metavar="FILE", default=Path("reconstruction.png"), help="(default: %(default)s)")
    add(
        "--out", type=Path, action="append", default=[], metavar="FILE",
        help="Ptychodus product (.h5) or CXI (.cxi) beside the catalog; repeatable",
    )  # fmt: skip
    command.set_defaults(run=_resume)


def _resume(args: argparse.Namespace) -> int:
    from bluesky_cdi import viz
    from bluesky_cdi.physics.geometry import Geometry
    from bluesky_cdi.resume import list_resumable

    config = configured(args)
    writers = [result_writer(path) for path in args.out]
    for path in (args.figure, *args.out):
        make_folder(path.parent)
    with reached_catalog(args.directory, config.catalog) as (catalog, directory):
        if args.which is None:
            _say_list(args, list_resumable(catalog, directory))
            return 0
        # A folder has one session at a time, and this is it: nobody else measures.
        is_alone = args.directory is not None or config.catalog.uri is None
        done = _worked_on(args, config, catalog, directory, unfinished=args.unfinished or is_alone)
    geometry = Geometry.from_metadata(done.info.metadata, done.info.frame_shape)
    for path, write in zip(args.out, writers, strict=True):
        write(path, done.estimate, geometry, f"scan {done.info.scan_id}")
    viz.save_figure(viz.show_estimate(done.estimate), args.figure)
    _say_done(args, done)
    return 1 if done.estimate.source["verdict"]["word"] == "failed" else 0


def _worked_on(
    args: argparse.Namespace, config: Config, catalog: Catalog, directory: Path, *, unfinished: bool
) -> Resumed:
    """Resume the run with a progress bar."""
    from tqdm import tqdm

    from bluesky_cdi.resume import resume_run

    with contextlib.ExitStack() as stack:
        bars: list[Any] = []

        def on_progress(done: int, deviance: float) -> None:
            if not bars:
                # Iterations of before the interruption take no time now.
                bar = tqdm(initial=done - 1, unit="iteration", disable=bool(args.quiet))
                bars.append(stack.enter_context(bar))
            bars[0].update(done - bars[0].n)
            bars[0].set_postfix_str(f"deviance {deviance:.4g} a pixel")

        return resume_run(
            catalog,
            run_or_result(args.which),
            config,
            directory,
            anew=args.anew,
            unfinished=unfinished,
            seconds=args.seconds,
            monitor_key=args.monitor,
            on_progress=on_progress,
        )


def _say_done(args: argparse.Namespace, done: Resumed) -> None:
    import numpy as np

    from bluesky_cdi.evaluation.verdict import verdict_said

    estimate = done.estimate
    numbers = {
        "raw_uid": done.info.uid,
        "scan_id": done.info.scan_id,
        "reconstruction_uid": done.uid,
        "continues": done.continues,
        "frames": estimate.n_frames,
        "frames_in_checkpoint": done.n_restored,
        "engine": estimate.source["reconstructor"],
        "iterations": estimate.source["iterations"],
        "ended": estimate.source["ended"],
        "finished": done.finished,
        "verdict": estimate.source["verdict"],
        "deviance_per_pixel": float(np.mean(estimate.residual)),
        "uncertainty_rad": float(np.median(estimate.frame_uncertainty)),
        "pixel_m": estimate.pixel_m,
        "seconds": round(done.seconds, 1),
        "result": [str(path) for path in args.out],
        "figure": str(args.figure),
    }
    said = {
        **numbers,
        "continues": done.continues or "nothing: from the start",
        "finished": "yes" if done.finished else "no, resume goes on",
        "verdict": verdict_said(estimate.source),
        "result": ", ".join(["catalog", *numbers["result"]]),
    }
    say_result(args, numbers, [(key.replace("_", " "), str(value)) for key, value in said.items()])


def _say_list(args: argparse.Namespace, rows: Sequence[Resumable]) -> None:
    from dataclasses import asdict
    from datetime import datetime

    if args.json:
        say(to_json([asdict(row) for row in rows], indent=1))
        return
    say(f"{'scan':>5}  {'saved':<19}  {'plan':<16} {'frames':>6} {'of':>6}  {'status':<8} {'run':<8} {'result':<8}")
    for row in rows:
        when = datetime.fromtimestamp(row.saved_at).strftime("%Y-%m-%d %H:%M:%S")
        plan = row.plan_name or ("" if row.in_catalog else "not in catalog")
        state = row.exit_status or "no end"
        say(
            f"{row.scan_id or '':>5}  {when:<19}  {plan:<16} {row.n_frames:>6} {row.n_measured or '?':>6}  "
            f"{state:<8} {row.raw_uid[:8]:<8} {row.reconstruction_uid[:8]:<8}"
        )
