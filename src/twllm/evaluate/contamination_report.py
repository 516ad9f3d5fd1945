"""`twllm eval contamination SUITE… --against PATH`: which items of suites stand in training data, as a table, JSON and Markdown.

`twllm eval texts SUITE` writes a suite's texts for the corpus step `decontaminate`.
"""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from twllm import artifact
from twllm.corpus.overlap import Limits
from twllm.errors import UserError

if TYPE_CHECKING:
    from twllm.evaluate.suite_overlap import Overlap

SHOWN = 30  # items that are not flagged but nearest to it, in the Markdown
PARTS = {
    "question": "題目", "context": "短文", "reference": "參考答案", "text": "文字", "choices": "選項",
    "whole": "整句", "pair": "題目與答案",
}  # fmt: skip
Suites = Annotated[
    list[str], typer.Argument(help="題組名稱 (tceval, culture, …) 或文字檔 .jsonl、.txt", metavar="SUITE…")
]
Data = Annotated[Path | None, typer.Option(help="題目資料夾 (TC-Eval)")]
Questions = Annotated[str, typer.Option(help="culture 題組的題目")]


def contamination(
    suites: Suites,
    against: Annotated[
        list[str],
        typer.Option(help="訓練資料：語料資料夾、.jsonl[.gz|.zst]、.parquet、.txt、.md、對話資料、twllm:名稱；可重複", metavar="PATH"),
    ],
    data: Data = None,
    questions: Questions = "twllm:culture",
    out: Annotated[Path, typer.Option(help="結果 JSON；旁邊有同名的 .md")] = Path("contamination.json"),
    threshold: Annotated[float, typer.Option(help="一題有多少字在同一處的共同 n-gram 裡就算")] = Limits.threshold,
    chars: Annotated[int, typer.Option(help="中文 n-gram 的字數")] = Limits.chars,
    words: Annotated[int, typer.Option(help="拉丁文字 n-gram 的詞數")] = Limits.words,
    common: Annotated[int, typer.Option(help="這麼多題都有的 n-gram 是套語，不算")] = Limits.common,
) -> None:  # fmt: skip
    """哪些評測題出現在訓練資料裡 (which evaluation items stand in training data)."""
    from twllm.evaluate.suite_overlap import find_overlap
    from twllm.evaluate.suite_passages import read_suites

    if not 0 < threshold <= 1 or chars < 8 or words < 4 or common < 2:
        where = f"--threshold {threshold} --chars {chars} --words {words} --common {common}"
        what = "threshold 在 0 到 1 之間，chars 至少 8，words 至少 4，common 至少 2 (limits out of range)"
        raise UserError(what, where, "改用預設值：0.8、13、8、5")
    if out.is_dir():
        raise UserError(
            "結果要寫成檔案，這裡是資料夾 (--out is a folder)", out, f"例如 --out {out / 'contamination.json'}"
        )
    with artifact.explain_os_errors(out):  # what cannot be written is told before the work
        out.parent.mkdir(parents=True, exist_ok=True)
    passages, left_out = read_suites(suites, data, questions)
    limits = Limits(chars=chars, words=words, threshold=threshold, common=common)
    with progress_bar(against) as on_bytes:
        found = find_overlap(passages, against, limits, on_bytes)
    write_overlap(found, out, left_out)
    for line in summary_lines(found):
        print(line)
    for name, why in left_out.items():
        print(f"略過 (skipped) {name}：{why}")
    print(f"寫到 {out}、{out.with_suffix('.md')}")


def texts(
    suites: Suites,
    out: Annotated[Path, typer.Option(help="寫到這個 .jsonl")],
    data: Data = None,
    questions: Questions = "twllm:culture",
) -> None:
    """把題組的題目、短文、選項、參考答案寫成 .jsonl，給語料步驟 decontaminate (write a suite's texts for the corpus step)."""
    from twllm.evaluate.suite_passages import read_suites

    passages, left_out = read_suites(suites, data, questions)
    rows = [{"suite": suite, **passage._asdict()} for suite, own in passages.items() for passage in own]
    artifact.write_text(out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    for name, why in left_out.items():
        print(f"略過 (skipped) {name}：{why}")
    print(f'{len(rows):,} 段文字寫到 {out}：[corpus] decontaminate_against = ["{out}"]')


def write_overlap(found: "Overlap", out: Path, left_out: dict[str, str] | None = None) -> None:
    """`out` (JSON: summary and one row an item) and the same name `.md`."""
    skipped = {"skipped": left_out} if left_out else {}
    artifact.write_json(
        out, {"summary": found.summary() | skipped, "code_version": artifact.code_version(), "items": found.items}
    )
    artifact.write_text(out.with_suffix(".md"), markdown(found))


def summary_lines(found: "Overlap") -> list[str]:
    """One line a suite."""
    lines = []
    for suite, row in found.summary()["suites"].items():
        by = "、".join(f"{PARTS.get(how, how)} {count}" for how, count in row["by"].items())
        unseen = f"；太短、無法比對 {row['not_searchable']}" if row["not_searchable"] else ""
        lines.append(f"{suite}: 汙染 flagged {row['flagged']} / {row['n']}{f'（{by}）' if by else ''}{unseen}")
    return lines


def markdown(found: "Overlap") -> str:
    """The report: counts by suite, all flagged items, and the nearest of the others."""
    summary, limits = found.summary(), found.limits
    lines = ["# 評測題與訓練資料的重疊 (contamination)", ""]
    for path, read in summary["against"].items():
        lines.append(f"* 對照 (against) `{path}`：{read['texts']:,} 份，{read['chars']:,} 字")
    lines += [
        f"* 一題算汙染：{limits.threshold:.0%} 以上的字落在同一處的共同 n-gram（中文 {limits.chars} 字，拉丁文字 {limits.words} 詞）裡；短題要整句，"
        "或題目後面緊接著答案",
        f"* {limits.common} 題以上都有的 n-gram 是套語，不算：{summary['common_ngrams']:,} 種",
        "",
        "| 題組 suite | 題數 n | 汙染 flagged | 依什麼 by | 有任何重疊 some share | 太短、無法比對 |",
        "|---|---|---|---|---|---|",
    ]
    for suite, row in summary["suites"].items():
        by = "、".join(f"{PARTS.get(how, how)} {count}" for how, count in row["by"].items()) or "—"
        lines.append(
            f"| {suite} | {row['n']} | {row['flagged']} | {by} | {row['some_share']} | {row['not_searchable']} |"
        )
    order = sorted(found.items, key=lambda row: (-row["share"], -row["run"], row["item"]))
    flagged = [row for row in order if row["flagged"]]
    nearest = [row for row in order if not row["flagged"] and row["share"]][:SHOWN]
    for title, rows in (("汙染的題目 (flagged)", flagged), ("沒到門檻、最接近的 (nearest)", nearest)):
        if rows:
            lines += ["", f"## {title}", "", *_rows(rows)]
    return "\n".join(lines) + "\n"


def _rows(rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| 題目 item | 部分 part | 佔比 share | 各處合計 | 最長 run | 份數 | 在哪裡 document | 來源 source | 那裡的文字 |",
        "|---" * 9 + "|",
    ]
    for row in rows:
        part = PARTS.get(row["part"] if row["how"] == "share" else row["how"], row["part"])
        cells = [
            row["item"], part, f"{row['share']:.2f}", f"{row['share_anywhere']:.2f}", row["run"], row["texts"],
            row["document"], row["source"], row["excerpt"][:80],
        ]  # fmt: skip
        lines.append(f"| {' | '.join(_cell(str(cell)) for cell in cells)} |")
    return lines


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "｜")


@contextmanager
def progress_bar(paths: list[str]) -> Iterator[Callable[[int], None]]:
    """A bar over the bytes of all files, if stderr is a terminal.

    Raises:
        UserError: a path is not there; before anything is read.
    """
    from twllm.evaluate.training_texts import training_files

    total = sum(file.stat().st_size for path in paths for file in training_files(path))
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (TextColumn("比對"), BarColumn(), TextColumn("{task.percentage:.0f} %"))
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=Console(stderr=True)) as progress:
        task = progress.add_task("contamination", total=total)
        yield lambda count: progress.advance(task, count)
