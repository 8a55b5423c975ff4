"""The one configuration tree: frozen, unknown keys refused, units in the names.

A profile's ``config.yaml`` holds what differs from the defaults here.
"""

from __future__ import annotations

import ipaddress
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from bluesky_cdi.errors import ConfigError

logger = logging.getLogger(__name__)

# A configuration has some hundred keys in two levels. What is far beyond that could take minutes, or all memory.
FILE_MAX = 256 * 2**10
DEPTH_MAX = 16
# Environment variable that names further files, separated as in PATH.
FILES_VARIABLE = "BLUESKY_CDI_CONFIG"

ImagePanel = Literal[
    "phase", "amplitude", "error", "coverage", "residual", "pattern", "fit", "probe", "caustic", "words"
]  # fmt: skip
ColourMap = Literal["gray", "viridis", "cividis", "magma", "RdBu_r", "twilight"]


class Section(BaseModel):
    """Base of every part of the configuration."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


class GeometryConfig(Section):
    """Geometry of the experiment; goes into the metadata of every run."""

    energy_ev: float = Field(default=8000.0, gt=0)
    """Photon energy, eV."""
    distance_m: float = Field(default=2.0, gt=0)
    """Sample to detector, metres."""
    detector_pixel_m: float = Field(default=172e-6, gt=0)
    """Pixel of the detector itself, before any binning by `detector.bin`, metres."""
    frame_px: int = Field(default=64, ge=16, le=1024, multiple_of=2)
    """Pixels along one side of the square frame, as it is reconstructed."""
    propagation: Literal["far", "near"] = "far"
    """From the sample to the detector: far field, or near field (a shadow with interference)."""
    focus_to_sample_m: float | None = Field(default=None, gt=0)
    """Near field behind a focus, which magnifies: focus to sample, metres. None: a parallel beam."""

    @model_validator(mode="after")
    def _focus_in_the_near_field(self) -> GeometryConfig:
        if self.propagation == "far" and self.focus_to_sample_m is not None:
            raise ValueError("focus_to_sample_m belongs to the near field: set propagation to near, or leave it out")
        return self


class DetectorConfig(Section):
    """What is done to a detector's frames before anything else, live and with recorded scans (docs/detector.md).

    Pixels are counted from 0 in the frame as the detector gives it, pairs are (row, column). Files of images are NPY,
    NPZ, HDF5 or TIFF of the detector's shape; ``FILE::NAME`` names one of several arrays in a file.
    """

    region_px: tuple[int, int, int, int] | None = None
    """Part of the frame that is used: first row, row after the last, first column, column after the last. None: all."""
    beam_centre_px: tuple[float, float] | Literal["find"] | None = None
    """Pixel (row, column) of the direct beam; fractions count from a pixel's centre. ``find``: from the frames. None:
    the middle of the region, ``[H // 2, W // 2]``."""
    crop_px: int | None = Field(default=None, ge=2)
    """Side of the square around the direct beam that is kept, pixels. None: the largest in the region."""
    pad: bool = False
    """Pixels that the square lacks are added, masked; without `crop_px` the square then holds the whole region. False:
    the square must lie in the region."""
    bin: int = Field(default=1, ge=1, le=64)
    """So many pixels a side are summed to one."""
    rotate_deg: Literal[0, 90, 180, 270] = 0
    """Turn of the frame as it is drawn with row 0 on top, counter-clockwise, degrees; before all other turns."""
    transpose: bool = False
    """Exchange rows and columns; before the flips."""
    flip_rows: bool = False
    """Turn the order of the rows round (upside down)."""
    flip_columns: bool = False
    """Turn the order of the columns round (left for right)."""
    dark: str | None = None
    """Image that is subtracted from each frame, counts."""
    flat: str | None = None
    """Sensitivity of each pixel, by which counts are divided as it stands: 1 changes nothing."""
    mask: str | None = None
    """Image that is 0 where a pixel is bad, and 1 where it is valid."""
    bad_pixels: str | None = None
    """Image that is 0 where a pixel is valid, and anything else where it is bad: the pixel_mask of NeXus."""
    mask_flagged: bool = False
    """Live: mask pixels that hold a flag in place of counts (negative, NaN, the largest integers) in each of a run's
    first frames. Those of recorded scans are always masked."""
    saturation: float | None = Field(default=None, gt=0)
    """Counts of the detector from which on a pixel is saturated and left out of its frame; None: none is."""

    @property
    def changes_frames(self) -> bool:
        """Whether anything is to be done before the reconstruction; the saturation is looked at in it."""
        return self.model_copy(update={"saturation": None}) != DetectorConfig()

    @model_validator(mode="after")
    def _crop_fits_the_bin(self) -> DetectorConfig:
        if self.crop_px is not None and self.crop_px % self.bin:
            raise ValueError(
                f"crop_px ({self.crop_px}) must be a multiple of bin ({self.bin}): "
                f"{self.crop_px - self.crop_px % self.bin} is"
            )
        return self


class ProbeConfig(Section):
    """First guess of the probe: that of a file, or a defocused lens; refined during the run."""

    file: Path | None = None
    """File that ``bluesky-cdi probe`` or ``bluesky-cdi browse --probe`` wrote. None: the library, or the lens."""
    library: Path | None = None
    """Folder of this instrument's probes: runs that end well keep theirs there, and the next begins with the nearest of
    the same energy, unless `file` names one. `defocus_m` then says where the sample stands. None: the lens."""

    numerical_aperture: float = Field(default=0.86e-3, gt=0, lt=0.1)
    """Half opening angle of the focusing optic, radians."""
    central_stop: float = Field(default=0.25, ge=0, lt=1)
    """Radius of the central stop as a share of the aperture's."""
    defocus_m: float = 0.25e-3
    """Distance from the focus to the sample, metres; positive downstream."""
    modes: int = Field(default=2, ge=1, le=8)
    """Incoherent modes to reconstruct."""
    trust: bool = False
    """Take the first guess as it is. Else it is checked by the first frames of a run, beside the reconstruction, and
    replaced where another explains unseen frames better beyond doubt."""


class ScanConfig(Section):
    """Where and how much to measure."""

    centre_um: tuple[float, float] = (0.0, 0.0)
    """Centre of the window (y, x), micrometres."""
    extent_um: tuple[float, float] = (3.6, 3.6)
    """Extent of the window of probe centres (y, x), micrometres."""
    step_um: float = Field(default=0.18, gt=0)
    """Step of the full raster, and spacing of the positions that an agent chooses from, micrometres."""
    budget: int = Field(default=200, ge=1)
    """Most frames that a run may take."""
    batch: int = Field(default=16, ge=1, le=256)
    """Positions decided at a time."""
    exposure_s: float = Field(default=0.02, ge=0)
    """Exposure of a frame, seconds."""
    decision_timeout_s: float = Field(default=5.0, ge=0)
    """How long the plan waits for a decision before it takes the next point of the coverage path, seconds."""

    on_reconstruction_failure: Literal["continue", "pause", "abort"] = "continue"
    """What becomes of the scan when its reconstruction fails; what is measured is kept in any case."""

    def as_plan_arguments(self) -> dict[str, Any]:
        """Give the scan as the keyword arguments of `bluesky_cdi.plans.adaptive_ptycho`."""
        return {
            "centre_um": list(self.centre_um),
            "extent_um": list(self.extent_um),
            "step_um": self.step_um,
            "budget": self.budget,
            "batch": self.batch,
            "decision_timeout_s": self.decision_timeout_s,
            "on_reconstruction_failure": self.on_reconstruction_failure,
        }


class AgentConfig(Section):
    """How positions are chosen."""

    name: Literal["bayesian", "raster", "spiral", "random"] = "bayesian"
    """Which agent."""
    seed: int = 0
    """Seed of what it draws at random."""
    alpha: float = Field(default=0.6, ge=0, le=1)
    """Weight of what will be learned of the field against what the image gains in coverage."""
    coverage_share: float = Field(default=0.1, ge=0, le=1)
    """Share of each batch that is pure coverage."""
    stop_gain: float = Field(default=0.01, ge=0, lt=1)
    """Stop when the expected gain of three batches in a row is below this share of the first batch's."""
    target_std_rad: float = Field(default=0.0, ge=0)
    """Stop when the median predicted phase error of the frames is below this, radians; 0: never."""
    target_resolution_m: float = Field(default=0.0, ge=0)
    """Stop when two disjoint halves of the frames agree down to this full period (half-bit ring correlation) in two
    checks in a row, metres; 0: never, and nothing is checked. The bayesian agent stops so once the field is covered."""


UncertaintyName = Literal["photon noise", "critic", "variational", "ensemble", "dropout", "halves", "deep ensemble"]
# Of these, those that need no network, and those that need no weights.
OF_ENGINES, WITHOUT_WEIGHTS = ("photon noise", "halves"), ("photon noise", "halves", "critic")


class HostConfig(Section):
    """A machine that reconstructs for this one: ``bluesky-cdi serve-reconstructor`` runs there (docs/gpu-host.md)."""

    address: tuple[str, ...] = ()
    """Where hosts listen, ``NAME:PORT``; the first that answers and has room is taken. None: reconstruct here."""
    keys: Path | None = None
    """Folder of this machine's keys, as ``serve-reconstructor --new-client`` makes it; hosts of other names than this
    machine's own need it."""
    otherwise: Literal["local", "none"] = "local"
    """Where no host can be had: reconstruct on this machine until the next run, or not until there is one."""
    connect_s: float = Field(default=5.0, gt=0)
    """How long a host's answer is waited for, seconds."""
    retry_s: float = Field(default=10.0, gt=0)
    """Time between two looks for a host where there was none, seconds."""

    @model_validator(mode="before")
    @classmethod
    def _one_address(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and isinstance(values.get("address"), str):
            return {**values, "address": (values["address"],)}
        return values

    @model_validator(mode="after")
    def _addresses_that_may_be_used(self) -> HostConfig:
        for address in self.address:
            name, _, port = address.rpartition(":")
            if not name or not port.isdecimal() or "//" in name:
                raise ValueError(f"a host's address must be NAME:PORT, such as gpu1:5991; got {address!r}")
            if self.keys is None and not is_loopback(name):
                raise ValueError(
                    f"what is sent to {address} would be open to its whole network: state reconstructor.host.keys, or "
                    "reach the host through an SSH tunnel as 127.0.0.1:PORT (docs/gpu-host.md)"
                )
        return self


def is_loopback(name: str) -> bool:
    """Tell whether an address leads to this machine alone.

    Parameters
    ----------
    name : str
        Name or number of a machine.
    """
    try:
        return ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return name == "localhost"


class ReconstructorConfig(Section):
    """How frames become an image."""

    name: Literal["pinn", "epie", "rpie", "dm", "raar", "lsqml"] = "pinn"
    """The unrolled network with refinement by LSQ-ML, or an iterative engine alone."""
    device: str = "auto"
    """PyTorch device; ``auto`` takes a GPU where there is one."""
    threads: int = Field(default=1, ge=0)
    """CPU threads of the worker; 0 leaves PyTorch's own choice."""
    weights: str = "canvas-small"
    """Name of shipped weights (``canvas-small``, or ``canvas-large``: better, in 2.2 to 2.4 times the time on an H100;
    ``sweep-small`` or ``sweep-large``: improve on what is known already, in up to three passes, also of thick
    objects), or path of a ``.safetensors`` file with its record beside it."""
    uncertainty: UncertaintyName | None = None
    """What predicts errors (docs/uncertainty.md): the ``photon noise`` alone; the network's ``critic``; heads beside it
    that can disagree (``variational``, ``ensemble``, ``dropout``); what two ``halves`` of the frames don't share; or a
    ``deep ensemble`` of networks. None: the critic of pinn, the photon noise of others, and when a run has ended
    halves, if these are calibrated."""
    uncertainty_weights: tuple[str, ...] = ()
    """Weights files that it needs: the heads, if they don't lie beside `weights`, or the other networks of a deep
    ensemble, names or paths."""
    refine_iterations: int = Field(default=3, ge=0)
    """Iterations of the engine in each step, after the network if there is one."""
    tolerance: float = Field(default=0.0, ge=0, lt=1)
    """A step ends early when five iterations lower the deviance by less than this share; 0: never."""
    batch: int | None = Field(default=None, ge=1)
    """Frames a mini-batch of rpie, lsqml or pinn; None: the engine's own choice."""
    fine_tune_s: float = Field(default=0.0, ge=0)
    """Time that each step with new frames takes to tune the network on those measured so far, seconds; 0: none."""
    final_steps: int = Field(default=10, ge=0)
    """Further steps of such iterations after the last frame; each begins with frames that were left out and can be read
    again from their files. 0: none, but for a full image where the last one was made quickly."""
    step_budget_s: float = Field(default=5.0, gt=0)
    """Time after which a step begins no further iteration, seconds."""
    latency_s: float = Field(default=2.0, gt=0)
    """How long a frame may wait for a live image with it, seconds. Where images of all frames take longer, the network
    reads new frames alone, of too many some from everywhere; all are read before the result is final
    (docs/pipeline.md). Scans that ask for decisions always wait for images of all frames; so do engines without a
    network."""
    final_budget_s: float = Field(default=60.0, gt=0)
    """Time after which no further final step begins, seconds, once all frames are in the image."""
    background: float = Field(default=0.002, ge=0)
    """Background that the detector is known to have, photons per pixel and frame."""
    refine_probe: bool = True
    """Refine the probe together with the object."""
    refine_positions: bool = False
    """Refine the positions too (lsqml and pinn only)."""
    refine_flux: bool = False
    """Refine each frame's flux too (lsqml and pinn only)."""
    window_px: int | None = Field(default=512, ge=64)
    """Most pixels along one side of what is reconstructed at a time: a larger object is reconstructed region by
    region, and new frames cost only the regions that they touch. A region is never narrower than three frames.
    None: the whole object at a time, whatever its size."""
    memory_mb: int = Field(default=4096, ge=0)
    """Most MiB of counts held in memory; further frames go to unnamed files in the folder for temporary files
    (``TMPDIR``)."""
    checkpoint_s: float = Field(default=60.0, ge=0)
    """Time between two checkpoints, from which a reconstruction that was interrupted goes on (``bluesky-cdi resume``),
    seconds; 0: none."""
    file_timeout_s: float = Field(default=10.0, ge=0)
    """How long the frames of a file are waited for that documents announce and that is not there yet, seconds; the
    scan itself does not wait."""
    in_process: bool = False
    """Reconstruct in the session's own process: for debuggers and tests. Else there is one for it, which may fail, hang
    or be killed without harm to the scan, and is started again."""
    host: HostConfig = HostConfig()
    """Another machine that has the process."""
    queue_frames: int | None = Field(default=None, ge=1)
    """Frames that may wait for the worker; more are left out of the live image until the run is over. None: as many as
    fit into a quarter of `memory_mb`, and 64 at least."""

    @model_validator(mode="after")
    def _here_or_there(self) -> ReconstructorConfig:
        if self.in_process and self.host.address:
            raise ValueError("in_process reconstructs in the session, host.address elsewhere: leave one of them out")
        return self

    @model_validator(mode="after")
    def _fits_the_reconstructor(self) -> ReconstructorConfig:
        if self.name not in ("lsqml", "pinn") and (self.refine_positions or self.refine_flux):
            raise ValueError(
                f"only lsqml and pinn refine positions and fluxes; the reconstructor is {self.name}: "
                "set refine_positions and refine_flux to false"
            )
        if self.name != "pinn" and self.uncertainty not in (None, *OF_ENGINES):
            raise ValueError(
                f"the uncertainty {self.uncertainty!r} is of networks; the reconstructor is {self.name}: set it to "
                f"{' or '.join(map(repr, OF_ENGINES))}, or leave it out"
            )
        if self.uncertainty_weights and self.uncertainty in (None, *WITHOUT_WEIGHTS):
            raise ValueError(
                f"uncertainty_weights are of heads and ensembles; the uncertainty is {self.uncertainty!r}: leave them "
                "out"
            )
        if len(self.uncertainty_weights) > 1 and self.uncertainty != "deep ensemble":
            raise ValueError(
                f"the uncertainty {self.uncertainty!r} has its heads in one file; uncertainty_weights names "
                f"{len(self.uncertainty_weights)}"
            )
        if self.name != "pinn" and self.fine_tune_s:
            raise ValueError(f"only a network is tuned; the reconstructor is {self.name}: set fine_tune_s to 0")
        return self


class LatentsConfig(Section):
    """What describes a frame, for latents and for the agent (docs/latents.md)."""

    embedding: Literal["critic", "radial profile", "class tokens"] | None = None
    """Features of the network's ``critic`` under the frame; the ``radial profile`` of its counts; or its ``class
    tokens`` by a frame encoder, which costs more. None: the critic where it predicts errors, else the profile."""
    encoder: str = "frames.encoder"
    """Frame encoder of class tokens: the shipped one, or path of a ``.safetensors`` file with its record beside it."""


class TimeStampsConfig(Section):
    """How frames of fly scans find their positions, where these have time stamps of their own."""

    stream: str | None = None
    """Name of the stream that holds the positions. None: what the run's metadata name (``position_stream``), if any."""
    frame_key: str | None = None
    """Data key of the frames' time stamps. None: the only key of their stream that states a unit of time."""
    position_key: str | None = None
    """Data key of the positions' time stamps. None: the only key of their stream that states a unit of time."""
    number_key: str | None = None
    """Data key of the detector's own count of frames, which tells of dropped ones. None: what the run's metadata name
    (``frame_number_key``), if any."""
    frame_marks: Literal["start", "centre", "end"] = "start"
    """What moment of its exposure a frame's time stamp is."""
    offset_s: float = 0.0
    """What the positions' clock shows beyond the frames' clock, seconds."""
    lead_s: float = Field(default=30.0, ge=0)
    """How far frames may run ahead of their positions before they are told as missing, by their own time stamps,
    seconds. Positions that come still later are used all the same."""
    gap_s: float | None = Field(default=None, gt=0)
    """Longest time between two samples that positions are interpolated in, seconds. None: ten times the usual one."""


class DocumentsConfig(Section):
    """What of a run's documents makes a frame; None leaves it to what the documents themselves say."""

    stream: str = "primary"
    """Name of the stream that holds the frames."""
    frame_key: str | None = None
    """Data key of the frames. None: the only key with 2-D frames; with two area detectors in a run, name one."""
    several: Literal["sum", "each"] = "sum"
    """Several images an event, shape (n, H, W): their sum is the frame, or each is a frame of its own."""
    position_keys: tuple[str, str] | None = None
    """Data keys of the position, (y, x). None: the two motors that the plan scans."""
    position_unit: str | None = None
    """Unit of length of positions whose device states none."""
    monitor_key: str | None = None
    """Data key of the incident flux. None: that which the run's metadata name (``monitor``), if any."""
    time_stamps: TimeStampsConfig = TimeStampsConfig()
    """Positions with time stamps of their own."""


class CatalogConfig(Section):
    """Where runs are kept."""

    directory: Path = Path("~/bluesky_cdi_data")
    """Folder of the embedded server's catalog and files."""
    uri: str | None = Field(default=None, repr=False)
    """Address of an existing Tiled server, used instead of the embedded one."""
    api_key: str | None = Field(default=None, repr=False)
    """Key for that server."""
    reserve_mb: float = Field(default=256.0, ge=0)
    """Room that must be left on the disks of journal, frames and results, megabytes: below it the scan pauses before
    measured data can't be kept."""
    in_process: bool = False
    """Serve and feed the catalog in the session's own process: for debuggers and tests. Else it has one of its own,
    which may fail, hang or be killed without harm to the scan."""


class LiveViewConfig(Section):
    """The picture of a run while it goes on (docs/live-view.md): where it is shown, how often, and what is in it."""

    window: Literal["auto", "always", "never"] = "auto"
    """A window of its own: where there is a display; always, which complains where there is none; never."""
    file: Path | None = None
    """PNG file that is written anew with each drawing; in the session's folder, unless the path says another."""
    animation: Path | None = None
    """Film of each run, `.gif`, or `.mp4` where ffmpeg is installed; ``{scan_id}`` in its name is the run's number."""
    most_fps: float = Field(default=5.0, gt=0, le=5)
    """Most drawings, per second."""
    panels: tuple[ImagePanel, ...] = Field(
        default=(
            "phase", "amplitude", "error", "coverage", "residual", "pattern", "fit", "probe", "caustic", "words",
        ),
        min_length=1,
    )  # fmt: skip
    """What is drawn once there is an image, in this order."""
    scan_maps: Literal["until_image", "always", "never"] = "until_image"
    """Maps of what frames say by themselves (transmission, dark field, differential phase): until there is an image,
    always, never."""
    phase_colours: ColourMap = "gray"
    """Colours of the phase."""
    amplitude_colours: ColourMap = "gray"
    """Colours of amplitudes."""
    phase_zero: Literal["vacuum", "mean"] = "vacuum"
    """Where the phase is 0: in vacuum, where that is seen, else the mean; or always the mean of the measured area."""
    row_zero: Literal["top", "bottom"] = "top"
    """Where the images' row 0 is: above, as in Tiled, or below."""

    @model_validator(mode="after")
    def _film_has_a_known_form(self) -> LiveViewConfig:
        if self.animation is not None and self.animation.suffix.lower() not in (".gif", ".mp4"):
            raise ValueError(f"animation must end in .gif or .mp4; it is {str(self.animation)!r}")
        if len(set(self.panels)) < len(self.panels):
            raise ValueError(f"panels must name each panel once; they are {', '.join(self.panels)}")
        return self


class SimulationConfig(Section):
    """The simulated beamline: the truth, and the faults of its devices."""

    sample: Literal["star", "particles", "cells", "blank", "natural", "leaves", "lines", "circuit", "phase", "gold"] = (
        "star"
    )
    """What is under the beam; `physics.objects.make_sample` describes each kind."""
    seed: int = 0
    """Seed of sample, noise and faults."""
    photons: float = Field(default=1e5, gt=0)
    """Mean photons of a frame through vacuum."""
    background: float = Field(default=0.002, ge=0)
    """Mean background, photons per pixel and frame."""
    coherent_share: float = Field(default=0.95, gt=0, le=1)
    """Share of the photons in the first probe mode; 1 is full coherence."""
    defocus_error_m: float = 15e-6
    """The true probe's defocus minus the configured one's, metres."""
    dead_pixels: int = Field(default=6, ge=0)
    """Pixels that always read 0."""
    hot_pixels: int = Field(default=3, ge=0)
    """Pixels that always read saturation."""
    saturation: int = Field(default=65535, ge=1)
    """Counts at which a pixel saturates."""
    position_error_m: float = Field(default=3e-9, ge=0)
    """Standard deviation of true minus read-back position, metres."""
    flux_fluctuation: float = Field(default=0.03, ge=0, lt=1)
    """Relative standard deviation of the incident flux."""
    velocity_m_per_s: float = Field(default=2e-4, gt=0)
    """Speed of the stage, metres per second."""
    frames: Literal["file", "inline"] = "file"
    """Frames go to an HDF5 file announced by asset documents, or inside the event."""


# Units of the geometry, and what instruments have in them: keV, millimetres and micrometres lie outside.
USUAL = {"energy_ev": ("eV", 100, 2e5), "distance_m": ("m", 1e-3, 100), "detector_pixel_m": ("m", 1e-7, 1e-3)}

# Keys of earlier versions, and what they are called now.
RENAMED_KEYS = {
    "simulation.beam_fluctuation": "simulation.flux_fluctuation",
    "reconstructor.saturation": "detector.saturation",
}


class Config(Section):
    """Everything that a session needs to know."""

    geometry: GeometryConfig = GeometryConfig()
    detector: DetectorConfig = DetectorConfig()
    probe: ProbeConfig = ProbeConfig()
    scan: ScanConfig = ScanConfig()
    agent: AgentConfig = AgentConfig()
    reconstructor: ReconstructorConfig = ReconstructorConfig()
    latents: LatentsConfig = LatentsConfig()
    documents: DocumentsConfig = DocumentsConfig()
    catalog: CatalogConfig = CatalogConfig()
    live_view: LiveViewConfig = LiveViewConfig()
    simulation: SimulationConfig = SimulationConfig()

    def as_notes(self) -> dict[str, Any]:
        """Give what differs from the defaults as plain values; no view, nor the catalog, which may have a key."""
        return self.model_dump(mode="json", exclude_defaults=True, exclude={"catalog", "live_view"})

    def with_documents(self, **chosen: Any) -> Config:
        """Choose keys of `documents`; what is None stays as it is configured.

        Parameters
        ----------
        **chosen : Any
            Values by key of `DocumentsConfig`.

        Raises
        ------
        ConfigError
            If a value is none that the key may have.
        """
        changes = {key: value for key, value in chosen.items() if value is not None}
        if not changes:
            return self
        # What was set stays told from what is a default.
        stated = self.documents.model_dump(exclude_unset=True)
        try:
            documents = DocumentsConfig.model_validate({**stated, **changes})
        except ValidationError as err:
            lines = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']} (got {e['input']!r})" for e in err.errors())
            raise ConfigError(f"what makes a frame is not valid: {lines}") from err
        return self.model_copy(update={"documents": documents})

    @model_validator(mode="after")
    def _critic_of_a_network(self) -> Config:
        if self.latents.embedding == "critic" and (
            self.reconstructor.name != "pinn" or self.reconstructor.uncertainty == "photon noise"
        ):
            raise ValueError(
                "latents.embedding is of the critic, and only the reconstructor pinn has one, where its uncertainty is "
                f"not that of photon noise; it is {self.reconstructor.name} with the uncertainty "
                f"{self.reconstructor.uncertainty!r}: choose another embedding, or leave it out"
            )
        return self

    @model_validator(mode="after")
    def _beam_in_the_far_field(self) -> Config:
        if self.geometry.propagation == "near" and self.detector.beam_centre_px == "find":
            raise ValueError(
                "near-field frames are shadows, in which no direct beam can be found: state detector.beam_centre_px, "
                "or leave it out"
            )
        return self

    @model_validator(mode="after")
    def _batch_fits_budget(self) -> Config:
        if self.scan.batch > self.scan.budget:
            raise ValueError(
                f"scan.batch ({self.scan.batch}) exceeds scan.budget ({self.scan.budget}): "
                "lower the first or raise the second"
            )
        return self


def files_in_environment() -> list[Path]:
    """List the further configuration files that ``BLUESKY_CDI_CONFIG`` names, which a session of a profile reads."""
    return [Path(path) for path in os.environ.get(FILES_VARIABLE, "").split(os.pathsep) if path]


def load_config(paths: Sequence[Path | str] = (), overrides: Mapping[str, Any] | None = None) -> Config:
    """Read configuration files, later ones winning, and check the whole.

    Parameters
    ----------
    paths : sequence of path
        YAML files, each a mapping of sections.
    overrides : Mapping, optional
        Sections that win over every file.

    Raises
    ------
    ConfigError
        If a file can't be read, is no mapping, holds an unknown key or a value out of bounds, or is larger or nested
        more deeply than a configuration is, or has aliases.
    """
    merged: dict[str, Any] = {}
    for path in paths:
        merged = _merge(merged, _as_mapping(_read_yaml(Path(path).expanduser()), path))
    merged = _merge(merged, overrides or {})
    try:
        config = Config.model_validate(merged)
    except ValidationError as err:
        lines = [_complaint(e["loc"], e["type"], e["msg"], e["input"]) for e in err.errors()]
        where = ", ".join(map(str, paths)) or "the configuration"
        # Without pydantic's own error, which quotes every value: also the catalog's key.
        raise ConfigError(f"{where} is not valid:\n  " + "\n  ".join(lines)) from None
    for key, (unit, low, high) in USUAL.items():
        value = getattr(config.geometry, key)
        if not low <= value <= high:
            logger.warning(
                "geometry.%s is %g %s, which few instruments have (%g to %g): is it in another unit?",
                key, value, unit, low, high,
            )  # fmt: skip
    return config


def _read_yaml(path: Path) -> object:
    """Read a YAML file; what would grow in memory is refused before it does."""
    import yaml

    try:
        with path.open("rb") as file:
            content = file.read(FILE_MAX + 1)
        if len(content) > FILE_MAX:
            raise ConfigError(f"the configuration file {path} must have at most {FILE_MAX} bytes; it has more")
        text = content.decode("utf-8")
        depth = 0
        for event in yaml.parse(text, yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                raise ConfigError(
                    f"the configuration file {path} must have no aliases (line {_line(event)}: "
                    f"*{event.anchor}); write out what is meant"
                )
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEPTH_MAX:
                raise ConfigError(
                    f"the configuration file {path} must nest at most {DEPTH_MAX} levels; line "
                    f"{_line(event)} is in the next"
                )
        return yaml.safe_load(text)
    except ConfigError:
        raise
    except yaml.MarkedYAMLError as err:
        # Not with the line itself, which may be that of the catalog's key.
        where = "" if err.problem_mark is None else f" (line {err.problem_mark.line + 1})"
        raise ConfigError(f"can't read the configuration file {path}: {err.problem}{where}") from None
    except (OSError, ValueError, yaml.YAMLError) as err:
        raise ConfigError(f"can't read the configuration file {path}: {err}") from err


def _line(event: Any) -> int:
    return int(event.start_mark.line) + 1


def _complaint(place: tuple[int | str, ...], kind: str, message: str, value: object) -> str:
    """Say in one line what is wrong with one key."""
    key = ".".join(map(str, place))
    if key in RENAMED_KEYS:
        return f"{key} is called {RENAMED_KEYS[key]} now: rename it"
    # Among the values of the catalog, or of the whole, is the server's key.
    got = "" if key.startswith("catalog") or isinstance(value, (Mapping, BaseModel)) else f" (got {value!r})"
    if kind == "extra_forbidden":
        return f"{key} is no key of the configuration{got}; known here are {', '.join(_known_keys(place))}"
    return f"{key or 'config'}: {message}{got}"


def _known_keys(place: tuple[int | str, ...]) -> list[str]:
    """List the keys beside one that is not known: those of its section, or the sections."""
    model: type[BaseModel] = Config
    for name in place[:-1]:
        section = model.model_fields[str(name)].annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            model = section
    return list(model.model_fields)


def _as_mapping(loaded: object, path: Path | str) -> Mapping[str, Any]:
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise ConfigError(
            f"{path} must hold a mapping of sections (geometry:, scan:, ...); it holds a {type(loaded).__name__}"
        )
    return loaded


def _merge(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    out = dict(base)
    for key, value in top.items():
        old = out.get(key)
        out[key] = _merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return out
