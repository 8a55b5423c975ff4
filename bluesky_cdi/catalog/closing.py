"""Ends all streams of a run by one request, where Tiled's client asks once for each of its nodes."""

from typing import Any

from fastapi import APIRouter, Depends, Request, Security
from sqlalchemy import select
from tiled.catalog.orm import NodesClosure
from tiled.server.authentication import (
    check_scopes,
    get_current_access_tags,
    get_current_principal,
    get_current_scopes,
    get_session_state,
)
from tiled.server.dependencies import get_entry, get_root_tree

# In place of "metadata" in the address of a node.
CLOSE_ALL = "stream/close_all"
router = APIRouter()


@router.delete(f"/{CLOSE_ALL}/{{path:path}}")
async def close_all(
    request: Request,
    path: str,
    principal: Any = Depends(get_current_principal),  # noqa: B008 (FastAPI's way)
    root_tree: Any = Depends(get_root_tree),  # noqa: B008
    session_state: dict[str, Any] = Depends(get_session_state),  # noqa: B008
    tags: Any = Depends(get_current_access_tags),  # noqa: B008
    scopes: Any = Depends(get_current_scopes),  # noqa: B008
    _: Any = Security(check_scopes, scopes=["write:data"]),  # noqa: B008
) -> None:
    """Tell the subscribers of a node, and of all nodes in it, that nothing more comes; the innermost first."""
    rights = principal, tags, scopes, root_tree, session_state, request.state.metrics, None
    entry = await get_entry(path, ["write:data"], *rights, getattr(request.app.state, "access_policy", None))
    nodes = select(NodesClosure.descendant).where(NodesClosure.ancestor == entry.node.id)
    async with entry.context.session() as database:
        found = (await database.execute(nodes.order_by(NodesClosure.depth.desc()))).scalars().all()
    for node in found:
        await entry.context.streaming_cache.close(node)
