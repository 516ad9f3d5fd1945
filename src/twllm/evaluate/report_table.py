"""TC-Eval as the paper tells it (arXiv 2311.17487, Table 3): models as rows, tasks as columns, an average; published rows below.

Columns and published rows are data (`data/published.toml`). A model has one row a protocol. The average is over the columns the row
above has, for every row the same ones; a row that lacks one of them has none. Whether a published row was made under
the same rules is said, never assumed: other protocol, or TMMLU of another number of subjects, is marked.
"""

import tomllib
from functools import cache
from typing import Any

from twllm import data
from twllm.evaluate.task import Task, tasks

Blocks = dict[str, dict[str, Any]]


@cache
def published() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(columns, rows) of the published scores."""
    content = tomllib.loads((data.ROOT / "published.toml").read_text(encoding="utf-8"))
    return content["column"], content["row"]


def table(blocks: Blocks, model: str) -> list[str]:
    """Markdown lines; none where no suite of TC-Eval was run."""
    own = own_rows(blocks)
    columns = [column for column in published()[0] if any(column["published"] in scores for scores in own.values())]
    if not columns:
        return []
    lines = ["## TC-Eval", "", "| 模型 model | " + " | ".join(c["title"] for c in columns) + " | 平均 average |"]
    lines.append("|---" * (len(columns) + 2) + "|")
    for protocol, scores in own.items():
        has = [column["published"] for column in columns if column["published"] in scores]
        lines.append(_line(f"**{_plain(model)}**{f'（{protocol}）' if protocol else ''}", columns, scores, has))
    reference = [c["published"] for c in columns if all(c["published"] in scores for scores in own.values())]
    lines += [
        _line(f"*{row['model']}* †{number}", columns, row["scores"], reference, row.get("average"))
        for number, row in enumerate(published()[1], 1)
    ]
    return [*lines, "", *_notes(blocks, reference, columns)]


def own_rows(blocks: Blocks) -> dict[str, dict[str, float]]:
    """Protocol → {published task name → score} of the suites that are TC-Eval's; suites without answers are left out."""
    rows: dict[str, dict[str, float]] = {}
    for label, block in blocks.items():
        task = task_of(label)
        if task is not None and task.published and block.get("n"):
            rows.setdefault(task.protocol, {})[task.published] = score_of(task.published, block)
    return rows


def task_of(label: str) -> Task | None:
    """The task of a suite, as far as this version of the package knows it."""
    return tasks().get(label)


def score_of(name: str, block: dict[str, Any]) -> float:
    """The suite's score, or that one of its metrics which is published."""
    metric = next((column.get("metric") for column in published()[0] if column["published"] == name), None)
    metrics = block.get("metrics") or block.get("scores") or {}
    return float(metrics[metric] if metric in metrics else block["score"])


def comparable(label: str, block: dict[str, Any], row: dict[str, Any]) -> float | None:
    """The published row's score on this suite, when it was made under the same protocol and on the same subjects."""
    task = task_of(label)
    if task is None or task.published not in row["scores"] or task.protocol not in ("", row["protocol"]):
        return None
    column = next(column for column in published()[0] if column["published"] == task.published)
    if column.get("topics") not in (None, len(block.get("topics", ()))):
        return None
    return float(row["scores"][task.published])


def _line(
    name: str, columns: list[dict[str, Any]], scores: dict[str, float], averaged: list[str], told: float | None = None
) -> str:
    """A row; `told` is an average that was published without the scores it is of."""
    cells = [f"{100 * scores[column['published']]:.2f}" if column["published"] in scores else "—" for column in columns]
    whole = averaged and all(key in scores for key in averaged)
    mean = f"{100 * sum(scores[key] for key in averaged) / len(averaged):.2f}" if whole else "—"
    mean = mean if told is None else f"{100 * told:.2f} ‡"
    return f"| {name} | " + " | ".join(cells) + f" | {mean} |"


def _notes(blocks: Blocks, averaged: list[str], columns: list[dict[str, Any]]) -> list[str]:
    """What the average is of, where the published rows come from, and where they differ."""
    titles = "、".join(column["title"] for column in columns if column["published"] in averaged)
    lines = [
        f"單位：%。平均 (average) 是這幾欄的：{titles or '—'}。斜體是別人公布的數字，不是這次量的 (published, not measured here)："
    ]
    lines += [
        f"* †{number} {row['source']}，評法 (protocol) {row['protocol']}"
        + (f"；{row['note']}" if row.get("note") else "")
        for number, row in enumerate(published()[1], 1)
    ]
    if any("average" in row for row in published()[1]):
        lines.append(
            "* ‡ 論文印出來的平均，各項分數不在手邊，題組可能不同 (the paper's own average, over its own tasks)。"
        )
    for label, block in blocks.items():
        task = task_of(label)
        if task is None or not task.published:
            continue
        if task.protocol not in ("", "mediatek"):
            lines.append(f"* {label}：評法與公布的不同，不能直接比較 (another protocol)。")
        column = next((c for c in columns if c["published"] == task.published), {})
        if column.get("topics") not in (None, len(block.get("topics", ()))):
            lines.append(
                f"* {label}：這次 {len(block.get('topics', ()))} 科，公布的是 {column['topics']} 科，不能直接比較 (other subjects)。"
            )
    return lines


def _plain(text: str) -> str:
    return text.replace("|", "｜").replace("\n", " ")
