"""`twllm corpus dedup`: near duplicates of .jsonl files out, clusters told."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from twllm.errors import UserError, require_file


def dedup(
    files: Annotated[list[Path], typer.Argument(help="一列一份文件；前面的檔案優先留下", metavar="FILE.jsonl…")],
    out: Annotated[Path, typer.Option("--out", help="寫到這個資料夾：documents.jsonl、clusters.jsonl、report.json")],
    threshold: Annotated[
        float, typer.Option(help="相似到多少算同一份 (Jaccard of 5-letter shingles)", min=0.5, max=1)
    ] = 0.75,
    boilerplate: Annotated[
        bool, typer.Option("--boilerplate", help="先拿掉同一個網站許多頁都有的行 (cut lines common to a host)")
    ] = False,
    workers: Annotated[int, typer.Option(help="行程數；0 是 CPU 核心數", min=0)] = 0,
    text_key: Annotated[str, typer.Option(help="文字的欄位")] = "text",
    score_key: Annotated[str, typer.Option(help="分數的欄位：一群裡留分數最高的")] = "score",
    as_json: Annotated[bool, typer.Option("--json", help="印出 JSON 報告 (print the report)")] = False,
) -> None:
    """拿掉相同與幾乎相同的文件，欄位都留著；中斷後重跑會接續 (near-duplicate removal across files; rerun to resume)."""
    from twllm.corpus.dedup_file import dedup_files

    for file in files:
        if require_file(file).is_dir():
            raise UserError("這是資料夾 (a folder)", file, f"指出檔案，例如 {file}/*.jsonl")
    report = dedup_files(files, out, workers, threshold, boilerplate, text_key, score_key)
    if as_json:
        print(json.dumps(report, ensure_ascii=False))
    else:
        _show(report, out)


def _show(report: dict[str, Any], out: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    share = report["kept"] / max(report["documents"], 1)
    print(f"{report['documents']:,} 份文件，留下 {report['kept']:,}（{share:.1%}）→ {out}")
    table = Table("丟掉、拿掉 dropped, cut", "份數 documents", box=None)
    for reason, count in {**report["reasons"], **report["cut"]}.items():
        table.add_row(reason, f"{count:,}")
    sizes = Table("群的大小 cluster size", "群數 clusters", box=None)
    for size, count in report["near_dedup"]["sizes"].items():
        sizes.add_row(size, f"{count:,}")
    console = Console()
    for shown in (table, sizes):
        if shown.row_count:
            console.print(shown)
    if report["broken"]:
        print(f"壞掉的列 broken lines: {report['broken']}（{'、'.join(report['broken_places'])}）")


def register(app: typer.Typer) -> None:
    """Put the command under `twllm corpus`."""
    app.command()(dedup)
