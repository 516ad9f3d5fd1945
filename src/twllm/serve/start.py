"""`twllm serve`: bind the address, open the database, load the models, answer until told to stop.

Address and database come before the models, so that a mistake costs a second and not minutes. One process and one event
loop: engines batch better together than apart, and more machines are added behind a gateway (docs/deploy.md).
"""

import errno
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from twllm.errors import UserError, require_file
from twllm.feedback.store import RatingStore
from twllm.serve.app import create_app
from twllm.serve.engines.interface import Engine
from twllm.serve.operation.service import Model, ServeSettings, Service, by_name

LINGER_S = 2  # for connections to close after the last answer
BACKLOG = 2048  # connections that the system holds for us while we are busy


@dataclass(frozen=True, kw_only=True)
class EngineChoice:
    """Which engine, and what it needs to know."""

    engine: str = "auto"
    tokenizer: Path | None = None  # of a remote model
    replicas: tuple[str, ...] = ()  # more servers of the same remote model
    api_key: str = ""  # of the remote servers
    threads: int | None = None
    tensor_parallel: int = 0  # 0: the engine's default
    options: tuple[tuple[str, str | int | float | bool], ...] = ()  # more of them, by the engine's names
    allow_template_mismatch: bool = False


def serve(
    models: Sequence[str | Path],
    *,
    db: str,
    names: Sequence[str] = (),
    host: str = "127.0.0.1",
    port: int = 8080,
    settings: ServeSettings | None = None,
    choice: EngineChoice | None = None,
    log_format: str = "text",
) -> None:
    """Serve checkpoint folders or remote servers until a signal; ratings and keys are in `db` (path or SQLAlchemy URL).

    Raises:
        UserError: the port is in use, the database cannot be used, or a model cannot be loaded or must not be served.
    """
    from rich.console import Console

    from twllm.serve.operation.logs import set_up

    settings, choice, console = settings or ServeSettings(), choice or EngineChoice(), Console()
    if len(names) > len(models):
        raise UserError("--name 比模型多 (more names than models)", "、".join(names), "每個模型最多一個 --name")
    for model in models:
        if not is_url(str(model)):  # first: a typing error must not create a database
            require_file(Path(model), "找不到模型資料夾 (no such model folder)")
    with bind(host, port) as server, RatingStore(db) as store:
        check_keys(store, settings)
        opened: list[Model] = []
        try:
            for model, name in zip_longest(models, names, fillvalue=""):
                with console.status(f"載入模型 (loading) {model}"):
                    opened.append(open_model(str(model), choice, name))
            service = Service(by_name(opened), store, settings)
        except BaseException:
            for loaded in opened:
                loaded.engine.close()
            raise
        set_up(as_json=log_format == "json", text=settings.log_text)
        announce(console, service, host, server.getsockname()[1])
        run(service, server)


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
        if error.errno == errno.EADDRINUSE:
            raise UserError(
                f"連接埠 {port} 已經有人在用 (port in use)", where, f"換一個連接埠，例如 --port {port + 1}"
            ) from error
        raise UserError(
            f"不能在這個位址等連線 (cannot listen): {error}", where, "換一個 --host 或 --port（1024 以下要管理員權限）"
        ) from error
    return server


def is_url(model: str) -> bool:
    """Whether it is another server's address."""
    return model.startswith(("http://", "https://"))


def open_model(model: str, choice: EngineChoice, name: str = "") -> Model:
    """Load one model, with its card where the folder has one."""
    if is_url(model):
        from urllib.parse import urlsplit

        found = choice.tokenizer.resolve().name if choice.tokenizer else urlsplit(model).hostname
        name = name or found or model
        return Model(name, open_engine(model, replace(choice, engine="remote")))
    folder = Path(model)
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    engine = open_engine(model, choice)
    return Model(name or folder.resolve().name, engine, text, bool(getattr(engine, "vision", False)))


def open_engine(model: str, choice: EngineChoice) -> Engine:
    """The engine for one model; options that were not given are not passed on."""
    from twllm.serve import engines

    remote = is_url(model)
    named = {
        "tokenizer": choice.tokenizer if remote else None,
        "api_key": choice.api_key if remote else "",
        "tensor_parallel": choice.tensor_parallel,
    }
    options = {name: value for name, value in named.items() if value} | dict(choice.options)
    engine = engines.open_engine(
        choice.engine,
        ",".join([model, *choice.replicas]) if remote else Path(model),
        threads=choice.threads,
        allow_template_mismatch=choice.allow_template_mismatch,
        options=options,
    )
    if remote:
        setattr(engine, "remote", True)  # noqa: B010  # not in the protocol: /live must not ask for other machines
    return engine


def check_keys(store: RatingStore, settings: ServeSettings) -> None:
    """Refuse to start a server that nobody could use.

    Raises:
        UserError: keys are asked for and there is none, or the one key cannot be sent in a header.
    """
    from twllm.feedback.access import AccessStore

    if not all("!" <= letter <= "~" for letter in settings.api_key):
        raise UserError("金鑰只能用看得見的 ASCII 字元 (printable ASCII only)", "--api-key", "openssl rand -hex 32")
    if settings.require_keys and not settings.api_key and not AccessStore(store).all():
        fix = f"先做一把：twllm keys add 名稱 --db {store.where}"
        raise UserError("要求金鑰，但一把都沒有 (no API keys)", store.where, fix)


def announce(console: Any, service: Service, host: str, port: int) -> None:
    """Tell where the pages are and what is open to whom."""
    shown = f"[{host}]" if ":" in host else "127.0.0.1" if host in ("", "0.0.0.0") else host
    for name, model in service.models.items():
        where = getattr(model.engine, "device", "") or getattr(model.engine, "name", "")
        console.print(f"模型 (model)：{name}   {where}", highlight=False)
    console.print(f"聊天頁面 (chat)：http://{shown}:{port}/   API：http://{shown}:{port}/v1", highlight=False)
    if len(service.models) > 1 and service.settings.arena:
        console.print(f"競技場 (arena)：http://{shown}:{port}/arena", highlight=False)
    console.print(f"評分存在 (ratings)：{service.store.where}   按 Ctrl-C 結束", highlight=False, soft_wrap=True)
    if host in ("", "0.0.0.0", "::") and not service.settings.login:
        warning = "注意：同一個網路上的人都連得到，而且不用金鑰 (open to the network, no login)：加上 --api-key 或 --require-keys"
        console.print(warning, style="yellow")
    if service.settings.log_text:
        console.print("注意：訊息內容會寫進記錄 (message texts are logged)", style="yellow")


def run(service: Service, server: socket.socket) -> None:
    """uvicorn on an already bound socket, until it is told to stop and has drained."""
    import uvicorn

    from twllm.serve.operation.lifecycle import DrainingServer, PatientProtocol

    config = uvicorn.Config(
        create_app(service), http=PatientProtocol, ws="none", log_config=None, access_log=False, backlog=BACKLOG,
        timeout_graceful_shutdown=LINGER_S, server_header=False,
    )  # fmt: skip
    with suppress(KeyboardInterrupt):
        DrainingServer(config, service).run(sockets=[server])
