"""Quicker answers of the catalog's server: a path is looked up at once, and the forms of answers are made once."""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Select, bindparam, select
from sqlalchemy.orm import aliased, joinedload
from tiled.catalog import orm
from tiled.catalog.adapter import STRUCTURES, CatalogContainerAdapter
from tiled.server import dependencies, router, schemas

# Deepest node that is looked up at once: an array of a run's stream has four keys. SQLite joins 64 tables at most.
DEEPEST = 16


def answer_quickly() -> tuple[type, ...]:
    """Have Tiled's server, in this process, look up paths at once.

    Tiled asks its database for each part of a path in turn, so that a policy may hide what is on the way, and composes
    the statement anew each time. Where there is no such policy, as in this package's server, one statement finds the
    node, and is composed once for each depth. Whatever that does not find is left to Tiled; so is all where this
    version of Tiled asks for a node by other arguments than those that are known here.

    Returns
    -------
    tuple of type
        The models of answers. Pydantic forgets those that nobody keeps, and makes them anew for each answer.
    """
    theirs, ours = (list(inspect.signature(each).parameters) for each in (dependencies.get_entry, _get_entry))
    router.get_entry = _get_entry if theirs == ours else dependencies.get_entry
    links: Sequence[type] = (schemas.SelfLinkOnly, *schemas.resource_links_type_by_structure_family.values())
    return (
        schemas.Resource[schemas.NodeAttributes, schemas.ContainerLinks, schemas.ContainerMeta],
        *(schemas.Resource[schemas.NodeAttributes, each, schemas.EmptyDict] for each in links),
    )


async def _get_entry(
    path: str,
    security_scopes: list[str],
    principal: Any,
    authn_access_tags: Any,
    authn_scopes: Any,
    root_tree: Any,
    session_state: Mapping[str, Any],
    metrics: Mapping[str, Any],
    structure_families: set[Any] | None = None,
    access_policy: Any = None,
) -> Any:
    """Find the adapter of a path, as `tiled.server.dependencies.get_entry` does."""
    segments = [segment for segment in path.split("/") if segment]
    is_ours = access_policy is None and isinstance(root_tree, CatalogContainerAdapter)
    if is_ours and 0 < len(segments) <= DEEPEST:
        values = {f"key{i}": segment for i, segment in enumerate(segments)}
        async with root_tree.context.session() as database:
            found = await database.execute(_statement(len(segments)), {"root": root_tree.node.id, **values})
            node = found.unique().scalar()
        if node is not None and (structure_families is None or node.structure_family in structure_families):
            return STRUCTURES[node.structure_family](root_tree.context, node)
    return await dependencies.get_entry(
        path,
        security_scopes,
        principal,
        authn_access_tags,
        authn_scopes,
        root_tree,
        session_state,
        metrics,
        structure_families,
        access_policy,
    )


@functools.cache
def _statement(depth: int) -> Select[Any]:
    """Compose the statement that finds a node by `root` and the keys on the way to it, `key0`, `key1`, ..."""
    nodes = [*(aliased(orm.Node) for _ in range(depth - 1)), orm.Node]
    statement = select(orm.Node).select_from(nodes[0]).where(nodes[0].parent == bindparam("root"))
    for parent, child in itertools.pairwise(nodes):
        statement = statement.join(child, child.parent == parent.id)
    for i, node in enumerate(nodes):
        statement = statement.where(node.key == bindparam(f"key{i}"))
    # With what Tiled loads by a statement each, of which a node has one or none.
    sources = joinedload(orm.Node.data_sources).joinedload(orm.DataSource.structure)
    return statement.options(sources, joinedload(orm.Node.access_tags))
