"""A catalog's folder that was moved or copied: what it holds is found where the folder is now.

Tiled keeps the address of each file in full. Those below the folder are written anew before it is served.
"""

from __future__ import annotations

import contextlib
import logging
import shlex
import sqlite3
from pathlib import Path
from urllib.parse import quote

from bluesky_cdi.errors import CatalogError

logger = logging.getLogger(__name__)

DATABASE, TABLES = "catalog.db", "tables.db"
# Tiled's own form of the event tables' address; every catalog with an event has it, and so tells where it was.
_TABLES_URI = "sqlite://localhost/"


def relocate(root: Path) -> int:
    """Let the entries of a catalog lead to the files in its folder, wherever that was when they were made.

    The folder must not be served meanwhile. Files outside of the folder stay where they are.

    Parameters
    ----------
    root : Path
        The catalog's folder, absolute.

    Returns
    -------
    int
        How many addresses were changed.

    Raises
    ------
    CatalogError
        If the catalog's database can't be written, or runs wait that name their files by the old place.
    """
    if not (database := root / DATABASE).is_file():
        return 0
    try:
        with contextlib.closing(sqlite3.connect(database)) as connection, connection:
            if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'assets'").fetchone():
                return 0
            if not (former := _former_roots(connection, root)):
                return 0
            _check_journal(root, former)
            changed = sum(_lead_from(connection, old, root) for old in former)
    except sqlite3.OperationalError as err:
        raise CatalogError(
            f"the catalog {database} was moved here from another folder, and can't be adapted: {err}. "
            "Make the file and its folder writable, or copy the whole folder to where you may write."
        ) from err
    except sqlite3.DatabaseError:
        return 0  # It is no database: opening it says so.
    logger.warning("the catalog was in %s: its entries lead to %s now", ", ".join(map(str, former)), root)
    return changed


def _former_roots(connection: sqlite3.Connection, root: Path) -> list[Path]:
    """List the folders that the catalog has been in, but for the one that it is in now."""
    uris = connection.execute("SELECT data_uri FROM assets WHERE data_uri LIKE ?", (f"{_TABLES_URI}%/{TABLES}",))
    folders = {Path(uri.removeprefix(_TABLES_URI)).parent for (uri,) in uris}
    return sorted(folders - {root})


def _lead_from(connection: sqlite3.Connection, old: Path, new: Path) -> int:
    """Change the addresses that lead below one folder to those below another; how many."""
    changed = 0
    for asset, uri in connection.execute("SELECT id, data_uri FROM assets").fetchall():
        if (target := _moved(uri, old, new)) is None:
            continue
        changed += 1
        there = connection.execute("SELECT id FROM assets WHERE data_uri = ?", (target,)).fetchone()
        if there is None:
            connection.execute("UPDATE assets SET data_uri = ? WHERE id = ?", (target, asset))
        else:
            # Each address stands once: something was written after the move already.
            connection.execute(
                "UPDATE data_source_asset_association SET asset_id = ? WHERE asset_id = ?", (there[0], asset)
            )
            connection.execute("DELETE FROM assets WHERE id = ?", (asset,))
    return changed


def _moved(uri: str, old: Path, new: Path) -> str | None:
    """Give the address of the same file in the new folder; None where it is in neither form below the old one."""
    for scheme, said in (("file://localhost", str), ("file://localhost", quote), ("file://", quote)):
        start = f"{scheme}{said(str(old))}/"
        if uri.startswith(start):
            return f"{scheme}{said(str(new))}/{uri.removeprefix(start)}"
    return f"{_TABLES_URI}{new}/{TABLES}" if uri == f"{_TABLES_URI}{old}/{TABLES}" else None


def _check_journal(root: Path, former: list[Path]) -> None:
    """Refuse where runs wait whose documents name their files by the old place: the catalog would refuse those."""
    from bluesky_cdi.catalog.feeder import waiting_files

    if left := waiting_files(root / "journal"):
        old = former[-1]
        restore = f"bluesky-cdi restore {shlex.quote(str(old))}"
        raise CatalogError(
            f"the catalog in {root} was moved here from {old}, and {len(left)} run(s) that it has not taken yet name "
            f"their files by the old place. Move the folder back and run `{restore}` first; to do without these runs, "
            f"take their files out of {root / 'journal'}."
        )
