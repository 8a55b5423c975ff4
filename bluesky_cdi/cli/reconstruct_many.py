"""``bluesky-cdi reconstruct-many``: many recorded scans or runs, by several workers."""

from __future__ import annotations

import argparse
import contextlib
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bluesky_cdi.cli.arguments import make_folder, positive, run_or_result
from bluesky_cdi.cli.method import add_method_options, method_config
from bluesky_cdi.cli.output import say
from bluesky_cdi.errors import BlueskyCDIError
from bluesky_cdi.signals import INTERRUPTED, FirstInterrupt

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from bluesky_cdi.config import Config
    from bluesky_cdi.many import CatalogRun, Row, Source, Task

logger = logging.getLogger(__name__)


def add_reconstruct_many(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command to `commands`, with the `common` options.

    Parameters
    ----------
    commands : argparse subparsers
        Those of ``bluesky-cdi``.
    common : ArgumentParser
        Options that every command has.
    """
    command = commands.add_parser(
        "reconstruct-many", parents=[common], help="reconstruct many recorded scans or runs, with several workers"
    )
    add = command.add_argument
    add("scans", type=Path, nargs="*", metavar="SCAN", help="files of scans, as `reconstruct` takes them, and folders")
    add(
        "--runs", type=_runs, nargs="+", default=[], metavar="RUN",
        help="runs of a catalog: scan numbers, ranges such as 5-9, beginnings of uids, or -1 for the newest",
    )  # fmt: skip
    add("--directory", type=Path, metavar="DIR", help="folder of the runs' catalog (default: the configured one)")
    add("--unfinished", action="store_true", help="take runs without a stop document, whose process is gone")
    add("--out", type=Path, default=Path("reconstructions"), metavar="DIR",
        help="folder of the results; what is done there is not done again (default: %(default)s)")  # fmt: skip
    add("--force", action="store_true", help="reconstruct all of them anew, and replace the results")
    add("--workers", type=positive, metavar="N", help="processes on this machine (default: one a GPU, else one a core)")
    add("--threads", type=positive, metavar="N", help="CPU threads a worker (default: its share of the cores)")
    add("--scheduler", metavar="ADDRESS", help="use the workers of this Dask scheduler, such as tls://host:8786")
    add_method_options(command)
    command.set_defaults(run=_reconstruct_many)


def _runs(text: str) -> str | int | range:
    """Read which run is meant, or a range of scan numbers."""
    if found := re.fullmatch(r"(\d{1,7})-(\d{1,7})", text):
        first, last = map(int, found.groups())
        if last < first:
            raise argparse.ArgumentTypeError(f"must be a range such as 5-9; got {text!r}")
        return range(first, last + 1)
    return run_or_result(text)


def _reconstruct_many(args: argparse.Namespace) -> int:
    from bluesky_cdi.many import Method, Task, files_in, named, planned, summary_of, table, write_page, write_summary
    from bluesky_cdi.many.task import ScanFile
    from bluesky_cdi.many.workers import check_installed

    _check(args)
    config = method_config(args, threads=1)
    out = args.out.expanduser().absolute()
    sources: list[Source] = [ScanFile(path) for path in files_in(args.scans)]
    sources += _catalog_runs(args, config)
    wanted = named(sources)
    # Its threads are known when it is known how many workers there are.
    settings = {
        "iterations": args.iterations,
        "focus_to_sample_m": args.focus_to_sample,
        "probe": args.probe.expanduser().absolute() if args.probe else None,
        "orientation": not args.trust_orientation,
        "check_in": not args.trust_probe,
    }
    method = Method(config, **settings)
    tasks = [Task(name, source, method, out / f"{name}.cxi") for name, source in wanted.items()]
    there, left = planned(tasks, force=args.force)
    if left:
        check_installed()
    make_folder(out)
    with FirstInterrupt("scans under way are given up, and those that are done stay") as ctrl_c:
        made = _done(args, left, ctrl_c)
    rows = {row.scan: row for row in [*there, *made]}
    ordered = [rows[task.name] for task in tasks]
    write_summary(out, ordered)
    page = write_page(out, ordered, f"Reconstructions in {out.name}")
    summary = summary_of(ordered)
    if args.json:
        from bluesky_cdi.plain import to_json

        say(to_json({**summary, "page": str(page)}, indent=1))
    else:
        say(table(ordered))
        say(f"page: {page}")
    if ctrl_c.came:
        return INTERRUPTED
    return 0 if all(row.is_good for row in ordered) else 1


def _check(args: argparse.Namespace) -> None:
    if not args.scans and not args.runs:
        raise BlueskyCDIError(
            "nothing to reconstruct: name files or folders of scans, or runs of a catalog (--runs 5-9)"
        )
    if args.scheduler and args.workers:
        raise BlueskyCDIError("--workers starts processes here, and --scheduler brings its own. Leave one out.")
    if args.runs and args.focus_to_sample is not None:
        raise BlueskyCDIError("--focus-to-sample is for files; a run states its geometry itself. Leave it out.")
    if not args.runs and args.directory:
        raise BlueskyCDIError("--directory is the folder of a catalog, of which --runs names runs. Add them.")
    out = args.out.expanduser().resolve()
    if out in {path.expanduser().resolve() for path in args.scans}:
        raise BlueskyCDIError(f"{args.out} is a folder of scans that is read. Name another one for the results.")


def _catalog_runs(args: argparse.Namespace, config: Config) -> list[CatalogRun]:
    if not args.runs:
        return []
    from bluesky_cdi.catalog import open_catalog
    from bluesky_cdi.many import runs_in

    directory = args.directory.expanduser().absolute() if args.directory else None
    where = directory or config.catalog.uri or config.catalog.directory
    with open_catalog(where, None if directory else config.catalog.api_key) as catalog:
        return runs_in(catalog, args.runs, directory, unfinished=args.unfinished)


def _done(args: argparse.Namespace, left: Sequence[Task], ctrl_c: FirstInterrupt) -> list[Row]:
    """Have the tasks done that are left, with a progress bar."""
    from tqdm import tqdm

    from bluesky_cdi.many import run_tasks

    if not left:
        return []
    with contextlib.ExitStack() as stack:
        workers, tasks = _workers(args, left, stack)
        bar = stack.enter_context(tqdm(total=len(tasks), unit="scan", disable=bool(args.quiet)))
        failed = 0

        def tell(row: Row) -> None:
            nonlocal failed
            bar.update()
            if row.state != "done":
                failed += 1
                bar.set_postfix_str(f"{failed} failed")
                logger.warning("%s %s: %s", row.scan, row.state, row.reason)

        return run_tasks(tasks, workers, tell, lambda: ctrl_c.came)


def _workers(
    args: argparse.Namespace, left: Sequence[Task], stack: contextlib.ExitStack
) -> tuple[Executor, Sequence[Task]]:
    """Start or reach workers, and tell the tasks how many threads they may use."""
    from bluesky_cdi.many.workers import cores, gpus_of, local_workers, scheduled_workers, with_threads

    if args.scheduler:
        return stack.enter_context(scheduled_workers(args.scheduler)), with_threads(left, args.threads or 1)
    gpus = gpus_of(left[0].method.config.reconstructor.device)
    number = args.workers or min(len(gpus) or cores(), len(left))
    threads = args.threads or max(1, cores() // number)
    logger.info("%d worker(s), %d CPU thread(s) each, GPUs: %s", number, threads, ", ".join(gpus) or "none")
    return stack.enter_context(local_workers(number, gpus)), with_threads(left, threads)
