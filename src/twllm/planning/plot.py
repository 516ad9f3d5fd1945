"""`twllm plan --plot plan.png`: what fills a card in each phase, and what the same phases would need in other ways."""

import io
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from twllm.artifact import write_bytes
from twllm.planning.memory import Memory
from twllm.train.gpus import GIB


def draw(bars: Sequence[tuple[str, Memory]], card_gib: float, limit_gib: float, title: str, out: Path) -> None:
    """Stacked bars, one a phase or a way to run; lines: the card, and what a plan may fill of it. English: the default font has no Han."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 1.4 + 0.42 * len(bars)), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    names = [name for name, _ in bars]
    left = [0.0] * len(bars)
    for part in asdict(bars[0][1]):
        widths = [getattr(memory, part) / GIB for _, memory in bars]
        axis.barh(names, widths, left=left, label=part)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    for place, total in enumerate(left):
        axis.text(total, place, f" {total:.1f}", va="center", fontsize=8)
    axis.axvline(card_gib, color="black", linewidth=1, label="card")
    axis.axvline(limit_gib, color="black", linewidth=1, linestyle="--", label="may be filled")
    axis.invert_yaxis()
    axis.set_xlim(0, min(max(*left, card_gib) * 1.1, card_gib * 3))
    axis.set(xlabel="GiB on one GPU", title=title)
    figure.legend(ncols=4, fontsize=8, loc="outside lower center")
    stream = io.BytesIO()
    figure.savefig(stream, dpi=130, format="png")
    write_bytes(out, stream.getvalue())
