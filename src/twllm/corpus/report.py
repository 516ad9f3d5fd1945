"""A corpus folder's funnel and licences as tables: for the terminal (`twllm corpus report DIR`) and as Markdown."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from twllm.corpus.licences import FLAGS, DataUse
from twllm.corpus.store import read_funnel

if TYPE_CHECKING:
    from rich.table import Table

HEADER = ("階段 stage", "文件 documents", "字元 chars", "留下 left", "丟掉 dropped")


def funnel_rows(folder: Path | str) -> list[tuple[str, ...]]:
    """One row a stage, one a source, one for the held-out part; texts as shown.

    Raises:
        UserError: the folder is no corpus.
    """
    funnel = read_funnel(folder)
    first = funnel["stages"][0]["documents"] or 1
    rows: list[tuple[str, ...]] = []
    for stage in funnel["stages"]:
        drops = sorted(stage["drops"].items(), key=lambda item: -item[1]["documents"])
        notes = [(f"（{reason}）", count) for reason, count in stage.get("notes", {}).items()]  # those stayed
        told = "、".join(f"{reason} {count['documents']:,}" for reason, count in (*drops, *notes))
        rows.append(
            (
                stage["stage"],
                f"{stage['documents']:,}",
                f"{stage['chars']:,}",
                _percent(stage["documents"], first),
                told,
            )
        )
    for name, facts in funnel["sources"].items():
        kept, read = facts.get("kept_documents", 0), facts.get("read_documents", 0)
        weight = f"× {facts['weight']:g}" if facts["weight"] != 1 else ""
        rows.append(
            (
                f"來源 {name} {weight}".rstrip(),
                f"{kept:,}",
                f"{facts.get('kept_chars', 0):,}",
                _percent(kept, read or 1),
                "",
            )
        )
    held = funnel["held_out"]
    rows.append(
        ("保留驗證 held out", f"{held['documents']:,}", f"{held['chars']:,}", _percent(held["documents"], first), "")
    )
    return rows


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %"


def funnel_table(folder: Path | str) -> "Table":
    """A rich table for the terminal.

    Raises:
        UserError: the folder is no corpus.
    """
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=f"語料漏斗 (corpus funnel)：{escape(str(folder))}")
    for number, name in enumerate(HEADER):
        table.add_column(name, justify="right" if 0 < number < 4 else "left", no_wrap=number < 4)
    for row in funnel_rows(folder):
        table.add_row(*map(escape, row))
    return table


def licence_table(uses: Iterable[DataUse], title: str) -> "Table":
    """Licences with rows and flags, and the models that wrote rows: a rich table for the terminal."""
    from rich.markup import escape
    from rich.table import Table

    table = Table("資料 data", "授權 licence", "筆數 rows", "注意 flags", title=escape(title))
    table.columns[2].justify = "right"
    for use in uses:
        for name, rows, flags in use.licence_rows():
            style = "yellow" if set(flags) - {FLAGS["share_alike"]} else None
            table.add_row(escape(use.name), escape(name), f"{rows:,}", escape("、".join(flags)), style=style)
        if flags := use.generator_flags():
            rows = sum(use.generators.values())
            table.add_row(
                escape(use.name), "（資料列寫明 in the rows）", f"{rows:,}", escape("、".join(flags)), style="yellow"
            )
    return table


def corpus_licences(folder: Path | str) -> DataUse:
    """The licences of a built corpus, in documents.

    Raises:
        UserError: the folder is no corpus.
    """
    return DataUse(Path(folder).name, "pretrain", read_funnel(folder).get("licenses", {}))


def funnel_markdown(folder: Path | str) -> str:
    """The same as a Markdown table.

    Raises:
        UserError: the folder is no corpus.
    """
    lines = [HEADER, ("---", "---:", "---:", "---:", "---"), *funnel_rows(folder)]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)
