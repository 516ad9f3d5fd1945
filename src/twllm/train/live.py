"""The view of a running or finished phase in a terminal, drawn from its rows; the same for the process that trains and for one that looks on."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import RenderableType

BARS = "▁▂▃▄▅▆▇█"
WIDTH = 64
UNSAFE = {n: 0x2400 + n for n in range(32) if chr(n) not in "\n\t"} | {0x7F: 0x2421}
UNSAFE |= dict.fromkeys((*range(128, 160), *range(55296, 57344)), 65533)
UNSAFE |= dict.fromkeys(
    (*range(0x202A, 0x202F), *range(0x2066, 0x206A)), 65533
)  # they turn the direction of the rest of the line


@dataclass
class View:
    """What is known of a phase."""

    name: str
    steps: int
    rows: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=20_000))
    samples: list[dict[str, Any]] = field(default_factory=list)  # of the last time
    alarms: list[str] = field(default_factory=list)
    state: str = ""  # for those who look on: done, interrupted; "" while it runs

    @property
    def last(self) -> dict[str, Any]:
        """The newest row with a loss."""
        return next((row for row in reversed(self.rows) if "loss" in row), {})

    def eta_s(self) -> float | None:
        """Seconds to the end at the present speed."""
        last = self.last
        if not last.get("tokens_per_s"):
            return None
        return float((self.steps - last["step"]) * last["tokens"] / last["tokens_per_s"])


def sparkline(values: Sequence[float], width: int = WIDTH) -> str:
    """Medians of `width` equal parts as bars.

    >>> sparkline([3, 2, 1])
    '█▅▁'
    """
    if not values:
        return ""
    width = min(width, len(values))
    parts = [median(values[i * len(values) // width : (i + 1) * len(values) // width]) for i in range(width)]
    low, high = min(parts), max(parts)
    return "".join(BARS[round((x - low) / (high - low) * (len(BARS) - 1))] if high > low else BARS[0] for x in parts)


def printable(text: str) -> str:
    """Text of a data set or a model, safe to print: an escape sequence must not steer the terminal, a lone surrogate not end the program.

    >>> printable("a\\x1b[2J\\n")
    'a␛[2J\\n'
    """
    return text.translate(UNSAFE)


def facts_line(row: dict[str, Any]) -> str:
    """The numbers of a row that people look for, in one line."""
    shown = [f"loss {row['loss']:.4f}"] if "loss" in row else []
    shown += [f"held out {row['held_out_loss']:.4f}"] if "held_out_loss" in row else []
    shown += [f"lr {row['lr']:.2e}"] if "lr" in row else []
    shown += [f"norm {row['grad_norm']:.2f}"] if "grad_norm" in row else []
    shown += [f"{row['tokens_per_s']:,.0f} tok/s"] if row.get("tokens_per_s") else []
    shown += [f"MFU {row['mfu']:.1%}"] if row.get("mfu") else []
    shown += [f"{row['memory_gib']:.2f} GiB"] if row.get("memory_gib") else []
    return "  ".join(shown)


def clock(seconds: float | None) -> str:
    """1:02:03; a dash for None."""
    if seconds is None:
        return "—"
    whole = int(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"


def draw(view: View, width: int = 100) -> "RenderableType":
    """A panel for a terminal of `width` columns: progress, numbers, the loss as bars, held-out losses, alarms, the last samples."""
    from rich.console import Group
    from rich.panel import Panel
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    last = view.last
    step = last.get("step", 0)
    head = Table.grid(padding=(0, 2))
    bar = ProgressBar(max(1, view.steps), step, max(4, min(40, width - 42)))
    head.add_row(f"{step:,} / {view.steps:,}", bar, "" if view.state else f"剩 ETA {clock(view.eta_s())}")
    body: list[Any] = [head, Text(facts_line(last) or "還沒有完成一步 (no step yet)", style="bold")]
    if view.state:
        body.insert(1, Text(view.state, style="yellow"))
    losses = [row["loss"] for row in view.rows if "loss" in row]
    held = [row["held_out_loss"] for row in view.rows if "held_out_loss" in row]
    if losses:
        body.append(_curve("損失 loss     ", "cyan", losses, f"  {max(losses):.2f} → {losses[-1]:.2f}", width))
    if held:
        body.append(_curve("保留 held out ", "magenta", held, f"  {held[0]:.3f} → {held[-1]:.3f}", width))
    body += [Text(f"⚠ {printable(text)}", style="bold red") for text in view.alarms[-3:]]
    if view.samples:
        body.append(Text(f"第 {view.samples[0]['step']} 步的回答 (samples)", style="dim"))
    for row in view.samples:
        prompt, answer = (printable(" ".join(str(row[key]).split())) for key in ("prompt", "answer"))
        prompt = prompt if len(prompt) <= 60 else f"{prompt[:60]}…"
        body.append(Text.assemble((f"{prompt} ", "green"), "→ ", answer[:200] + ("…" if len(answer) > 200 else "")))
    return Panel(Group(*body), title=printable(view.name), expand=False)


def _curve(label: str, style: str, values: Sequence[float], tail: str, width: int) -> "RenderableType":
    """Bars that fill the line and do not break it."""
    from rich.cells import cell_len
    from rich.text import Text

    room = width - 4 - cell_len(label) - len(tail)  # 4: the panel's frame
    return Text.assemble((label, "dim"), (sparkline(values, max(1, min(WIDTH, room))), style), tail)
