"""``bluesky-cdi inspect``: what a detector's frames are like, and what would be done to them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bluesky_cdi.cli.arguments import make_folder
from bluesky_cdi.cli.detector import add_detector_options, detector_settings, said_of
from bluesky_cdi.cli.output import refuse_to_replace, say_result
from bluesky_cdi.errors import BlueskyCDIError, FrameError, GeometryError

if TYPE_CHECKING:
    from bluesky_cdi.config import Config
    from bluesky_cdi.io import DetectorPlan, FrameStack, Inspection

# Numbers of frames that are listed.
LISTED = 10


def add_inspect(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command to `commands`, with the `common` options.

    Parameters
    ----------
    commands : argparse subparsers
        Those of ``bluesky-cdi``.
    common : ArgumentParser
        Options that every command has.
    """
    command = commands.add_parser(
        "inspect", parents=[common], help="look at a detector's frames, and at what would be done to them"
    )
    add = command.add_argument
    add("file", type=Path, metavar="FILE", help="a recorded scan, or an array of counts in NPY, NPZ or HDF5")
    add("--dataset", metavar="NAME", help="key or path of the frames where the file has several arrays")
    add("--focus-to-sample", type=float, metavar="METRES", help="near field of a CXI file: sample behind the focus")
    add("--out", type=Path, metavar="FIGURE", help="draw the mean frame, beam, square and mask (default: not)")
    add("--force", action="store_true", help="replace FIGURE if it exists")
    add_detector_options(command)
    command.set_defaults(run=_inspect)


def _inspect(args: argparse.Namespace) -> int:
    from bluesky_cdi.config import load_config
    from bluesky_cdi.io import inspect_frames, read_frames

    config = load_config(args.config, {"detector": detector_settings(args)})
    if args.out is not None:
        refuse_to_replace([args.out], [args.file], force=bool(args.force))
        make_folder(args.out.parent)
    stack = read_frames(args.file, dataset=args.dataset, focus_to_sample_m=args.focus_to_sample)
    shadow = stack.geometry is not None and stack.geometry.propagation == "near"
    found = inspect_frames(stack.counts, stack.mask, has_beam=not shadow)
    plan, refused = _planned(stack, found, config)
    numbers = _numbers(stack, found, config, plan)
    rows = _rows(stack, found, config, plan)
    rows.append(("would be done", refused or ("nothing" if plan is None else said_of(plan.as_notes()))))
    if refused:
        numbers["refused"] = refused
    if args.out is not None:
        _draw(args.out, args.file.name, found, plan)
        numbers["figure"] = str(args.out)
        rows.append(("figure", str(args.out)))
    say_result(args, numbers, rows)
    return 1 if refused else 0


def _planned(stack: FrameStack, found: Inspection, config: Config) -> tuple[DetectorPlan | None, str]:
    """Plan the preprocessing; None where nothing is wanted, and why nothing can be done, if so."""
    from bluesky_cdi.io import Preprocessing

    height, width = found.shape[1:]
    wanted = Preprocessing.recorded(config)
    if wanted is None:
        square = (
            ""
            if height == width
            else (f"frames must be square; they are {height} x {width}: give --beam-centre, --crop, --region or --pad")
        )
        return None, square
    try:
        # Pixels with flags were looked for already.
        return wanted.plan((height, width), found.dtype, frames=stack.counts, mask=found.valid), ""
    except (GeometryError, FrameError) as err:
        return None, str(err)


def _numbers(stack: FrameStack, found: Inspection, config: Config, plan: DetectorPlan | None) -> dict[str, Any]:
    level = config.detector.saturation
    return {
        "file": dict(stack.source),
        "shape": list(found.shape),
        "dtype": str(found.dtype),
        "masked_pixels": found.masked,
        "flagged_pixels": found.flagged,
        "photons_per_frame": {
            "lowest": float(found.photons.min()),
            "median": _median(found),
            "highest": float(found.photons.max()),
        },
        "highest_count": float(found.highest.max()),
        "frames_at_highest_count": found.frames_at_highest,
        "saturated_frames": None if level is None else found.saturated(level),
        "unwritten_frames": found.unwritten.tolist(),
        "dark_frames": found.numbers[found.dark].tolist(),
        "unusable_frames": found.numbers[found.unusable > 0].tolist(),
        "beam_centre_px": None if found.beam_centre_px is None else [round(value, 3) for value in found.beam_centre_px],
        "pixel_m": None if stack.geometry is None else stack.geometry.pixel_m,
        "pixel_after_m": None if stack.geometry is None or plan is None else plan.geometry(stack.geometry).pixel_m,
        "preprocessing": None if plan is None else plan.as_notes(),
    }


def _rows(stack: FrameStack, found: Inspection, config: Config, plan: DetectorPlan | None) -> list[tuple[str, str]]:
    n, height, width = found.shape
    level = config.detector.saturation
    at_highest = f"{found.highest.max():g}, in {found.frames_at_highest} of {n} frames"
    saturated = [] if level is None else [("saturated", f"{found.saturated(level)} frames reach {level:g} counts")]
    return [
        ("file", f"{stack.source['file']} ({stack.source['format']})"),
        ("frames", f"{n} of {height} x {width} pixels, {found.dtype}"),
        ("masked pixels", f"{found.masked} by the file, {found.flagged} more hold flags"),
        (
            "counts a frame",
            f"{_median(found):.4g} (median), {found.photons.min():.4g} to {found.photons.max():.4g}",
        ),
        ("highest count", at_highest),
        *saturated,
        ("unwritten frames", _listed(found.unwritten)),
        ("dark frames", _listed(found.numbers[found.dark])),
        ("unusable frames", _listed(found.numbers[found.unusable > 0])),
        ("beam centre", _centre(stack, found)),
        *_pixels(stack, plan),
    ]


def _median(found: Inspection) -> float:
    import numpy as np

    return float(np.median(found.photons))


def _centre(stack: FrameStack, found: Inspection) -> str:
    height, width = found.shape[1:]
    if stack.geometry is not None and stack.geometry.propagation == "near":
        return "not looked for: a near field is a shadow, without a direct beam"
    if found.beam_centre_px is None:
        return "not found: nothing is symmetric about a point"
    row, column = found.beam_centre_px
    return f"row {row:.2f}, column {column:.2f}, found by symmetry; the middle is {height // 2}, {width // 2}"


def _pixels(stack: FrameStack, plan: DetectorPlan | None) -> list[tuple[str, str]]:
    if stack.geometry is None:
        return [("sample pixel", "not known: the file states no geometry")]
    before = f"{stack.geometry.pixel_m * 1e9:.4g} nm"
    if plan is None:
        return [("sample pixel", before)]
    after = f"{plan.geometry(stack.geometry).pixel_m * 1e9:.4g} nm"
    return [("sample pixel", f"{after} after preprocessing, {before} before")]


def _listed(numbers: Any) -> str:
    if not len(numbers):
        return "none"
    shown = ", ".join(map(str, numbers[:LISTED])) + (", ..." if len(numbers) > LISTED else "")
    return f"{len(numbers)}: {shown} (from 1)"


def _draw(path: Path, name: str, found: Inspection, plan: DetectorPlan | None) -> None:
    from bluesky_cdi import viz

    beams = {} if found.beam_centre_px is None else {"beam, found": found.beam_centre_px}
    parts: dict[str, Any] = {"beams_px": beams}
    valid = found.valid
    if plan is not None:
        window = plan.window
        row, column = plan.notes["beam_centre_px"]
        parts = {
            "beams_px": {**beams, "beam, used": (row, column)},
            "square_px": (
                window.rows.start - window.missing[0][0],
                window.columns.start - window.missing[1][0],
                window.side * window.bin,
            ),
            "result": plan.apply(found.mean[None])[0],
            "result_mask": plan.mask,
        }
        valid = valid.copy()
        valid[plan.region] = plan.read_valid
    try:
        viz.save_figure(viz.show_detector(found.mean, valid, title=name, **parts), path)
    except (ValueError, OSError) as err:
        raise BlueskyCDIError(f"can't draw {path}: {err}. Give --out another name.") from err
