"""The catalog's server finds a node by its path at once, and answers as Tiled does."""

import asyncio

import numpy as np
import pytest
from sqlalchemy import Engine, event
from tiled.catalog.adapter import CatalogContainerAdapter
from tiled.client import from_uri
from tiled.server import dependencies, router

from bluesky_cdi.catalog import lookups, serve


@pytest.fixture
def root(directory):
    with serve(directory) as uri:
        client = from_uri(uri)
        yield client
        client.context.close()


@pytest.fixture
def statements(root):
    """What is asked of databases."""
    said = []

    def keep(connection, cursor, statement, *rest):
        said.append(statement)

    event.listen(Engine, "before_cursor_execute", keep)
    yield said
    event.remove(Engine, "before_cursor_execute", keep)


def test_answers_are_tileds_own(root, monkeypatch):
    """Of containers, arrays and tables in any depth, of what is not there, and of another kind than was asked for."""
    raw = root.create_container("raw")
    run = raw.create_container("a run", metadata={"sample": "star"}).create_container("primary")
    run.write_array(np.arange(12).reshape(3, 4), key="x", metadata={"unit": "m"})
    run.write_table({"x": np.arange(3.0)}, key="t")
    asked = [
        *(f"metadata/{path}" for path in ("", "raw", "raw/a run", "raw/a run/primary")),
        *(f"metadata/raw/a run/primary/{key}?include_data_sources=true" for key in ("x", "t")),
        "array/full/raw/a run/primary/x?format=application/json",
        "table/full/raw/a run/primary/t?format=application/json",
        "search/raw/a run",
        *(f"metadata/{path}" for path in ("x", "raw/another", "raw/primary", "raw/a run/primary/x/y", "raw/x/primary")),
        *(f"array/full/{path}" for path in ("raw", "raw/a run/primary/t")),
        *(f"metadata/{'x/' * depth}" for depth in (lookups.DEEPEST, lookups.DEEPEST + 1, 100)),
    ]

    def answers():
        found = [root.context.http_client.get(f"{root.context.api_uri}{each}") for each in asked]
        return [(each.status_code, each.json()) for each in found]

    ours = answers()
    assert [status for status, _ in ours] == [200] * 9 + [404] * 10
    monkeypatch.setattr(router, "get_entry", dependencies.get_entry)
    assert ours == answers()


def test_the_way_to_a_node_costs_nothing(root, statements):
    asked, node = [], root
    for _ in range(5):
        node = node.create_container("within")
        statements.clear()
        root.context.http_client.get(node.uri).raise_for_status()
        asked.append([each.split()[0] for each in statements])
    assert all(each == asked[0] for each in asked) and len(asked[0]) > 1


def test_where_a_policy_may_hide_nodes_tiled_looks(monkeypatch):
    """So it does in a tree that is no catalog."""
    came = []

    async def looked(*arguments):
        came.append(arguments[5:])

    monkeypatch.setattr(dependencies, "get_entry", looked)
    catalog, policy = CatalogContainerAdapter.__new__(CatalogContainerAdapter), object()
    for tree, rule in ((catalog, policy), ({}, None)):
        asyncio.run(lookups._get_entry("raw", ["read:metadata"], None, None, (), tree, {}, {}, None, rule))
    assert came == [(catalog, {}, {}, None, policy), ({}, {}, {}, None, None)]


def test_a_tiled_that_asks_in_another_way_looks_itself(monkeypatch):
    async def another(path, security_scopes, hides_nodes, **others):
        raise AssertionError("nobody asks")

    monkeypatch.setattr(router, "get_entry", dependencies.get_entry)
    monkeypatch.setattr(dependencies, "get_entry", another)
    lookups.answer_quickly()
    assert router.get_entry is another
    monkeypatch.undo()
    monkeypatch.setattr(router, "get_entry", dependencies.get_entry)
    lookups.answer_quickly()
    assert router.get_entry is lookups._get_entry
