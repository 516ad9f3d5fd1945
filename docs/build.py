"""Write docs/data.md and its pictures from the data that ships with the package: `make docs`.

CI compares the text (tests/test_docs.py); the pictures depend on fonts and are only written here.
"""

import json
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from twllm import data
from twllm.corpus.check import check_text
from twllm.corpus.similar import SimilarTexts
from twllm.evaluate.contamination import TRAINING_DATA, nearest_training_wording, shipped_training_texts
from twllm.evaluate.keywords import read_questions
from twllm.evaluate.paraphrase import SUSPECT, ParaphraseSearch, exchanges_of

DOCS = Path(__file__).parent
FOLDERS = ("knowledge", "taiwan_instruction", "taiwan_facts", "taiwan_feedback", "culture", "culture_dev")
NEAR = 0.4  # Jaccard of character 3-grams from which two rows are looked at by a person
BUCKETS = (20, 40, 60, 80, 100, 150, 200, 300, 400, 600, 1000)
Row = dict[str, Any]


def rows(folder: str) -> list[Row]:
    """All rows of a shipped folder, in file order."""
    files = sorted((data.ROOT / folder).rglob("*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]


def text_of(row: Row) -> str:
    """What two rows are compared by."""
    if "messages" in row:
        return "".join(message["content"] for message in row["messages"])
    return str(row.get("text") or row.get("question") or row.get("answer"))


def strings(row: Row) -> Iterator[str]:
    """What the checker reads: paragraphs, answers, what the assistant says."""
    yield from (str(row[key]) for key in ("text", "answer") if key in row and "choices" not in row)
    yield from (message["content"] for message in row.get("messages", ()) if message["role"] == "assistant")


def tree() -> dict[str, list[str]]:
    """The topic tree, subjects and skills."""
    topics = tomllib.loads((data.ROOT / "topics.toml").read_text(encoding="utf-8"))
    return {**topics["subjects"], **topics["skills"]}


def counts_table(all_rows: dict[str, list[Row]]) -> list[str]:
    lines = [
        "| 資料 data | 筆數 rows | 多輪 multi-turn | 字數 characters | 大類 | 小類 | 非臺灣用字 leak rate |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, found in all_rows.items():
        multi = sum(len(row.get("messages", ())) > 2 for row in found)
        topics = {row["topic"] for row in found}
        checks = [check_text(text) for row in found for text in strings(row)]
        han = sum(check.n_han for check in checks)
        leak = f"{sum(check.leak_rate * check.n_han for check in checks) / han:.4%}" if han else "—"
        chars = sum(len(text_of(row)) for row in found)
        groups = len({topic.split("/")[0] for topic in topics})
        lines.append(f"| {name} | {len(found):,} | {multi or '—'} | {chars:,} | {groups} | {len(topics)} | {leak} |")
    return lines


def topics_table(all_rows: dict[str, list[Row]]) -> list[str]:
    names = ("knowledge", "taiwan_instruction", "culture")
    groups = {name: Counter(row["topic"].split("/")[0] for row in all_rows[name]) for name in names}
    seen = {name: {row["topic"] for row in all_rows[name]} for name in names}
    lines = ["| 大類 topic | knowledge | taiwan_instruction | culture | 有資料的小類 |", "|---|---|---|---|---|"]
    for group, inner in tree().items():
        covered = {topic.split("/")[1] for name in names for topic in seen[name] if topic.startswith(f"{group}/")}
        missing = "、".join(name for name in inner if name not in covered)
        cells = " | ".join(str(groups[name][group] or "—") for name in names)
        lines.append(f"| {group} | {cells} | {len(covered)}/{len(inner)}{f'（沒有 {missing}）' if missing else ''} |")
    return lines


def turns_table(conversations: list[Row]) -> list[str]:
    turns = Counter(len(row["messages"]) // 2 for row in conversations)
    return ["| 輪數 turns | " + " | ".join(map(str, sorted(turns))) + " |", "|---" * (len(turns) + 1) + "|",
            "| 對話 conversations | " + " | ".join(str(turns[n]) for n in sorted(turns)) + " |"]  # fmt: skip


def histogram(sizes: list[int]) -> list[int]:
    """How many sizes fall below each bucket's end, and above the last."""
    return [
        sum(low <= size < high for size in sizes) for low, high in zip((0, *BUCKETS), (*BUCKETS, 10**9), strict=True)
    ]


def lengths_table(all_rows: dict[str, list[Row]]) -> list[str]:
    last = [len(row["messages"][-1]["content"]) for row in all_rows["taiwan_instruction"]]
    paragraphs = [len(row["text"]) for row in all_rows["knowledge"]]
    labels = [f"<{end}" for end in BUCKETS] + [f"≥{BUCKETS[-1]}"]
    lines = ["| 字數 characters | " + " | ".join(labels) + " |", "|---" * (len(labels) + 1) + "|"]
    lines += [
        f"| {name} | " + " | ".join(map(str, histogram(sizes))) + " |"
        for name, sizes in (("最後一個回答 last answer", last), ("knowledge", paragraphs))
    ]
    return lines


def duplicates(all_rows: dict[str, list[Row]]) -> list[str]:
    lines = [f"| 資料 | 3-gram Jaccard ≥ {NEAR} 的對 near duplicates | 最像的一對 most similar pair |", "|---|---|---|"]
    for name in ("knowledge", "taiwan_instruction", "culture"):
        index, best, near = SimilarTexts(), (0.0, "", ""), 0
        for row in all_rows[name]:
            score, at = index.most_similar(text_of(row))
            near += score >= NEAR
            best = max(best, (round(score, 3), all_rows[name][at]["id"], row["id"]))
            index.add(text_of(row))
        lines.append(f"| {name} | {near} | {best[0]:.2f}（{best[1]}、{best[2]}） |")
    return lines


def contamination(all_rows: dict[str, list[Row]]) -> list[str]:
    search = ParaphraseSearch(exchanges_of([row for name in TRAINING_DATA for row in all_rows[name]]))
    by_id = {row["id"]: row for row in all_rows["culture"]}
    lines = [
        "| culture | 題數 | 整題出現 contained | 最長共同片段 longest run | 最高 3-gram Jaccard | 改寫可疑 paraphrase suspects | 最高改寫相似度 |",
        "|---|---|---|---|---|---|---|",
    ]
    groups = {
        "保留題 held out（知識只在 knowledge）": [
            q for q in read_questions("twllm:culture") if by_id[q.id].get("held_out")
        ],
        "教過的知識、沒見過的問法 taught facts, unseen wordings": [
            q for q in read_questions("twllm:culture") if "fact" in by_id[q.id]
        ],
        "其餘 others": [
            q for q in read_questions("twllm:culture") if "fact" not in by_id[q.id] and not by_id[q.id].get("held_out")
        ],
    }
    for name, questions in groups.items():
        near = nearest_training_wording([question.question for question in questions], shipped_training_texts())
        found = [search.nearest(question) for question in questions]
        lines.append(
            f"| {name} | {len(questions)} | {sum(row.contained for row in near)} | {max(row.run_chars for row in near)} 字 | {max(row.similarity for row in near):.3f} "
            f"| {sum(row.similarity >= SUSPECT for row in found)} | {max(row.similarity for row in found):.3f} |"
        )
    return lines


def forms_table(culture: list[Row]) -> list[str]:
    forms = Counter(row.get("form", "open") for row in culture)
    held = Counter(row.get("form", "open") for row in culture if row.get("held_out"))
    names = {"open": "開放 open", "choice": "四選一 choice", "trap": "他地用語陷阱 trap"}
    return [
        "| 題型 form | 題數 | 其中保留題 held out |",
        "|---|---|---|",
        *(f"| {names[form]} | {forms[form]} | {held[form]} |" for form in names),
    ]


def markdown() -> str:
    """The page."""
    found = {name: rows(name) for name in FOLDERS}
    sourced = (
        sum("source" in row for row in found["knowledge"]),
        sum("source" in row for row in found["taiwan_instruction"]),
    )
    parts = [
        "# 內建資料 (the data that ships with twllm)",
        "全部為本專案撰寫，CC BY 4.0。本頁由 `make docs` 產生，CI 會檢查是不是最新。\n"
        "Everything was written for this project. Each row was checked by a second reader, from memory; none could be looked up on the web. "
        f"Where a fact is not common knowledge the row names its source ({sourced[0]} paragraphs, {sourced[1]} conversations).",
        "## 數量 (counts)", "\n".join(counts_table(found)),
        "leak rate: share of the Han in paragraphs and in what the assistant says that the checker takes for Simplified or another region's words. "
        "What is left are texts that explain the difference (「軟件」在臺灣叫軟體).",
        "\n".join(turns_table(found["taiwan_instruction"])),
        "## 主題 (topic tree)", "主題樹：[topics.toml](../src/twllm/data/topics.toml)。", "![主題涵蓋 topic coverage](data-topics.png)", "\n".join(topics_table(found)),
        "## 長度 (lengths)", "![長度分布 length histogram](data-lengths.png)", "\n".join(lengths_table(found)),
        "## 文化題 (culture benchmark)", "\n".join(forms_table(found["culture"])),
        "* **taught**: 100 open questions on facts that `taiwan_facts` teaches in eight to ten other wordings; the tiny recipe's gate.\n"
        "* **untaught**: the rest. `held_out` marks those whose fact stands in `knowledge` (the row names the paragraph) and which no training conversation asks.\n"
        "* A trap's usual wrong answer is another region's: `default` says which, `trap` says whose.",
        "## 重複與汙染 (duplicates and contamination)", "\n".join(duplicates(found)), "\n".join(contamination(found)),
        f"Against `{'`, `'.join(TRAINING_DATA)}`. Contained: the whole question stands in a training text. Paraphrase: cosine of rarity-weighted 2-grams to a training question whose reply holds the answer; "
        f"suspects are at {SUSPECT} and above, which finds 97 % of the rewordings of `taiwan_facts` (tests/evaluate/test_paraphrase.py). Taught facts have suspects by design.",
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def pictures() -> None:
    """Topic coverage as bars, lengths as histograms."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from twllm.evaluate.report import cjk_font

    matplotlib.rcParams["font.family"] = [cjk_font() or "sans-serif"]
    found = {name: rows(name) for name in ("knowledge", "taiwan_instruction", "culture")}
    figure = Figure(figsize=(9, 8), layout="constrained")
    FigureCanvasAgg(figure)
    axes, left = figure.add_subplot(), [0] * len(tree())
    for (name, inner), colour in zip(found.items(), ("#2f7f6f", "#d08c3c", "#6a6fa8"), strict=True):
        counts = Counter(row["topic"].split("/")[0] for row in inner)
        values = [counts[group] for group in tree()]
        axes.barh(list(tree()), values, left=left, color=colour, label=name)
        left = [a + b for a, b in zip(left, values, strict=True)]
    axes.invert_yaxis()
    axes.margins(y=0.01)
    axes.set_xlabel("rows")
    axes.legend(frameon=False, loc="lower right")
    figure.savefig(DOCS / "data-topics.png", dpi=110)
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    sizes = {
        "last answer of a conversation": [len(row["messages"][-1]["content"]) for row in found["taiwan_instruction"]],
        "knowledge paragraph": [len(row["text"]) for row in found["knowledge"]],
    }
    for place, (name, values) in enumerate(sizes.items(), 1):
        axes = figure.add_subplot(1, 2, place)
        axes.hist(values, bins=40, color="#2f7f6f")
        axes.set_title(name)
        axes.set_xlabel("characters")
    figure.savefig(DOCS / "data-lengths.png", dpi=110)


if __name__ == "__main__":
    (DOCS / "data.md").write_text(markdown(), encoding="utf-8")
    if "--text" not in sys.argv:
        pictures()
