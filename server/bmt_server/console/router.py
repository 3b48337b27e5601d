"""Table of the console's routes. Each checks its session itself (`page.page`)."""

from __future__ import annotations

from importlib.resources import files as package_files

from fastapi import APIRouter, Request
from fastapi.responses import Response

from bmt_server.console.page import HEADERS, failed
from bmt_server.console.pages import compare, files, jobs, keys, masks, sign_in, traffic, usage
from bmt_server.console.session import console_state
from bmt_server.errors import ApiError, NotFound

_STATIC = {
    name: (package_files(__package__).joinpath("static", name).read_bytes(), kind)
    for name, kind in (
        ("console.css", "text/css; charset=utf-8"),
        ("console.js", "text/javascript; charset=utf-8"),
        ("icon.svg", "image/svg+xml"),
    )
}


def build_console() -> APIRouter:
    """Routes at /console and below."""
    router = APIRouter(prefix="/console")
    for path, method, endpoint in (
        ("", "GET", sign_in.start),
        ("/static/{name}", "GET", static),
        ("/sign-in", "GET", sign_in.show),
        ("/sign-in", "POST", sign_in.send),
        ("/sign-out", "POST", sign_in.leave),
        ("/masks", "GET", masks.show_all),
        ("/masks", "POST", masks.upload),
        ("/masks/{name}", "GET", masks.show),
        ("/masks/{name}/{what}", "POST", masks.change),
        ("/compare", "GET", compare.show),
        ("/compare", "POST", compare.send),
        ("/compare/stream", "POST", compare.stream),
        ("/jobs", "GET", jobs.show_all),
        ("/jobs", "POST", jobs.create),
        ("/jobs/{job}", "GET", jobs.show),
        ("/jobs/{job}/{what}", "POST", jobs.change),
        ("/files", "GET", files.show_all),
        ("/files", "POST", files.upload),
        ("/files/{file}/{what}", "POST", files.change),
        ("/traffic", "GET", traffic.show),
        ("/usage", "GET", usage.show),
        ("/keys", "GET", keys.show_all),
        ("/keys", "POST", keys.create),
        ("/keys/{key}/{what}", "POST", keys.change),
    ):
        router.add_route(f"{router.prefix}{path}", endpoint, methods=[method])
    return router


async def static(request: Request) -> Response:
    """A file of the console's own, for whoever asks."""
    name = request.path_params["name"]
    try:
        console_state(request)
        if name not in _STATIC:
            raise NotFound(f"no file {name[:64]}")
    except ApiError as error:
        return failed(request, None, error)
    data, kind = _STATIC[name]
    headers = {**HEADERS, "Cache-Control": "max-age=300"}
    return Response(data, headers=headers, media_type=kind)
