"""`twllm synth selfplay` and `twllm synth translate`: options to settings, settings to a run, a summary at the end."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from twllm.synth.run import Session, Task

app = typer.Typer(no_args_is_help=True, help="合成資料：自我對話與翻譯 (self-play dialogues and translation).")

Url = Annotated[str, typer.Option("--url", help="OpenAI 相容的端點 (endpoint)，有沒有 /v1 都可以")]
Model = Annotated[str, typer.Option("--model", help="模型名稱 (model)")]
Out = Annotated[Path, typer.Option("--out", help="輸出資料夾；付過的回答存在旁邊的 OUT.cache")]
KeyEnv = Annotated[str, typer.Option("--api-key-env", help="放金鑰的環境變數；預設 OPENAI_API_KEY")]
Concurrency = Annotated[int, typer.Option("--concurrency", help="同時幾個請求")]
MaxTokensTotal = Annotated[int | None, typer.Option(help="這份快取總共最多花幾個詞元，含進行中的最壞情況")]
MaxCost = Annotated[float | None, typer.Option(help="總共最多花多少錢；要有 --price-in、--price-out")]
PriceIn = Annotated[float | None, typer.Option(help="每百萬輸入詞元的價錢")]
PriceOut = Annotated[float | None, typer.Option(help="每百萬輸出詞元的價錢")]
Licence = Annotated[str, typer.Option("--license", help="資料列的授權條款；不給就寫「未指明」與模型名稱")]
PromptsFile = Annotated[Path | None, typer.Option("--prompts", help="自己的提示檔 (TOML)，蓋過內建的")]
Body = Annotated[list[str] | None, typer.Option("--body", help="每個請求多帶的欄位 KEY=VALUE，null 拿掉；可重複")]
Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set", help="其他設定，例如 filters.max_leaks=2、endpoint.max_attempts=3；可重複", metavar="KEY=VALUE"
    ),
]
Timeout = Annotated[float, typer.Option("--timeout", help="一個回答最多等幾秒")]
Offline = Annotated[bool, typer.Option("--offline", help="只用快取重做輸出，不送任何請求 (replay)")]
RetryFailed = Annotated[bool, typer.Option("--retry-failed", help="端點失敗過的請求再試一次")]


@app.command("selfplay")
def selfplay(
    url: Url, model: Model, out: Out,
    dialogues: Annotated[int, typer.Option("--dialogues", help="幾段對話")] = 100,
    seed: Annotated[int, typer.Option(help="亂數種子：同樣的種子，同樣的話題、角色、輪數")] = 0,
    topic: Annotated[list[str] | None, typer.Option(help="只要這些話題：大類 或 大類/小類；可重複")] = None,
    turns: Annotated[str, typer.Option(help="每段幾輪：最少-最多")] = "2-4",
    user_model: Annotated[str, typer.Option(help="演使用者的模型；預設同 --model")] = "",
    license: Licence = "", api_key_env: KeyEnv = "", concurrency: Concurrency = 8, timeout: Timeout = 180.0,
    max_tokens_total: MaxTokensTotal = None, max_cost: MaxCost = None, price_in: PriceIn = None, price_out: PriceOut = None,
    prompts: PromptsFile = None, body: Body = None, set_: Sets = None, offline: Offline = False, retry_failed: RetryFailed = False,
) -> None:  # fmt: skip
    """兩個角色自己聊：有身分與話題的使用者、助理 (multi-turn self-play)。中斷後重跑會接續。"""
    from twllm.synth.config import SelfplayConfig, make
    from twllm.synth.prompts import load_prompts
    from twllm.synth.selfplay import Selfplay

    least, _, most = turns.partition("-")
    given = {
        "num_dialogues": dialogues, "seed": seed, "topics": topic, "user_model": user_model, "license": license,
        "min_turns": _number(least, turns), "max_turns": _number(most or least, turns),
    }  # fmt: skip
    task = Selfplay(make(SelfplayConfig, given, _sets(set_, False)), load_prompts(prompts), model)
    endpoint = _endpoint(url, model, api_key_env, concurrency, timeout, body), _sets(set_, True)
    _run(task, _session(out, endpoint, (max_tokens_total, max_cost, price_in, price_out), offline, retry_failed))


@app.command("translate")
def translate(
    source: Annotated[str, typer.Argument(help="對話資料：檔案、資料夾或 twllm:NAME", metavar="SOURCE")],
    url: Url, model: Model, out: Out,
    language: Annotated[str, typer.Option(help="原文：auto、en、zh-CN")] = "auto",
    rows: Annotated[int | None, typer.Option("--rows", help="最多幾列")] = None,
    samples: Annotated[int, typer.Option(help="沒通過檢查的訊息最多試幾次")] = 1,
    seed: Annotated[int, typer.Option(help="亂數種子")] = 0,
    license: Licence = "", api_key_env: KeyEnv = "", concurrency: Concurrency = 8, timeout: Timeout = 180.0,
    max_tokens_total: MaxTokensTotal = None, max_cost: MaxCost = None, price_in: PriceIn = None, price_out: PriceOut = None,
    prompts: PromptsFile = None, body: Body = None, set_: Sets = None, offline: Offline = False, retry_failed: RetryFailed = False,
) -> None:  # fmt: skip
    """把英文或簡體的對話翻成臺灣華語 (translate into Taiwan Mandarin)。中斷後重跑會接續。"""
    from twllm.synth.config import TranslateConfig, make
    from twllm.synth.prompts import load_prompts
    from twllm.synth.translate import Translate

    given = {"language": language, "max_rows": rows, "samples": samples, "seed": seed, "license": license}
    task = Translate(source, make(TranslateConfig, given, _sets(set_, False)), load_prompts(prompts), model)
    endpoint = _endpoint(url, model, api_key_env, concurrency, timeout, body), _sets(set_, True)
    _run(task, _session(out, endpoint, (max_tokens_total, max_cost, price_in, price_out), offline, retry_failed))


def _number(text: str, where: str) -> int:
    from twllm.errors import UserError

    if not text.strip().isdecimal():
        raise UserError("輪數要寫成 2-4 或 3 (turns)", f"--turns {where}", "例如 --turns 2-4")
    return int(text)


def _sets(given: list[str] | None, endpoint: bool) -> list[str]:
    """The --set values that are about the endpoint (without that word), or the others."""
    prefix = "endpoint."
    return [item.removeprefix(prefix) for item in given or () if item.startswith(prefix) == endpoint]


def _endpoint(
    url: str, model: str, key_env: str, concurrency: int, timeout: float, body: list[str] | None
) -> dict[str, Any]:
    from twllm.synth.config import setting_value

    fields = {item.partition("=")[0].strip(): setting_value(item) for item in body or ()}
    names = {"url": url, "model": model, "api_key_env": key_env, "body": fields}
    return names | {"concurrency": concurrency, "timeout_s": timeout}


def _session(
    out: Path,
    endpoint: tuple[dict[str, Any], list[str]],
    limits: tuple[int | float | None, ...],
    offline: bool,
    retry_failed: bool,
) -> "Session":
    from twllm.synth.config import BudgetConfig, EndpointConfig, make
    from twllm.synth.run import Session

    names = ("max_tokens_total", "max_cost", "price_in", "price_out")
    budget = make(BudgetConfig, dict(zip(names, limits, strict=True)))
    return Session(out, make(EndpointConfig, *endpoint), budget, offline, retry_failed)


def _run(task: "Task[Any]", session: "Session") -> None:
    """Run, say what came out; exit code 3 when the budget ended it early."""
    from twllm.synth.run import make_rows

    try:
        manifest = make_rows(task, session)
    except KeyboardInterrupt:
        told = f"已中斷，沒有寫出 {session.out}；付過的回答都在 {session.cache}，用同一個指令接續"
        print(f"{told} (interrupted; run the same command again to go on)", file=sys.stderr)
        raise typer.Exit(130) from None
    counts, tokens = manifest["counts"], manifest["tokens"]
    print(f"{session.out}：留下 {counts['kept']}，丟掉 {counts['dropped']}，沒做完 {counts['unfinished']}")
    for reason, count in sorted(manifest["reasons"].items(), key=lambda pair: -pair[1]):
        print(f"  {reason}: {count}")
    cost = "" if manifest["cost"] is None else f"，花費 {manifest['cost']:.4f}"
    print(f"{manifest['answers']} 個回答，詞元 輸入 {tokens['in']:,} 輸出 {tokens['out']:,}{cost}")
    if "endpoint" in manifest["reasons"]:
        print("端點失敗的列可以用 --retry-failed 再試 (endpoint failures can be tried again)")
    if manifest["stopped_by"] == "budget":
        more = "加大 --max-tokens-total 或 --max-cost，用同一個指令接著跑；付過的不會再付"
        print(f"預算用到這裡為止 (budget reached)。{more} (raise the budget and run again; nothing is paid twice)")
        raise typer.Exit(3)
