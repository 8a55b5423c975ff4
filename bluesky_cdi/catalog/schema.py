"""The form of a derived run: its documents' keys and its streams. `docs/catalog.md` says the same for users.

Keys beyond those of the event model are checked when a run is written: none goes out that is not named here.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bluesky_cdi.errors import DocumentError

PLAN_NAME = "cdi_reconstruction"
# Spec of the run in Tiled. Without a version: those of before have none, and their arrays are here too.
SPEC = "CDIReconstruction"
# Its streams: a row an update, a row a frame of the final estimate, and one row.
UPDATES, PER_FRAME, MAPPED = "reconstruction", "frames", "maps"
# The device that the data keys are of.
SOURCE = "bluesky_cdi"
# Parts of an estimate's source that are known when the run is over, and stand in the stop document.
NOTED_AT_END = ("verdict", "causes", "resolution", "uncertainty", "loss_history")

ExitStatus = Literal["success", "abort", "fail"]


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Versions(_Document):
    """What wrote a derived run."""

    bluesky_cdi: str = Field(description="version of this package")
    commit: str | None = Field(None, description="its commit, where it runs from a checkout of git; `-dirty`: changed")
    python: str | None = Field(None, description="version of the interpreter")
    numpy: str | None = Field(None, description="of NumPy")
    torch: str | None = Field(None, description="of PyTorch")
    bluesky: str | None = Field(None, description="of Bluesky")
    tiled: str | None = Field(None, description="of Tiled")


class StartNotes(_Document):
    """Keys of a derived run's start document beyond those of the event model."""

    plan_name: Literal["cdi_reconstruction"] = Field(description="what the run is")
    title: str = Field(description="for people: plan, scan number, when it was measured")
    raw_uid: str = Field(description="uid of the raw run")
    scan_id: int = Field(description="number of the raw run")
    sample: str | None = Field(None, description="what was measured, if the raw run's metadata tell (`sample`)")
    source: dict[str, Any] = Field(
        description="what made it: engine or network, checksum of its weights, settings, seed, device"
    )
    geometry: dict[str, Any] = Field(description="optics of the frames that were reconstructed")
    frame_shape: tuple[int, int] = Field(description="their rows and columns")
    versions: Versions = Field(description="of this package (with its commit), Python, NumPy, PyTorch, Bluesky, Tiled")
    configuration: dict[str, Any] = Field(
        default_factory=dict, description="settings that differ from that version's defaults, without the catalog's"
    )
    continues: str | None = Field(None, description="uid of the derived run that it goes on from")
    tiled_specs: list[str] = Field(description="specs of its entry in Tiled")


class LossHistory(_Document):
    """How a reconstruction of all frames at once went."""

    iteration: list[int] = Field(description="number of the iteration, from 1")
    deviance: list[float | None] = Field(description="mean Poisson deviance a pixel after it")


class LatentNotes(_Document):
    """What the latents of a run's frames rest on."""

    projection_sha256: str | None = Field(description="checksum of the weights' projection; null: that of the run")


class StopNotes(_Document):
    """Keys of a derived run's stop document beyond those of the event model."""

    complete: bool = Field(description="whether there is a final estimate")
    n_frames: int | None = Field(description="frames that it rests on")
    thumbnail: str | None = Field(None, description="its phase, a PNG of at most 160 pixels a side, base64")
    verdict: dict[str, Any] | None = Field(None, description="whether it can be believed, and why not")
    causes: list[dict[str, Any]] | None = Field(None, description="of misfit")
    resolution: dict[str, Any] | None = Field(
        None, description="of two halves of the frames, or why they were not compared (`says`)"
    )
    uncertainty: dict[str, Any] | None = Field(None, description="how its errors were predicted")
    loss_history: LossHistory | None = Field(
        None, description="loss after each iteration, where all frames were reconstructed at once"
    )
    source: dict[str, Any] | None = Field(
        None,
        description="what of the start document's `source` has come or changed since: counts of frames, and the like",
    )
    latents: LatentNotes | None = Field(None, description="what the latents of its frames rest on")


def checked(form: type[BaseModel], notes: Mapping[str, Any]) -> dict[str, Any]:
    """Give notes back if they have a form of this module.

    Parameters
    ----------
    form : type
        `StartNotes` or `StopNotes`.
    notes : Mapping
        Plain values; keys that are left out stay so.

    Raises
    ------
    DocumentError
        If they have not: a key is missing, has another type, or is none of the form's.
    """
    try:
        form.model_validate(notes)
    except ValidationError as err:
        wrong = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in err.errors())
        raise DocumentError(
            f"a derived run's document does not have its form, {form.__name__} ({wrong}). "
            "Give the estimate's source these keys as they are documented, or others."
        ) from err
    return dict(notes)


def title_of(start: Mapping[str, Any]) -> str:
    """Say for people which raw run it is: plan, scan number, and when it was measured.

    Parameters
    ----------
    start : Mapping
        Its start document.
    """
    parts = [str(start.get("plan_name") or ""), f"scan {start['scan_id']}" if start.get("scan_id") is not None else ""]
    if start.get("time") is not None:
        parts.append(datetime.fromtimestamp(start["time"]).strftime("%Y-%m-%d %H:%M"))
    return ", ".join(filter(None, parts))


def sample_of(start: Mapping[str, Any]) -> str | None:
    """Say what was measured: ``sample``, a name or a mapping with a name, or ``sample_name`` of a raw run's metadata.

    Parameters
    ----------
    start : Mapping
        Its start document.
    """
    sample = start.get("sample")
    if isinstance(sample, Mapping):
        sample = sample.get("name")
    sample = sample or start.get("sample_name")
    return None if sample is None else str(sample)
