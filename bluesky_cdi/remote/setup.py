"""What a session's live reconstruction is made of, from values that can be sent to another process."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from bluesky_cdi.callbacks import Elsewhere, FrameAssembler
from bluesky_cdi.config import Config, DocumentsConfig
from bluesky_cdi.document_buffer import DocumentBuffer
from bluesky_cdi.errors import ConfigError, WeightsError
from bluesky_cdi.io import Preprocessing
from bluesky_cdi.live.inbox import QueueLimits
from bluesky_cdi.live.parts import Pace, Recorder, WorkerParts
from bluesky_cdi.live.worker import LiveWorker
from bluesky_cdi.live_view.watch import FrameWatch
from bluesky_cdi.protocols import Estimate, RunInfo

logger = logging.getLogger(__name__)

Emit = Callable[[str, dict[str, Any]], Any]
Listener = Callable[[Estimate], None]

# Names the factory of an ordinary session.
LIVE = "bluesky_cdi.remote.setup:live_setup"


@dataclass(frozen=True, eq=False)
class Setup:
    """What a worker and its assembler of frames are made from.

    Attributes
    ----------
    parts : WorkerParts
    pace : Pace
    queue : QueueLimits
        Of the frames that may wait for the worker.
    documents : DocumentsConfig
        What of a run's documents makes a frame.
    file_timeout_s : float
        How long a frame's file is waited for, seconds.
    mask : ndarray, shape (N, N), bool, optional
        Valid pixels of the detector.
    preprocessing : Preprocessing, optional
        What is done to frames before the worker gets them.
    elsewhere : Elsewhere, optional
        Of documents of another machine: knows its files.
    """

    parts: WorkerParts
    pace: Pace
    queue: QueueLimits = field(default_factory=QueueLimits)
    documents: DocumentsConfig = field(default_factory=DocumentsConfig)
    file_timeout_s: float = 0.0
    mask: Any = None
    preprocessing: Preprocessing | None = None
    elsewhere: Elsewhere | None = None

    def start(self, listeners: Sequence[Listener] = ()) -> tuple[LiveWorker, DocumentBuffer]:
        """Start the worker, and what hands the frames of documents to it.

        Parameters
        ----------
        listeners : sequence of callable
            Called with each estimate, beside those of the parts.
        """
        from dataclasses import replace

        # Between documents and worker; the images that the worker makes it sees too.
        watch: FrameWatch
        seen = (lambda estimate: watch.show(estimate), *listeners)
        parts = replace(self.parts, listeners=(*self.parts.listeners, *seen))
        worker = LiveWorker(parts, self.pace, queue=self.queue)
        watch = FrameWatch(worker, self.mask)
        worker.look = watch.look
        # Frames are read from their files in the buffer's thread, not in that of who sends the documents.
        documents = DocumentBuffer(
            FrameAssembler(
                watch,
                **self.documents.model_dump(),
                file_timeout_s=self.file_timeout_s,
                mask=self.mask,
                preprocessing=self.preprocessing,
                elsewhere=self.elsewhere,
            ),
            self.queue.bytes,
        )
        worker.drain = documents.drain
        return worker, documents


def live_arguments(
    config: Config,
    directory: Path,
    *,
    space: Any = None,
    probe: Any = None,
    probe_width_m: float | None = None,
    mask: Any = None,
) -> dict[str, Any]:
    """Give the arguments of `live_setup`, as values that can be sent.

    Parameters
    ----------
    config : Config
        The session's.
    directory : path
        Folder of the session.
    space : SearchSpace, optional
        The positions that an agent may choose.
    probe : ndarray, shape (modes, N, N), complex, optional
        First guess of the probe.
    probe_width_m : float, optional
        Its width, metres.
    mask : ndarray, shape (N, N), bool, optional
        Valid pixels.
    """
    return {
        "config": config.model_dump(mode="json"),
        "directory": str(directory),
        "space": None if space is None else [space.candidates_m, space.recorded],
        "probe": probe,
        "probe_width_m": probe_width_m,
        "mask": mask,
    }


def live_setup(arguments: Mapping[str, Any], emit: Emit | None = None) -> Setup:
    """Make what a session's worker is made from.

    Parameters
    ----------
    arguments : Mapping
        As `live_arguments` gives them.
    emit : callable, optional
        Takes the documents of derived runs; by default the session's journal.
    """
    from bluesky_cdi.agent.space import SearchSpace
    from bluesky_cdi.catalog.feeder import PROCESSED
    from bluesky_cdi.journal import Journal
    from bluesky_cdi.reconstruction.build import build_agent, build_reconstructor
    from bluesky_cdi.reconstruction.checkpoint import checkpoint_file
    from bluesky_cdi.reconstruction.points import points_of
    from bluesky_cdi.resume import checkpoints_folder

    config = Config.model_validate(arguments["config"])
    directory = Path(arguments["directory"])
    given = arguments["space"]
    space = None if given is None else SearchSpace(given[0], given[1])
    emitted = emit or Journal(directory / "journal" / PROCESSED)
    settings = config.reconstructor
    _look_for_weights(config)
    return Setup(
        WorkerParts(
            make_reconstructor=lambda info: build_reconstructor(
                info, config, probe=arguments["probe"], mask=arguments["mask"]
            ),
            make_agent=lambda area: build_agent(area, config, space=space, probe_width_m=arguments["probe_width_m"]),
            make_recorder=lambda info, uid: make_recorder(config, directory, emitted, info, uid),
            points_of=points_of,
            make_checkpoint=(
                (lambda info, uid: checkpoint_file(info, uid, config, checkpoints_folder(directory)))
                if settings.checkpoint_s
                else None
            ),
        ),
        Pace(
            settings.step_budget_s,
            settings.final_steps,
            settings.final_budget_s,
            settings.checkpoint_s,
            settings.fine_tune_s,
            settings.latency_s,
        ),
        QueueLimits(settings.queue_frames, settings.memory_mb * 2**20 // 4),
        config.documents,
        settings.file_timeout_s,
        None if arguments["mask"] is None else np.asarray(arguments["mask"], bool),
        Preprocessing.live(config),
    )


def make_recorder(config: Config, directory: Path, emit: Emit, info: RunInfo, uid: str) -> Recorder:
    """Make what keeps the estimates of a run in a session's folder.

    Parameters
    ----------
    config : Config
        The session's.
    directory : path
        Its folder.
    emit : callable
        Takes the documents of the derived run.
    info : RunInfo
        The raw run.
    uid : str
        Of the derived run, unless another process has begun that.
    """
    from bluesky_cdi.catalog import ResultPublisher
    from bluesky_cdi.remote.probe_keeper import ProbeKeeper

    # A process that has died may have begun this derived run, which can't go on.
    began = (directory / "results" / f"{uid}.h5").exists()
    name: dict[str, Any] = {"continues": uid} if began else {"derived_uid": uid}
    made = ResultPublisher(info, directory / "results", emit, **name, configuration=config.as_notes())
    return made if config.probe.library is None else ProbeKeeper(made, info, config)


def _look_for_weights(config: Config) -> None:
    """Tell at once, and not when something is measured, that there is no network to reconstruct with."""
    from bluesky_cdi.models.weights import weights_checksum

    try:
        if config.reconstructor.name == "pinn":
            weights_checksum(config.reconstructor.weights)
    except WeightsError as err:
        logger.error("there is no live reconstruction: %s. Runs are recorded all the same.", str(err).rstrip("."))


def factory_of(name: str) -> Callable[..., Setup]:
    """Find the function that makes a `Setup` from arguments.

    Parameters
    ----------
    name : str
        ``module:function``.

    Raises
    ------
    ConfigError
        If there is no such module or no such function in it, or if the module fails when it is imported.
    """
    module, _, function = name.partition(":")
    if not all(part.isidentifier() for part in (*module.split("."), function)):
        raise ConfigError(f"the worker's factory must be named module:function; got {name!r}")
    try:
        found = getattr(import_module(module), function, None)
    except Exception as err:
        why = f"{type(err).__name__}: {err}"
        # The module itself or a package that it should lie in; of what it imports, it is the module that fails.
        if isinstance(err, ModuleNotFoundError) and err.name is not None and f"{module}.".startswith(f"{err.name}."):
            raise ConfigError(
                f"the module of the worker's factory {name!r} must be one that Python finds ({why}). Install it, or "
                "put its folder on PYTHONPATH."
            ) from err
        raise ConfigError(f"the module of the worker's factory {name!r} fails when it is imported: {why}") from err
    if not callable(found):
        what = "has none of that name" if found is None else f"has {found!r:.60} of that name"
        raise ConfigError(f"the worker's factory {name!r} must be a function of its module; {module} {what}")
    return found  # type: ignore[no-any-return]
