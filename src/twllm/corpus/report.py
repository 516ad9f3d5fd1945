"""A corpus folder's funnel and licences as tables: for the terminal (`twllm corpus report DIR`) and as Markdown."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twllm.corpus.licences import FLAGS, DataUse
from twllm.corpus.store import read_funnel

if TYPE_CHECKING:
    from rich.table import Table

HEADER = ("階段 stage", "文件 documents", "字元 chars", "詞元 tokens", "留下 left", "丟掉 dropped")
NUMBERS = range(1, 5)  # columns of numbers


def funnel_rows(folder: Path | str) -> list[tuple[str, ...]]:
    """One row a stage, one a source (with what it lost, by reason), one for the held-out part; texts as shown.

    Raises:
        UserError: the folder is no corpus.
    """
    funnel = read_funnel(folder)
    first = funnel["stages"][0]["documents"] or 1
    rows: list[tuple[str, ...]] = []
    for stage in funnel["stages"]:
        notes = {f"（{reason}）": count for reason, count in stage.get("notes", {}).items()}  # those stayed
        rows.append(_row(stage["stage"], stage, first, {**stage["drops"], **notes}))
    for name, facts in funnel["sources"].items():
        kept = {key: facts.get(f"kept_{key}") for key in ("documents", "chars", "tokens")}
        weight = f"× {facts['weight']:g}" if facts["weight"] != 1 else ""
        lost = {
            reason: count["sources"][name]
            for stage in funnel["stages"]
            for reason, count in stage["drops"].items()
            if name in count.get("sources", {})
        }
        several = len(funnel["sources"]) > 1
        read = facts.get("read_documents", 0) or 1
        rows.append(_row(f"來源 {name} {weight}".rstrip(), kept, read, lost if several else {}))
    rows.append(_row("保留驗證 held out", funnel["held_out"], first, {}))
    return rows


def _row(name: str, count: Mapping[str, Any], whole: int, drops: Mapping[str, Mapping[str, int]]) -> tuple[str, ...]:
    """A line of the table; the reasons with most documents first."""
    told = "、".join(f"{r} {n['documents']:,}" for r, n in sorted(drops.items(), key=lambda item: _order(*item)))
    tokens = count.get("tokens")
    return (
        name,
        f"{count.get('documents') or 0:,}",
        f"{count.get('chars') or 0:,}",
        "" if tokens is None else f"{tokens:,}",
        _percent(count.get("documents") or 0, whole),
        told,
    )


def _order(reason: str, count: Mapping[str, int]) -> tuple[bool, int]:
    return reason.startswith("（"), -count["documents"]


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
        table.add_column(
            name.replace(" ", "\n"),
            justify="right" if number in NUMBERS else "left",
            no_wrap=number in NUMBERS,
            min_width=0 if number in NUMBERS else 14,
        )
    for row in funnel_rows(folder):
        table.add_row(*map(escape, row))
    return table


def mix_table(folder: Path | str) -> "Table | None":
    """Planned against achieved shares of the training tokens, or None where the recipe has no mix.

    Raises:
        UserError: the folder is no corpus.
    """
    from rich.markup import escape
    from rich.table import Table

    mix = read_funnel(folder).get("mix")
    if not mix:
        return None
    table = Table(title=f"配比 (mix)：一輪 {mix['tokens']:,} 詞元 (tokens of one epoch)")
    for number, name in enumerate(
        ("群 group", "計畫\nplanned", "做到\nachieved", "有\navailable", "用\ngiven", "輪\nepochs")
    ):
        table.add_column(name, justify="right" if number else "left")
    for group in mix["groups"]:
        table.add_row(
            escape(group["group"]),
            f"{100 * group['planned']:.2f} %",
            f"{100 * group['achieved']:.2f} %",
            f"{group['available']:,}",
            f"{group['given']:,}",
            f"{group['epochs']:.2f}" + (" 上限" if group["capped"] else ""),
            style="yellow" if group["capped"] else None,
        )
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
    rules = tuple("---:" if number in NUMBERS else "---" for number in range(len(HEADER)))
    lines = [HEADER, rules, *funnel_rows(folder)]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)
