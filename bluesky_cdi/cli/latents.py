"""``bluesky-cdi latents``: what the frames of a result have in common, and frames of past runs that are like one."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bluesky_cdi.cli.arguments import configured, make_folder, positive, reached_catalog, run_or_result
from bluesky_cdi.cli.output import say, say_result
from bluesky_cdi.errors import BlueskyCDIError
from bluesky_cdi.plain import to_json

if TYPE_CHECKING:
    import numpy.typing as npt

    from bluesky_cdi.catalog import Catalog
    from bluesky_cdi.config import Config
    from bluesky_cdi.latents import Latents
    from bluesky_cdi.protocols import Estimate

logger = logging.getLogger(__name__)

DEFAULT_FIGURE = Path("latents.png")
# Groups are called by letters.
MOST_CLUSTERS = 26


def add_latents(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command to `commands`, with the `common` options.

    Parameters
    ----------
    commands : argparse subparsers
        Those of ``bluesky-cdi``.
    common : ArgumentParser
        Options that every command has.
    """
    command = commands.add_parser(
        "latents", parents=[common], help="map and groups of the frames of a result, or frames like one in past runs"
    )
    add = command.add_argument
    add(
        "which", metavar="RUN",
        help="a result: scan number, beginning of a uid, or -1 for the newest; or an .npz file that `export` wrote",
    )  # fmt: skip
    add("--directory", type=Path, metavar="DIR", help="folder of an embedded catalog (default: the configured one)")
    add("--out", type=Path, metavar="FILE", help=f"where to draw the figure (default: {DEFAULT_FIGURE})")
    add(
        "--clusters", type=positive, choices=range(1, MOST_CLUSTERS + 1), metavar="N",
        help=f"groups of frames to make, at most {MOST_CLUSTERS} (default: as many as there are)",
    )  # fmt: skip
    add("--like", type=positive, metavar="SEQ_NUM", help="list the frames that are most like this one of the result")
    add(
        "--in", dest="where", choices=("run", "all"), default="run",
        help="with --like: search this result, or all of the catalog with the same weights (default: %(default)s)",
    )  # fmt: skip
    command.set_defaults(run=_latents)


def _latents(args: argparse.Namespace) -> int:
    if args.like is not None and (args.out or args.clusters):
        raise BlueskyCDIError(
            "--like lists frames; it draws nothing and makes no groups: leave out --out and --clusters."
        )
    if args.out:
        make_folder(args.out.parent)
    if args.which.endswith(".npz"):
        _of_file(args)
        return 0
    settings = configured(args)
    with reached_catalog(args.directory, settings.catalog, beside=True) as (catalog, _):
        if args.like is not None:
            _say_like(args, catalog)
        else:
            _of_run(args, catalog, settings)
    return 0


def _of_file(args: argparse.Namespace) -> None:
    from bluesky_cdi.io import read_npz_result

    if args.like is not None:
        raise BlueskyCDIError("--like searches a catalog, and a file is none: name a result of a catalog.")
    path = Path(args.which)
    _show(args, path.name, read_npz_result(path), {})


def _of_run(args: argparse.Namespace, catalog: Catalog, settings: Config) -> None:
    from bluesky_cdi.catalog import find_result, load_result

    which = run_or_result(args.which)
    estimate = load_result(catalog, which)
    start = find_result(catalog, which).start
    _show(
        args, start.get("title", f"scan {start['scan_id']}"), estimate, _counts_of(catalog, start["raw_uid"], settings)
    )


def _counts_of(catalog: Catalog, raw_uid: str, settings: Config) -> dict[int, npt.NDArray[Any]]:
    """Read the frames of a raw run by number, masked pixels as 0: a hot one may have more counts than all others.

    There are none where they can't be read, which is logged.
    """
    from bluesky_cdi.recorded_run import recorded_run

    try:
        run = recorded_run(catalog, raw_uid, settings, unfinished=True)
    except BlueskyCDIError as err:
        logger.warning("counts and patterns of frames are left out, for the raw run can't be read: %s", err)
        return {}
    valid = True if run.scan.mask is None else run.scan.mask
    return {number: run.scan.counts[row] * valid for row, number in enumerate(run.numbers)}


def _show(args: argparse.Namespace, name: str, estimate: Estimate, counts: Mapping[int, npt.NDArray[Any]]) -> None:
    from bluesky_cdi import viz
    from bluesky_cdi.latents import latents_of

    latents = latents_of(estimate, args.clusters)
    path = args.out or DEFAULT_FIGURE
    try:
        viz.save_figure(viz.show_latents(estimate, latents, counts, name), path)
    except (ValueError, OSError) as err:
        raise BlueskyCDIError(f"can't draw {path}: {err}. Give --out another name.") from err
    groups = _groups(estimate, latents, counts)
    fixed = latents.projection.is_fixed
    numbers = {
        "result": name,
        "frames": len(latents.values),
        "projection": "weights" if fixed else "run",
        "projection_sha256": latents.projection.sha256,
        "groups": groups,
        "frames_unusual": _unusual(latents.p_values),
        "figure": str(path),
    }
    if args.json:
        say(to_json(numbers, indent=1))
        return
    weights = estimate.source.get("encoder") or estimate.source.get("network")
    whose = f"that of the weights {weights}: maps of several runs can be compared"
    own = "that of this run alone, for its embeddings have none: maps of several runs can't be compared"
    rows = [
        ("result", f"{name}, {len(latents.values)} frames"),
        ("projection", whose if fixed else own),
        ("unusual frames", f"{numbers['frames_unusual']} with p < 0.01" if fixed else "not known without a projection"),
        ("figure", str(path)),
    ]
    say_result(args, numbers, rows)
    head = f"{'group':<6} {'frames':>6}  {'mean counts':>11}  {'y (µm)':>16}  {'x (µm)':>16}  {'unusual':>7}"
    say(f"\n{head}  typical frame")
    for group in groups:
        y, x = (f"{m * 1e6:.2f} ± {s * 1e6:.2f}" for m, s in zip(group["mean_m"], group["spread_m"], strict=True))
        light = "" if group["mean_counts"] is None else f"{group['mean_counts']:.3g}"
        odd = "" if group["unusual"] is None else str(group["unusual"])
        say(f"{group['name']:<6} {group['frames']:>6}  {light:>11}  {y:>16}  {x:>16}  {odd:>7}  {group['typical']}")


def _groups(estimate: Estimate, latents: Latents, counts: Mapping[int, npt.NDArray[Any]]) -> list[dict[str, Any]]:
    from bluesky_cdi.latents import representatives

    rows = []
    for cluster, typical in enumerate(representatives(latents.values, latents.clusters)):
        members = latents.clusters == cluster
        numbers = estimate.frame_seq_nums[members]
        photons = [float(np.sum(counts[int(k)], dtype=np.float64)) for k in numbers if int(k) in counts]
        places = estimate.positions_m[members]
        rows.append(
            {
                "name": "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[cluster],
                "frames": int(members.sum()),
                "mean_counts": float(np.mean(photons)) if photons else None,
                "mean_m": places.mean(axis=0).tolist(),
                "spread_m": places.std(axis=0).tolist(),
                "unusual": _unusual(latents.p_values[members]),
                "typical": int(estimate.frame_seq_nums[typical]),
            }
        )
    return rows


def _unusual(p_values: npt.NDArray[Any]) -> int | None:
    from bluesky_cdi.viz.latents import UNUSUAL

    return int((p_values < UNUSUAL).sum()) if np.isfinite(p_values).all() else None


def _say_like(args: argparse.Namespace, catalog: Catalog) -> None:
    from dataclasses import asdict

    from bluesky_cdi.catalog.similar import find_like

    found = find_like(catalog, run_or_result(args.which), args.like, everywhere=args.where == "all")
    if args.json:
        say(to_json(asdict(found), indent=1))
        return
    left = ", ".join(f"{number} with {why}" for why, number in found.left_out.items())
    say(f"searched {found.searched} result(s)" + (f"; left out: {left}" if left else ""))
    say(f"two frames of this result lie {found.typical:.2f} apart (median)\n")
    say(f"{'distance':>8}  {'scan':>5}  {'frame':>6}  {'y (µm)':>9}  {'x (µm)':>9}  result")
    for frame in found.frames:
        place = f"{frame.y_m * 1e6:>9.3f}  {frame.x_m * 1e6:>9.3f}"
        say(f"{frame.distance:>8.2f}  {frame.scan_id or '':>5}  {frame.seq_num:>6}  {place}  {frame.uid[:8]}")
