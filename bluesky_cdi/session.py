"""A live session: RunEngine, catalog, worker and callbacks, connected.

It takes devices and plans from outside, so the same session serves a simulated, a replayed and
a real beamline.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from bluesky_cdi.config import Config
from bluesky_cdi.errors import WorkerError
from bluesky_cdi.protocols import ComplexArray, Estimate, RunInfo

if TYPE_CHECKING:
    from bluesky import RunEngine

    from bluesky_cdi.agent.space import SearchSpace
    from bluesky_cdi.catalog import Catalog, ResultPublisher

logger = logging.getLogger(__name__)

# A message to a document buffer that asks for a sign when everything before it is done.
_DRAIN = "drain"


class Session:
    """Everything between the plans and the results; use it as a context manager, or `close` it.

    Parameters
    ----------
    config : Config
    directory : path, optional
        Folder of the embedded catalog; by default that of the configuration. The subfolders
        ``frames`` (for detectors), ``results`` and ``backup`` belong to it.
    space : SearchSpace, optional
        The positions that an agent may choose, where the scan's grid is not meant.
    probe : ndarray, shape (modes, N, N), complex, optional
        First guess of the probe, instead of the configured lens.
    probe_width_m : float, optional
        Width of that probe, metres.
    mask : ndarray, shape (N, N), bool, optional
        Valid pixels of the detector.
    monitor_key : str, optional
        Data key of the incident flux.
    listeners : sequence of callable
        Called with each estimate in the worker's thread.

    Attributes
    ----------
    RE : RunEngine
    live : LiveWorker
        What plans take as `live`.
    catalog : Catalog
    directory : Path
    uri : str
        Address of the catalog's server, with its key.

    Raises
    ------
    CatalogError
        If the catalog can't be opened.
    """

    def __init__(
        self,
        config: Config,
        directory: Path | str | None = None,
        *,
        space: SearchSpace | None = None,
        probe: ComplexArray | None = None,
        probe_width_m: float | None = None,
        mask: np.ndarray[Any, np.dtype[np.bool_]] | None = None,
        monitor_key: str | None = None,
        listeners: Sequence[Callable[[Estimate], None]] = (),
    ) -> None:
        from bluesky_cdi.live.build import build_agent, build_reconstructor
        from bluesky_cdi.live.worker import WorkerParts

        self.config = config
        self.directory = Path(directory or config.catalog.directory).expanduser().resolve()
        with contextlib.ExitStack() as stack:
            self.uri, self.catalog = self._open_catalog(stack)
            self._raw_writer = self._writer(stack, self.catalog.raw, batch_size=16)
            self._result_writer = self._writer(stack, self.catalog.processed, batch_size=1)
            self.live = self._worker(
                stack,
                WorkerParts(
                    make_reconstructor=lambda info: build_reconstructor(info, config, probe=probe, mask=mask),
                    make_agent=lambda area: build_agent(area, config, space=space, probe_width_m=probe_width_m),
                    make_recorder=self._recorder,
                    listeners=tuple(listeners),
                ),
            )
            self.RE = self._run_engine(stack, monitor_key)
            self._stack = stack.pop_all()

    @property
    def frames_directory(self) -> Path:
        """Where detectors of this session write, so that the catalog can read it."""
        return self.directory / "frames"

    def wait(self, timeout_s: float = 120.0) -> None:
        """Wait until the latest run is reconstructed and everything is in the catalog.

        Raises
        ------
        WorkerError
            If the reconstruction failed or takes longer.
        CatalogError
            If the catalog did not take a document; where the backup lies is in the message.
        """
        try:
            self._drain_documents(timeout_s)
            self.live.wait(timeout_s)
        finally:
            self._raw_writer.drain(timeout_s)
            self._result_writer.drain(timeout_s)
            self._raw_writer.check()
            self._result_writer.check()

    def close(self) -> None:
        """Finish what is under way and stop the server; the catalog's folder can be served again."""
        self._stack.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open_catalog(self, stack: contextlib.ExitStack) -> tuple[str, Catalog]:
        from bluesky_cdi.catalog import open_catalog, serve

        settings = self.config.catalog
        uri = settings.uri or stack.enter_context(serve(self.directory, api_key=settings.api_key))
        catalog = open_catalog(uri, settings.api_key)
        stack.callback(catalog.close)
        return uri, catalog

    def _writer(self, stack: contextlib.ExitStack, container: Any, batch_size: int) -> Any:
        from bluesky_cdi.catalog import run_writer

        writer = run_writer(container, self.directory / "backup", batch_size=batch_size)
        stack.callback(writer.close)
        return writer

    def _worker(self, stack: contextlib.ExitStack, parts: Any) -> Any:
        from bluesky_cdi.live.points import points_of
        from bluesky_cdi.live.worker import LiveWorker

        settings = self.config.reconstructor
        worker = LiveWorker(
            parts,
            points_of,
            step_budget_s=settings.step_budget_s,
            final_budget_s=settings.final_budget_s,
            final_steps=settings.final_steps,
            queue_frames=settings.queue_frames,
        )
        stack.callback(worker.close)
        return worker

    def _recorder(self, info: RunInfo, uid: str) -> ResultPublisher:
        from bluesky_cdi.catalog import ResultPublisher

        return ResultPublisher(info, self.directory / "results", self._result_writer, uid)

    def _run_engine(self, stack: contextlib.ExitStack, monitor_key: str | None) -> RunEngine:
        from bluesky import RunEngine
        from bluesky.callbacks.buffer import BufferingWrapper

        from bluesky_cdi.callbacks import FrameAssembler
        from bluesky_cdi.physics.geometry import Geometry

        geometry = Geometry(**self.config.geometry.model_dump())
        engine = RunEngine({"geometry": geometry.as_metadata(), "scan_id": _last_scan_id(self.catalog)})
        assembler = FrameAssembler(self.live, monitor_key=monitor_key)

        def assemble(name: str, doc: Any) -> None:
            if name == _DRAIN:
                doc.set()
            else:
                assembler(name, doc)

        # Frames are read from their files in this buffer's thread, not in the RunEngine's.
        self._documents = BufferingWrapper(assemble)
        stack.callback(self._documents.shutdown)
        engine.subscribe(self._raw_writer)
        engine.subscribe(self._documents)
        # On closing the engine stops first: aborting a paused run makes documents.
        stack.callback(_stop_engine, engine)
        return engine

    def _drain_documents(self, timeout_s: float) -> None:
        done = threading.Event()
        self._documents(_DRAIN, done)
        if not done.wait(timeout_s):
            raise WorkerError(
                f"the frames of the run could not all be read within {timeout_s:g} s; wait again, or close the session"
            )


def _last_scan_id(catalog: Catalog) -> int:
    """The number of the newest raw run, so that a new session counts on; 0 for an empty catalog."""
    with catalog.reaching():
        return int(catalog.raw.values().last().start.get("scan_id", 0)) if len(catalog.raw) else 0


def _stop_engine(engine: RunEngine) -> None:
    """End the RunEngine's thread."""
    if engine.state == "paused":
        engine.abort("the session was closed")
    engine.loop.call_soon_threadsafe(engine.loop.stop)
    engine._th.join()
    engine.loop.close()
