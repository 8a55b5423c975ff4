"""The database of an empty catalog."""

import asyncio
import sqlite3

import pytest
from sqlalchemy.ext.asyncio import create_async_engine
from tiled.alembic_utils import check_database
from tiled.catalog.core import ALL_REVISIONS, REQUIRED_REVISION

from bluesky_cdi.catalog.database import create_database


def test_tiled_takes_it_for_its_newest_version(tmp_path):
    (tmp_path / "catalog.making").write_bytes(b"left by one that was killed")

    async def create_and_check():
        # Where an event loop runs, as in Jupyter.
        create_database(tmp_path / "catalog.db")
        engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'catalog.db'}")
        await check_database(engine, REQUIRED_REVISION, ALL_REVISIONS)
        await engine.dispose()

    asyncio.run(create_and_check())
    assert [path.name for path in tmp_path.iterdir()] == ["catalog.db"]


def test_where_it_can_not_be_written_there_is_none(tmp_path):
    with pytest.raises(sqlite3.OperationalError, match="unable to open database file"):
        create_database(tmp_path / "none" / "catalog.db")
    assert list(tmp_path.iterdir()) == []
