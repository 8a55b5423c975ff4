"""The catalog's process: the Tiled server, and what feeds it from the journal.

It is started by a session, takes its orders as one line of JSON on standard input (so that the key is on no command
line), and answers with a line of JSON on standard output. It ends when it is told, after what the journal holds is in
the catalog, as far as that goes in `LAST_S` seconds; and at once when its standard input ends without a word: then the
session was killed.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from bluesky_cdi.catalog.server import HOST, is_healthy
from bluesky_cdi.errors import CatalogError

if TYPE_CHECKING:
    from bluesky_cdi.catalog.connect import Catalog

logger = logging.getLogger(__name__)

CLOSE = "close\n"
START_S = 90.0
# A process whose session was killed may still have the folder for a moment.
CLAIM_S = 15.0
LAST_S = 30.0
# How often the server is looked at, how long it may take to answer, and when one that does not is given up.
LOOK_S, ANSWER_S, SILENT_S = 0.5, 1.5, 15.0
# So many new starts within a minute, and no more.
STARTS_MAX = 5


class Keeper:
    """Keeps a catalog's process alive; use it as a context manager, or `close` it.

    Parameters
    ----------
    directory : path
        Folder of the session, with the journal and, without `uri`, the embedded catalog.
    uri : str, optional
        Address of another server, whose catalog is fed instead.
    api_key : str, optional
        The server's key; a random one by default.
    readable : sequence of path
        Further folders with frames, for the embedded catalog.
    """

    def __init__(
        self,
        directory: Path,
        *,
        uri: str | None = None,
        api_key: str | None = None,
        readable: Sequence[Path | str] = (),
    ) -> None:
        key = api_key if uri else api_key or secrets.token_hex(16)
        self._orders: dict[str, Any] = {
            "directory": str(directory), "uri": uri, "port": 0, "api_key": key, "readable": [str(p) for p in readable]
        }  # fmt: skip
        self._closing = threading.Event()
        self._starts: deque[float] = deque(maxlen=STARTS_MAX)
        self._address: Future[str] = Future()
        self._process = self._start()
        self._watch = threading.Thread(target=self._keep, name="bluesky_cdi-keeper", daemon=True)
        self._watch.start()

    def __enter__(self) -> Keeper:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def uri(self) -> str:
        """The server's address, with its key; waits until it is ready.

        Raises
        ------
        CatalogError
            If the process can't begin.
        """
        return self._address.result()

    @property
    def pid(self) -> int:
        """The process's number, for those who want to look at it."""
        return self._process.pid

    def close(self) -> None:
        """End the process, after what is in the journal is in the catalog."""
        self._closing.set()
        self._watch.join()
        if self._process.poll() is None:
            self._end(self._process)
        else:
            _release(self._process)

    def _start(self) -> subprocess.Popen[str]:
        self._starts.append(time.monotonic())
        process = subprocess.Popen(
            [sys.executable, "-m", "bluesky_cdi.catalog.keeper"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            # Whatever else is printed there: see `_said`.
            errors="replace",
            # Ctrl-C is the session's, not its server's.
            start_new_session=True,
        )
        with contextlib.suppress(BrokenPipeError):  # it has ended already: `_ready` tells
            orders = _pipe(process.stdin)
            orders.write(json.dumps(self._orders) + "\n")
            orders.flush()
        return process

    def _ready(self, process: subprocess.Popen[str]) -> str:
        """Wait until the process is ready; its address."""
        timer = threading.Timer(START_S, process.kill)
        timer.start()
        try:
            line = _pipe(process.stdout).readline()
        finally:
            timer.cancel()
        answer = _said(line)
        if "uri" in answer:
            return str(answer["uri"])
        self._end(process)
        raise CatalogError(
            answer.get("error")
            or f"the catalog's process ended with code {process.returncode} before it was ready; its messages are "
            "above. `catalog.in_process: true` serves the catalog in the session's own process."
        )

    def _keep(self) -> None:
        """Look after the process until the session closes."""
        try:
            self._address.set_result(self._ready(self._process))
        except CatalogError as err:
            self._address.set_exception(err)
            return
        if self._orders["uri"] is None:
            # A new start must be found where the first one was.
            self._orders["port"] = int(self.uri.partition("//")[2].partition("/")[0].rpartition(":")[2])
        answered = time.monotonic()
        told = False
        while not self._closing.wait(LOOK_S):
            if self._process.poll() is not None:
                _release(self._process)
                logger.error("the catalog's process ended (%s); it is started again", _how(self._process.returncode))
                if not self._again():
                    return
                answered, told = time.monotonic(), False
            elif self._answers():
                if told:
                    logger.warning("the catalog's server answers again")
                answered, told = time.monotonic(), False
            elif not told:
                told = True
                logger.warning("the catalog's server does not answer; what is measured waits in the journal")
            elif time.monotonic() - answered > SILENT_S:
                self._process.kill()
                self._process.wait()

    def _again(self) -> bool:
        """Start the process anew, if it was not started too often."""
        while not self._closing.is_set():
            if len(self._starts) == STARTS_MAX and time.monotonic() - self._starts[0] < 60:
                logger.error(
                    "the catalog's process ended %d times within a minute: it is left. What is measured stays in the "
                    "journal; `bluesky-cdi restore` brings it to the catalog later.",
                    STARTS_MAX,
                )
                return False
            self._process = self._start()
            try:
                self._ready(self._process)
                return True
            except CatalogError as err:
                logger.error("%s", err)
        return False

    def _answers(self) -> bool:
        if self._orders["uri"] is not None:
            return True
        return is_healthy(f"{HOST}:{self._orders['port']}", ANSWER_S)

    def _end(self, process: subprocess.Popen[str]) -> None:
        with contextlib.suppress(BrokenPipeError):
            _pipe(process.stdin).write(CLOSE)
            _pipe(process.stdin).close()
        try:
            process.wait(LAST_S + START_S)
        except subprocess.TimeoutExpired:
            logger.error("the catalog's process did not end within %g s and was killed", LAST_S + START_S)
            process.kill()
            process.wait()
        _release(process)


def _said(line: str) -> dict[str, Any]:
    """Read what the process answers; nothing where it has ended."""
    try:
        answer = json.loads(line) if line else {}
    except ValueError:
        answer = None
    if isinstance(answer, dict):
        return answer
    why = "is something of this Python's start printing (sitecustomize, .pth files)?"
    return {"error": f"the catalog's process must answer with its address; it said {line[:80]!r}: {why}"}


def _pipe(end: IO[str] | None) -> IO[str]:
    if end is None:
        raise CatalogError("the catalog's process was started without pipes")
    return end


def _release(process: subprocess.Popen[str]) -> None:
    """Close the pipes to a process that has ended."""
    with contextlib.suppress(BrokenPipeError):
        _pipe(process.stdin).close()
    _pipe(process.stdout).close()


def _how(code: int) -> str:
    """Say how a process ended from its exit code."""
    if code == -9:
        return "killed by signal 9; out of memory?"
    return f"by signal {-code}" if code < 0 else f"code {code}"


@contextlib.contextmanager
def feeding(directory: Path, catalog: Catalog) -> Iterator[None]:
    """Feed a folder's journal to a catalog in a thread of this process, for as long as the context lasts.

    Parameters
    ----------
    directory : path
        Folder of the session.
    catalog : Catalog
        Where the runs go.
    """
    from bluesky_cdi.catalog.feeder import Feeder

    feeder = Feeder(directory / "journal", catalog)
    thread = threading.Thread(target=feeder.run, name="bluesky_cdi-feeder", daemon=True)
    thread.start()
    try:
        yield
    finally:
        feeder.stop()
        thread.join()
        feeder.finish(LAST_S)


def main() -> int:
    """Serve and feed until standard input ends; the process's exit code."""
    from bluesky_cdi.catalog import open_catalog, serve
    from bluesky_cdi.log import configure_logging

    configure_logging()
    orders: dict[str, Any] = json.loads(sys.stdin.readline())
    directory = Path(orders["directory"])
    with contextlib.ExitStack() as stack:
        try:
            uri = orders["uri"] or stack.enter_context(
                serve(
                    directory,
                    port=orders["port"],
                    api_key=orders["api_key"],
                    claim_s=CLAIM_S,
                    readable=orders["readable"],
                )
            )
            catalog = open_catalog(uri, orders["api_key"])
        except CatalogError as err:
            _say({"error": str(err)})
            return 1
        stack.callback(catalog.close)
        stack.enter_context(feeding(directory, catalog))
        _say({"uri": uri})
        # Nobody reads any more of it: what libraries print must not fill the pipe.
        os.dup2(2, 1)
        if sys.stdin.read() != CLOSE:
            # The session was killed. What its journal holds is for the next one, which waits for this folder.
            os._exit(1)
    return 0


def _say(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    code = main()
    # All is closed. At the interpreter's end libraries wait for locks that threads may have had.
    os._exit(code)
