"""One result of a catalog, and several, as Python users take them in hand."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, overload

from bluesky_cdi.catalog.browse import find_result, load_result
from bluesky_cdi.catalog.history import decisions_of
from bluesky_cdi.catalog.listing import ResultSummary
from bluesky_cdi.catalog.tables import dataset_of, updates_of
from bluesky_cdi.evaluation.gauge import shown_images
from bluesky_cdi.evaluation.verdict import verdict_said
from bluesky_cdi.physics.geometry import Geometry
from bluesky_cdi.protocols import Estimate, FloatArray, Proposal

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure

    from bluesky_cdi.catalog.connect import Catalog
    from bluesky_cdi.evaluation.fit import FittedFrame
    from bluesky_cdi.viz import Course


class Described:
    """What a derived run's documents tell.

    Parameters
    ----------
    catalog : Catalog
        Where it is.
    summary : ResultSummary
        A row of `list_results` with a uid.

    Attributes
    ----------
    summary : ResultSummary
        Numbers and words that a list shows.
    """

    def __init__(self, catalog: Catalog, summary: ResultSummary) -> None:
        self._catalog, self.summary = catalog, summary

    @property
    def uid(self) -> str:
        """Uid of the derived run."""
        return str(self.summary.uid)

    @property
    def name(self) -> str:
        """What it is called: plan, scan number, when it was measured."""
        return self.summary.title

    @cached_property
    def run(self) -> Any:
        """The derived run as Tiled's client has it, a ``BlueskyRun``."""
        return find_result(self._catalog, self.uid)

    @property
    def start(self) -> Mapping[str, Any]:
        """The derived run's start document: what made it."""
        return dict(self.run.start)

    @property
    def stop(self) -> Mapping[str, Any]:
        """The derived run's stop document: what became of it; empty while it goes on, or if its process died."""
        return dict(self.run.metadata.get("stop") or {})

    @property
    def geometry(self) -> Geometry:
        """Optics of the frames that were reconstructed."""
        rows, columns = self.start["frame_shape"]
        return Geometry.from_metadata(self.start, (rows, columns))

    @property
    def verdict(self) -> str:
        """Whether it can be believed, and why not, in a line; empty where nobody has judged it."""
        return verdict_said(self.stop)

    @property
    def thumbnail(self) -> bytes | None:
        """The phase as a small PNG; None where none was stored."""
        text = self.stop.get("thumbnail")
        return None if text is None else base64.b64decode(text)

    @property
    def loss_history(self) -> Mapping[str, Sequence[float]] | None:
        """``iteration`` and ``deviance``, of what reconstructed all frames at once; None of others (see `updates`)."""
        found: Mapping[str, Sequence[float]] | None = self.stop.get("loss_history")
        return found


class Result(Described):
    """A reconstruction in a catalog; what is large is read when it is asked for."""

    @cached_property
    def estimate(self) -> Estimate:
        """The final estimate.

        Raises
        ------
        CatalogError
            If the result is not complete.
        """
        return load_result(self._catalog, self.uid)

    @property
    def phase_rad(self) -> FloatArray:
        """The object's phase as figures show it, (Y, X), radians: its mean over the measured area is 0."""
        return shown_images(self.estimate)["phase"]

    @property
    def decisions(self) -> list[Proposal]:
        """What the agent decided in the scan, in order, with its reasons; empty where it asked for nothing."""
        return decisions_of(self._catalog, self.summary.raw_uid)

    @property
    def updates(self) -> xr.Dataset:
        """Of each update ``n_frames``, ``seconds``, the medians of residual and predicted error, and ``time``."""
        return updates_of(self.run)

    def plot(self, fit: FittedFrame | None = None) -> Figure:
        """Draw phase, amplitude, predicted error, probe and convergence; see `bluesky_cdi.viz.show_result`.

        Parameters
        ----------
        fit : FittedFrame, optional
            A diffraction pattern and its fit, as `bluesky_cdi.recorded_run.frame_and_fit` gives them.

        Raises
        ------
        CatalogError
            If the result is not complete.
        """
        from bluesky_cdi import viz

        return viz.show_result(self.estimate, self.name, _course_of(self), fit)

    def to_xarray(self) -> xr.Dataset:
        """Give all arrays with their axes in metres; see `tables.dataset_of`.

        Raises
        ------
        CatalogError
            If the result is not complete.
        """
        return dataset_of(self.estimate, self.run, self.summary)

    def __repr__(self) -> str:
        return f"<Result {self.uid[:8]}: {', '.join(_said(self.summary).values())}>"

    def _repr_html_(self) -> str:
        """Show it in a notebook. Metadata are others' text: all of it is escaped."""
        rows = {**_said(self.summary), "verdict": self.verdict or "not known", "uid": self.uid}
        table = _table(rows.items())
        if (png := self.thumbnail) is None:
            return table
        text = base64.b64encode(png).decode("ascii")
        return f'<div><img alt="phase" src="data:image/png;base64,{text}">{table}</div>'


class Results(Sequence[Result]):
    """Results that were found, the oldest first.

    Parameters
    ----------
    results : iterable of Result
        The results.
    """

    def __init__(self, results: Iterable[Result]) -> None:
        self._results = list(results)

    @overload
    def __getitem__(self, index: int) -> Result: ...
    @overload
    def __getitem__(self, index: slice) -> Results: ...
    def __getitem__(self, index: int | slice) -> Result | Results:
        return Results(self._results[index]) if isinstance(index, slice) else self._results[index]

    def __len__(self) -> int:
        return len(self._results)

    def __iter__(self) -> Iterator[Result]:
        return iter(self._results)

    def __repr__(self) -> str:
        lines = [f"{len(self)} result(s)", *(f"  [{k}] {result!r}" for k, result in enumerate(self))]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """Show them as a table in a notebook; all text is escaped."""
        rows = [{"uid": result.uid[:8], **_said(result.summary)} for result in self]
        heads = list(dict.fromkeys(key for row in rows for key in row))
        head = "".join(f"<th>{html.escape(key)}</th>" for key in heads)
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(row.get(key, ''))}</td>" for key in heads) + "</tr>" for row in rows
        )
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _course_of(result: Result) -> Course:
    """Tell how a reconstruction went, by its losses where it keeps them."""
    from bluesky_cdi.viz import Course

    if (losses := result.loss_history) is not None:
        return Course("iteration", losses["deviance"])
    updates = result.updates
    return Course("update", updates.median_residual.values, updates.n_frames.values)


def _said(summary: ResultSummary) -> dict[str, str]:
    """Say what a list shows of a result."""
    said = {
        "result": summary.title,
        "sample": summary.sample or "",
        "frames": "" if summary.n_frames is None else f"{summary.n_frames} frames",
        "quality": summary.verdict or ("not judged" if summary.complete else "not complete"),
    }
    return {key: value for key, value in said.items() if value}


def _table(rows: Iterable[tuple[str, str]]) -> str:
    cells = "".join(f"<tr><th>{html.escape(key)}</th><td>{html.escape(str(value))}</td></tr>" for key, value in rows)
    return f"<table><tbody>{cells}</tbody></table>"
