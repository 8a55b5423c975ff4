"""From the journal to the catalog: every run exactly once, at the catalog's own pace.

Sessions and reconstructions only write files of a journal (`bluesky_cdi.journal`); this reads them, also while they
grow, and writes the runs to Tiled. Whatever breaks on the way, a run is taken out of the catalog and written anew from
its first record; a file goes when the catalog was seen to hold all of it.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bluesky_cdi.catalog.connect import failed, is_server_fault
from bluesky_cdi.catalog.masks import Masks, as_lists
from bluesky_cdi.errors import BlueskyCDIError, CatalogError, JournalError
from bluesky_cdi.journal import SUFFIX, Document, Journal, JournalReader, is_written, run_files, start_of

if TYPE_CHECKING:
    from bluesky_cdi.catalog.connect import Catalog

logger = logging.getLogger(__name__)

RAW, PROCESSED, REFUSED = "raw", "processed", "refused"
# Events written at a time. Each write takes some 0.1 s of server time: 16, the usual number of positions decided at a
# time, keeps up with a fast scan and still shows a run while it grows. Reconstructions are few.
BATCH = {RAW: 16, PROCESSED: 1}
LOOK_S = 0.1
PAUSES_S = (0.2, 1.0, 5.0)
# A server that fails on one document so often, and answers otherwise, will not take it.
FAILURES_MAX = 4
# A run of which the catalog refuses more than this many documents is kept apart as a whole.
REFUSED_MAX = 20
DIED = "the process that wrote this run ended before the run did"


@dataclass(frozen=True)
class Fed:
    """What became of a run's file.

    Attributes
    ----------
    uid : str
        The run's.
    container : str
        ``raw`` or ``processed``.
    events : int
        Events in the catalog.
    refused : int
        Documents that the catalog would not take.
    note : str
        What is to be said of it beside: that its process died, that its file was cut or damaged.
    """

    uid: str
    container: str
    events: int
    refused: int = 0
    note: str = ""


class Feeder:
    """Writes the runs of a journal's folders to a catalog, and takes their files away.

    Parameters
    ----------
    journal : path
        Folder with the folders ``raw`` and ``processed``; what the catalog refuses goes to ``refused``.
    catalog : Catalog
        Where the runs go.
    """

    def __init__(self, journal: Path | str, catalog: Catalog) -> None:
        self._folder = Path(journal)
        self._catalog = catalog
        self._runs: dict[Path, _Run] = {}
        # Those of which a file could not be read or put away at the last try.
        self._unread: set[Path] = set()
        self._stop = threading.Event()

    def feed(self) -> list[Fed]:
        """Write what is there, as far as it goes now.

        Returns
        -------
        list of Fed
            The runs that are finished by it.

        Raises
        ------
        CatalogError
            If the catalog does not answer.
        """
        finished = []
        for path in self._files():
            if path not in self._runs:
                self._runs[path] = _Run(path, self._catalog, self._folder / REFUSED)
            try:
                fed = self._runs[path].advance()
            except CatalogError as err:
                if not is_server_fault(err):
                    raise
                # It concerns this run, and is tried again; the others go on.
                logger.info("run %s: %s", path.stem, err)
                continue
            except OSError as err:
                # Of this run's file, which says nothing of it now: it stays, and the others go on.
                if path not in self._unread:
                    self._unread.add(path)
                    logger.warning("run %s is tried again: %s", path.stem, err)
                continue
            self._unread.discard(path)
            if fed is not None:
                finished.append(fed)
                del self._runs[path]
        return finished

    def run(self) -> None:
        """Feed until `stop` is called; only one feeder at a time works on a folder, others wait for their turn."""
        pauses = 0
        with self._turn() as mine:
            while mine and not self._stop.wait(LOOK_S):
                try:
                    for fed in self.feed():
                        _tell(fed)
                    pauses = self._back(pauses)
                except OSError as err:  # the catalog, the journal's disk
                    pauses = self._gone(pauses, err)
        self.close()

    def finish(self, timeout_s: float) -> list[Fed]:
        """Feed the runs that nobody writes any more; files that are left after that time stay where they are.

        Parameters
        ----------
        timeout_s : float
            How long, seconds, if the catalog does not take them or another feeder works on the folder.
        """
        deadline, finished = time.monotonic() + timeout_s, []
        while ended_files(self._folder) and time.monotonic() < deadline:
            with self._lock() as mine:
                while mine and ended_files(self._folder) and time.monotonic() < deadline:
                    try:
                        finished += self.feed()
                    except OSError as err:  # the catalog, the journal's disk
                        logger.warning("%s", err)
                        time.sleep(LOOK_S)
            time.sleep(LOOK_S)
        self.close()
        return finished

    def stop(self) -> None:
        """End `run`."""
        self._stop.set()

    def close(self) -> None:
        """Close the files; they are read from their first records next time."""
        while self._runs:
            self._runs.popitem()[1].close()

    def _files(self) -> list[Path]:
        """List the files, the oldest run first; only where there is a new one are they put in order."""
        found = set(waiting_files(self._folder))
        if found <= self._runs.keys():
            return [path for path in self._runs if path in found]
        return [path for name in (RAW, PROCESSED) for path in run_files(self._folder / name)]

    @contextlib.contextmanager
    def _turn(self) -> Iterator[bool]:
        """Wait until no other feeder works on the folder."""
        while not self._stop.is_set():
            with self._lock() as mine:
                if mine:
                    yield True
                    return
            self._stop.wait(LOOK_S)
        yield False

    @contextlib.contextmanager
    def _lock(self) -> Iterator[bool]:
        """Take the folder, unless another feeder has it."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with (self._folder / "feeder.lock").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True

    def _gone(self, pauses: int, err: OSError) -> int:
        if pauses == 0:
            logger.warning("%s What is measured waits in %s until that is mended.", err, self._folder)
        self._stop.wait(PAUSES_S[min(pauses, len(PAUSES_S) - 1)])
        return pauses + 1

    def _back(self, pauses: int) -> int:
        if pauses:
            logger.warning("the catalog takes what is measured again")
        return 0


def waiting_files(journal: Path) -> list[Path]:
    """List the files of runs that are not in the catalog, in no order.

    Parameters
    ----------
    journal : path
        Folder with the folders ``raw`` and ``processed``.
    """
    return [path for name in (RAW, PROCESSED) for path in (journal / name).glob(f"*{SUFFIX}")]


def ended_files(journal: Path) -> list[Path]:
    """List those of `waiting_files` that nobody writes any more.

    Parameters
    ----------
    journal : path
        Folder with the folders ``raw`` and ``processed``.
    """
    found = []
    for path in waiting_files(journal):
        with contextlib.suppress(JournalError):  # it was taken away meanwhile
            if not is_written(path):
                found.append(path)
    return found


def refused_files(journal: Path, raw_uid: str) -> list[Path]:
    """List the files with what the catalog did not take of a raw run and of what was derived from it.

    Parameters
    ----------
    journal : path
        Folder with the folder ``refused``.
    raw_uid : str
        The raw run's.
    """
    starts = {path: start_of(path) for path in (journal / REFUSED).glob(f"*{SUFFIX}")}
    return [path for path, start in starts.items() if raw_uid in (start.get("uid"), start.get("raw_uid"))]


class _Run:
    """One run on its way into the catalog."""

    def __init__(self, path: Path, catalog: Catalog, refused: Path) -> None:
        self._uid, self._kind = path.stem, path.parent.name
        self._reader, self._catalog = JournalReader(path), catalog
        self._container = getattr(catalog, self._kind)
        self._refused_folder = refused
        # By the number of the record: why the catalog does not take it.
        self._refused: dict[int, Exception] = {}
        self._failures: Counter[int] = Counter()
        self._masks = Masks()
        self._careful = False
        self._verified = 0
        self._note = ""
        self._begin()

    def advance(self) -> Fed | None:
        """Write what has come; what became of the run when it is finished."""
        try:
            if not self._has_begun():
                return None
            for name, doc in self._documents():
                self._write(name, doc)
            if not self._ended:
                return None
            self._verify()
        except _Anew:
            self._begin()
            return None
        except _Unusable as err:
            return self._reject(err)
        except (LookupError, TypeError, ValueError) as err:  # documents that are none
            return self._reject(_Unusable(_first_line(err)))
        return self._finish()

    def close(self) -> None:
        """Close the file."""
        self._reader.close()

    def _begin(self) -> None:
        """Start from the first record, on a clean slate."""
        self._reader.rewind()
        self._writer: Any = None
        self._record, self._last_time = -1, 0.0
        self._ended = False
        self._descriptors: dict[str, dict[str, Any]] = {}
        self._events: Counter[str] = Counter()
        # Descriptors and resources that were refused: what refers to them can't be taken either.
        self._missing: set[str] = set()

    def _has_begun(self) -> bool:
        """Make the writer when the first record is there, and take out what an earlier attempt left.

        Raises
        ------
        JournalError
            If the file can't be read now.
        """
        if self._writer is not None:
            return True
        try:
            first = next(self._reader.documents(), None)
        except JournalError as err:
            if isinstance(err.__cause__, OSError):
                raise
            # Damaged. Nobody may take the file away while more is written behind the damage.
            if is_written(self._reader.path):
                return False
            raise _Unusable(_first_line(err)) from err
        except (BlueskyCDIError, TypeError, ValueError) as err:
            raise _Unusable(_first_line(err)) from err
        self._reader.rewind()
        if first is None:
            return False
        from bluesky_tiled_plugins import TiledWriter

        with self._reaching():
            if self._uid in self._container:
                self._container.delete_contents(self._uid, recursive=True, external_only=False)
        # max_array_size=0: Tiled's table store turns small arrays in events into strings.
        size = 1 if self._careful else BATCH[self._kind]
        self._writer = TiledWriter(self._container, batch_size=size, max_array_size=0)
        return True

    def _documents(self) -> Iterator[Document]:
        """Yield what has come; the end of a run whose writer is gone is made up.

        Raises
        ------
        JournalError
            If the file can't be read now. Nothing is known of it then: it may go on, and stays.
        """
        # Asked before the reading: what a writer that is gone has written is then there to be read.
        alive = is_written(self._reader.path)
        try:
            yield from self._reader.documents()
        except JournalError as err:
            if isinstance(err.__cause__, OSError):
                raise
            # Damaged. Nobody may take the file away while more is written behind the damage.
            self._note = "" if alive else str(err)
        if not alive and not self._ended:
            self._note = self._note or DIED
            yield "stop", self._made_up()

    def _made_up(self) -> dict[str, Any]:
        return {
            "uid": f"stop-{self._uid}", "run_start": self._uid, "time": self._last_time or time.time(),
            "exit_status": "fail", "reason": self._note, "num_events": dict(self._events),
        }  # fmt: skip

    def _write(self, name: str, doc: dict[str, Any]) -> None:
        self._record += 1
        # A page of events has the times of all.
        times = () if doc.get("time") is None else doc["time"]
        self._last_time = float(np.max(times, initial=self._last_time))
        if name == "descriptor":
            doc = self._descriptors[doc["uid"]] = self._masks.describe(doc)
        if self._record in self._refused or self._depends_on_missing(name, doc):
            if "uid" in doc:
                self._missing.add(doc["uid"])
            return
        events = _events_of(name, doc)
        descriptor = self._descriptors.get(doc["descriptor"]) if events else None
        if descriptor is not None and self._masks.learn(doc, descriptor):
            raise _Anew
        try:
            if name == "event":
                _check_shapes(doc, self._descriptors[doc["descriptor"]])
            plain = as_lists(doc) if descriptor is None else self._masks.plain(doc, descriptor)
            with self._reaching():
                self._writer(name, plain)
        except CatalogError as err:
            if err.__cause__ is None:
                self._refuse(name, err)
            self._failed(err)
        except Exception as err:  # noqa: BLE001 - whatever it is, the run must not block the others
            self._suspect(name, err)
        if name == "stop":
            self._ended = True
        elif events:
            self._events[self._descriptors[doc["descriptor"]]["name"]] += events

    def _depends_on_missing(self, name: str, doc: Mapping[str, Any]) -> bool:
        if any(str(doc.get(key)) in self._missing for key in ("descriptor", "stream_resource", "resource")):
            self._refused[self._record] = CatalogError("it belongs to one that was refused")
            return True
        return False

    def _failed(self, err: CatalogError) -> None:
        """Give up for now; a document that the server fails on again and again, while it answers, is refused."""
        record = self._record
        # A server that can't be reached says nothing of the document.
        self._failures[record] += is_server_fault(err)
        self._begin()
        if self._failures[record] < FAILURES_MAX:
            raise err
        self._failures[record] = 0
        if self._careful:
            self._refused[record] = err
        self._careful = True
        raise _Anew

    def _suspect(self, name: str, err: Exception) -> None:
        """Refuse a document, if it is that which the catalog does not take and not one before it, written only now."""
        if self._careful:
            self._refuse(name, err)
        self._careful = True
        raise _Anew

    def _refuse(self, name: str, err: Exception) -> None:
        self._refused[self._record] = err
        if name in ("start", "stop") or len(self._refused) > REFUSED_MAX:
            raise _Unusable(_first_line(err)) from err
        raise _Anew

    def _verify(self) -> None:
        """Look whether the catalog holds as many events as were written, and the run's end."""
        with self._reaching():
            run = self._container[self._uid]
            found = {stream: _rows(run, stream) for stream in self._events}
            ended = bool(run.metadata.get("stop"))
        if not ended or found != dict(self._events):
            self._verified += 1
            if self._verified >= FAILURES_MAX:
                raise _Unusable(f"it came with {found} events in place of {dict(self._events)}")
            logger.warning("run %s came to the catalog with %s events in place of %s: it is written anew",
                           self._uid, found, dict(self._events))  # fmt: skip
            raise _Anew

    def _finish(self) -> Fed:
        if self._refused:
            self._keep_refused()
        if self._note and self._note != DIED:
            self._keep_whole()
        self._reader.close()
        self._reader.path.unlink(missing_ok=True)
        return Fed(self._uid, self._kind, sum(self._events.values()), len(self._refused), self._note)

    def _keep_refused(self) -> None:
        """Write the refused documents, with all that they refer to, to a file of their own."""
        target = self._refused_folder / f"{self._uid}{SUFFIX}"
        target.unlink(missing_ok=True)
        with contextlib.closing(Journal(self._refused_folder)) as journal:
            self._reader.rewind()
            for record, (name, doc) in enumerate(self._reader.documents()):
                if record in self._refused or not _events_of(name, doc):
                    journal(name, doc)
        for record, err in self._refused.items():
            logger.error("the catalog does not take document %d of run %s (%s); it is kept in %s",
                         record, self._uid, _first_line(err), target)  # fmt: skip

    def _keep_whole(self) -> None:
        self._refused_folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        kept = self._refused_folder / self._reader.path.name
        kept.write_bytes(self._reader.path.read_bytes())
        logger.error("%s All that can be read is in the catalog; the file is kept as %s.", self._note, kept)

    def _reject(self, why: _Unusable) -> Fed:
        """Keep the whole file apart."""
        self._refused_folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        kept = self._reader.path.rename(self._refused_folder / self._reader.path.name)
        self._reader.close()
        logger.error("run %s can't be written to the catalog (%s); all its documents are kept in %s",
                     self._uid, why, kept)  # fmt: skip
        return Fed(self._uid, self._kind, 0, self._record + 1, str(why))

    @contextlib.contextmanager
    def _reaching(self) -> Iterator[None]:
        """Turn the failures of a server or of the way to it into `CatalogError`; what it refuses stays as it is."""
        import httpx

        try:
            yield
        except httpx.HTTPStatusError as err:
            if err.response.status_code in (401, 403, 408, 429) or err.response.status_code >= 500:
                raise failed(self._catalog.uri, err) from err
            raise
        except httpx.HTTPError as err:
            raise failed(self._catalog.uri, err) from err


class _Anew(Exception):
    """The run is to be written from its first record."""


class _Unusable(Exception):
    """The catalog can't hold the run."""


def _events_of(name: str, doc: Mapping[str, Any]) -> int:
    if name == "event_page":
        return len(doc["seq_num"])
    return int(name == "event")


def _check_shapes(event: Mapping[str, Any], descriptor: Mapping[str, Any]) -> None:
    """Refuse an array of another shape than announced, which Tiled's writer would mix with its neighbours."""
    for key, announced in descriptor["data_keys"].items():
        value = event["data"].get(key)
        if not isinstance(value, np.ndarray) or announced.get("external"):
            continue
        shape = announced.get("shape") or []
        if len(shape) != value.ndim or any(n not in (None, m) for n, m in zip(shape, value.shape, strict=True)):
            raise CatalogError(
                f"{key!r} must have the shape {tuple(shape)} that its descriptor states; event "
                f"{event['seq_num']} has {value.shape}"
            )


def _rows(run: Any, stream: str) -> int:
    """Count the rows of a stream's table of events."""
    if stream not in run:
        return 0
    base = run[stream].base
    tables = [name for name in base if name.startswith("internal")]
    return len(base[tables[0]].read(["seq_num"])) if tables else 0


def _first_line(err: Exception) -> str:
    return f"{type(err).__name__}: {err}".partition("\n")[0]


def _tell(fed: Fed) -> None:
    if fed.note == DIED:
        logger.warning("run %s: %s; its %d events are in the catalog", fed.uid, fed.note, fed.events)
