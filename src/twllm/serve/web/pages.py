"""The pages: /arena, /leaderboard, /compare, the folder with the chat page, and what they ask first (/api/config, /api/card).

Mount `WebFiles` after all routes: it would take `/arena` for a folder. Files are checked again by the browser at each
visit (`no-cache`, an ETag makes that cheap), so that a new version is never half old.
Not covered: a page of one's own design; put a proxy in front and serve other files.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from fastapi.staticfiles import StaticFiles
from starlette.responses import FileResponse, Response

from twllm.serve.errors import ApiError
from twllm.serve.operation.service import Model, Service

WEB = Path(__file__).parent / "static"
PAGES = ("arena", "leaderboard", "compare")
SHOWN = (  # of a model's defaults, what the settings panel shows
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "frequency_penalty",
    "presence_penalty",
    "max_tokens",
)


def page_routes(service: Service) -> APIRouter:
    """The router of a service."""
    router = APIRouter()

    @router.get("/api/config")
    def config() -> dict[str, Any]:
        return configuration(service)

    @router.get("/api/card")
    def card(model: str | None = None) -> dict[str, str]:
        found = service.pick(model)
        if not found.card:
            raise ApiError(f"{found.name} 沒有模型卡 (no card)", 404, param="model", code="no_card")
        return {"markdown": found.card}

    def add(name: str) -> None:
        @router.get(f"/{name}", include_in_schema=False)
        def page() -> FileResponse:
            return FileResponse(WEB / f"{name}.html", headers={"Cache-Control": "no-cache"})

    for name in PAGES:
        add(name)
    return router


def configuration(service: Service) -> dict[str, Any]:
    """What the pages need to know of the server; nothing in it is secret."""
    models = [_shown(service, model) for model in service.models.values()]
    first, settings = models[0], service.settings
    several = len(models) > 1
    return {
        "model": first["name"],
        "models": models,
        "context": first["context"],
        "defaults": first["defaults"],
        "temperature": first["defaults"]["temperature"],
        "system": settings.system,
        "consent_text": settings.consent_text,
        "feedback": True,
        "arena": several and settings.arena,
        "compare": several,
        "login": settings.login,
        "examples": list(settings.examples),
    }


def _shown(service: Service, model: Model) -> dict[str, Any]:
    defaults = asdict(model.engine.defaults)
    return {
        "name": model.name,
        "vision": model.vision,
        "context": service.context(model),
        "card": bool(model.card),
        "defaults": {key: defaults[key] for key in SHOWN},
    }


class WebFiles(StaticFiles):
    """The folder of the pages, to be mounted at `/` after all routes."""

    def __init__(self) -> None:
        super().__init__(directory=WEB, html=True)

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        """A file, to be asked for again at each visit."""
        response = super().file_response(*args, **kwargs)
        response.headers["Cache-Control"] = "no-cache"
        return response
