"""The web application: all routes of a service, what stands around them, and errors in OpenAI's shape.

Not covered: TLS (put a proxy in front).
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse

from twllm import __version__
from twllm.errors import UserError
from twllm.feedback.store import StoreError
from twllm.serve.api.chat.routes import chat_routes
from twllm.serve.api.completions.routes import completions_routes
from twllm.serve.api.contract import contract_routes
from twllm.serve.api.event_stream import internal_error
from twllm.serve.api.tgi.routes import tgi_routes
from twllm.serve.api.tokenize import tokenize_routes
from twllm.serve.engines.interface import EngineUnavailable
from twllm.serve.errors import ApiError
from twllm.serve.operation.auth import Auth
from twllm.serve.operation.lifecycle import lifecycle_routes, warm_up
from twllm.serve.operation.limits import Admission, BodyLimit
from twllm.serve.operation.logs import Observe
from twllm.serve.operation.metrics import metrics_routes
from twllm.serve.operation.service import Service
from twllm.serve.web.arena import arena_routes
from twllm.serve.web.compare import compare_routes
from twllm.serve.web.pages import WebFiles, page_routes
from twllm.serve.web.ratings import rating_routes

log = logging.getLogger("twllm.serve")


def create_app(service: Service) -> FastAPI:
    """The application of a service; it closes engines and store when it stops."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        warming = asyncio.create_task(warm_up(service)) if not service.lifecycle.warm else None
        yield
        if warming:
            warming.cancel()
        service.close()

    app = FastAPI(
        title="twllm", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None
    )  # their pages need a CDN
    add_error_handlers(app)
    add_middleware(app, service)
    app.include_router(chat_routes(service))
    app.include_router(tokenize_routes(service))
    app.include_router(completions_routes(service))
    app.include_router(tgi_routes(service))
    app.include_router(metrics_routes(service))
    app.include_router(contract_routes(service))
    app.include_router(lifecycle_routes(service))
    app.include_router(rating_routes(service))
    app.include_router(arena_routes(service))
    app.include_router(compare_routes(service))
    app.include_router(page_routes(service))
    app.mount("/", WebFiles())  # last: it answers everything else
    return app


def add_middleware(app: FastAPI, service: Service) -> None:
    """Around all routes, from the outside: records and logs, CORS, keys, body limit, a place at the engines."""
    app.add_middleware(Admission, service=service)
    app.add_middleware(BodyLimit, service=service)
    app.add_middleware(Auth, service=service)
    if service.settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=service.settings.cors_origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["Authorization", "Content-Type", "X-Request-Id"],
            expose_headers=["X-Request-Id", "Retry-After", "X-Dropped-Turns"],
        )
    app.add_middleware(Observe, service=service)


def driver_words(error: StoreError) -> str:
    """What the database driver says, without PostgreSQL's DETAIL, which quotes the row."""
    original = getattr(error.__cause__, "orig", None) or error.__cause__
    diagnosis = getattr(original, "diag", None)
    return f"{type(original).__name__}: {diagnosis.message_primary if diagnosis else original}"


def add_error_handlers(app: FastAPI) -> None:
    """Every error leaves in OpenAI's shape, without a trace."""

    def reply(error: ApiError, headers: Any = None) -> JSONResponse:
        return JSONResponse(error.body(), error.status, headers=headers)

    @app.exception_handler(ApiError)
    async def api(request: Request, error: ApiError) -> JSONResponse:
        return reply(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        param = ".".join(str(part) for part in first["loc"][1:]) or None
        return reply(ApiError(f"請求的格式不對 (invalid request): {param or 'body'}: {first['msg']}", param=param))

    @app.exception_handler(StoreError)
    async def not_stored(request: Request, error: StoreError) -> JSONResponse:
        log.error("not stored: %s", driver_words(error))
        return reply(ApiError("評分沒有存下來，請稍後再試 (not stored)", 503, type="server_error", code="not_stored"))

    @app.exception_handler(UserError)
    async def user(request: Request, error: UserError) -> JSONResponse:
        return reply(ApiError(f"{error.what}；{error.fix}", param=error.where or None))

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        return reply(ApiError(str(error.detail), error.status_code), error.headers)

    @app.exception_handler(EngineUnavailable)
    async def away(request: Request, error: EngineUnavailable) -> JSONResponse:
        log.error("engine unavailable: %s", error)
        return reply(internal_error(error), {"Retry-After": "5"})

    @app.exception_handler(Exception)
    async def bug(request: Request, error: Exception) -> JSONResponse:
        return reply(internal_error())  # the server logs the trace itself
