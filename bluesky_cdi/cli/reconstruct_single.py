"""``bluesky-cdi reconstruct-single``: images of single frames."""

from __future__ import annotations

import argparse
import json
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bluesky_cdi.cli.arguments import count, make_folder, positive
from bluesky_cdi.cli.output import say_result
from bluesky_cdi.errors import BlueskyCDIError, FrameError, GeometryError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from bluesky_cdi.io import FrameStack, SingleShotImage
    from bluesky_cdi.physics.geometry import Geometry
    from bluesky_cdi.physics.propagators import Propagator
    from bluesky_cdi.protocols import ComplexArray
    from bluesky_cdi.single_shot import PreparedFrame, SingleShotResult, SingleShotSettings, Stage

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class _Experiment:
    """What all frames of a file share."""

    stack: FrameStack
    geometry: Geometry | None
    propagator: Propagator
    # The illumination; None in a plane wave, or where it is not known.
    probe: ComplexArray | None
    window: tuple[slice, slice]
    support: npt.NDArray[np.bool_] | None
    mask: npt.NDArray[np.bool_] | None


@dataclass(frozen=True, eq=False)
class _Report:
    """Images, their figures, and the frames that could not be reconstructed with the reasons."""

    images: list[SingleShotImage]
    figures: list[str]
    refused: list[tuple[tuple[int, ...], str]]

    @property
    def converged(self) -> int:
        return sum(image.verdict == "converged" for image in self.images)

    def say(self, args: argparse.Namespace) -> None:
        if not self.converged:
            logger.error("no start of any frame converged; %s holds the best ones: no images to trust", args.out)
        refused = [{"frames": list(group), "verdict": "refused", "reason": reason} for group, reason in self.refused]
        numbers = {
            "file": str(args.file),
            "result": str(args.out),
            "figures": self.figures,
            "converged": self.converged,
            "frames": [*map(_numbers, self.images), *refused],
        }
        rows = [(_label(image.frames), _said(image)) for image in self.images]
        rows += [(_label(group), f"refused: {reason}") for group, reason in self.refused]
        rows += [("converged", f"{self.converged} of {len(self.images) + len(refused)}"), ("result", str(args.out))]
        say_result(args, numbers, [*rows, *(("figure", figure) for figure in self.figures)])


def add_reconstruct_single(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command to `commands`, with the `common` options.

    Parameters
    ----------
    commands : argparse subparsers
        Those of ``bluesky-cdi``.
    common : ArgumentParser
        Options that every command has.
    """
    command = commands.add_parser(
        "reconstruct-single", parents=[common], help="reconstruct single frames, each by itself (single-shot CDI)"
    )
    add = command.add_argument
    add("file", type=Path, metavar="FILE", help="CXI, canonical NPZ, or an array of counts in NPY, NPZ or HDF5")
    add("--out", type=Path, default=Path("single_shot.cxi"), metavar="FILE", help="CXI (default: %(default)s)")
    add("--png", type=Path, metavar="FILE", help="draw each reconstruction (default: not)")
    add("--device", default="auto", help="auto, cpu or cuda (default: %(default)s)")
    _add_frames(command.add_argument_group("frames"))
    _add_experiment(command.add_argument_group("experiment"))
    _add_settings(command.add_argument_group("settings"))
    command.set_defaults(run=_reconstruct_single)


def _add_frames(group: Any) -> None:
    add = group.add_argument
    add("--dataset", metavar="NAME", help="key or path of the frames where the file has several arrays")
    add("--frames", type=_frame_numbers, metavar="LIST", help="numbers from 0, such as 0,3,5-9 (default: all)")
    add("--sum", action="store_true", help="reconstruct the sum of the frames: exposures of one sample")
    add("--mask", type=Path, metavar="FILE", help="image of a frame's size, 1 where a pixel is valid")
    add("--mask-negative", action="store_true", help="negative numbers in floating-point frames are flags")
    add("--saturation", type=float, metavar="COUNTS", help="pixels of so many counts or more are not valid")
    add(
        "--centre",
        type=int,
        nargs=2,
        metavar=("ROW", "COLUMN"),
        help="pixel of the direct beam, from 0 (default: the middle one)",
    )
    add("--crop", type=positive, metavar="PIXELS", help="take the square of so many pixels around the direct beam")


def _add_experiment(group: Any) -> None:
    add = group.add_argument
    add(
        "--support", type=Path, metavar="FILE", help="image, 1 where the sample may be (default: the autocorrelation's)"
    )
    add(
        "--surround",
        choices=("dark", "clear"),
        default="dark",
        help="around the sample there is darkness, or the file's probe passes (default: %(default)s)",
    )
    add("--illumination-photons", type=float, metavar="N", help="photons of the beam (default: those of the frame)")
    add("--focus-to-sample", type=float, metavar="METRES", help="near field of a CXI file: sample behind the focus")
    add(
        "--fresnel-distance",
        type=float,
        metavar="METRES",
        help="far field: 1 / (1 / focus to sample + 1 / sample to detector), where the probe lacks that curvature",
    )
    add("--background", type=float, default=0.0, metavar="COUNTS", help="expected in each pixel (default: %(default)s)")


def _add_settings(group: Any) -> None:
    """Add options with the names of `SingleShotSettings`; absent, its own values hold, which need torch imported."""
    add = group.add_argument
    add("--starts", type=positive, default=20, help="random starts (default: 20)")
    add("--seed", type=count, default=0, help="of the random starts, the same for each frame (default: 0)")
    add(
        "--cycle",
        type=_stages,
        metavar="STAGES",
        help="update:iterations[:beta] of er, hio, raar (default: hio:80:0.9,raar:60:0.9,er:20:0.9)",
    )
    add("--finish", type=_stages, metavar="STAGES", help="after the cycles (default: raar:100:0.8,er:50:0.9)")
    add("--cycles", type=count, help="most cycles (default: 10)")
    add("--guide-every", type=count, metavar="CYCLES", help="bring starts to the best one; 0: never (default: 2)")
    add("--max-phase-rad", type=float, metavar="RAD", help="phases lie within this, at most pi / 2; 0: real, positive")
    add(
        "--converged-r", type=float, metavar="R", help="how far R may lie above 1.1 times photon noise (default: 0.005)"
    )
    add("--tolerance", type=float, metavar="SHARE", help="least fall of R in patience cycles (default: 0.01)")
    add("--patience", type=positive, metavar="CYCLES", help="cycles without that fall that end a run (default: 6)")
    add("--no-shrink-wrap", action="store_true", help="keep the support as it is given")
    add("--every", type=positive, metavar="ITERATIONS", help="shrink-wrap: between updates (default: 20)")
    add("--threshold", type=float, metavar="SHARE", help="shrink-wrap: of the largest magnitude (default: 0.2)")
    add("--sigma-px", type=float, metavar="PIXELS", help="shrink-wrap: first blur (default: 3.0)")
    add("--sigma-end-px", type=float, metavar="PIXELS", help="shrink-wrap: last blur (default: 1.0)")
    add("--decay", type=float, metavar="FACTOR", help="shrink-wrap: of the blur, each update (default: 0.97)")


def _reconstruct_single(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    from bluesky_cdi.io import write_single_shot

    _check_outputs(args)
    experiment, settings, device = _experiment(args), _settings(args), _device(args.device)
    numbers = tuple(args.frames or range(len(experiment.stack)))
    _check_numbers(numbers, len(experiment.stack))
    groups = [numbers] if args.sum else [(n,) for n in numbers]
    report = _Report([], [], [])
    with tqdm(total=len(groups) * settings.cycles, unit="cycle", disable=bool(args.quiet)) as bar:
        for done, group in enumerate(groups, 1):
            try:
                frame = _prepared_frame(experiment, group, args)
                found = _reconstruct_frame(experiment, frame, settings, args, device, _progress(bar, _label(group)))
            except (FrameError, GeometryError) as err:
                # One dark frame of a run of many must not cost the others.
                if len(groups) == 1:
                    raise
                report.refused.append((group, str(err)))
                continue
            finally:
                # A frame whose starts no longer improve ends before its last cycle.
                bar.update(done * settings.cycles - bar.n)
            report.images.append(_image(experiment, group, found, settings, args))
            if args.png:
                figure = args.png if len(groups) == 1 else args.png.with_stem(f"{args.png.stem}-{group[0]:04d}")
                _draw(report.images[-1], frame, figure)
                report.figures.append(str(figure))
    if not report.images:
        raise FrameError(f"none of {len(groups)} frames can be reconstructed; the first: {report.refused[0][1]}")
    write_single_shot(args.out, report.images, experiment.geometry, experiment.stack.name or args.file.stem)
    report.say(args)
    return 0 if report.converged else 1


def _progress(bar: Any, label: str) -> Callable[[int, npt.NDArray[np.float64]], None]:
    import numpy as np

    def on_progress(iterations: int, r_factor: npt.NDArray[np.float64]) -> None:
        bar.update()
        finite = r_factor[np.isfinite(r_factor)]
        bar.set_postfix_str(f"{label}, lowest R {finite.min():.3g}" if len(finite) else label)

    return on_progress


def _check_outputs(args: argparse.Namespace) -> None:
    """Refuse before the work what would fail after it, or replace what is read."""
    if args.out.suffix != ".cxi":
        raise BlueskyCDIError(f"--out must end in .cxi, which is what is written; got {args.out}")
    if args.png is not None and args.png.suffix != ".png":
        raise BlueskyCDIError(f"--png must end in .png, which is what is drawn; got {args.png}")
    read = {path.resolve() for path in (args.file, args.mask, args.support) if path is not None}
    for path in (args.out, args.png):
        if path is not None:
            if path.resolve() in read:
                raise BlueskyCDIError(f"{path} is what is read; measured data are not replaced. Name another file.")
            make_folder(path.parent)


def _experiment(args: argparse.Namespace) -> _Experiment:
    from bluesky_cdi.io import read_frames, read_image
    from bluesky_cdi.single_shot import single_shot_propagator, square_window

    stack = read_frames(args.file, dataset=args.dataset, focus_to_sample_m=args.focus_to_sample)
    shape: tuple[int, int] = stack.counts.shape[1:]  # type: ignore[assignment]
    window = square_window(shape, tuple(args.centre) if args.centre else None, args.crop)
    size = window[0].stop - window[0].start
    geometry = None if stack.geometry is None else replace(stack.geometry, frame_px=size)
    mask = None if args.mask is None else read_image(args.mask)
    if mask is not None and mask.shape != shape:
        raise BlueskyCDIError(f"--mask must have the frames' shape {shape}; it has {mask.shape}")
    near = geometry is not None and geometry.propagation == "near"
    if args.surround == "clear" and stack.probe is None:
        raise BlueskyCDIError(
            f"--surround clear needs the beam around the sample; {args.file} holds no probe. Add it (`probe_guess` of "
            "NPZ, the illumination of CXI), or reconstruct in darkness."
        )
    return _Experiment(
        stack=stack,
        geometry=geometry,
        propagator=single_shot_propagator(geometry, args.fresnel_distance),
        # In darkness and the far field the beam's shape is part of the unknown exit wave.
        probe=stack.probe if near or args.surround == "clear" else None,
        window=window,
        support=None if args.support is None else read_image(args.support),
        mask=_both(mask, stack.mask),
    )


def _both(one: npt.NDArray[np.bool_] | None, other: npt.NDArray[np.bool_] | None) -> npt.NDArray[np.bool_] | None:
    if one is None or other is None:
        return other if one is None else one
    return one & other


def _settings(args: argparse.Namespace) -> SingleShotSettings:
    from bluesky_cdi.single_shot import ShrinkWrap, SingleShotSettings, check_settings

    def stated(kind: type) -> dict[str, Any]:
        given = {one.name: getattr(args, one.name, None) for one in fields(kind)}
        return {name: value for name, value in given.items() if value is not None}

    # In light there is no darkness to shrink the support by.
    fixed = args.no_shrink_wrap or args.surround == "clear"
    shrink = None if fixed else ShrinkWrap(**stated(ShrinkWrap))
    settings = SingleShotSettings(shrink_wrap=shrink, **stated(SingleShotSettings))
    check_settings(settings, args.starts)
    return settings


def _device(name: str) -> str:
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as err:
        raise BlueskyCDIError(
            f"--device must be auto, cpu or a CUDA device of this machine; got {name!r}: {err}"
        ) from err
    return name


def _check_numbers(numbers: Sequence[int], n: int) -> None:
    beyond = [k for k in numbers if k >= n]
    if beyond:
        raise BlueskyCDIError(f"--frames must be numbers from 0 to {n - 1}, for the file holds {n}; got {beyond[0]}")


def _prepared_frame(experiment: _Experiment, numbers: tuple[int, ...], args: argparse.Namespace) -> PreparedFrame:
    import numpy as np

    from bluesky_cdi.single_shot import prepare_frame

    label = _label(numbers)
    made = prepare_frame(
        (experiment.stack.counts[number] for number in numbers),
        experiment.window,
        experiment.mask,
        mask_negative=args.mask_negative,
        saturation=args.saturation,
        name=label,
    )
    if made.flagged:
        logger.warning("%s: %d pixels are flagged or saturated, and masked", label, made.flagged)
    if not np.array_equal(made.counts, np.rint(made.counts)):
        logger.warning("%s holds fractions: the R-factor of photon noise is that of whole photons", label)
    return made


def _label(numbers: tuple[int, ...]) -> str:
    return f"frame {numbers[0]}" if len(numbers) == 1 else f"sum of {len(numbers)} frames"


def _reconstruct_frame(
    experiment: _Experiment,
    frame: PreparedFrame,
    settings: SingleShotSettings,
    args: argparse.Namespace,
    device: str,
    on_progress: Callable[[int, npt.NDArray[np.float64]], None],
) -> SingleShotResult:
    import torch

    from bluesky_cdi.single_shot import reconstruct_single_shot, scaled_illumination

    counts = torch.from_numpy(frame.counts).to(device, torch.float32)
    mask = torch.from_numpy(frame.mask).to(device)
    illumination = None
    if experiment.probe is not None:
        illumination = scaled_illumination(
            experiment.probe,
            counts,
            mask,
            experiment.propagator,
            background=args.background,
            photons=args.illumination_photons,
        )
    return reconstruct_single_shot(
        counts,
        propagator=experiment.propagator,
        illumination=illumination,
        surround=args.surround,
        support=None if experiment.support is None else torch.from_numpy(experiment.support),
        mask=mask,
        background=args.background,
        starts=args.starts,
        seed=args.seed,
        settings=settings,
        on_progress=on_progress,
    )


def _image(
    experiment: _Experiment,
    numbers: tuple[int, ...],
    found: SingleShotResult,
    settings: SingleShotSettings,
    args: argparse.Namespace,
) -> SingleShotImage:
    from bluesky_cdi.io import SingleShotImage

    window = experiment.window
    return SingleShotImage(
        frames=numbers,
        object=found.average,
        support=found.supports[found.best],
        r_factor=found.r_factor,
        noise_r_factor=found.noise_r_factor,
        status=found.status,
        best=found.best,
        transfer=found.transfer,
        unmeasured_share=found.unmeasured_share,
        history=found.history,
        iterations=found.iterations,
        pixel_m=None if experiment.geometry is None else experiment.geometry.pixel_m,
        provenance={
            **experiment.stack.source,
            "rows": [window[0].start, window[0].stop],
            "columns": [window[1].start, window[1].stop],
            "mask": None if args.mask is None else args.mask.name,
            "support": "autocorrelation" if args.support is None else args.support.name,
            "surround": args.surround,
            "illumination": None if experiment.probe is None else "probe",
            "illumination_photons": args.illumination_photons,
            "propagator": type(experiment.propagator).__name__,
            "fresnel_distance_m": args.fresnel_distance,
            "background": args.background,
            "starts": args.starts,
            "seed": args.seed,
            "settings": json.loads(json.dumps(asdict(settings))),
        },
    )


def _draw(image: SingleShotImage, frame: PreparedFrame, path: Path) -> None:
    from bluesky_cdi import viz

    title = f"{_label(image.frames)[0].upper()}{_label(image.frames)[1:]}: {_verdict_text(image)}"
    try:
        viz.save_figure(viz.show_single_shot(image, frame.counts, frame.mask, title=title), path)
    except (ValueError, OSError) as err:
        raise BlueskyCDIError(f"can't draw {path}: {err}. Give --png another name.") from err


def _said(image: SingleShotImage) -> str:
    return "; ".join((_verdict_text(image), _resolution_text(image), *_unmeasured_text(image)))


def _verdict_text(image: SingleShotImage) -> str:
    agreeing = image.status.count(image.verdict)
    r_factor = f"R {image.r_factor[image.best]:.4f}" if image.verdict != "diverged" else "no R"
    noise = f"photon noise {image.noise_r_factor:.4f}"
    return f"{image.verdict}, {agreeing} of {len(image.status)} starts; {r_factor}, {noise}"


def _resolution_text(image: SingleShotImage) -> str:
    """Say the full period at which the transfer function falls below 1/e, and of what it is the transfer function."""
    period_px = _period_px(image)
    if period_px is None:
        return "no PRTF resolution"
    limit = ", the limit of the frame" if math.isnan(period_px) else ""
    period = 2.0 if math.isnan(period_px) else period_px
    length = "" if image.pixel_m is None else f" ({period * image.pixel_m * 1e9:.3g} nm)"
    return f"PRTF resolution {period:.3g} px{length}{limit}{', of guided starts' if _guided(image) else ''}"


def _unmeasured_text(image: SingleShotImage) -> list[str]:
    """Say how much of an image no valid pixel confirms, where that is a per cent or more."""
    if image.unmeasured_share < 0.01:
        return []
    return [f"{100 * image.unmeasured_share:.0f} % of its photons on masked pixels"]


def _period_px(image: SingleShotImage) -> float | None:
    """Give the full period in pixels; NaN where the frame's border limits it, None where starts or rings tell none."""
    from bluesky_cdi.evaluation import transfer_resolution_px

    # Starts that agree with nothing but themselves show nothing; in the near field a ring is no spatial frequency.
    if image.status.count("converged") < 2 or image.provenance["propagator"] == "AngularSpectrum":
        return None
    period_px = transfer_resolution_px(image.transfer, len(image.object))
    return math.nan if period_px is None else period_px if math.isfinite(period_px) else None


def _guided(image: SingleShotImage) -> bool:
    """Tell whether starts were brought towards the best one, so that they agree more than independent ones would."""
    provenance = image.provenance
    open_place = provenance["surround"] == "dark" and provenance["propagator"] == "FarField"
    return bool(open_place and provenance["settings"]["guide_every"])


def _numbers(image: SingleShotImage) -> dict[str, Any]:
    """Give plain values; JSON has no NaN, which becomes null."""
    period_px = _period_px(image)
    at_border = period_px is not None and math.isnan(period_px)
    period_px = 2.0 if at_border else period_px
    return {
        "frames": list(image.frames),
        "verdict": image.verdict,
        "starts": {word: image.status.count(word) for word in ("converged", "stagnated", "diverged")},
        "best": image.best,
        "r_factor": _finite(image.r_factor[image.best]),
        "r_factors": [_finite(value) for value in image.r_factor],
        "noise_r_factor": image.noise_r_factor,
        "prtf_resolution_px": period_px,
        "prtf_resolution_m": None if period_px is None or image.pixel_m is None else period_px * image.pixel_m,
        "prtf_limited_by_frame": at_border,
        "prtf_of_guided_starts": _guided(image),
        "prtf": [_finite(value) for value in image.transfer],
        "unmeasured_share": image.unmeasured_share,
        "support_pixels": int(image.support.sum()),
        "pixel_m": image.pixel_m,
        "iterations": image.iterations,
    }


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _frame_numbers(text: str) -> tuple[int, ...]:
    numbers: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdigit() or (dash and not last.isdigit()) or (dash and int(last) < int(first)):
            raise argparse.ArgumentTypeError(f"must be numbers from 0 and ranges, such as 0,3,5-9; got {text!r}")
        numbers.extend(range(int(first), int(last or first) + 1))
    if len(set(numbers)) < len(numbers):
        raise argparse.ArgumentTypeError(f"must name each frame once; got {text!r}")
    return tuple(numbers)


def _stages(text: str) -> tuple[Stage, ...]:
    from bluesky_cdi.single_shot import UPDATES, Stage

    stages = []
    for part in text.split(",") if text else ():
        update, _, rest = part.strip().partition(":")
        iterations, _, beta = rest.partition(":")
        try:
            number, strength = int(iterations), float(beta or 0.9)
        except ValueError:
            number, strength = -1, 0.0
        if update not in UPDATES or number < 0 or not math.isfinite(strength):
            raise argparse.ArgumentTypeError(
                f"must be update:iterations[:beta], of {', '.join(UPDATES)}, such as hio:80:0.9,er:20; got {part!r}"
            )
        stages.append(Stage(update, number, strength))  # type: ignore[arg-type]
    return tuple(stages)
