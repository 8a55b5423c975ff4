"""Reaching a Tiled server, and the two containers that runs are kept in."""

from __future__ import annotations

import contextlib
import ipaddress
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bluesky_cdi.errors import CatalogError

if TYPE_CHECKING:
    from bluesky_cdi.catalog.result import Result, Results

# A server that is gone refuses at once; one that shares its cores with other work may take seconds to answer.
REACH_TIMEOUT_S = 30.0


@dataclass(frozen=True, eq=False)
class Catalog:
    """Where runs are kept.

    Attributes
    ----------
    uri : str
        The server's address, without the key.
    raw : CatalogOfBlueskyRuns
        Runs as measured.
    processed : CatalogOfBlueskyRuns
        Runs derived from them: reconstructions.
    settle : callable, optional
        Waits until the result of a run that was just measured is there; takes what `load_result` is asked for.
    directory : Path, optional
        The folder that it was opened in.
    read_only : bool
        Whether it takes no results.
    release : callable, optional
        Ends what serves that folder for this catalog.
    """

    uri: str
    raw: Any
    processed: Any
    settle: Callable[[str | int], None] | None = None
    directory: Path | None = None
    read_only: bool = False
    release: Callable[[], None] | None = None

    def latest(self) -> Result:
        """Give the newest complete result; in an open session, that of the run that was measured last is waited for.

        Raises
        ------
        CatalogError
            If there is none, or the server can't be reached.
        """
        if self.settle is not None:
            self.settle(-1)
        if not (found := self.search()):
            raise CatalogError(f"the catalog at {self.uri} holds no complete result yet")
        return found[-1]

    def search(self, **wanted: Any) -> Results:
        """Find results by sample, plan, date and quality; see `bluesky_cdi.catalog.search`."""
        from bluesky_cdi.catalog.searching import search

        return search(self, **wanted)

    def __getitem__(self, which: str | int) -> Result:
        """Give one result, named as `load_result` takes it: a scan number, the beginning of a uid, or -1, -2, ..."""
        from bluesky_cdi.catalog.browse import find_result
        from bluesky_cdi.catalog.listing import find_results
        from bluesky_cdi.catalog.result import Result

        if self.settle is not None:
            self.settle(which)
        start = find_result(self, which).start
        (summary,) = (row for row in find_results(self, start["raw_uid"]) if row.uid == start["uid"])
        return Result(self, summary)

    def close(self) -> None:
        """Close the connections."""
        self.raw.context.close()
        if self.release is not None:
            self.release()

    def __enter__(self) -> Catalog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Catalog at {self.directory or self.uri}>"

    def _repr_html_(self) -> str:
        """Show its results in a notebook."""
        return self.search(complete=False)._repr_html_()

    @contextlib.contextmanager
    def reaching(self) -> Iterator[None]:
        """Ask the server for a sign of life, and turn what fails in the block into `CatalogError`.

        The client repeats failing requests for up to 45 s; asking once first tells about a server
        that is gone within `REACH_TIMEOUT_S`.
        """
        import httpx

        try:
            self.raw.context.http_client.get(self.uri, timeout=REACH_TIMEOUT_S)
            yield
        except httpx.HTTPError as err:
            raise failed(self.uri, err) from err


def open_catalog(where: str | Path | None = None, api_key: str | None = None, *, writable: bool = False) -> Catalog:
    """Open the catalog of a session's folder, or connect to a Tiled server.

    A folder is read beside a session that has it, by that session's server; without one, by a server of this process,
    and a session may begin meanwhile. A server's containers ``raw`` and ``processed`` are made where they are absent.

    Parameters
    ----------
    where : str or Path, optional
        A folder, or a server's address, which may carry ``?api_key=...``; by default the configured one.
    api_key : str, optional
        The key, if the address does not carry it; wins if it does.
    writable : bool
        Of a folder: take results too. No session can then have the folder.

    Raises
    ------
    CatalogError
        If there is no catalog in the folder, no server answers within half a minute, it is no Tiled server, the key
        is refused, or one of the two names is taken by something that holds no runs.
    """
    if where is None:
        from bluesky_cdi.config import load_config

        settings = load_config().catalog
        where, api_key = settings.uri or settings.directory, api_key or settings.api_key
    if isinstance(where, str) and "://" in where:
        return connect(where, api_key)
    from bluesky_cdi.catalog.folders import open_folder

    return open_folder(Path(where), writable=writable)


def connect(uri: str, api_key: str | None = None) -> Catalog:
    """Connect to a Tiled server; see `open_catalog`.

    Parameters
    ----------
    uri : str
        The server's address, which may carry ``?api_key=...``.
    api_key : str, optional
        The key, if the address does not carry it; wins if it does.
    """
    import httpx
    from tiled.client import from_context
    from tiled.client.context import Context

    try:
        address = httpx.URL(uri)
        key = api_key or address.params.get("api_key")
        address = address.copy_with(params=address.params.remove("api_key"))
        _probe(address, key)
        with contextlib.ExitStack() as on_failure:
            context, node_path = Context.from_any_uri(str(address), api_key=key, trust_env=not _is_here(address))
            on_failure.callback(context.close)
            root = from_context(context, node_path_parts=node_path)
            opened = Catalog(str(context.api_uri), _runs(root, "raw"), _runs(root, "processed"))
            on_failure.pop_all()
        return opened
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, RuntimeError) as err:
        raise failed(uri.split("?")[0], err, api_key or _key_in(uri)) from err


def address_of(client: Any) -> tuple[str, str | None]:
    """Give the address of a Tiled client's container, and the key that the client uses.

    Parameters
    ----------
    client : Container
        Of a server: what ``tiled.client.from_uri`` gives, or a container in it.

    Raises
    ------
    CatalogError
        If it is no such client, its server is in this process, or it was logged in without a key.
    """
    uri, context = getattr(client, "uri", None), getattr(client, "context", None)
    if not isinstance(uri, str) or context is None:
        raise CatalogError(f"a catalog is a client of a Tiled server, as tiled.client.from_uri gives; got {client!r}")
    if getattr(context, "server_info", None) is None or "://local-tiled-app" in uri:
        raise CatalogError(
            "the client's server is in this process, where no other can reach it. Serve it (tiled serve ...), and "
            "connect with tiled.client.from_uri."
        )
    if context.api_key is None and context.http_client.auth is not None:
        raise CatalogError(
            f"the client of {uri} is logged in with a token, which ends. Give a session a key: "
            "from_uri(address, api_key=client.context.create_api_key()['secret'])."
        )
    return uri, context.api_key


def _probe(address: Any, key: str | None) -> None:
    """Ask once, with a deadline; the client proper would repeat its first request for up to 45 s."""
    import httpx

    headers = {"Authorization": f"Apikey {key}"} if key else {}
    answer = httpx.get(
        address, headers=headers, timeout=REACH_TIMEOUT_S, follow_redirects=True, trust_env=not _is_here(address)
    )
    answer.raise_for_status()


def _is_here(address: Any) -> bool:
    """Tell whether an address is this machine's own, which no proxy of the environment reaches."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(address.host).is_loopback
    return str(address.host) == "localhost"


def _runs(root: Any, key: str) -> Any:
    """Return the container `key`, made if need be; another client may make it at the same moment."""
    from bluesky_tiled_plugins.clients.catalog_of_bluesky_runs import CatalogOfBlueskyRuns
    from tiled.client.utils import ClientError
    from tiled.structures.core import Spec

    if key not in root:
        try:
            root.create_container(key, specs=[Spec("CatalogOfBlueskyRuns", version="3.0")])
        except ClientError as err:
            if err.response.status_code != 409:
                raise
    found = root[key]
    if not isinstance(found, CatalogOfBlueskyRuns):
        raise CatalogError(
            f"the catalog's entry {key!r} must be a container of Bluesky runs; it is {found!r}. "
            "Point catalog.uri to a container without such an entry."
        )
    return found


def _key_in(uri: str) -> str:
    """Find the key that an address carries, however it is written; empty if it has none."""
    found = re.search(r"api_key=([^&#\s]+)", uri)
    return found[1] if found else ""


def is_server_fault(err: CatalogError) -> bool:
    """Tell whether a server that could be reached failed on what it was sent: its status was 500."""
    import httpx

    return isinstance(err.__cause__, httpx.HTTPStatusError) and err.__cause__.response.status_code == 500


def failed(uri: str, err: Exception, key: str = "") -> CatalogError:
    """Make the error that tells what is wrong with a catalog from what its client raised.

    Parameters
    ----------
    uri : str
        The server's address, without the key.
    err : Exception
        What was raised.
    key : str
        The server's key, which the message must not tell.
    """
    import httpx

    hint = "Check that the Tiled server runs, and catalog.uri and catalog.api_key."
    if isinstance(err, httpx.HTTPStatusError) and err.response.status_code >= 500:
        hint = "The server's log says why; often a data file was moved, or lies outside the folders that it may read."
    first_line = str(err).partition("\n")[0].rstrip(".")
    if key:
        uri, first_line = uri.replace(key, "(key)"), first_line.replace(key, "(key)")
    return CatalogError(f"can't use the catalog at {uri}: {type(err).__name__}: {first_line}. {hint}")


@contextlib.contextmanager
def reaching(uri: str) -> Iterator[None]:
    """Turn the failures of a server or of the way to it into `CatalogError`; what it refuses stays as it is.

    Parameters
    ----------
    uri : str
        The server's address, without the key.
    """
    import httpx

    try:
        yield
    except httpx.HTTPStatusError as err:
        if err.response.status_code in (401, 403, 408, 429) or err.response.status_code >= 500:
            raise failed(uri, err) from err
        raise
    except httpx.HTTPError as err:
        raise failed(uri, err) from err
