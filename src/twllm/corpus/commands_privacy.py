"""`twllm corpus scrub`: personal data of a .jsonl file out, with a report."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from twllm.errors import UserError, did_you_mean, require_file


def scrub(
    file: Annotated[Path, typer.Argument(help="一列一個 JSON 物件：文件、對話都可以", metavar="FILE.jsonl")],
    out: Annotated[Path, typer.Option("--out", help="寫到這裡；沒有個資的列一個位元組都不動")],
    report: Annotated[Path | None, typer.Option(help="報告（JSON，含遮過的樣本）寫到這裡")] = None,
    keep: Annotated[
        list[str] | None, typer.Option(help="不遮的種類，可重複，例如 company、address (kinds left alone)")
    ] = None,
    keep_offices: Annotated[
        bool, typer.Option("--keep-offices", help="不遮機關、學校、公司的市話、地址、信箱 (offices stay)")
    ] = False,
    text_key: Annotated[str, typer.Option(help="只看這個欄位；不給就看所有文字欄位")] = "",
    workers: Annotated[int, typer.Option(help="行程數；0 是 CPU 核心數", min=0)] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="印出 JSON 報告 (print the report)")] = False,
) -> None:
    """把個資換成〔手機號碼〕這樣的標記；中斷後重跑會接續 (mask personal data; rerun to resume)."""
    from twllm.artifact import write_json
    from twllm.corpus.privacy import KINDS
    from twllm.corpus.scrub_file import scrub_file

    for name in keep or ():
        if name not in KINDS:
            raise UserError("沒有這個種類 (unknown kind)", f"--keep {name}", did_you_mean(name, tuple(KINDS)))
    found = scrub_file(require_file(file), out, workers, keep or (), keep_offices, text_key).to_row()
    if report is not None:
        write_json(report, found)
    if as_json:
        print(json.dumps(found, ensure_ascii=False))
    else:
        _show(found, out)


def _show(found: dict[str, Any], out: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    print(f"{found['documents']:,} 列、{found['chars']:,} 字，{found['with_hits']:,} 列有個資 → {out}")
    table = Table("種類 kind", "處 places", "每百萬字 per million chars", box=None)
    for kind, places in found["kinds"].items():
        table.add_row(kind, f"{places:,}", f"{found['per_million_chars'][kind]:,}")
    if table.row_count:
        Console().print(table)
    if found["broken"]:
        print(f"壞掉的列 broken lines: {found['broken']}（第 {'、'.join(found['broken_places'])} 列）")


def register(app: typer.Typer) -> None:
    """Put the command under `twllm corpus`."""
    app.command()(scrub)
