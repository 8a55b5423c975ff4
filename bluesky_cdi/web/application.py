"""The page as an ASGI application: static files, and what they ask for, under ``/page``."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from bluesky_cdi.catalog import Catalog
from bluesky_cdi.catalog.guard import Receive, Scope, Send
from bluesky_cdi.config import Config
from bluesky_cdi.errors import BlueskyCDIError, CatalogError, FrameError
from bluesky_cdi.plain import to_json
from bluesky_cdi.web.access import Access
from bluesky_cdi.web.pairs import QUANTITIES, SIDES
from bluesky_cdi.web.pictures import Picture
from bluesky_cdi.web.questions import Questions
from bluesky_cdi.web.reader import FORMATS, FRAME_PICTURES, NotFoundError, Reader, temporary_folder
from bluesky_cdi.web.run_pictures import NAMES
from bluesky_cdi.web.scan_pictures import SCAN_MAPS

logger = logging.getLogger(__name__)

STATIC = "static"
MEDIA_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
# An image of an update stays what it is.
KEEP = {"cache-control": "private, max-age=3600"}
FRESH = {"cache-control": "no-store"}


class Page:
    """Shows the runs of a catalog; an ASGI application.

    Parameters
    ----------
    connect : callable
        Opens the catalog; asked when first something is to be seen, and again if that failed.
    api_key : str
        The key without which nothing is shown.
    public : bool
        Show it to those who have none.
    config : Config
        What of raw runs makes frames: section `documents`.
    """

    def __init__(self, connect: Callable[[], Catalog], api_key: str, *, public: bool, config: Config) -> None:
        self._questions, self._static = Questions(connect, config), static_files()
        api = "/page/api"
        routes = [
            Route("/", _to_page),
            Route("/page", _to_page),
            Route("/healthz", _health),
            Route("/page/", self._index),
            Route("/page/static/{name:path}", self._static_file),
            Route(f"{api}/runs", self._runs),
            Route(f"{api}/run/{{uid}}", self._run),
            Route(f"{api}/run/{{uid}}/thumbnail.png", self._thumbnail),
            Route(f"{api}/run/{{uid}}/image/{{name}}.png", self._image),
            Route(f"{api}/run/{{uid}}/frame/{{number:int}}", self._frame),
            Route(f"{api}/run/{{uid}}/frame/{{number:int}}/{{name}}.png", self._frame_picture),
            Route(f"{api}/run/{{uid}}/file/{{form}}", self._file),
            Route(f"{api}/pair/{{first}}/{{second}}", self._pair),
            Route(f"{api}/pair/{{first}}/{{second}}/{{side}}/{{quantity}}.png", self._pair_picture),
        ]
        app = Starlette(routes=routes, exception_handlers={HTTPException: _told, BlueskyCDIError: _failed})
        self._app = Access(app, api_key, public=public, ask=self._static["key.html"])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        await self._app(scope, receive, send)

    def prepare(self) -> None:
        """Open the catalog and load what answers need, in a thread, before somebody waits for it."""
        self._questions.prepare()

    def close(self) -> None:
        """Close the connection to the catalog; no request follows."""
        self._questions.close()

    async def _index(self, request: Request) -> Response:
        return Response(self._static["index.html"], media_type=MEDIA_TYPES["html"], headers=FRESH)

    async def _static_file(self, request: Request) -> Response:
        # Looked up among the files that there are: a name from outside leads nowhere else.
        name = request.path_params["name"]
        if name not in self._static or name.endswith(".html"):
            raise HTTPException(404, "there is no such file")
        media_type = MEDIA_TYPES[name.rpartition(".")[2]]
        return Response(self._static[name], media_type=media_type, headers={"cache-control": "no-cache"})

    async def _runs(self, request: Request) -> Response:
        epoch, after = request.query_params.get("epoch", ""), _whole(request, "after", -1)
        return _json(await self._questions.ask(lambda reader: reader.runs.changes(epoch, after)))

    async def _run(self, request: Request) -> Response:
        return _json(await self._questions.ask(lambda reader: reader.view(request.path_params["uid"])))

    async def _thumbnail(self, request: Request) -> Response:
        png = await self._questions.ask(lambda reader: reader.thumbnail(request.path_params["uid"]))
        return Response(png, media_type="image/png", headers=KEEP)

    async def _image(self, request: Request) -> Response:
        uid, name = request.path_params["uid"], _one_of(request, "name", (*NAMES, *SCAN_MAPS))
        update, mode, limits = _whole(request, "update", -1), _whole(request, "mode", 0), _limits(request)
        found = await self._questions.ask(lambda reader: reader.image(uid, name, update, mode, limits))
        return _picture(found, KEEP if update >= 0 else FRESH)

    async def _frame(self, request: Request) -> Response:
        uid, number = request.path_params["uid"], request.path_params["number"]
        found = await self._questions.ask(lambda reader: reader.frame(uid, number))
        return _json(
            {
                "number": number,
                "counts": float(np.nansum(found.measured)),
                "brightest": float(np.nanmax(found.measured)),
                "shape": list(found.measured.shape),
                "flux": None if found.fitted is None else found.fitted.flux,
            }
        )

    async def _frame_picture(self, request: Request) -> Response:
        uid, number = request.path_params["uid"], request.path_params["number"]
        name = _one_of(request, "name", FRAME_PICTURES)
        return _picture(await self._questions.ask(lambda reader: reader.frame_picture(uid, number, name)), FRESH)

    async def _file(self, request: Request) -> Response:
        uid, form = request.path_params["uid"], _one_of(request, "form", FORMATS)
        folder = temporary_folder()
        try:
            path = await self._questions.ask(lambda reader: reader.export(uid, form, Path(folder.name)))
        except BaseException:
            folder.cleanup()
            raise
        return FileResponse(path, filename=path.name, headers=FRESH, background=BackgroundTask(folder.cleanup))

    async def _pair(self, request: Request) -> Response:
        first, second = request.path_params["first"], request.path_params["second"]
        return _json(await self._questions.ask(lambda reader: reader.pair(first, second).describe()))

    async def _pair_picture(self, request: Request) -> Response:
        first, second = request.path_params["first"], request.path_params["second"]
        draw = partial(
            _drawn_pair, first, second, _one_of(request, "side", SIDES), _one_of(request, "quantity", QUANTITIES)
        )
        return _picture(await self._questions.ask(draw), KEEP)


def static_files() -> dict[str, bytes]:
    """Read the files of the page by their names, those of its libraries as ``vendor/NAME``."""
    root = files(__package__) / STATIC
    found = {each.name: each for each in root.iterdir() if each.is_file()}
    found |= {f"vendor/{each.name}": each for each in (root / "vendor").iterdir() if each.is_file()}
    return {name: each.read_bytes() for name, each in found.items() if name.rpartition(".")[2] in MEDIA_TYPES}


async def _to_page(request: Request) -> Response:
    query = f"?{request.url.query}" if request.url.query else ""
    return RedirectResponse(f"/page/{query}", 303)


async def _health(request: Request) -> Response:
    return JSONResponse({"status": "ready"})


def _drawn_pair(first: str, second: str, side: str, quantity: str, reader: Reader) -> Picture:
    return reader.pair(first, second).picture(side, quantity)


def _whole(request: Request, name: str, default: int) -> int:
    text = request.query_params.get(name, str(default))
    try:
        value = int(text) if len(text) <= 12 else None
    except ValueError:
        value = None
    if value is None:
        raise HTTPException(400, f"{name} must be a whole number")
    return value


def _limits(request: Request) -> tuple[float, float] | None:
    if "low" not in request.query_params and "high" not in request.query_params:
        return None
    try:
        low, high = (float(request.query_params.get(name, "")) for name in ("low", "high"))
    except ValueError:
        low = high = math.nan
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise HTTPException(400, "low and high must be finite numbers, low the smaller one")
    return low, high


def _one_of(request: Request, name: str, known: Any) -> str:
    value: str = request.path_params[name]
    if value not in known:
        raise HTTPException(404, f"there is no such {name}; there are {', '.join(known)}")
    return value


def _json(value: Any) -> Response:
    return Response(to_json(value), media_type="application/json", headers=FRESH)


def _picture(found: Picture, headers: dict[str, str]) -> Response:
    numbers = {"low": found.low, "high": found.high}
    told = {
        **{name: value if math.isfinite(value) else None for name, value in numbers.items()},
        "colours": found.colours,
        "unit": found.unit,
        "shape": found.shape,
    }
    return Response(found.png, media_type="image/png", headers={**headers, "x-picture": json.dumps(told)})


async def _told(request: Request, err: Exception) -> Response:
    status = err.status_code if isinstance(err, HTTPException) else 500
    detail = err.detail if isinstance(err, HTTPException) else "failed"
    return JSONResponse({"detail": detail}, status)


async def _failed(request: Request, err: Exception) -> Response:
    """Tell what can't be shown, and why."""
    if isinstance(err, (NotFoundError, FrameError)):
        return JSONResponse({"detail": str(err)}, 404)
    if not isinstance(err, CatalogError):
        return JSONResponse({"detail": str(err)}, 422)
    logger.info("the page could not show %s: %s", request.url.path, err)
    return JSONResponse({"detail": str(err)}, 503 if err.__cause__ is not None else 404)
