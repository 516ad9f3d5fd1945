"""The web application: OpenAI routes, ratings, the chat page; and `serve`, which runs it.

The address is bound and the database opened before the model is loaded, so that a mistake costs a second and not
minutes.
Not covered yet: logins, several models, TLS (put a proxy in front).
"""

import hashlib
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from twllm import __version__
from twllm.errors import UserError, require_file
from twllm.feedback.store import Rating, RatingStore, StoreError
from twllm.serve.completions import completions_routes
from twllm.serve.generation import Engine
from twllm.serve.metrics import Metrics, metrics_routes
from twllm.serve.openai import chat_routes, internal_error
from twllm.serve.protocol import ApiError, RatingRequest

WEB = Path(__file__).parent / "web"
SHUTDOWN_S = 5  # how long running answers may go on after Ctrl-C; chosen
log = logging.getLogger("twllm.serve")


def create_app(engine: Engine, store: RatingStore, model_name: str) -> FastAPI:
    """The application for one engine and one rating store; it closes both when it stops."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        engine.close()
        store.close()

    app = FastAPI(
        title="twllm", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None
    )  # their pages need a CDN
    add_error_handlers(app)
    metrics = Metrics()
    app.include_router(chat_routes(engine, model_name, metrics.observe))
    app.include_router(completions_routes(engine, model_name, metrics.observe))
    app.include_router(metrics_routes(metrics))

    @app.get("/api/config")
    def config() -> dict[str, Any]:
        return {"model": model_name, "context": engine.context, "temperature": engine.defaults.temperature}

    @app.post("/api/rating")
    def rate(body: RatingRequest) -> dict[str, Any]:
        rating = Rating(
            **body.model_dump(exclude={"user", "messages"}),
            messages=[message.model_dump() for message in body.messages],
            user_hash=hash_user(body.user),
            model=model_name,
            model_fingerprint=engine.model_fingerprint,
            template_fingerprint=engine.tokenizer.template_fingerprint,
        )
        return {"stored": True, "id": store.add(rating)}

    app.mount("/", StaticFiles(directory=WEB, html=True))
    return app


def hash_user(user: str) -> str:
    """Who rated, not reversible to the number the browser sent; '' for nobody."""
    return hashlib.sha256(user.encode("utf-8", "replace")).hexdigest()[:32] if user else ""


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
        log.error("%s", error)
        return reply(ApiError("評分沒有存下來，請稍後再試 (not stored)", 503, type="server_error", code="not_stored"))

    @app.exception_handler(UserError)
    async def user(request: Request, error: UserError) -> JSONResponse:
        return reply(ApiError(f"{error.what}；{error.fix}", param=error.where or None))

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        return reply(ApiError(str(error.detail), error.status_code), error.headers)

    @app.exception_handler(Exception)
    async def bug(request: Request, error: Exception) -> JSONResponse:
        return reply(internal_error())  # the server logs the trace itself


def bind(host: str, port: int) -> socket.socket:
    """A listening socket, so that the port is ours before the model is loaded.

    Raises:
        UserError: the port is in use, not allowed, or the host is not one of this machine's.
    """
    where = f"{host}:{port}"
    if not 0 <= port <= 65535:
        raise UserError(f"沒有連接埠 {port} (no such port)", where, "用 1024 到 65535 之間的 --port")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        server = socket.socket(family, kind, protocol)
    except OSError as error:
        raise UserError(f"不能用這個位址 (bad address): {error}", where, "檢查 --host 與 --port") from error
    try:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(address)
        server.listen(1)
    except OSError as error:
        server.close()
        import errno

        if error.errno == errno.EADDRINUSE:
            raise UserError(
                f"連接埠 {port} 已經有人在用 (port in use)", where, f"換一個連接埠，例如 --port {port + 1}"
            ) from error
        raise UserError(
            f"不能在這個位址等連線 (cannot listen): {error}", where, "換一個 --host 或 --port（1024 以下要管理員權限）"
        ) from error
    return server


def serve(
    model: Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8080,
    db: str,
    threads: int | None = None,
    allow_template_mismatch: bool = False,
) -> None:
    """Serve the checkpoint folder `model` until Ctrl-C; ratings go to `db` (path or SQLAlchemy URL).

    Raises:
        UserError: the port is in use, the database cannot be used, or the model cannot be loaded or must not be served.
    """
    from rich.console import Console

    console = Console()
    require_file(model, "找不到模型資料夾 (no such model folder)")  # first: a typing error must not create a database
    with bind(host, port) as server, RatingStore(db) as store:
        with console.status(f"載入模型 (loading) {model}"):
            from twllm.serve.engine import TorchEngine

            engine = TorchEngine(model, threads=threads, allow_template_mismatch=allow_template_mismatch)
        port = server.getsockname()[1]
        name = Path(model).resolve().name
        shown = f"[{host}]" if ":" in host else "127.0.0.1" if host in ("", "0.0.0.0") else host
        console.print(f"模型 (model)：{name}   {engine.device}, {engine.model.dtype}", highlight=False)
        console.print(f"聊天頁面 (chat)：http://{shown}:{port}/   API：http://{shown}:{port}/v1", highlight=False)
        console.print(f"評分存在 (ratings)：{store.where}   按 Ctrl-C 結束", highlight=False, soft_wrap=True)
        if host in ("", "0.0.0.0", "::"):
            console.print(
                "注意：同一個網路上的人都連得到，而且不用登入 (open to the network, no login)", style="yellow"
            )
        run(create_app(engine, store, name), server)


def run(app: FastAPI, server: socket.socket) -> None:
    """uvicorn on an already bound socket, until it is told to stop."""
    import uvicorn

    config = uvicorn.Config(app, log_level="warning", ws="none", timeout_graceful_shutdown=SHUTDOWN_S)
    with suppress(KeyboardInterrupt):  # uvicorn stops cleanly on Ctrl-C, then raises it once more
        uvicorn.Server(config).run(sockets=[server])
