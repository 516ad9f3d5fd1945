"""The pictures of a report: radar (bars for fewer than three suites), bars by topic, heat map of a needle grid.

Labels are Chinese where matplotlib finds a CJK font, else names that every font has (`topic 1`, with a legend in the Markdown).
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from math import pi
from pathlib import Path
from typing import Any

from twllm.evaluate.report_table import Blocks, comparable, published

CJK_FONTS = (
    "Noto Sans CJK TC", "Noto Sans TC", "Noto Serif CJK TC", "Noto Sans CJK JP", "Noto Serif CJK JP", "PingFang TC",
    "Microsoft JhengHei", "Source Han Sans TW", "AR PL UMing TW", "WenQuanYi Zen Hei", "Droid Sans Fallback",
)  # fmt: skip
MAX_BARS = 60
COLOUR, THIN = "#2f7f6f", ("#d08c3c", "#6a6fa8", "#b05a7a", "#7a7a7a")


@cache
def cjk_font() -> str | None:
    """The first installed font that has Chinese characters."""
    from matplotlib import font_manager

    installed = {font.name for font in font_manager.fontManager.ttflist}
    return next((name for name in CJK_FONTS if name in installed), None)


@contextmanager
def figure(file: Path, width: float, height: float) -> Iterator[Any]:
    """A figure in a font that has the characters, written to `file` when the block ends."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    font = cjk_font()
    with matplotlib.rc_context({"font.family": [font] if font else matplotlib.rcParams["font.family"]}):
        drawn = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(drawn)
        yield drawn
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing")  # a topic with an emoji: an empty box will do
            drawn.savefig(file, dpi=120)


def is_share(block: dict[str, Any]) -> bool:
    """Whether the score is a share of 1, more is better, and anything was asked: what a radar can show."""
    return (
        block.get("better") != "lower" and bool(block.get("n")) and 0 <= block["score"] <= 1 and not block.get("scale")
    )


def plot(blocks: Blocks, file: Path) -> None:
    """Suites on the left (radar from three on, bars below), then one panel of bars for each suite with topics."""
    font = cjk_font()
    shares = {name: block for name, block in blocks.items() if is_share(block)}
    with_topics = {name: block["topics"] for name, block in shares.items() if len(block.get("topics", ())) > 1}
    tallest = max((min(len(topics), MAX_BARS) for topics in with_topics.values()), default=4)
    columns = 1 + len(with_topics)
    with figure(file, 4.5 * columns, max(3.6, 0.22 * tallest + 1)) as drawn:
        if len(shares) >= 3:
            radar(drawn.add_subplot(1, columns, 1, projection="polar"), shares)
        else:
            _bars(drawn.add_subplot(1, columns, 1), {name: b["score"] for name, b in shares.items()}, "suites")
        for place, (name, topics) in enumerate(with_topics.items(), 2):
            shown = {
                topic if font else f"topic {number}": row["score"]
                for number, (topic, row) in enumerate(topics.items(), 1)
            }
            _bars(drawn.add_subplot(1, columns, place), shown, name)


def _bars(axes: Any, scores: dict[str, float], title: str) -> None:
    names = list(scores)[:MAX_BARS]
    axes.barh(names, [scores[name] for name in names], color=COLOUR)
    axes.margins(y=0.01)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_title(title)
    axes.tick_params(labelsize=7 if len(names) > 12 else 9)


def radar(axes: Any, blocks: Blocks) -> None:
    """The model's suites, filled; published models as thin lines where a suite can be compared, with a gap elsewhere."""
    angles = [2 * pi * i / len(blocks) for i in range(len(blocks))]
    values = [block["score"] for block in blocks.values()]
    axes.plot([*angles, angles[0]], [*values, values[0]], color=COLOUR)
    axes.fill([*angles, angles[0]], [*values, values[0]], color=COLOUR, alpha=0.25)
    lines = 0
    for row, colour in zip(published()[1], THIN, strict=False):
        known = [comparable(name, block, row) for name, block in blocks.items()]
        if sum(value is not None for value in known) < 2:
            continue
        gaps = [float("nan") if value is None else value for value in known]
        label = f"{row['model']} (published)"
        axes.plot([*angles, angles[0]], [*gaps, gaps[0]], color=colour, linewidth=0.8, marker=".", label=label)
        lines += 1
    if lines:
        axes.legend(fontsize=6, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.08))
    axes.set_xticks(angles, list(blocks))
    axes.tick_params(axis="x", pad=9)
    axes.tick_params(axis="y", labelsize=7)
    axes.set_ylim(0, 1)


def heat_map(block: dict[str, Any], file: Path) -> None:
    """A needle grid: one square a cell, its share of facts found; what was not asked is grey."""
    grid = block["grid"]
    rows = [
        [right / n if n else float("nan") for right, n in zip(*pair, strict=True)]
        for pair in zip(grid["correct"], grid["n"], strict=True)
    ]
    height, width = len(rows), len(rows[0])
    with figure(file, 2.2 + 0.8 * width, 1.6 + 0.45 * height) as drawn:
        axes = drawn.add_subplot()
        axes.set_facecolor("#d8d8d8")
        image = axes.imshow(rows, cmap="YlGn", vmin=0, vmax=1, aspect="auto")
        axes.set_xticks(range(width), [f"{depth}%" for depth in grid["depths"]])
        axes.set_yticks(range(height), [f"{length:,}" for length in grid["lengths"]])
        font = cjk_font()
        axes.set_xlabel("深度 depth" if font else "depth")
        axes.set_ylabel("長度（字）characters" if font else "characters")
        for i, row in enumerate(rows):
            for j, value in enumerate(row):
                shown = "—" if value != value else f"{grid['correct'][i][j]}/{grid['n'][i][j]}"
                axes.text(j, i, shown, ha="center", va="center", fontsize=8, color="white" if value > 0.6 else "black")
        drawn.colorbar(image, ax=axes)
