"""Scan numbers that no other session on the same catalog gives."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import math
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from bluesky_cdi.catalog.connect import Catalog, is_server_fault
from bluesky_cdi.errors import CatalogError

logger = logging.getLogger(__name__)

# The container in which sessions claim numbers, beside `raw` and `processed`; an entry is made by one client only.
CLAIMS = "scan_numbers"
# So many of the newest claims stay: no session is so many runs behind between asking and claiming.
CLAIMS_KEPT = 50
# A file in the session's folder: the last number that a session of this folder gave.
LAST = "last_scan_number"
AGAIN_S = 0.1


class ScanNumbers:
    """Gives each run the next number; for ``RunEngine(..., scan_id_source=...)``.

    A number is claimed at the catalog's server, where only one session can have it, and noted in the folder. Where the
    server does not answer in time the number follows from the folder alone, and that is told: sessions that share the
    folder still have different numbers, one on another machine may have the same.

    Parameters
    ----------
    catalog : Catalog
        Where the runs are kept.
    folder : path
        The session's; made if need be.
    timeout_s : float
        How long the server may take, seconds.
    """

    def __init__(self, catalog: Catalog, folder: Path | str, timeout_s: float = 2.0) -> None:
        self._catalog, self._folder, self._timeout_s = catalog, Path(folder), timeout_s
        self._is_asking = False

    async def __call__(self, metadata: Mapping[str, Any]) -> int:
        """Give the number of a run that begins.

        Parameters
        ----------
        metadata : Mapping
            The RunEngine's; its ``scan_id`` is that of the run before.
        """
        least = int(metadata.get("scan_id") or 0)
        try:
            return await asyncio.wait_for(self._asked(least), self._timeout_s)
        except Exception as err:  # noqa: BLE001 (whatever the server does, the run begins)
            number = self._noted(lambda last: max(last, least) + 1)[1]
            logger.warning(
                "run %d was numbered without the catalog's server (%s): a session on another machine may give the "
                "same number. The uids differ.",
                number,
                repr(err).partition("\n")[0],
            )
            return number

    async def _asked(self, least: int) -> int:
        """Claim a number in a thread, which may go on when nobody waits for it any more."""
        if self._is_asking:
            raise TimeoutError("it has not answered the question before")
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[int] = loop.create_future()

        def tell(action: Callable[[Any], None], value: Any) -> None:
            # The run may have begun without it, and the RunEngine may be gone.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(lambda: None if answer.done() else action(value))

        def ask() -> None:
            told: tuple[Callable[[Any], None], Any]
            try:
                told = answer.set_result, self._claimed(least, lambda: not answer.cancelled())
            except Exception as err:  # noqa: BLE001 (raised where it is waited for)
                told = answer.set_exception, err
            self._is_asking = False
            tell(*told)

        self._is_asking = True
        threading.Thread(target=ask, name="bluesky_cdi-scan-number", daemon=True).start()
        return await answer

    def _claimed(self, least: int, is_wanted: Callable[[], bool]) -> int:
        """Claim a number; again where the server's database was taken by another session for too long."""
        while True:
            try:
                with self._catalog.reaching():
                    return self._claim(least, is_wanted)
            except CatalogError as err:
                if not (is_server_fault(err) and is_wanted()):
                    raise
                time.sleep(AGAIN_S)

    def _claim(self, least: int, is_wanted: Callable[[], bool]) -> int:
        claims = self._claims()
        claimed = [int(key) for key in claims if str(key).isdigit()]
        number, before = max([least, *claimed, self._newest()]), math.inf
        # Another session may claim it first, or have given it without the server.
        while before >= number and is_wanted():
            number = max(number, self._noted(int)[0]) + 1
            if _is_new(claims, str(number)):
                before, _ = self._noted(partial(max, number))
        if old := [str(each) for each in claimed if each <= number - CLAIMS_KEPT]:
            claims.delete_contents(old, recursive=True, external_only=False)
        return number

    def _claims(self) -> Any:
        """Return the container of claims, made if need be; another session may make it at the same moment."""
        from tiled.client import from_context

        raw = self._catalog.raw
        root = from_context(raw.context, node_path_parts=tuple(raw.path_parts[:-1]))
        if CLAIMS not in root:
            _is_new(root, CLAIMS)
        return root[CLAIMS]

    def _newest(self) -> int:
        """Find the number of the newest run, which may be another program's."""
        raw = self._catalog.raw
        return int(raw.values().last().start.get("scan_id", 0)) if len(raw) else 0

    def _noted(self, change: Callable[[int], int]) -> tuple[int, int]:
        """Change the last number of the folder, of which other sessions know it; what it was, and what it is."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            # Not buffered: what is written is there before the lock goes.
            with (self._folder / LAST).open("ab+", buffering=0) as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                file.seek(0)
                content = file.read()
                before = int(content) if content.strip().isdigit() else 0
                after = change(before)
                if after != before:
                    file.truncate(0)
                    file.write(f"{after}\n".encode())
                return before, after
        except OSError as err:
            logger.warning("the last scan number can't be noted in %s: %s", self._folder, err)
            return 0, change(0)


def _is_new(container: Any, key: str) -> bool:
    """Make an entry; False where there is one already."""
    from tiled.client.utils import ClientError

    try:
        # Tiled's client takes an entry for its own that looks like what it asked for: no two may look alike.
        container.create_container(key, metadata={"claim": str(uuid.uuid4())})
    except ClientError as err:
        if err.response.status_code == 409:
            return False
        raise
    return True
