"""A result for people: TC-Eval's table, scores with n and interval, topics and examples in Markdown; pictures beside it as PNG.

What a block has beside its score is shown where it is there: forms, topics, `flagged` and `clean` (contamination), `grid` (needle),
`leak_rate`, bits per character. The table is report_table.py's, the pictures are report_pictures.py's.
"""

from pathlib import Path
from typing import Any

from twllm.artifact import write_text
from twllm.evaluate.report_judge import judge_lines
from twllm.evaluate.report_pictures import cjk_font as cjk_font
from twllm.evaluate.report_pictures import heat_map, plot
from twllm.evaluate.report_table import table

FORMS = {"open": "開放 open", "choice": "四選一 choice", "trap": "他地用語陷阱 trap"}
EXAMPLES = 8  # of each kind in the report


def write_report(result: dict[str, Any], folder: Path, stem: str = "report") -> None:
    """Write `STEM.md` and `STEM.png` into the folder, and `STEM.SUITE.png` for each needle grid."""
    folder.mkdir(parents=True, exist_ok=True)
    blocks = suites_of(result)
    picture = folder / f"{stem}.png"
    plot(blocks, picture)
    maps = {name: f"{stem}.{name}.png" for name, block in blocks.items() if "grid" in block}
    for name, file in maps.items():
        heat_map(blocks[name], folder / file)
    write_text(folder / f"{stem}.md", markdown(result, picture.name, maps))


def suites_of(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The blocks that are suites."""
    return {name: block for name, block in result.items() if isinstance(block, dict) and "score" in block}


def markdown(result: dict[str, Any], picture: str = "", maps: dict[str, str] | None = None) -> str:
    """The whole report as text; `maps` names the heat map of each suite that has one."""
    meta = result.get("meta", {})
    lines = [f"# 評測報告 (evaluation)：{meta.get('model', '')}", ""]
    facts = {
        "模型指紋 (model fingerprint)": meta.get("model_fingerprint"),
        "範本指紋 (template fingerprint)": meta.get("template_fingerprint"),
        "回答上限 (max_new_tokens)": meta.get("max_new_tokens"),
        "每題組上限 (limit)": meta.get("limit"),
        "秒 (wall_s)": meta.get("wall_s"),
        "程式版本 (code_version)": meta.get("code_version"),
    }
    lines += [f"* {name}: {value}" for name, value in facts.items() if value not in (None, "")]
    lines += [f"* 略過 (skipped) {name}: {why}" for name, why in meta.get("skipped", {}).items()]
    blocks = suites_of(result)
    if tceval := table(blocks, str(meta.get("model", ""))):
        lines += ["", *tceval]
    lines += ["", *_score_lines(blocks)]
    if picture:
        lines += ["", f"![各題組與主題的正確率]({picture})"]
    for name, block in blocks.items():
        lines += ["", *_suite_lines(name, block, (maps or {}).get(name, ""))]
    return "\n".join(lines) + "\n"


def _score_lines(blocks: dict[str, dict[str, Any]]) -> list[str]:
    """One row a suite; with two columns more where any suite was compared with training text."""
    head = [
        "題組 suite",
        "版本",
        "得分 score",
        "答對 correct",
        "題數 n",
        "95% 區間",
        "非臺灣用字 leak rate",
        "提示雜湊 prompt hash",
    ]
    flagged = any("flagged" in block for block in blocks.values())
    head += ["汙染題 flagged", "不含汙染題 clean (n)"] if flagged else []
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name, block in blocks.items():
        leak = block.get("leak_rate")
        cells = [
            name, block["task"]["version"], _score(block), block.get("correct", "—"), block.get("n", "—"), span(block),
            "—" if leak is None else f"{leak:.2%}", block.get("prompt_hash", "—"),
        ]  # fmt: skip
        lines.append(f"| {' | '.join(map(str, cells + (_flag_cells(block) if flagged else [])))} |")
    return lines


def _score(block: dict[str, Any]) -> str:
    """`0.5123`, `0.8123 bits/char ↓`, or a dash where nothing was asked."""
    if not block.get("n", 1):
        return "—"
    unit = f" {block['unit']}" if block.get("unit") else ""
    return f"{block['score']:.4f}{unit}" + (" ↓" if block.get("better") == "lower" else "")


def span(block: dict[str, Any]) -> str:
    """The 95 % interval; a dash where there is none."""
    low, high = block.get("interval") or (None, None)
    return "—" if low is None or high is None or not block.get("n", 1) else f"{low:.3f}–{high:.3f}"


def _flag_cells(block: dict[str, Any]) -> list[str]:
    """How many items stand in training text, and the score without them."""
    flagged, clean = block.get("flagged"), block.get("clean")
    if flagged is None:
        return ["—", "—"]
    count = flagged if isinstance(flagged, int) else len(flagged)
    if not clean or not clean.get("n"):
        return [str(count), "—"]
    return [str(count), f"{clean['score']:.4f}（{span(clean)}，n = {clean['n']}）"]


def _suite_lines(name: str, block: dict[str, Any], picture: str = "") -> list[str]:
    lines = [f"## {name}：{block['task']['title']}"]
    if block.get("too_long"):
        lines += ["", f"{block['too_long']} 題太長，模型放不下，算錯 (prompt longer than the context)。"]
    if block.get("not_fitting"):
        lines += [
            "",
            f"{block['not_fitting']} 題超過模型的上下文長度，沒有問，不計分 (beyond the context: not asked)。",
        ]
    lines += ["", *judge_lines(block)] if "judge" in block else []
    if "grid" in block:
        lines += ["", *_grid_lines(block["grid"])] + (["", f"![長度 × 深度]({picture})"] if picture else [])
    if "forms" in block:
        lines += ["", "| 題型 form | 答對 | 題數 | 得分 | 95% 區間 |", "|---|---|---|---|---|"]
        for form, row in block["forms"].items():
            lines.append(
                f"| {FORMS.get(form, form)} | {row['correct']} | {row['n']} | {row['score']:.4f} | {span(row)} |"
            )
    if block.get("topics"):
        lines += ["", *_topic_lines(block)]
    if "contamination" in block:
        lines += ["", *_contamination_lines(block["contamination"])]
    for title, flag in (("答對的例子 (right)", True), ("答錯的例子 (wrong)", False)):
        items = [item for item in block.get("items", ()) if item.get("correct") is flag and "answer" in item]
        if items:
            lines += ["", f"### {title}", "", "| 題號 | 問題 | 回答 | 正解 |", "|---|---|---|---|"]
            lines += [_example(item) for item in _spread(items, EXAMPLES)]
    return lines


def _topic_lines(block: dict[str, Any]) -> list[str]:
    """By topic: marks, or bits per character with their interval."""
    if block.get("better") == "lower":
        lines = [
            "| # | 文字 text | 篇數 n | 字數 chars | 詞元 tokens | 每字位元數 bits/char | 95% 區間 |",
            "|---" * 7 + "|",
        ]
        return lines + [
            f"| {number} | {_cell(topic)} | {row['n']} | {row['chars']:,} | {row['tokens']:,} | {row['score']:.4f} | {span(row)} |"
            for number, (topic, row) in enumerate(block["topics"].items(), 1)
        ]
    lines = ["| # | 主題 topic | 答對 | 題數 | 得分 |", "|---|---|---|---|---|"]
    for number, (topic, row) in enumerate(block["topics"].items(), 1):
        lines.append(f"| {number} | {topic} | {row.get('correct', '—')} | {row.get('n', '—')} | {row['score']:.4f} |")
    return lines


def _grid_lines(grid: dict[str, Any]) -> list[str]:
    """Lengths as rows, depths as columns, right of asked."""
    depths = " | ".join(f"{depth}%" for depth in grid["depths"])
    lines = [f"| 長度（字）＼深度 | {depths} |", "|---" * (len(grid["depths"]) + 1) + "|"]
    for length, right, n in zip(grid["lengths"], grid["correct"], grid["n"], strict=True):
        cells = " | ".join(f"{a}/{b}" if b else "—" for a, b in zip(right, n, strict=True))
        lines.append(f"| {length:,} | {cells} |")
    return lines


def _contamination_lines(summary: dict[str, Any]) -> list[str]:
    lines = [
        f"訓練文字的重疊 (against {summary['against']}，{summary['training_texts']} 句)：整題出現 {summary['contained']} 題，"
        f"最長共同片段 {summary['longest_run_chars']} 字，最高 3-gram Jaccard {summary['highest_similarity']:.3f}。",
        "",
        "| 問題 | 最像的訓練句 | Jaccard | 共同片段 |",
        "|---|---|---|---|",
    ]
    for row in summary["nearest"]:
        shown = f"{_cell(row['question'])} | {_cell(row['wording'])}"
        lines.append(f"| {shown} | {row['similarity']:.3f} | {_cell(row['run'])} |")
    return lines


def _example(item: dict[str, Any]) -> str:
    expected = "、".join(map(str, item.get("expected", ())))
    return f"| {item['id']} | {_cell(item['question'])} | {_cell(item['answer'])} | {_cell(expected)} |"


def _cell(text: str, length: int = 60) -> str:
    """Text that stays inside a table cell; a long one loses its middle (the question itself often comes last)."""
    line = " ".join(text.split()).replace("|", "｜")
    return line if len(line) <= length else f"{line[: length // 2]}…{line[-(length // 2 - 1) :]}"


def _spread(items: list[Any], count: int) -> list[Any]:
    """At most `count` of the items, evenly spread."""
    return items if len(items) <= count else [items[i * len(items) // count] for i in range(count)]
