"""``bench beyond-aperture``: what methods find at frequencies beyond the detector's aperture."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from bluesky_cdi.cli.arguments import above_0, positive
from bluesky_cdi.cli.bench.common import Part, add_data, add_device, add_out, finish, prepare, tell
from bluesky_cdi.errors import BlueskyCDIError

if TYPE_CHECKING:
    import torch

    from bluesky_cdi.bench.methods import Network
    from bluesky_cdi.bench.suites.beyond_aperture import Options
    from bluesky_cdi.models.aperture_decoder import ApertureDecoder


def _options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add(
        "decoders", type=Path, nargs="?", metavar="FILE",
        help="trained decoders (.safetensors), which are measured too; with --seconds or --steps they are trained and "
        "written there",
    )  # fmt: skip
    add("--seconds", type=above_0, help="train decoders for so long first")
    add("--steps", type=positive, help="train them for so many steps instead, which the same seed repeats")
    add("--seed", type=int, default=1, help="of the training (default: %(default)s)")
    add("--samples", nargs="*", default=["star", "leaves", "circuit"], metavar="KIND",
        help="of simulated scans (default: star leaves circuit)")  # fmt: skip
    add("--doses", type=above_0, nargs="+", default=[1e5, 1e7], metavar="PHOTONS", help="(default: 1e5 1e7)")
    add("--seeds", type=positive, default=1, help="scans of each kind and dose (default: %(default)s)")
    add("--share", type=above_0, default=2 / 3, help="of a side of the detector that is given (default: 0.667)")
    add("--weights", nargs="*", default=["canvas-small", "sweep-small"], metavar="NAME",
        help="networks that are given the frames with hidden pixels (default: canvas-small sweep-small)")  # fmt: skip
    add("--recorded", action="store_true", help="measure the recorded star too")
    add("--frames", type=positive, default=60, help="of the star, about its middle (default: %(default)s)")
    add("--epochs", type=positive, default=200, help="most of LSQ-ML (default: %(default)s)")
    add("--figure", type=Path, metavar="FILE", help="draw the first sample at the first dose")
    add_data(command)
    add_device(command, "cpu")
    add_out(command)


def _bench(args: argparse.Namespace) -> int:
    import torch

    from bluesky_cdi.bench.machine import devices_of
    from bluesky_cdi.bench.methods import Network
    from bluesky_cdi.bench.reports.beyond_aperture import table
    from bluesky_cdi.bench.suites.beyond_aperture import Options, beyond_aperture
    from bluesky_cdi.cli.bench.common import needed_data_folder
    from bluesky_cdi.models.weights import load_weights

    prepare(args)
    if not 0 < args.share < 1:
        raise BlueskyCDIError(f"--share must be above 0 and below 1, so that pixels are hidden; got {args.share}")
    if not args.samples and not args.recorded:
        raise BlueskyCDIError("there is no scan to measure: name kinds of --samples, or give --recorded")
    [device] = devices_of(args.device, 1)
    if device.type == "cpu":
        torch.set_num_threads(1)
    data = needed_data_folder(args) if args.recorded else None
    decoders = _decoders(args, device)
    networks = [Network(name, load_weights(name, device).net) for name in args.weights]
    options = Options(args.samples, args.doses, args.seeds, args.share, data, args.frames, args.epochs)
    found = beyond_aperture(options, networks, decoders, device, tell)
    if args.figure:
        _draw(args, options, networks, decoders, device)
    return finish(args, found, table(found))


BEYOND_APERTURE = Part(
    "beyond-aperture",
    "what methods find beyond the detector's aperture, judged by its hidden outer pixels",
    _options,
    _bench,
)


def _decoders(args: argparse.Namespace, device: torch.device) -> dict[str, ApertureDecoder]:
    """Train decoders, or load them, or do without."""
    from bluesky_cdi.training.aperture import ApertureTraining, load_decoders, train_decoders
    from bluesky_cdi.training.denormals import denormals_flushed

    if args.decoders is None:
        if args.seconds or args.steps:
            raise BlueskyCDIError("name the file (.safetensors) that the trained decoders shall go to")
        return {}
    if args.decoders.suffix != ".safetensors":
        raise BlueskyCDIError(f"a file of decoders ends in .safetensors; got {args.decoders}")
    if not (args.seconds or args.steps):
        return load_decoders(args.decoders, device)
    config = ApertureTraining(seconds=args.seconds or 0.0, steps=args.steps, seed=args.seed)
    with denormals_flushed():
        return train_decoders(config, device, args.decoders, quiet=bool(args.quiet))


def _draw(
    args: argparse.Namespace,
    options: Options,
    networks: list[Network],
    decoders: dict[str, ApertureDecoder],
    device: torch.device,
) -> None:
    """Draw the first scan."""
    from bluesky_cdi.bench.reports.beyond_aperture import draw
    from bluesky_cdi.bench.suites.beyond_aperture import CROPPED, LIMITED, MASKED, WHOLE, hide, scans, solve

    name, photons, seed, problem = next(scans(options, device))
    hidden = hide(problem, options.share)
    answers = solve(hidden, networks, decoders, seed, options.epochs)
    shown = [CROPPED, MASKED, LIMITED, *(each for each in answers if each.endswith("decoder")), WHOLE]
    title = name if photons is None else f"{name}, {photons:.0e} photons a frame"
    draw(hidden, {each: answers[each] for each in shown}, title, args.figure)
