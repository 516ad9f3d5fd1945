"""PNG of a phase: loss, learning rate, gradient norm, speed over the optimizer steps, with the alarms marked."""

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

PANELS = (
    ("loss", "loss (nats per token)", "tab:blue"),
    ("lr", "learning rate", "tab:green"),
    ("grad_norm", "gradient norm", "tab:orange"),
    ("tokens_per_s", "tokens per second", "tab:purple"),
)


def smooth(values: Sequence[float], parts: int = 40) -> list[float]:
    """Running median over a `parts`-th of the values to either side."""
    width = max(1, len(values) // parts)
    return [median(values[max(0, i - width) : i + width + 1]) for i in range(len(values))]


def plot_training(metrics: list[dict[str, Any]], alarms: list[dict[str, Any]], target: Path, title: str) -> None:
    """Four panels; training numbers thin, their running median thick, held-out losses as dots, alarms as red lines."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6.5), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    for place, (key, label, colour) in enumerate(PANELS, 1):
        axes = figure.add_subplot(2, 2, place)
        points = [(row["step"], row[key]) for row in metrics if key in row and row["step"]]
        if points:
            steps, values = zip(*points, strict=True)
            axes.plot(steps, values, linewidth=0.6, alpha=0.4, color=colour)
            axes.plot(
                steps, values if key == "lr" else smooth(values), linewidth=1.8, color=colour, label="running median"
            )
        held = [(row["step"], row["held_out_loss"]) for row in metrics if "held_out_loss" in row]
        if key == "loss" and held:
            axes.plot(*zip(*held, strict=True), "o-", color="tab:red", markersize=4, label="held out")
        if key == "loss" and (points or held):
            axes.legend(frameon=False)
        for alarm in alarms:
            axes.axvline(alarm["step"], color="tab:red", linewidth=0.8, alpha=0.6)
        if key == "grad_norm" and points and min(values) > 0:
            axes.set_yscale("log")
        axes.set(xlabel="optimizer step", ylabel=label)
        axes.grid(alpha=0.3)
    figure.savefig(target, dpi=110)
