"""Figures of the suites; `reports.quality` has those of `suites.quality`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bluesky_cdi import viz
from bluesky_cdi.bench.problem import Problem, judge
from bluesky_cdi.bench.suites.single_shot import CASES, Options, measure, run
from bluesky_cdi.protocols import ComplexArray, FloatArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from torch import Tensor


def draw_phases(images: Mapping[str, ComplexArray], path: Path) -> None:
    """Draw the inner phases of objects side by side, each turned to its own mean.

    Parameters
    ----------
    images : Mapping of str to ndarray, shape (Y, X), complex
        Objects by their titles.
    path : Path
        File to write.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(images), 4.2), layout="constrained", dpi=70)
    for ax, (label, image) in zip(np.atleast_1d(figure.subplots(1, len(images))), images.items(), strict=True):
        rows, columns = image.shape
        middle = image[rows // 5 : -rows // 5, columns // 5 : -columns // 5]
        ax.imshow(np.angle(middle * np.conj(middle.mean())), cmap="gray", vmin=-1.0, vmax=1.0)
        ax.set_title(label, fontsize=10)
        ax.set_axis_off()
    viz.save_figure(figure, path)


def draw_single_shot(options: Options, photons: float, path: Path) -> None:
    """Draw truth, the chosen start and the average of each case of `suites.single_shot` side by side.

    Parameters
    ----------
    options : Options
        As measured; the first object of each case is drawn.
    photons : float
        Of the frame.
    path : Path
        File to write.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 2.1 * len(CASES)), layout="constrained", dpi=130)
    for axes, name in zip(figure.subplots(len(CASES), 5), CASES, strict=True):
        truth, record, found = _solved(name, options, photons)
        shown = np.abs(truth) > 0.02 * np.abs(truth).max()
        panels = {
            "truth, modulus": np.abs(truth),
            f"best R, {record['chosen']:.3f}": np.abs(found[0]),
            f"average, {record['average']:.3f}": np.abs(found[1]),
            "truth, phase": np.where(shown, np.angle(truth), np.nan),
            "best R, phase": np.where(shown, np.angle(found[0]), np.nan),
        }
        for ax, (title, image) in zip(axes, panels.items(), strict=True):
            _panel(
                ax,
                title,
                image[options.size // 4 : -options.size // 4, options.size // 4 : -options.size // 4],
                float(np.abs(truth).max()),
            )
        axes[0].set_ylabel(name, fontsize=8)
    title = f"one frame, {photons:.0e} photons, {options.starts} starts; NRMSE above the images"
    figure.suptitle(title, fontsize=9)
    viz.save_figure(figure, path)


def _solved(name: str, options: Options, photons: float) -> tuple[ComplexArray, dict[str, Any], list[ComplexArray]]:
    """Reconstruct the first object of a case: truth, numbers, and the chosen start and the average."""
    made = measure(CASES[name], photons, options.size, 0)
    record, result = run(CASES[name], photons, options, 0)
    return made.truth, record, [made.comparable(one) for one in (result.objects[result.best], result.average)]


def _panel(ax: Axes, title: str, image: FloatArray, brightest: float) -> None:
    phase = "phase" in title
    low, high = (-np.pi, np.pi) if phase else (0.0, brightest)
    ax.imshow(image, cmap="twilight" if phase else "gray", vmin=low, vmax=high)
    ax.set_title(title, fontsize=8)
    ax.set_xticks([], [])
    ax.set_yticks([], [])


class ObjectFigures:
    """Draws objects of a scan beside the truth or reference, each with its error.

    Parameters
    ----------
    folder : Path
        It exists.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(self, name: str, problem: Problem, objects: Mapping[str, Tensor]) -> None:
        """Draw one scan."""
        images: dict[str, ComplexArray] = {"Truth" if problem.held_out is None else "Reference": problem.truth}
        for label, obj in objects.items():
            judged = judge(obj, problem)
            images[f"{label}\nNRMSE {judged.numbers['complex_nrmse']:.3f}"] = judged.object
        figure = viz.show_images(
            images, problem.illuminated, origin_m=problem.origin_m, pixel_m=problem.pixel_m, title=name
        )
        viz.save_figure(figure, self._folder / f"{name.replace(',', '').replace(' ', '-').lower()}.png")
