"""The pages that the API shows: the live one, and that of its own documentation. Nothing comes from another host."""

import mimetypes
from importlib import resources
from typing import Final

from fastapi import FastAPI, Response

OWN: Final = (
    *(f"{name}.js" for name in ("main", "alerts", "dom", "labels", "pulse", "trip", "words")),
    "page.css",
    "icon.svg",
    "zones.json",
)
DOCS: Final = "/docs"
DOCS_ASSETS: Final = {
    "/docs/start.js": ("fraudlib", "docs.js"),
    "/docs/swagger-ui-bundle.js": ("fastapi_offline", "swagger-ui-bundle.js"),
    "/docs/swagger-ui.css": ("fastapi_offline", "swagger-ui.css"),
}
STATIC: Final = tuple(f"/static/{name}" for name in OWN)
# What a page may load: its own files. Data addresses are the small pictures in the style sheet of Swagger UI.
HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "Cache-Control": "no-cache",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def add_pages(app: FastAPI) -> None:
    """Add `/`, `/docs` and the files that they load."""
    _add(app, "/", "fraudlib", "index.html")
    _add(app, DOCS, "fraudlib", "docs.html")
    for path in STATIC:
        _add(app, path, "fraudlib", path.rpartition("/")[2])
    for path, (package, name) in DOCS_ASSETS.items():
        _add(app, path, package, name)


def _add(app: FastAPI, path: str, package: str, name: str) -> None:
    file = resources.files(package).joinpath("static", name)
    media_type = mimetypes.types_map[name[name.rindex(".") :]]

    @app.get(path, include_in_schema=False)
    async def get_file() -> Response:
        return Response(file.read_bytes(), media_type=media_type, headers=HEADERS)
