"""The funnel on disk: funnel.json, funnel.md, funnel.html, funnel.png and drops/REASON.jsonl. No times in them."""

import html
import json
from pathlib import Path
from typing import Any

from twllm.artifact import write_json, write_text
from twllm.corpus.funnel_names import named

CJK_FONTS = (
    "Noto Sans CJK TC",
    "Noto Sans TC",
    "Source Han Sans TC",
    "PingFang TC",
    "Microsoft JhengHei",
    "AR PL UMing TW",
)
MAX_BARS = 40
TITLES = {
    "documents left": "留下的文件",
    "dropped": "丟掉的文件",
    "characters left of each source (%)": "各來源留下的字元",
}
STYLE = """body{font:15px/1.6 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse}td,th{padding:.2rem .7rem;border-bottom:1px solid #ddd;text-align:right;vertical-align:top}
td:first-child,th:first-child,td:last-child,th:last-child{text-align:left}details{margin:.6rem 0}
blockquote{margin:.4rem 0;padding:.3rem .8rem;border-left:3px solid #d1495b;white-space:pre-wrap}small{color:#666}img{max-width:100%}"""


def write_funnel(
    folder: Path, rows: list[dict[str, Any]], samples: dict[str, list[dict[str, Any]]], **facts: Any
) -> None:
    """All files of the funnel into a corpus folder."""
    from twllm.corpus.report import funnel_markdown

    write_json(folder / "funnel.json", {"stages": rows, **facts})
    (folder / "drops").mkdir(exist_ok=True)
    for reason, kept in samples.items():
        lines = [json.dumps(row, ensure_ascii=False) for row in kept]
        text = "".join(f"{line}\n" for line in lines)
        (folder / "drops" / f"{reason}.jsonl").write_text(text, encoding="utf-8", errors="backslashreplace")
    write_text(folder / "funnel.md", funnel_markdown(folder))
    draw(rows, folder / "funnel.png")
    write_text(folder / "funnel.html", page(folder, samples))


def page(folder: Path, samples: dict[str, list[dict[str, Any]]]) -> str:
    """The table, the picture and the samples of each reason as one page for a person to read."""
    from twllm.corpus.report import HEADER, funnel_rows

    cells = "".join(f"<th>{html.escape(name)}</th>" for name in HEADER)
    table = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>\n" for row in funnel_rows(folder)
    )
    parts = []
    for reason, kept in sorted(samples.items()):
        told = "".join(
            f"<blockquote>{_clean(row['excerpt'])}<br><small>{_clean(row['id'])} {_clean(row['url'])}　{row['chars']:,} 字　"
            f"{_clean(row['detail'])}</small></blockquote>\n"
            for row in kept
        )
        parts.append(f"<details><summary>{html.escape(named(reason))}（{len(kept)}）</summary>\n{told}</details>\n")
    return (
        f'<!doctype html><html lang="zh-Hant-TW"><meta charset="utf-8"><title>語料漏斗</title><style>{STYLE}</style>\n'
        f"<h1>語料漏斗 (corpus funnel)</h1>\n<table><tr>{cells}</tr>\n{table}</table>\n"
        f'<p><img src="funnel.png" alt="各階段留下的文件與丟掉的原因"></p>\n'
        f"<h2>丟掉的樣本 (samples of what was dropped)</h2>\n{''.join(parts)}</html>\n"
    )


def _clean(text: str) -> str:
    return html.escape(text.encode("utf-8", "replace").decode())


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Documents left after each stage, drops by reason, what each source keeps. Latin names where no CJK font is found."""
    from matplotlib import font_manager, rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    have = {font.name for font in font_manager.fontManager.ttflist}
    font = next((name for name in CJK_FONTS if name in have), None)
    say = named if font else _latin
    drops = [(f"{say(reason)}", count["documents"]) for row in rows for reason, count in row["drops"].items()]
    drops = sorted(drops, key=lambda item: -item[1])[:MAX_BARS]
    sources = _shares(rows)[:MAX_BARS]
    with rc_context({"font.family": [font or "DejaVu Sans"], "axes.spines.top": False, "axes.spines.right": False}):
        heights = [len(rows), max(len(drops), 1), *([len(sources)] if len(sources) > 1 else [])]
        figure = Figure(figsize=(9, 1.2 + 0.6 * len(heights) + 0.32 * sum(heights)), layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(len(heights), 1, height_ratios=heights)
        left = [row["documents"] for row in rows]
        _bars(
            panels[0], [say(row["stage"]) for row in rows], left, [_told(row) for row in rows], "documents left", font
        )
        _bars(
            panels[1], [name for name, _ in drops], [n for _, n in drops], [f"{n:,}" for _, n in drops], "dropped", font
        )
        if len(sources) > 1:
            names = [name if font else _latin(name) for name, _, _ in sources]
            labels = [f"{100 * kept / max(read, 1):.1f} %" for _, read, kept in sources]
            values = [round(100 * kept / max(read, 1), 1) for _, read, kept in sources]
            _bars(panels[2], names, values, labels, "characters left of each source (%)", font)
        figure.savefig(path, dpi=100, metadata={"Software": None})


def _latin(name: str) -> str:
    return name.encode("ascii", "replace").decode()


def _told(row: dict[str, Any]) -> str:
    tokens = f", ~{row['tokens']:,} tokens" if "tokens" in row else ""
    return f"{row['documents']:,} documents, {row['chars']:,} chars{tokens}"


def _shares(rows: list[dict[str, Any]]) -> list[tuple[str, int, int]]:
    """(source, characters read, characters left)."""
    first, last = rows[0].get("sources", {}), rows[-1].get("sources", {})
    return [(name, count["chars"], last.get(name, {}).get("chars", 0)) for name, count in first.items()]


def _bars(axes: Any, names: list[str], values: list[float], labels: list[str], title: str, chinese: str | None) -> None:
    bars = axes.barh(range(len(names)), values, color="#d1495b" if title == "dropped" else "#3a7ca5")
    axes.set_yticks(range(len(names)), names)
    axes.bar_label(bars, labels=labels, padding=3, fontsize=8)
    axes.set_xlim(0, max([1, *values]) * 1.7)
    axes.invert_yaxis()
    if "%" in title:
        axes.set_xticks([0, 25, 50, 75, 100])
    axes.set_title(f"{TITLES[title]} {title}" if chinese else title, fontsize=9, loc="left")
    axes.tick_params(labelsize=8)
