"""``bluesky-cdi compare``: how far two reconstructions agree."""

from __future__ import annotations

import argparse
import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bluesky_cdi.cli.arguments import make_folder
from bluesky_cdi.cli.output import say_result
from bluesky_cdi.errors import BlueskyCDIError

if TYPE_CHECKING:
    from bluesky_cdi.evaluation.products import ProductComparison

logger = logging.getLogger(__name__)

NUMBERS = ("complex_nrmse", "phase_mae_rad", "ssim_amplitude", "ssim_phase", "psnr_amplitude_db", "psnr_phase_db")


def add_compare(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command to `commands`, with the `common` options.

    Parameters
    ----------
    commands : argparse subparsers
        Those of ``bluesky-cdi``.
    common : ArgumentParser
        Options that every command has.
    """
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
    from bluesky_cdi.evaluation.products import compare_products
    from bluesky_cdi.io import read_reconstruction

    make_folder(args.figure.parent)
    found = compare_products(read_reconstruction(args.a), read_reconstruction(args.b))
    square = found.square
    figure = viz.show_comparison(
        found.images.object,
        found.images.truth,
        found.images.mask,
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
    say_result(args, numbers, [*_comparison_rows(found, claim), ("figure", str(args.figure))])
    return 0


def _warn_of_gaps(found: ProductComparison) -> None:
    """Warn where a single weak ring may decide: a resolution is where the correlation *first* falls below."""
    import numpy as np

    for name, threshold in (("half-bit", found.frc.half_bit), ("one-bit", found.frc.one_bit)):
        above = found.frc.correlation >= threshold
        first = int(np.argmin(above))
        if not above[first] and above[first:].sum() > max(first, 2):
            last_m = 1 / found.frc.frequency_per_m[np.flatnonzero(above)[-1]]
            logger.warning(
                "the FRC falls below the %s threshold at ring %d of %d, but is above it in %d later rings, down to "
                "%s: the first crossing may understate the agreement. Look at the curve for rings without signal.",
                name,
                first + 1,
                len(above),
                above[first:].sum(),
                _length(last_m),
            )


def _comparison_numbers(found: ProductComparison) -> dict[str, Any]:
    """Return plain values; JSON has no infinity and no NaN, which become null."""
    frc, square, aligned = found.frc, found.square, found.images.aligned
    return {
        "pixels": int(found.images.mask.sum()),
        "pixel_m": found.pixel_m,
        **{key: _finite(found.images.numbers[key]) for key in NUMBERS},
        "shift_m": list(found.shift_m),
        "ramp_rad_per_px": list(aligned.ramp_rad_per_px),
        "scale": [aligned.scale.real, aligned.scale.imag],
        "resolution_half_bit_m": _finite(frc.resolution_half_bit_m),
        "resolution_one_bit_m": _finite(frc.resolution_one_bit_m),
        "resolution_half_bit": _resolution(frc.resolution_half_bit_m, found.pixel_m),
        "resolution_one_bit": _resolution(frc.resolution_one_bit_m, found.pixel_m),
        "frc_square_px": {"row": square.row, "column": square.column, "side": square.side},
        "frc": {
            key: getattr(frc, key).tolist()
            for key in ("frequency_per_m", "correlation", "n_pixels", "half_bit", "one_bit")
        },
    }


def _comparison_rows(found: ProductComparison, claim: str) -> list[tuple[str, str]]:
    import cmath

    side, pixel, n, aligned = found.square.side, found.pixel_m, found.images.numbers, found.images.aligned
    (shift_y, shift_x), (ramp_y, ramp_x) = found.shift_m, aligned.ramp_rad_per_px
    factor, phase = cmath.polar(aligned.scale)
    ssim = f"amplitude {n['ssim_amplitude']:.4f}, phase {n['ssim_phase']:.4f}"
    psnr = f"amplitude {n['psnr_amplitude_db']:.2f}, phase {n['psnr_phase_db']:.2f} dB"
    return [
        ("common area", f"{int(found.images.mask.sum())} pixels of {pixel * 1e9:.4g} nm"),
        ("shift of A", f"({shift_y * 1e9:.3g}, {shift_x * 1e9:.3g}) nm (y, x), removed"),
        ("ramp of A", f"({ramp_y:.2g}, {ramp_x:.2g}) rad per pixel (y, x), removed"),
        ("scale of A to B", f"{factor:.4g}, {phase:.3g} rad, applied"),
        ("complex NRMSE", f"{n['complex_nrmse']:.4g}"),
        ("phase MAE", f"{n['phase_mae_rad']:.4g} rad"),
        ("SSIM", f"{ssim} (range: B's own)"),
        ("PSNR", f"{psnr} (peak: B's own range)"),
        ("half-bit FRC", _resolution(found.frc.resolution_half_bit_m, pixel)),
        ("one-bit FRC", _resolution(found.frc.resolution_one_bit_m, pixel)),
        ("FRC is", f"of a square of {side} pixels, given in full periods; {claim}"),
    ]


def _resolution(period_m: float | None, pixel_m: float) -> str:
    """Tell a resolution: a correlation that stays above its threshold has a limit only, one that never is none."""
    if period_m is None:
        return f"better than {_length(2 * pixel_m)} (2 pixels, the finest that they show)"
    return _length(period_m) if math.isfinite(period_m) else "none"


def _length(metres: float) -> str:
    return f"{metres * 1e9:.3g} nm" if metres < 1e-6 else f"{metres * 1e6:.3g} µm"


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
