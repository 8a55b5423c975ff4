"""Options of the commands that read a detector's frames: the section `detector` of the configuration."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any, Literal

from bluesky_cdi.cli.arguments import above_0, positive

Pixels = tuple[int, int, int, int]


def add_detector_options(command: argparse.ArgumentParser) -> None:
    """Add an option for each key of the section `detector`; what is not given is what the configuration says."""
    add = command.add_argument_group("detector", "what is done to frames first; each wins over the configuration's key")
    option = add.add_argument
    option("--region", type=_region, metavar="ROWS,COLUMNS", help="part of the frame, such as 100:612,80:592")
    option(
        "--beam-centre",
        type=_beam_centre,
        metavar="ROW,COLUMN",
        help="pixel of the direct beam, or `find` (default: the middle of the region)",
    )
    option("--crop", type=positive, metavar="PIXELS", help="keep the square of so many pixels around the direct beam")
    option("--pad", action="store_const", const=True, help="add masked pixels where the square leaves the region")
    option("--bin", type=positive, metavar="N", help="sum squares of N pixels a side")
    option("--rotate", type=int, choices=(0, 90, 180, 270), metavar="DEG", help="turn counter-clockwise, before flips")
    option("--transpose", action="store_const", const=True, help="exchange rows and columns, before flips")
    option("--flip-rows", action="store_const", const=True, help="turn the frame upside down")
    option("--flip-columns", action="store_const", const=True, help="exchange left and right")
    option("--dark", metavar="FILE", help="image to subtract (NPY, NPZ, HDF5, TIFF; FILE::NAME names an array in it)")
    option("--flat", metavar="FILE", help="image of each pixel's sensitivity, to divide by")
    option("--mask", metavar="FILE", help="image, 1 where a pixel is valid and 0 where not")
    option("--bad-pixels", metavar="FILE", help="image, 0 where a pixel is valid, as NeXus' pixel_mask")
    option("--saturation", type=above_0, metavar="COUNTS", help="pixels of so many counts or more are not valid")


def detector_settings(args: argparse.Namespace) -> dict[str, Any]:
    """Give the keys of the section `detector` that options set."""
    given = {
        "region_px": args.region,
        "beam_centre_px": args.beam_centre,
        "crop_px": args.crop,
        "pad": args.pad,
        "bin": args.bin,
        "rotate_deg": args.rotate,
        "transpose": args.transpose,
        "flip_rows": args.flip_rows,
        "flip_columns": args.flip_columns,
        "dark": args.dark,
        "flat": args.flat,
        "mask": args.mask,
        "bad_pixels": args.bad_pixels,
        "saturation": args.saturation,
    }
    return {key: value for key, value in given.items() if value is not None}


def _region(text: str) -> Pixels:
    try:
        (top, bottom), (left, right) = (map(int, part.split(":")) for part in text.split(","))
    except ValueError as err:
        raise argparse.ArgumentTypeError(
            f"must be rows and columns, from the first to the one after the last, such as 100:612,80:592; got {text!r}"
        ) from err
    return top, bottom, left, right


def _beam_centre(text: str) -> tuple[float, float] | Literal["find"]:
    if text == "find":
        return "find"
    try:
        row, column = map(float, text.split(","))
    except ValueError as err:
        raise argparse.ArgumentTypeError(f"must be ROW,COLUMN in pixels from 0, or find; got {text!r}") from err
    return row, column


def said_of(notes: Mapping[str, Any]) -> str:
    """Say in one line what was done to the frames, from a plan's notes."""
    top, bottom, left, right = notes["read_px"]
    row, column = notes["beam_centre_px"]
    turned = [key.replace("_", " ") for key in ("transpose", "flip_rows", "flip_columns") if notes[key]]
    images = [key for key in ("dark", "flat", "mask", "bad_pixels") if key in notes]
    parts = [
        f"rows {top}:{bottom} and columns {left}:{right} of {notes['raw_shape'][0]} x {notes['raw_shape'][1]}",
        f"direct beam at {row:g}, {column:g} ({notes['beam_centre']})",
        *(f"{key.replace('_', ' ')} {notes[key]['file']}" for key in images),
        *([f"padded by {', '.join(map(str, notes['padded_px']))}"] if any(notes["padded_px"]) else []),
        *([f"binned by {notes['bin']}"] if notes["bin"] > 1 else []),
        *turned,
        f"{notes['frame_px']} x {notes['frame_px']} pixels, {notes['masked_pixels']} of them masked",
    ]
    return "; ".join(parts)
