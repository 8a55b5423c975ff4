"""Writing runs to Tiled beside the RunEngine: nothing waits for the server, and nothing is lost."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bluesky_cdi.catalog.plain import to_json
from bluesky_cdi.errors import CatalogError

logger = logging.getLogger(__name__)

Document = Mapping[str, Any]
Callback = Callable[[str, Any], Any]

_DRAIN = "drain"


def run_writer(container: Any, backup_directory: Path | str, *, batch_size: int = 16) -> RunWriter:
    """Make a document callback that writes runs to a container of a `Catalog`.

    Parameters
    ----------
    container : CatalogOfBlueskyRuns
        ``catalog.raw`` or ``catalog.processed``.
    backup_directory : path
        Folder for the documents of runs that the server would not take.
    batch_size : int
        Events written at a time; the rest of a stream follows at the end of its run. Each write
        takes some 0.1 s of server time, which an embedded server shares with the reconstruction:
        16, the usual number of positions decided at a time, keeps up with ten frames a second and
        still shows a run while it grows. Use 1 for few and precious events, such as
        reconstructions; Tiled's own default of 10,000 shows nothing before the end.
    """
    from bluesky_tiled_plugins import TiledWriter

    # max_array_size=0: Tiled's table store turns small arrays in events into strings.
    return RunWriter(TiledWriter(container, batch_size=batch_size, max_array_size=0), backup_directory)


class RunWriter:
    """A document callback that hands runs to `target` in a thread of its own.

    A run that `target` fails on is written whole to ``<uid>.jsonl`` in the backup folder, and
    `target` sees no more of it, so that a partial run never looks finished. The scan goes on;
    `error`, `failures` and `check` tell about it.

    Parameters
    ----------
    target : callable
        Takes (name, document), as a `TiledWriter` does.
    backup_directory : path
    """

    def __init__(self, target: Callback, backup_directory: Path | str) -> None:
        from bluesky.callbacks.buffer import BufferingWrapper
        from event_model import RunRouter

        self._target = target
        self._backup = Path(backup_directory).expanduser()
        self._error: Exception | None = None
        self._failures: dict[str, Path] = {}
        self._closed = False
        self._router = RunRouter([self._guard])
        # Writes what is still waiting when the interpreter exits.
        self._buffer = BufferingWrapper(self._consume)

    def __call__(self, name: str, doc: Document) -> None:
        """Take a document; returns at once."""
        self._buffer(name, doc)

    @property
    def error(self) -> Exception | None:
        """The newest failure of the target, if any."""
        return self._error

    @property
    def failures(self) -> Mapping[str, Path]:
        """The backup file of each run that could not be written, by the run's uid."""
        return dict(self._failures)

    def check(self) -> None:
        """Raise `CatalogError` if a run could not be written."""
        if self._error is not None:
            files = ", ".join(str(path) for path in self.failures.values())
            raise CatalogError(
                f"{len(self._failures)} run(s) could not be written to the catalog: {self._error!r}. "
                f"All their documents are in {files}; `restore_backup` writes them later."
            ) from self._error

    def drain(self, timeout_s: float = 60.0) -> None:
        """Wait until everything taken so far is written.

        Raises
        ------
        CatalogError
            If that takes longer than `timeout_s` seconds. Nothing is lost: writing goes on, and
            the interpreter's exit waits for it.
        """
        done = threading.Event()
        self._buffer(_DRAIN, done)
        if not done.wait(timeout_s):
            raise CatalogError(
                f"the catalog did not take all documents within {timeout_s:g} s; writing goes on in the background. "
                "Check that the Tiled server runs, and wait again."
            )

    def close(self, timeout_s: float = 60.0) -> None:
        """Drain, then refuse further documents; a second call does nothing.

        Raises
        ------
        CatalogError
            As `drain` does; the writer then stays open.
        """
        if not self._closed:
            self.drain(timeout_s)
            self._buffer.shutdown()
            self._closed = True

    def _consume(self, name: str, doc: Any) -> None:
        if name == _DRAIN:
            doc.set()
        else:
            self._router(name, doc)

    def _guard(self, name: str, start: Document) -> tuple[list[Callback], list[Callback]]:
        return [_GuardedRun(self._target, self._backup / f"{start['uid']}.jsonl", self._note)], []

    def _note(self, path: Path, error: Exception) -> None:
        self._error = error
        self._failures[path.stem] = path


class _GuardedRun:
    """The documents of one run: to the target, or from its first failure on all to a file."""

    def __init__(self, target: Callback, path: Path, note: Callable[[Path, Exception], None]) -> None:
        self._target = target
        self._path = path
        self._note = note
        self._kept: list[tuple[str, Document]] = []
        self._failed = False

    def __call__(self, name: str, doc: Document) -> None:
        self._kept.append((name, doc))
        if not self._failed:
            try:
                self._target(name, doc)
                return
            except Exception as err:  # whatever it is, the data must reach the backup
                logger.exception("the catalog refused a %s document; the run goes to %s", name, self._path)
                self._failed = True
                self._note(self._path, err)
        self._flush()

    def _flush(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.writelines(to_json({"name": name, "doc": doc}) + "\n" for name, doc in self._kept)
        self._kept.clear()


def restore_backup(path: Path | str, container: Any) -> str:
    """Write a run from its backup file, replacing what the container holds of it.

    Parameters
    ----------
    path : path
        A file that a `RunWriter` left.
    container : CatalogOfBlueskyRuns
        ``catalog.raw`` or ``catalog.processed``, as the run was meant for.

    Returns
    -------
    str
        The run's uid.

    Raises
    ------
    CatalogError
        If the file can't be read, or the server refuses the run again.
    """
    import httpx
    from bluesky_tiled_plugins import TiledWriter

    try:
        documents = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
        uid = str(documents[0]["doc"]["uid"])
        if uid in container:
            container.delete_contents(uid, recursive=True, external_only=False)
        writer = TiledWriter(container, max_array_size=0)
        for document in documents:
            writer(document["name"], document["doc"])
    except (OSError, ValueError, LookupError, TypeError, httpx.HTTPError) as err:
        raise CatalogError(f"can't restore a run from {path}: {err!r}") from err
    return uid
