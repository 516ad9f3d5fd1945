"""Pictures of a phase: `training.png` (loss, learning rate, gradient norm, speed, the alarms marked) and `loss.png`.

Names of people's files and folders may be Chinese: they are drawn with a CJK font where matplotlib finds one, else with question marks.
"""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from twllm.artifact import write_bytes
from twllm.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PANELS = (
    ("loss", "loss (nats per token)", "tab:blue"),
    ("lr", "learning rate", "tab:green"),
    ("grad_norm", "gradient norm", "tab:orange"),
    ("tokens_per_s", "tokens per second", "tab:purple"),
)
BY_SHARD, MOST_SHARDS = "loss_", 8  # more would be unreadable


@cache
def cjk_font() -> str | None:
    """A font with Chinese glyphs, if there is one."""
    from matplotlib import font_manager

    from twllm.corpus.funnel_files import CJK_FONTS

    have = {font.name for font in font_manager.fontManager.ttflist}
    return next((name for name in CJK_FONTS if name in have), None)


def shown(text: str) -> str:
    """The text as this machine's fonts can draw it; `$` would begin a formula."""
    text = text.replace("$", r"\$")
    return text if cjk_font() else text.encode("ascii", "replace").decode()


@contextmanager
def picture(target: Path, width: float, height: float, dpi: int = 110) -> Iterator["Figure"]:
    """A figure to draw into; it is written whole, in the format of the file's suffix (PNG without one).

    Raises:
        UserError: no such format, or the place cannot be written.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with rc_context({"font.family": ["DejaVu Sans", *([font] if (font := cjk_font()) else [])]}):
        figure = Figure(figsize=(width, height), layout="constrained")
        canvas = FigureCanvasAgg(figure)
        form = target.suffix[1:].lower() or "png"
        if form not in (known := canvas.get_supported_filetypes()):
            raise UserError(
                f"不認得的圖檔格式 (unknown format) .{form}", target, f"可用的有：{'、'.join(sorted(known))}"
            )
        yield figure
        content = io.BytesIO()
        figure.savefig(content, dpi=dpi, format=form)
    write_bytes(target, content.getvalue())


def smooth(values: Sequence[float], parts: int = 40) -> list[float]:
    """Running median over a `parts`-th of the values to either side."""
    width = max(1, len(values) // parts)
    return [median(values[max(0, i - width) : i + width + 1]) for i in range(len(values))]


def plot_training(metrics: list[dict[str, Any]], alarms: list[dict[str, Any]], target: Path, title: str) -> None:
    """Four panels; training numbers thin, their running median thick, with several shards one of each; held-out losses as dots; alarms
    as red lines, with a cross at the loss of the worst document.
    """
    with picture(target, 11, 6.5) as figure:
        figure.suptitle(shown(title))
        for place, (key, label, colour) in enumerate(PANELS, 1):
            axes = figure.add_subplot(2, 2, place)
            points = [(row["step"], row[key]) for row in metrics if key in row and row["step"]]
            shards = (
                sorted({name for row in metrics for name in row if name.startswith(BY_SHARD)}) if key == "loss" else []
            )
            if points:
                steps, values = zip(*points, strict=True)
                axes.plot(steps, values, linewidth=0.6, alpha=0.4, color=colour)
                if not shards:
                    thick = values if key == "lr" else smooth(values)
                    axes.plot(steps, thick, linewidth=1.8, color=colour, label="running median")
            for name in shards:
                found = [(row["step"], row[name]) for row in metrics if name in row]
                steps, heights = zip(*found, strict=True)
                axes.plot(steps, smooth(heights), linewidth=1.8, label=f"shard {shown(name.removeprefix(BY_SHARD))}")
            if held := _held_out(metrics) if key == "loss" else []:
                axes.plot(*zip(*held, strict=True), "o-", color="black", linewidth=1, markersize=4, label="held out")
            for alarm in alarms:
                axes.axvline(alarm["step"], color="tab:red", linewidth=0.6, alpha=0.4)
            if key == "loss":
                worst = [(alarm["step"], alarm["documents"][0]["loss"]) for alarm in alarms if alarm["documents"]]
                if worst:
                    axes.plot(*zip(*worst, strict=True), "x", color="tab:red", label="named document")
                if axes.get_legend_handles_labels()[0]:
                    axes.legend(frameon=False, fontsize=8)
            if key == "grad_norm" and points and min(values) > 0:
                axes.set_yscale("log")
            axes.set(xlabel="optimizer step", ylabel=label)
            axes.grid(alpha=0.3)


def plot_loss(metrics: list[dict[str, Any]], target: Path, title: str) -> None:
    """Training loss per step (thin), its running median (thick), held-out loss (dots)."""
    with picture(target, 8, 4.5, dpi=120) as figure:
        axes = figure.add_subplot()
        train, held = [(r["step"], r["loss"]) for r in metrics if "loss" in r], _held_out(metrics)
        if train:
            steps, losses = zip(*train, strict=True)
            axes.plot(steps, losses, linewidth=0.6, alpha=0.4, color="tab:blue")
            axes.plot(steps, smooth(losses), linewidth=2, color="tab:blue", label="training (running median)")
        if held:
            axes.plot(*zip(*held, strict=True), "o-", color="tab:red", label="held out")
        axes.set(xlabel="optimizer step", ylabel="loss (nats per token)", title=shown(title))
        axes.grid(alpha=0.3)
        if train or held:
            axes.legend()


def _held_out(metrics: list[dict[str, Any]]) -> list[tuple[int, float]]:
    return [(row["step"], row["held_out_loss"]) for row in metrics if "held_out_loss" in row]
