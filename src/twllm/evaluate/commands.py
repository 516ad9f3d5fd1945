"""`twllm eval MODEL|URL`, `twllm eval score RESPONSES`: thin commands; torch is imported only where a model is asked."""

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from twllm.errors import UserError
from twllm.evaluate.contamination_report import contamination, texts
from twllm.evaluate.needle_data import needle_data
from twllm.evaluate.no_harm import no_harm
from twllm.evaluate.positions import positions

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

app.command("no-harm")(no_harm)
app.command("positions")(positions)
app.command("needle-data")(needle_data)
app.command("contamination")(contamination)
app.command("texts")(texts)

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
    by: Annotated[
        str, typer.Option(help="generation：看模型寫的答案；likelihood：比各選項的對數機率 (TTQA、TMMLU、Penguins …)")
    ] = "",
    ask: Annotated[str, typer.Option(help="對數機率的問法：text 接在純文字後（同 lm-eval）；chat 經對話範本")] = "",
    precision: Annotated[str, typer.Option(help="auto、fp32、bf16；auto 在硬體會乘 bf16 時用它")] = "auto",
    tokenizer: Annotated[
        str | None, typer.Option(help="伺服器的對數機率用的分詞器資料夾；不給就問伺服器的 /tokenize")
    ] = None,
    text: Annotated[Path | None, typer.Option(help="bits_per_char、needle_zh 用的文字：檔案、語料資料夾")] = None,
    judge_url: Annotated[str, typer.Option(help="裁判的 OpenAI 相容網址 (zh_tw_bench、mt_bench_tw)")] = "",
    judge_model: Annotated[str, typer.Option(help="裁判的模型名稱")] = "",
    judge_key_env: Annotated[str, typer.Option(help="放裁判金鑰的環境變數；不給就用 OPENAI_API_KEY")] = "",
    judge_set: Annotated[
        list[str] | None, typer.Option(help="裁判的設定 KEY=VALUE，可重複，例如 budget.max_tokens_total=2000000")
    ] = None,
    trained_on: Annotated[
        list[str] | None,
        typer.Option(help="訓練資料：標出出現在裡面的題目，另算不含它們的得分；可重複", metavar="PATH"),
    ] = None,
    against: Annotated[str, typer.Option(help="兩兩比較的對手：回答檔、模型或網址 (zh_tw_bench)")] = "",
) -> None:
    """問模型 (ask a model)."""
    from twllm.evaluate.runner import evaluate_model

    suites = suite.split(",") if suite else ["culture"]
    result = evaluate_model(
        model, suites=suites, protocol=protocol, questions=questions, data=data, out=out or Path("eval.json"), limit=limit,
        max_new_tokens=max_new_tokens, batch_size=batch_size, text=text,
        judge_url=judge_url, judge_model=judge_model, judge_key_env=judge_key_env, judge_set=judge_set, against=against,
        contamination=trained_on, by=by, ask=ask, precision=precision, tokenizer=tokenizer,
    )  # fmt: skip
    _print_scores(result)


@app.command("score")
def score(
    responses: Annotated[Path | None, typer.Argument(help="回答檔 (published responses)", metavar="RESPONSES")] = None,
    suite: Annotated[str, typer.Option(help="題組，以逗號分隔")] = "tceval",
    protocol: Annotated[str, typer.Option(help="評法：mediatek、twllm、strict")] = "mediatek",
    data: Annotated[Path | None, typer.Option(help="題目與正解的資料夾，MediaTek 的排法 (gold)")] = None,
    drcd: Annotated[Path | None, typer.Option(help="DRCD_test.json，不在 --data 裡的話")] = None,
    out: Out = None,
) -> None:
    """替已有的回答評分，不用模型 (score answers that exist)."""
    from twllm.evaluate.published import score_responses

    if responses is None or data is None:
        what = "score 要給回答檔與 --data (responses and --data needed)"
        raise UserError(what, "twllm eval score", "twllm eval score RESPONSES.json --data DIR")
    result = score_responses(responses, data, out, suites=suite.split(","), protocol=protocol, drcd=drcd)
    for name, scores in result["scores"].items():
        print(f"{name}: " + "、".join(f"{metric} {value:.6g}" for metric, value in scores.items()))
    for name, why in result["skipped"].items():
        print(f"略過 (skipped) {name}：{why}")


@app.command("compare")
def compare(
    first: Annotated[Path, typer.Argument(help="結果 JSON", metavar="A.json")],
    second: Annotated[Path, typer.Argument(help="另一個模型同樣題目的結果 JSON", metavar="B.json")],
    out: Annotated[Path | None, typer.Option(help="也寫成 JSON")] = None,
) -> None:
    """比較兩個模型在相同題目上的結果：McNemar 檢定 (McNemar's test between two results)."""
    from twllm.artifact import write_json
    from twllm.evaluate.pairs import compare_results, table

    compared = compare_results(first, second)
    print(table(compared))
    if out is not None:
        write_json(out, compared)


@app.command("tasks-path")
def tasks_path(
    data: Annotated[str | None, typer.Option(help="題目資料夾；不給就看環境變數 TWLLM_EVAL_DATA")] = None,
    out: Annotated[Path | None, typer.Option(help="寫到這個資料夾；不給就在快取裡")] = None,
) -> None:
    """把題組寫成 lm-evaluation-harness 的設定檔，印出資料夾 (export our tasks for lm-eval)."""
    from twllm.evaluate.lmeval.export import export

    folder, left_out = export(data, out)
    for why in dict.fromkeys(left_out.values()):
        names = "、".join(name for name in left_out if left_out[name] == why)
        typer.echo(f"沒有寫出 (left out) {names}：{why}", err=True)
    typer.echo(folder)


def _print_scores(result: dict[str, Any]) -> None:
    for name, block in result.items():
        if isinstance(block, dict) and "score" in block:
            print(f"{name}: {block['score']:.6g}（n = {block['n']}）")
