"""A result for people: tables and examples in Markdown, bars per topic and a radar over the suites as PNG.

Labels are Chinese where matplotlib finds a CJK font, else names that every font has (`topic 1`, with a legend in the Markdown).
"""

from functools import cache
from pathlib import Path
from typing import Any

from twllm.artifact import write_text

FORMS = {"open": "開放 open", "choice": "四選一 choice", "trap": "他地用語陷阱 trap"}
EXAMPLES = 8  # of each kind in the report
CJK_FONTS = (
    "Noto Sans CJK TC", "Noto Sans TC", "Noto Serif CJK TC", "Noto Sans CJK JP", "Noto Serif CJK JP", "PingFang TC",
    "Microsoft JhengHei", "Source Han Sans TW", "AR PL UMing TW", "WenQuanYi Zen Hei", "Droid Sans Fallback",
)  # fmt: skip
MAX_BARS = 60


def write_report(result: dict[str, Any], folder: Path, stem: str = "report") -> None:
    """Write `STEM.md` and `STEM.png` into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    blocks = suites_of(result)
    picture = folder / f"{stem}.png"
    _plot(blocks, picture)
    write_text(folder / f"{stem}.md", markdown(result, picture.name))


def suites_of(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The blocks that are suites."""
    return {name: block for name, block in result.items() if isinstance(block, dict) and "score" in block}


def markdown(result: dict[str, Any], picture: str = "") -> str:
    """The whole report as text."""
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
    lines += [
        "",
        "| 題組 suite | 版本 | 得分 score | 答對 correct | 題數 n | 95% 區間 | 非臺灣用字 leak rate | 提示雜湊 prompt hash |",
    ]
    lines += ["|---|---|---|---|---|---|---|---|"]
    for name, block in suites_of(result).items():
        low, high = block["interval"]
        lines.append(
            f"| {name} | {block['task']['version']} | {block['score']:.4f} | {block['correct']} | {block['n']} "
            f"| {low:.3f}–{high:.3f} | {block.get('leak_rate', 0):.2%} | {block['prompt_hash']} |"
        )
    if picture:
        lines += ["", f"![各題組與主題的正確率]({picture})"]
    for name, block in suites_of(result).items():
        lines += ["", *_suite_lines(name, block)]
    return "\n".join(lines) + "\n"


def _suite_lines(name: str, block: dict[str, Any]) -> list[str]:
    lines = [f"## {name}：{block['task']['title']}"]
    if block["too_long"]:
        lines += ["", f"{block['too_long']} 題太長，模型放不下，算錯 (prompt longer than the context)。"]
    if "forms" in block:
        lines += ["", "| 題型 form | 答對 | 題數 | 得分 | 95% 區間 |", "|---|---|---|---|---|"]
        for form, row in block["forms"].items():
            low, high = row["interval"]
            lines.append(
                f"| {FORMS.get(form, form)} | {row['correct']} | {row['n']} | {row['score']:.4f} | {low:.3f}–{high:.3f} |"
            )
    if block["topics"]:
        lines += ["", "| # | 主題 topic | 答對 | 題數 | 得分 |", "|---|---|---|---|---|"]
        for number, (topic, row) in enumerate(block["topics"].items(), 1):
            lines.append(f"| {number} | {topic} | {row['correct']} | {row['n']} | {row['score']:.4f} |")
    if "contamination" in block:
        lines += ["", *_contamination_lines(block["contamination"])]
    for title, flag in (("答對的例子 (right)", True), ("答錯的例子 (wrong)", False)):
        items = [item for item in block["items"] if item["correct"] is flag]
        if items:
            lines += ["", f"### {title}", "", "| 題號 | 問題 | 回答 | 正解 |", "|---|---|---|---|"]
            lines += [_example(item) for item in _spread(items, EXAMPLES)]
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
    expected = "、".join(item["expected"])
    return f"| {item['id']} | {_cell(item['question'])} | {_cell(item['answer'])} | {_cell(expected)} |"


def _cell(text: str, length: int = 60) -> str:
    """Text that stays inside a table cell; a long one loses its middle (the question itself often comes last)."""
    line = " ".join(text.split()).replace("|", "｜")
    return line if len(line) <= length else f"{line[: length // 2]}…{line[-(length // 2 - 1) :]}"


def _spread(items: list[Any], count: int) -> list[Any]:
    """At most `count` of the items, evenly spread."""
    return items if len(items) <= count else [items[i * len(items) // count] for i in range(count)]


# -- pictures -----------------------------------------------------------------------------------------------------


@cache
def cjk_font() -> str | None:
    """The first installed font that has Chinese characters."""
    from matplotlib import font_manager

    installed = {font.name for font in font_manager.fontManager.ttflist}
    return next((name for name in CJK_FONTS if name in installed), None)


def _plot(blocks: dict[str, dict[str, Any]], file: Path) -> None:
    """Suites on the left (radar from three on, bars below), then one panel of bars for each suite with topics."""
    import warnings

    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    font = cjk_font()
    with_topics = {name: block["topics"] for name, block in blocks.items() if len(block["topics"]) > 1}
    tallest = max((min(len(topics), MAX_BARS) for topics in with_topics.values()), default=4)
    with matplotlib.rc_context({"font.family": [font] if font else matplotlib.rcParams["font.family"]}):
        figure = Figure(figsize=(4.5 * (1 + len(with_topics)), max(3.6, 0.22 * tallest + 1)), layout="constrained")
        FigureCanvasAgg(figure)
        scores = {name: block["score"] for name, block in blocks.items()}
        if len(scores) >= 3:
            _radar(figure.add_subplot(1, 1 + len(with_topics), 1, projection="polar"), scores)
        else:
            _bars(figure.add_subplot(1, 1 + len(with_topics), 1), scores, "suites")
        for place, (name, topics) in enumerate(with_topics.items(), 2):
            shown = {
                topic if font else f"topic {number}": row["score"]
                for number, (topic, row) in enumerate(topics.items(), 1)
            }
            _bars(figure.add_subplot(1, 1 + len(with_topics), place), shown, name)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing")  # a topic with an emoji: an empty box will do
            figure.savefig(file, dpi=120)


def _bars(axes: Any, scores: dict[str, float], title: str) -> None:
    names = list(scores)[:MAX_BARS]
    axes.barh(names, [scores[name] for name in names], color="#2f7f6f")
    axes.margins(y=0.01)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_title(title)
    axes.tick_params(labelsize=7 if len(names) > 12 else 9)


def _radar(axes: Any, scores: dict[str, float]) -> None:
    from math import pi

    angles = [2 * pi * i / len(scores) for i in range(len(scores))]
    values = list(scores.values())
    axes.plot([*angles, angles[0]], [*values, values[0]], color="#2f7f6f")
    axes.fill([*angles, angles[0]], [*values, values[0]], color="#2f7f6f", alpha=0.25)
    axes.set_xticks(angles, list(scores))
    axes.set_ylim(0, 1)
