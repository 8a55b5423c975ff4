"""The embedded catalog's database, made in this process.

Tiled would start a Python process for that, which takes seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path


def create_database(path: Path) -> None:
    """Make the tables of an empty catalog, of the version that this Tiled writes.

    Parameters
    ----------
    path : path
        SQLite file. It appears when it is whole: whoever is killed meanwhile leaves none.

    Raises
    ------
    sqlite3.Error, sqlalchemy.exc.SQLAlchemyError, OSError
        If it can't be written.
    """
    from alembic.runtime.migration import MigrationContext
    from alembic.script import ScriptDirectory
    from sqlalchemy import create_engine
    from tiled.catalog.alembic_constants import ALEMBIC_DIR
    from tiled.catalog.core import REQUIRED_REVISION

    making = path.with_suffix(".making")
    making.unlink(missing_ok=True)
    # First without an event loop: one that ends while a connection fails leaves its thread an error.
    with contextlib.closing(sqlite3.connect(making)):
        pass
    with ThreadPoolExecutor(1) as pool:  # this thread may have an event loop that runs
        pool.submit(asyncio.run, _make_tables(making)).result()
    engine = create_engine(f"sqlite:///{making}")
    try:
        with engine.begin() as connection:
            MigrationContext.configure(connection).stamp(ScriptDirectory(ALEMBIC_DIR), REQUIRED_REVISION)
    finally:
        engine.dispose()
    making.replace(path)


async def _make_tables(path: Path) -> None:
    from sqlalchemy.ext.asyncio import create_async_engine
    from tiled.catalog.core import initialize_database

    engine = create_async_engine(f"sqlite+aiosqlite:///{path}")
    try:
        await initialize_database(engine)
    finally:
        await engine.dispose()
