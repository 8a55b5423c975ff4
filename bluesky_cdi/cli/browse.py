"""``bluesky-cdi browse``: what a catalog holds."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bluesky_cdi.cli.arguments import configured, make_folder, positive, reached_catalog, run_or_result
from bluesky_cdi.cli.output import refuse_to_replace, say, say_result
from bluesky_cdi.errors import BlueskyCDIError
from bluesky_cdi.plain import to_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from bluesky_cdi.catalog import Catalog, Result, ResultSummary


def add_browse(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command to `commands`, with the `common` options.

    Parameters
    ----------
    commands : argparse subparsers
        Those of ``bluesky-cdi``.
    common : ArgumentParser
        Options that every command has.
    """
    browse = commands.add_parser("browse", parents=[common], help="list what a catalog holds, or show one result")
    add = browse.add_argument
    add("directory", type=Path, nargs="?", help="folder of an embedded catalog (default: the configured one)")
    add("--show", metavar="WHICH", help="a result: scan number, beginning of a uid, or -1 for the newest")
    add("--probe", type=Path, metavar="FILE", help="write the shown result's probe there: a first guess for other runs")
    add("--force", action="store_true", help="replace the file of --probe, if it exists")
    add("--frame", type=positive, metavar="SEQ_NUM", help="also draw probe, convergence, and this frame beside its fit")
    add("--figure", type=Path, metavar="FILE", help="where to draw the shown result (default: reconstruction.png)")
    browse.set_defaults(run=_browse)


def _browse(args: argparse.Namespace) -> int:
    from bluesky_cdi import viz
    from bluesky_cdi.catalog import find_raw, list_results, probe_file_of
    from bluesky_cdi.evaluation.causes import causes_of
    from bluesky_cdi.evaluation.verdict import verdict_said
    from bluesky_cdi.io import write_probe

    if args.probe:
        refuse_to_replace([args.probe], [], force=bool(args.force))
    with reached_catalog(args.directory, configured(args).catalog, beside=True) as (catalog, _):
        if args.show is None:
            if args.frame is not None:
                raise BlueskyCDIError("--frame is of a result: name it with --show")
            _say_list(args, list_results(catalog))
            return 0
        which = run_or_result(args.show)
        result = catalog[which]
        estimate = result.estimate
        if args.probe:
            make_folder(args.probe.parent)
            write_probe(args.probe, probe_file_of(estimate, find_raw(catalog, which).start))
        figure = viz.show_estimate(estimate) if args.frame is None else _with_frame(args, catalog, result)
    path = args.figure or Path("reconstruction.png")
    try:
        viz.save_figure(figure, path)
    except (ValueError, OSError) as err:
        raise BlueskyCDIError(f"can't draw {path}: {err}. Give --figure another name.") from err
    numbers = {
        "frames": estimate.n_frames,
        "pixels": list(estimate.object.shape),
        "pixel_m": estimate.pixel_m,
        "origin_m": list(estimate.origin_m),
        "verdict": estimate.source.get("verdict"),
        "source": dict(estimate.source),
        **({"probe": str(args.probe)} if args.probe else {}),
        "figure": str(path),
    }
    rows = [
        ("frames", str(estimate.n_frames)),
        ("object", "{} x {} pixels of {:.2f} nm".format(*estimate.object.shape, estimate.pixel_m * 1e9)),
        ("made by", f"{estimate.source.get('reconstructor')} with {estimate.source.get('network') or 'no network'}"),
        *([("verdict", said)] if (said := verdict_said(estimate.source)) else []),
        *(("cause", said) for said in causes_of(estimate.source)),
        *([("probe", str(args.probe))] if args.probe else []),
        ("figure", str(path)),
    ]
    say_result(args, numbers, rows)
    return 0


def _with_frame(args: argparse.Namespace, catalog: Catalog, result: Result) -> Figure:
    from bluesky_cdi.recorded_run import frame_and_fit

    return result.plot(frame_and_fit(catalog, result.uid, args.frame, configured(args) if args.config else None))


def _say_list(args: argparse.Namespace, results: Sequence[ResultSummary]) -> None:
    from dataclasses import asdict
    from datetime import datetime

    if args.json:
        say(to_json([asdict(r) for r in results], indent=1))
        return
    say(f"{'scan':>5}  {'time':<19}  {'plan':<16} {'frames':>6}  {'status':<8} {'result':<8} verdict")
    for r in results:
        when = datetime.fromtimestamp(r.time).strftime("%Y-%m-%d %H:%M:%S")
        uid = (r.uid or "none")[:8]
        state = r.exit_status or "running"
        made = f"{r.n_frames or '':>6}  {state:<8} {uid:<8} {r.verdict or ''}"
        say(f"{r.scan_id or '':>5}  {when:<19}  {r.plan_name or '':<16} {made}".rstrip())
