"""The command ``bluesky-cdi``.

Results go to standard output, everything else to standard error. Exit codes: 0, 1 (failed), 2
(usage).
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bluesky_cdi import __version__
from bluesky_cdi.errors import BlueskyCDIError

if TYPE_CHECKING:
    from bluesky_cdi.catalog import ResultSummary
    from bluesky_cdi.config import Config
    from bluesky_cdi.protocols import Estimate

DEMO_OUTPUT = Path("demo_output")


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
    for add_command in (_add_demo, _add_reconstruct, _add_browse, _add_shell, _add_train):
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
    command = commands.add_parser("reconstruct", parents=[common], help="reconstruct a recorded scan from its file")
    add = command.add_argument
    add("scan", type=Path, help="CXI, canonical NPZ or PtychoPINN NPZ")
    add("--engine", choices=("pinn", "rpie"), default="pinn", help="network with refinement, or rPIE alone")
    add("--iterations", type=_count, default=30, help="most rPIE iterations (default: %(default)s)")
    add("--modes", type=int, choices=range(1, 9), default=3, help="incoherent probe modes (default: %(default)s)")
    add("--out", type=Path, default=Path("reconstruction.h5"), metavar="FILE", help="product (default: %(default)s)")
    command.set_defaults(run=_reconstruct)


def _reconstruct(args: argparse.Namespace) -> int:
    import numpy as np
    from tqdm import tqdm

    from bluesky_cdi import viz
    from bluesky_cdi.io import read_scan, write_product
    from bluesky_cdi.offline import reconstruct

    config = _config(args)
    settings = config.reconstructor.model_copy(update={"name": args.engine, "background": 0.0, "threads": 0})
    lens = config.probe.model_copy(update={"modes": args.modes})
    config = config.model_copy(update={"reconstructor": settings, "probe": lens})
    scan = read_scan(args.scan)
    _make_folder(args.out.parent)
    with tqdm(total=args.iterations, unit="iteration", disable=bool(args.quiet)) as bar:

        def told(done: int, estimate: Estimate) -> None:
            bar.update(done - bar.n)
            bar.set_postfix_str(f"deviance {np.mean(estimate.residual):.3f} a pixel")

        estimate = reconstruct(scan, config, args.iterations, told)
    write_product(args.out, estimate, scan.geometry, scan.name or args.scan.stem)
    figure = args.out.with_suffix(".png")
    viz.save_figure(viz.show_estimate(estimate), figure)
    numbers = {
        "frames": estimate.n_frames,
        "iterations": estimate.source["iterations"],
        "deviance_per_pixel": float(np.mean(estimate.residual)),
        "pixel_m": estimate.pixel_m,
        "product": str(args.out),
        "figure": str(figure),
    }
    _say_result(args, numbers, [(key.replace("_", " "), str(value)) for key, value in numbers.items()])
    return 0


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
    train.add_argument("out", type=Path, help="file to write, ending in .safetensors; its record goes beside it")
    train.add_argument("--seconds", type=float, default=525.0, help="time to train (default: %(default)s)")
    train.add_argument("--seed", type=int, default=1)
    train.add_argument("--learning-rate", type=float, default=1.5e-3)
    train.add_argument("--start", type=Path, metavar="FILE", help="weights to go on from")
    train.add_argument("--device", default="auto")
    train.set_defaults(run=_train)


def _train(args: argparse.Namespace) -> int:
    import torch

    from bluesky_cdi.log import configure_logging
    from bluesky_cdi.training.pretrain import PretrainConfig, pretrain

    configure_logging(logging.INFO + 10 * args.quiet)
    if args.out.suffix != ".safetensors":
        raise BlueskyCDIError(f"the weights file must end in .safetensors; got {args.out}")
    device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if args.device == "auto" else args.device)
    # Matrix products in TF32 and convolutions tuned to their sizes: speed, at no cost to bf16 training.
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    config = PretrainConfig(seconds=args.seconds, seed=args.seed, learning_rate=args.learning_rate)
    record = pretrain(config, device, args.out, args.start)
    rows = [
        (f"{dose} photons, {method}", f"NRMSE {value}")
        for dose, row in record["validation"].items()
        for method, value in row.items()
    ]
    _say_result(args, record, [("steps", str(record["steps"])), *rows, ("weights", str(args.out))])
    return 0


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
        raise BlueskyCDIError(f"can't write into {folder}: {err}. Give --out another place.") from err


def _count(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"must be 0 or a positive whole number; got {text!r}")
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
