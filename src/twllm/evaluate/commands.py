"""`twllm eval MODEL|URL`, `twllm eval score RESPONSES`: thin commands; torch is imported only where a model is asked."""

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from twllm.errors import UserError

ASK = "ask-a-model"  # no folder is called so


class ModelFirst(TyperGroup):
    """`twllm eval MODEL …` means `twllm eval ask-a-model MODEL …`; the other words are commands."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the hidden command's name before a first word that is no command."""
        if args and args[0] not in self.commands and args[0] not in ("--help", "-h"):
            args = [ASK, *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=ModelFirst, no_args_is_help=True, rich_markup_mode=None,
    help="評測：twllm eval MODEL|URL 問模型；twllm eval score 替已有的回答評分 (evaluate a model, or score published answers).",
)  # fmt: skip

Suite = Annotated[str | None, typer.Option(help="題組，以逗號分隔 (culture, tceval, …)")]
Protocol = Annotated[str, typer.Option(help="題組的評法 (protocol)，例如 mediatek、twllm、strict")]
Data = Annotated[Path | None, typer.Option(help="題目資料夾 (TC-Eval)")]
Out = Annotated[Path | None, typer.Option(help="結果 JSON；旁邊會有 report.md 與圖")]


@app.command(ASK, hidden=True)
def model(
    model: Annotated[str, typer.Argument(help="模型資料夾、hub 名稱或 OpenAI 相容網址", metavar="MODEL|URL")],
    suite: Suite = None,
    protocol: Protocol = "",
    questions: Annotated[
        str | None, typer.Option(help='自備題目：{"id","question","accept","reject"} 的 .jsonl')
    ] = None,
    data: Data = None,
    out: Out = None,
    limit: Annotated[int | None, typer.Option(help="每個題組最多幾題")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="回答最多幾個詞元")] = 64,
    batch_size: Annotated[int, typer.Option(help="一次幾題；不影響結果")] = 32,
) -> None:
    """問模型 (ask a model)."""
    from twllm.evaluate.runner import evaluate_model

    suites = suite.split(",") if suite else ["culture"]
    result = evaluate_model(
        model, suites=suites, protocol=protocol, questions=questions, data=data, out=out or Path("eval.json"), limit=limit,
        max_new_tokens=max_new_tokens, batch_size=batch_size,
    )  # fmt: skip
    _print_scores(result)


@app.command("score")
def score(
    responses: Annotated[Path | None, typer.Argument(help="回答檔 (published responses)", metavar="RESPONSES")] = None,
    data: Annotated[Path | None, typer.Option(help="題目資料夾 (gold)")] = None,
    out: Out = None,
) -> None:
    """替已有的回答評分，不用模型 (score answers that exist)."""
    from twllm.evaluate.runner import score_responses

    if responses is None or data is None:
        what = "score 要給回答檔與 --data (responses and --data needed)"
        raise UserError(what, "twllm eval score", "twllm eval score RESPONSES.json --data DIR")
    _print_scores(score_responses(responses, data, out))


def _print_scores(result: dict[str, Any]) -> None:
    for name, block in result.items():
        if isinstance(block, dict) and "score" in block:
            print(f"{name}: {block['score']:.6g}（n = {block['n']}）")
