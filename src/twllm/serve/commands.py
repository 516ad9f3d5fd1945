"""The commands `twllm serve`, `twllm chat` and `twllm keys`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from twllm.errors import UserError

if TYPE_CHECKING:
    from twllm.feedback.store import RatingStore

keys_app = typer.Typer(no_args_is_help=True, help="API 金鑰 (API keys).")
MODELS = "模型資料夾，或別台伺服器的網址 (http://…)；給兩個以上就有競技場"
KEY_ENV = "TWLLM_API_KEY"
Db = Annotated[
    str, typer.Option("--db", envvar="TWLLM_DB", help="評分資料庫：檔案路徑或 SQLAlchemy URL (postgresql://…)")
]


def serve(
    models: Annotated[list[str], typer.Argument(help=MODELS, metavar="MODEL|URL...")],
    host: Annotated[str, typer.Option(help="位址；0.0.0.0 讓別台機器也連得到")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="連接埠")] = 8080,
    db: Annotated[str, typer.Option(envvar="TWLLM_DB", help="評分資料庫：路徑或 SQLAlchemy URL；預設 MODEL/../ratings.db")] = "",
    name: Annotated[list[str] | None, typer.Option("--name", help="對外的模型名稱，依序；預設是資料夾的名字")] = None,
    engine: Annotated[str, typer.Option(help="auto、torch、openvino、llamacpp、vllm、remote")] = "auto",
    tokenizer: Annotated[Path | None, typer.Option(help="遠端模型的分詞器資料夾 (tokenizer of a remote model)")] = None,
    replica: Annotated[list[str] | None, typer.Option("--replica", help="同一個遠端模型的另一台伺服器；可重複")] = None,
    remote_key: Annotated[str, typer.Option(envvar="TWLLM_REMOTE_KEY", help="遠端伺服器的金鑰")] = "",
    threads: Annotated[int | None, typer.Option(help="CPU 執行緒")] = None,
    tensor_parallel: Annotated[int, typer.Option(min=0, help="vLLM 用幾張 GPU；0 用引擎的預設")] = 0,
    engine_option: Annotated[list[str] | None, typer.Option("--engine-option", help="引擎的其他設定，例如 precision=fp32；可重複", metavar="KEY=VALUE")] = None,
    api_key: Annotated[str, typer.Option(envvar=KEY_ENV, help="一把萬用金鑰；用環境變數給，才不會出現在行程列表")] = "",
    require_keys: Annotated[bool, typer.Option("--require-keys", help="只收 twllm keys add 做的金鑰")] = False,
    metrics_key: Annotated[bool, typer.Option("--metrics-key", help="/metrics 也要金鑰（metrics 權限）")] = False,
    cors: Annotated[list[str] | None, typer.Option("--cors", help="可以呼叫 API 的網頁來源，例如 https://a.tw；* 表示全部；可重複")] = None,
    max_running: Annotated[int, typer.Option(min=1, help="同時回答幾個請求")] = 128,
    max_waiting: Annotated[int, typer.Option(min=0, help="最多幾個請求排隊；再多就回 429")] = 128,
    max_per_client: Annotated[int, typer.Option(min=0, help="一個人（金鑰或位址）最多佔幾個位子；0 不限")] = 0,
    queue_timeout: Annotated[float, typer.Option(min=0.1, help="最多排隊幾秒；更久就回 503")] = 60.0,
    request_timeout: Annotated[float, typer.Option(min=0.1, help="一個回答最多幾秒")] = 600.0,
    grace: Annotated[float, typer.Option(min=0, help="收到 SIGTERM 後，正在寫的回答還有幾秒")] = 30.0,
    max_body: Annotated[int, typer.Option(min=1000, help="請求內容最多幾位元組")] = 2_000_000,
    max_images: Annotated[int, typer.Option(min=1, help="一個請求最多幾張圖片（看得見圖片的模型）")] = 8,
    image_host: Annotated[list[str] | None, typer.Option("--image-host", help="可以從這些主機下載圖片；* 表示任何公開主機；不給就只收 data: 網址；可重複")] = None,
    max_context: Annotated[int | None, typer.Option(min=16, help="提示加回答最多幾個 token；預設看模型")] = None,
    context_policy: Annotated[Literal["refuse", "drop-oldest"], typer.Option(help="對話太長時：拒絕 (4xx)，或整輪丟掉最舊的")] = "refuse",
    trust_proxy: Annotated[bool, typer.Option("--trust-proxy", help="前面有自己的代理伺服器：用 X-Forwarded-For 分辨來客")] = False,
    log_format: Annotated[Literal["text", "json"], typer.Option(help="記錄的格式")] = "text",
    log_text: Annotated[bool, typer.Option("--log-text", help="把訊息內容也寫進記錄；預設絕不寫")] = False,
    system: Annotated[str, typer.Option(help="網頁聊天預設的系統訊息")] = "",
    no_arena: Annotated[bool, typer.Option("--no-arena", help="有多個模型也不開競技場")] = False,
    no_warm_up: Annotated[bool, typer.Option("--no-warm-up", help="啟動時不先試答一次")] = False,
    allow_template_mismatch: Annotated[bool, typer.Option("--allow-template-mismatch", help="對話範本與訓練時不同也照樣啟動")] = False,
) -> None:  # fmt: skip
    """OpenAI 與 TGI 相容 API、網頁聊天、競技場；👍👎 存進資料庫 (APIs, web chat, arena).

    Ctrl-C 或 SIGTERM：/ready 馬上變 503，正在寫的回答寫完才停；再按一次就立刻停。
    """
    from twllm.serve.operation.service import ServeSettings
    from twllm.serve.start import EngineChoice, is_url, serve

    settings = ServeSettings(
        max_body_bytes=max_body, max_running=max_running, max_waiting=max_waiting, max_per_client=max_per_client,
        queue_timeout_s=queue_timeout, request_timeout_s=request_timeout, grace_s=grace, max_context=max_context,
        context_policy=context_policy, api_key=api_key, require_keys=require_keys, metrics_key=metrics_key,
        cors_origins=tuple(cors or ()), trust_proxy=trust_proxy, log_text=log_text, system=system,
        arena=not no_arena, warm_up=not no_warm_up, max_images=max_images, image_hosts=tuple(image_host or ()),
    )  # fmt: skip
    choice = EngineChoice(
        engine=engine, tokenizer=tokenizer, replicas=tuple(replica or ()), api_key=remote_key, threads=threads,
        tensor_parallel=tensor_parallel, options=_options(engine_option or ()), allow_template_mismatch=allow_template_mismatch,
    )  # fmt: skip
    folders = [Path(model) for model in models if not is_url(model)]
    default = folders[0].resolve().parent / "ratings.db" if folders else Path("ratings.db")
    serve(
        models,
        names=name or (),
        db=db or str(default),
        host=host,
        port=port,
        settings=settings,
        choice=choice,
        log_format=log_format,
    )


def chat(
    model: Annotated[str, typer.Argument(help="模型資料夾或 OpenAI 相容網址", metavar="MODEL|URL")],
    system: Annotated[str | None, typer.Option(help="系統訊息 (system message)")] = None,
    temperature: Annotated[float, typer.Option(help="0 表示每次都一樣")] = 0.0,
    max_tokens: Annotated[int, typer.Option(help="回答最多幾個詞元")] = 512,
    engine: Annotated[str, typer.Option(help="auto、torch、openvino、llamacpp、vllm")] = "auto",
    allow_template_mismatch: Annotated[
        bool, typer.Option("--allow-template-mismatch", help="對話範本與訓練時不同也照樣聊")
    ] = False,
) -> None:
    """在終端機聊天 (chat in the terminal)."""
    from twllm.serve.terminal import chat as start

    start(
        model, system=system, temperature=temperature, max_tokens=max_tokens,
        engine=engine, allow_template_mismatch=allow_template_mismatch,
    )  # fmt: skip


@keys_app.command("add")
def keys_add(
    name: Annotated[str, typer.Argument(help="給誰用的；會出現在記錄裡")],
    db: Db,
    scope: Annotated[list[str] | None, typer.Option("--scope", help="generate、rate、admin、metrics；可重複，預設 generate 與 rate")] = None,
    rate: Annotated[int, typer.Option(help="每分鐘最多幾次；0 不限")] = 0,
    tokens: Annotated[int, typer.Option(help="每天（UTC）最多幾個 token；0 不限")] = 0,
    days: Annotated[float | None, typer.Option(help="幾天後失效；預設不會")] = None,
) -> None:  # fmt: skip
    """做一把新的金鑰；只顯示這一次 (make a key; it is shown once)."""
    with _store(db) as store:
        from twllm.feedback.access import AccessStore

        scopes = scope or ["generate", "rate"]
        print(AccessStore(store).add(name, scopes, rate_per_minute=rate, tokens_per_day=tokens, days=days))


@keys_app.command("list")
def keys_list(db: Db) -> None:
    """有哪些金鑰、能做什麼、今天用了多少 (all keys and today's use)."""
    from datetime import UTC, datetime

    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from twllm.feedback.access import AccessStore, day

    now = datetime.now(UTC)
    columns = (
        "名稱 name",
        "開頭 key",
        "權限 scopes",
        "每分鐘 /min",
        "每天 token /day",
        "今天 today",
        "到期 expires",
        "狀態 state",
    )
    table = Table(*columns)
    with _store(db) as store:
        access = AccessStore(store)
        for key in access.all():
            state = "已撤銷 revoked" if key.revoked else "有效 valid" if key.valid(now) else "已過期 expired"
            cells = [
                escape(key.name), f"{key.shown}…", " ".join(sorted(key.scopes)), str(key.rate_per_minute or "—"),
                f"{key.tokens_per_day:,}" if key.tokens_per_day else "—",
                f"{access.used(key, day(now)):,}" if key.tokens_per_day else "—", key.expires or "—", state,
            ]  # fmt: skip
            table.add_row(*cells, style=None if key.valid(now) else "dim")
    Console().print(table)


@keys_app.command("revoke")
def keys_revoke(name: Annotated[str, typer.Argument(help="金鑰的名稱")], db: Db) -> None:
    """撤銷一把金鑰；幾秒內生效 (revoke a key)."""
    with _store(db) as store:
        from twllm.feedback.access import AccessStore

        AccessStore(store).revoke(name)
    print(f"已撤銷 (revoked)：{name}")


def _store(db: str) -> "RatingStore":
    from twllm.feedback.store import RatingStore

    return RatingStore(db)


def _options(given: Sequence[str]) -> tuple[tuple[str, str | int | float | bool], ...]:
    """KEY=VALUE pairs; a value that reads as TOML (numbers, true, false) is one, everything else is text."""
    import tomllib

    found: list[tuple[str, str | int | float | bool]] = []
    for text in given:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise UserError(
                f"看不懂這個設定 (not KEY=VALUE): {text}", "--engine-option", "例如 --engine-option precision=fp32"
            )
        try:
            parsed = tomllib.loads(f"x = {value}")["x"]
        except tomllib.TOMLDecodeError:
            parsed = value
        found.append((key, parsed if isinstance(parsed, str | int | float | bool) else value))
    return tuple(found)


def register(app: typer.Typer) -> None:
    """Add the commands to `twllm`."""
    app.command()(serve)
    app.command()(chat)
    app.add_typer(keys_app, name="keys")
