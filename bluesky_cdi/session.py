"""A live session: RunEngine, catalog, worker and callbacks, connected.

It takes devices and plans from outside, so the same session serves a simulated, a replayed and
a real beamline.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from bluesky_cdi.attachment import Attachment, check_free
from bluesky_cdi.catalog.feeder import PROCESSED, RAW, ended_files, refused_files, waiting_files
from bluesky_cdi.config import CatalogConfig, Config
from bluesky_cdi.errors import CatalogError, WorkerError
from bluesky_cdi.journal import Journal, start_of
from bluesky_cdi.live_view import LiveView
from bluesky_cdi.protocols import ComplexArray, Estimate
from bluesky_cdi.recording import Recording
from bluesky_cdi.remote import WorkerProcess
from bluesky_cdi.remote.setup import LIVE, factory_of, live_arguments
from bluesky_cdi.signals import EndingSignals, during_task

if TYPE_CHECKING:
    from bluesky import RunEngine

    from bluesky_cdi.agent.space import SearchSpace
    from bluesky_cdi.catalog import Catalog
    from bluesky_cdi.catalog.keeper import Keeper
    from bluesky_cdi.document_buffer import DocumentBuffer
    from bluesky_cdi.live.worker import LiveWorker

logger = logging.getLogger(__name__)

LOOK_S = 0.02
# For what the reconstruction is at when the time for a run's end is over, before its process is killed, seconds.
ENDING_S = 60.0


class Session:
    """Everything between the plans and the results; use it as a context manager, or `close` it.

    Parameters
    ----------
    config : Config
        All settings, as `bluesky_cdi.config.load_config` reads them.
    directory : path, optional
        Folder of the embedded catalog; by default that of the configuration. The subfolders
        ``frames`` (for detectors), ``results``, ``checkpoints`` and ``journal`` belong to it.
    space : SearchSpace, optional
        The positions that an agent may choose, where the scan's grid is not meant.
    probe : ndarray, shape (modes, N, N), complex, optional
        First guess of the probe, instead of the configured lens.
    probe_width_m : float, optional
        Width of that probe, metres.
    mask : ndarray, shape (N, N), bool, optional
        Valid pixels of the detector.
    frame_key, position_keys, monitor_key, stream : optional
        Data keys of frames, positions (y, x) and incident flux, and the stream that they are in, in place of those in
        ``config.documents``.
    listeners : sequence of callable
        Called with estimates, in a thread of their own.
    catalog : Container, optional
        Tiled client that runs are written to, in its containers ``raw`` and ``processed`` (made where they are absent),
        in place of ``catalog.uri``. The session connects to the server by itself, with the client's key; the server
        must be able to read the session's folders of frames and results.
    RE : RunEngine, optional
        One that exists already, idle, with metadata, suspenders and subscriptions of its own. The session adds to it
        what it needs until it is closed; it never stops it. Without it, the session makes one, and stops it.
    claim_scan_numbers : bool
        Whether runs of that RunEngine get numbers that no other session on the catalog gives; else it numbers them as
        before. Runs of a RunEngine that the session makes always do.
    factory : str
        ``module:function`` of what the worker is made of, in the place and with the arguments of
        `bluesky_cdi.remote.setup.live_setup`: for a reconstructor or an agent of one's own.

    Attributes
    ----------
    RE : RunEngine
        Runs the plans; the session's own, or the one that was given.
    live : WorkerProcess or LiveWorker
        What plans take as `live`: in a process of its own, or in this one (``reconstructor.in_process``).
    live_view : LiveView
        Shows runs while they go on, where ``live_view`` of the configuration says so; in a notebook, a cell that ends
        with it.
    catalog : Catalog
        Raw runs and results, for `bluesky_cdi.catalog.load_result` and its like.
    keeper : Keeper or None
        Looks after the catalog's process, where it has one.
    directory : Path
        Folder of the session.
    uri : str
        Address of the catalog's server, with its key.

    Raises
    ------
    CatalogError
        If the catalog can't be opened, or the client's server can't be reached from other processes.
    ConfigError
        If the RunEngine is not idle, or another session has it.
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
        frame_key: str | None = None,
        position_keys: tuple[str, str] | None = None,
        monitor_key: str | None = None,
        stream: str | None = None,
        listeners: Sequence[Callable[[Estimate], None]] = (),
        catalog: Any = None,
        RE: RunEngine | None = None,
        claim_scan_numbers: bool = False,
        factory: str = LIVE,
    ) -> None:
        if RE is not None:
            check_free(RE)
        config = self.config = _with_catalog(config, catalog).with_documents(
            frame_key=frame_key, position_keys=position_keys, monitor_key=monitor_key, stream=stream
        )
        self._latest_uid, self._latest_scan_id = "", None
        self.keeper: Keeper | None = None
        self.directory = Path(directory or config.catalog.directory).expanduser().resolve()
        arguments = live_arguments(
            config, self.directory, space=space, probe=probe, probe_width_m=probe_width_m, mask=mask
        )
        with contextlib.ExitStack() as stack:
            signals = stack.enter_context(EndingSignals())
            # Both processes begin together; on closing the catalog takes what the reconstruction writes last.
            address = self._serve_catalog(stack)
            until_last = stack.enter_context(contextlib.ExitStack())
            # Closed after the worker, whose last image it shows.
            self.live_view = LiveView(config.live_view, self.directory, lambda: getattr(self, "live", None))
            stack.callback(self.live_view.close)
            self._live(stack, factory, arguments, listeners)
            self.uri = address()
            self.catalog = self._open_catalog(until_last)
            self.RE = _new_run_engine(last_scan_id(self.catalog, self.directory)) if RE is None else RE
            self._attach(stack, claim_scan_numbers or RE is None)
            if RE is None:
                # On closing the engine stops first: aborting a paused run makes documents.
                stack.callback(stop_engine, self.RE)
            signals.watch(self.RE)
            self.live_view.begin()
            self._stack = stack.pop_all()

    @property
    def frames_directory(self) -> Path:
        """Where detectors of this session write, so that the catalog can read it."""
        return self.directory / "frames"

    def wait(self, timeout_s: float = 120.0) -> None:
        """Wait until the latest run is reconstructed, and all that has ended is in the catalog.

        Parameters
        ----------
        timeout_s : float
            How long, seconds.

        Raises
        ------
        WorkerError
            If the reconstruction failed or takes longer.
        CatalogError
            If the catalog does not take all in time, or refuses a document of the latest run; nothing is lost: the
            journal keeps it, and its file is in the message.
        """
        try:
            if self._documents is not None and not self._documents.drain(timeout_s):
                raise WorkerError(
                    f"the frames of the run could not all be read within {timeout_s:g} s; wait again, or close the "
                    "session"
                )
            self.live.wait(timeout_s)
        finally:
            _wait_for_catalog(self.directory / "journal", self._latest_uid, timeout_s)

    def close(self) -> None:
        """Finish what is under way and stop the server; the catalog's folder can be served again."""
        self._stack.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _serve_catalog(self, stack: contextlib.ExitStack) -> Callable[[], str]:
        """Begin to serve the catalog; what waits for its address."""
        self.keeper, address = begin_catalog(stack, self.directory, self.config.catalog)
        return address

    def _open_catalog(self, stack: contextlib.ExitStack) -> Catalog:
        return replace(fed_catalog(stack, self.directory, self.config.catalog, self.uri), settle=self._settle)

    def _journal(
        self, stack: contextlib.ExitStack, name: str, appended: Callable[[Path], None] | None = None
    ) -> Journal:
        journal = Journal(self.directory / "journal" / name, appended)
        stack.callback(journal.close)
        return journal

    def _live(
        self,
        stack: contextlib.ExitStack,
        factory: str,
        arguments: Mapping[str, Any],
        listeners: Sequence[Callable[[Estimate], None]],
    ) -> None:
        """Make the worker, and the journal that it gets the runs from."""
        # Closed in the other order: what the worker writes last is in the journal before that closes.
        self._documents: DocumentBuffer | None = None
        if not self.config.reconstructor.in_process:
            self.live: LiveWorker | WorkerProcess = WorkerProcess(
                factory, arguments, listeners, self.config.reconstructor.host
            )
            # What is looked for beside the image may take as long as the last refinements.
            stack.callback(self.live.close, 2 * self.config.reconstructor.final_budget_s + ENDING_S)
            self._raw_journal = self._journal(stack, RAW, self.live.appended)
            return
        self._raw_journal = self._journal(stack, RAW)
        self._result_journal = self._journal(stack, PROCESSED)
        setup = factory_of(factory)(arguments, emit=lambda name, doc: self._result_journal(name, doc))
        self.live, self._documents = setup.start(listeners)
        stack.callback(self.live.close)
        stack.callback(self._documents.close)

    def _attach(self, stack: contextlib.ExitStack, claim_scan_numbers: bool) -> None:
        """Give the RunEngine what makes its runs this session's."""
        from bluesky_cdi.callbacks import ValueCheck
        from bluesky_cdi.catalog.scan_numbers import ScanNumbers
        from bluesky_cdi.physics.geometry import Geometry

        attachment = Attachment(self.RE)
        # The journal first: what anybody else makes of a document, it is on disk.
        folders = {
            "the journal": self._raw_journal.folder,
            "frames": self.frames_directory,
            "results": self.directory / "results",
        }
        recording = Recording(self._raw_journal, self.RE, folders, int(self.config.catalog.reserve_mb * 1e6))
        stack.callback(recording.close)
        stack.callback(attachment.detach)
        attachment.state({"geometry": Geometry(**self.config.geometry.model_dump()).as_metadata()})
        if (monitor_key := self.config.documents.monitor_key) is not None:
            # So that whoever reads the run later knows it too.
            attachment.state({"monitor": monitor_key})
        if claim_scan_numbers:
            attachment.number_runs(ScanNumbers(self.catalog, self.directory))
        attachment.subscribe(recording)
        attachment.subscribe(self._note_run, "start")
        attachment.subscribe(self.live_view.document)
        if self._documents is not None:
            attachment.subscribe(self._documents)
        attachment.subscribe(ValueCheck())

    def _note_run(self, _: str, doc: Mapping[str, Any]) -> None:
        self._latest_uid, self._latest_scan_id = doc["uid"], doc.get("scan_id")

    def _settle(self, which: str | int) -> None:
        """Wait for the result of the latest run, if that is meant and over; a failure is in what there is to read."""
        is_meant = self._latest_uid.startswith(which) if isinstance(which, str) else which in (-1, self._latest_scan_id)
        if self._latest_uid and is_meant and self.RE.state == "idle":
            with contextlib.suppress(WorkerError):
                self.wait()


def begin_catalog(
    stack: contextlib.ExitStack, directory: Path, settings: CatalogConfig, readable: Sequence[Path] = ()
) -> tuple[Keeper | None, Callable[[], str]]:
    """Begin to serve a folder's catalog; its process, if it has one, and what waits for its address.

    Parameters
    ----------
    stack : ExitStack
        Ends it.
    directory : Path
        The folder.
    settings : CatalogConfig
        Which catalog.
    readable : sequence of Path
        Further folders with frames.
    """
    from bluesky_cdi.catalog import serve
    from bluesky_cdi.catalog.keeper import Keeper

    _tell_of_waiting(directory / "journal", settings.uri)
    if settings.in_process:
        uri = settings.uri or stack.enter_context(serve(directory, api_key=settings.api_key, readable=readable))
        return None, lambda: uri
    keeper = stack.enter_context(Keeper(directory, uri=settings.uri, api_key=settings.api_key, readable=readable))
    return keeper, lambda: keeper.uri


def fed_catalog(stack: contextlib.ExitStack, directory: Path, settings: CatalogConfig, uri: str) -> Catalog:
    """Connect to a catalog that `begin_catalog` serves, and have it fed from the folder's journal.

    Parameters
    ----------
    stack : ExitStack
        Ends it.
    directory : Path
        The folder.
    settings : CatalogConfig
        Which catalog.
    uri : str
        The server's address.
    """
    from bluesky_cdi.catalog import open_catalog
    from bluesky_cdi.catalog.destination import state_destination
    from bluesky_cdi.catalog.keeper import feeding

    catalog = open_catalog(uri, settings.api_key)
    stack.callback(catalog.close)
    # Only now: a session that does not begin leaves the runs that wait to the catalog that they were for.
    state_destination(directory / "journal", settings.uri)
    if settings.in_process:
        stack.enter_context(feeding(directory, catalog))
    return catalog


def _wait_for_catalog(journal: Path, latest_uid: str, timeout_s: float) -> None:
    """Wait until the catalog has taken what has ended."""
    deadline = time.monotonic() + timeout_s
    while left := ended_files(journal):
        if time.monotonic() > deadline:
            raise CatalogError(
                f"the catalog did not take all documents within {timeout_s:g} s; {len(left)} run(s) wait in "
                f"{journal}, and nothing is lost. Check that the Tiled server runs, and wait again."
            )
        time.sleep(LOOK_S)
    if refused := refused_files(journal, latest_uid):
        raise CatalogError(
            f"the catalog did not take all of the run {latest_uid}: what it refused is in "
            f"{', '.join(map(str, refused))}; the log says why."
        )


def _with_catalog(config: Config, client: Any) -> Config:
    """Put a Tiled client's address and key in place of the configured ones."""
    if client is None:
        return config
    from bluesky_cdi.catalog.connect import address_of

    uri, key = address_of(client)
    return config.model_copy(update={"catalog": config.catalog.model_copy(update={"uri": uri, "api_key": key})})


def _tell_of_waiting(journal: Path, uri: str | None) -> None:
    """Tell of runs that wait for another catalog than a session's, which has that address."""
    from bluesky_cdi.catalog.destination import destination_of, without_key

    before, ours = destination_of(journal), None if uri is None else without_key(uri)
    if before != ours and (waiting := ended_files(journal)):
        logger.warning(
            "%d run(s) that wait in %s were for %s; they come to this session's catalog now",
            len(waiting),
            journal,
            before or "the folder's own catalog",
        )


def last_scan_id(catalog: Catalog, directory: Path) -> int:
    """Find the highest number of a raw run, so that a new session counts on; 0 where there is none.

    Parameters
    ----------
    catalog : Catalog
        Where the runs are.
    directory : Path
        Folder of the session, whose journal may hold runs that are not in the catalog yet.
    """
    with catalog.reaching():
        newest = catalog.raw.values().last().start.get("scan_id", 0) if len(catalog.raw) else 0
    starts = [start_of(path) for path in waiting_files(directory / "journal")]
    return max(int(newest), *(int(start.get("scan_id", 0)) for start in starts), 0)


def stop_engine(engine: RunEngine) -> None:
    """Abort what a RunEngine has paused, and end its thread.

    Parameters
    ----------
    engine : RunEngine
        One that is idle or paused.
    """
    if engine.state == "paused":
        engine.abort("the session was closed")
    engine.loop.call_soon_threadsafe(engine.loop.stop)
    engine._th.join()
    engine.loop.close()


def _new_run_engine(last_number: int) -> RunEngine:
    from bluesky import RunEngine

    return RunEngine({"scan_id": last_number}, during_task=during_task())
