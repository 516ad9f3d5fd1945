"""`twllm corpus …`: thin commands around twllm.corpus."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from twllm.errors import UserError

app = typer.Typer(no_args_is_help=True, help="語料 (corpus).")


@app.command("build")
def corpus_build(
    recipe: Annotated[Path, typer.Argument(help="配方檔 (recipe, TOML)", metavar="RECIPE")],
    out: Annotated[Path, typer.Option("--out", help="輸出資料夾")],
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="改一個值 (override)，可重複", metavar="KEY=VALUE")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="同時做幾份 (tasks side by side)")] = 1,
    executor: Annotated[
        Literal["local", "slurm", "ray"], typer.Option(help="在哪裡做 (where the tasks run)")
    ] = "local",
    slurm: Annotated[
        list[str] | None,
        typer.Option(help="Slurm 的設定 (settings), 例如 partition=cpu、time=10:00:00；可重複", metavar="KEY=VALUE"),
    ] = None,
) -> None:
    """只做配方的 [corpus]：讀入、清理、去重，記下每個丟棄的原因；中斷後重跑會接續 (build a recipe's corpus; rerun to resume)."""
    from rich.console import Console

    from twllm.corpus.build import build_folder
    from twllm.corpus.report import funnel_table, mix_table
    from twllm.recipe import load_recipe, parse_settings

    corpus = load_recipe(recipe, set_ or ()).recipe.corpus
    if not corpus.sources:
        raise UserError("配方沒有語料來源 (no [[corpus.sources]])", recipe, "加上至少一個來源")
    if slurm and executor != "slurm":
        raise UserError(
            "--slurm 只和 --executor slurm 一起用 (only with --executor slurm)", "--slurm", "加上 --executor slurm"
        )
    facts = build_folder(corpus, out, workers, executor, parse_settings(slurm or []))
    console = Console()
    if facts is None:
        console.print(f"已送出 (submitted)；完成後在 {out}，用 squeue 看進度")
        return
    console.print(funnel_table(out))
    if table := mix_table(out):
        console.print(table)
    if facts.get("taken_down"):
        console.print(f"依下架名單略過 {facts['taken_down']:,} 份 (passed over by the take-down list)")


@app.command("report")
def corpus_report(
    paths: Annotated[list[str], typer.Argument(help="corpus build 的輸出，或對話資料：twllm:NAME、檔案、資料夾；可多個", metavar="PATH...")],
    format: Annotated[str, typer.Option(help="messages（看形狀）、oasst、fastchat、transcript、squad、chatterbot、xml")] = "messages",
    license: Annotated[str, typer.Option(help="資料的授權條款，資料列沒寫時用 (licence of rows that carry none)")] = "",
    question_key: Annotated[str, typer.Option(help="題目那一欄 (CSV, XML)")] = "",
    answer_key: Annotated[str, typer.Option(help="回答那一欄 (CSV, XML)")] = "",
    samples: Annotated[str | None, typer.Option(help="看這個原因丟掉的樣本 (samples of what this reason dropped)", metavar="REASON")] = None,
) -> None:  # fmt: skip
    """語料的漏斗、配比與樣本，或對話資料的筆數、授權與略過的原因 (funnel of a corpus; counts, licences and skips of conversations)."""
    from twllm.recipe import validate
    from twllm.tokens.config import DatasetConfig
    from twllm.tokens.report import print_reports

    if samples is not None:
        _print_samples(paths, samples)
        return
    settings: dict[str, Any] = {
        "format": format,
        "license": license,
        "question_key": question_key,
        "answer_key": answer_key,
    }
    print_reports([validate(DatasetConfig, {"path": path, **settings}, "corpus report") for path in paths])
    _print_mixes(paths)


def _print_mixes(paths: list[str]) -> None:
    from rich.console import Console

    from twllm.corpus.report import mix_table

    for path in paths:
        if (Path(path) / "funnel.json").is_file() and (table := mix_table(path)):
            Console().print(table)


def _print_samples(paths: list[str], reason: str) -> None:
    """Samples of one reason, from the folder's drops/."""
    import json

    from rich.console import Console
    from rich.markup import escape

    from twllm.errors import did_you_mean, require_file

    console = Console()
    for path in paths:
        folder = require_file(Path(path) / "drops", "不是語料資料夾 (not a corpus folder)")
        file = folder / f"{reason}.jsonl"
        if not file.is_file():
            known = [found.stem for found in folder.glob("*.jsonl")]
            raise UserError(f"沒有「{reason}」的樣本 (no samples of this reason)", folder, did_you_mean(reason, known))
        for line in file.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            console.print(
                f"[bold]{escape(row['id'])}[/]  {escape(row['url'])}  {row['chars']:,} 字  {escape(row['detail'])}"
            )
            console.print(escape(row["excerpt"]), "\n", highlight=False)
