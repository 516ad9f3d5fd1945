"""Learning-rate finder (arXiv 1506.01186): a short run whose rate grows from step to step; where the loss falls fastest is a good peak rate.

The run is the real one (same rows, batch, adapters, frozen parts), in memory only: no state, no weights are written. It stops where the
loss has run away or is no longer finite. Losses are smoothed by a centred mean, since a trailing one shows each fall some steps late, at a
rate several times too high. Suggested is the lower of two rules: the rate of the steepest fall, a tenth of the lowest point's rate.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from twllm.artifact import write_json, write_manifest
from twllm.errors import UserError

if TYPE_CHECKING:
    from twllm.train.loop import Trainer

LOW, HIGH, STEPS = 1e-7, 1.0, 120
STAGE = "lr-finder"  # in the manifest
WORSE = (
    1.5  # times the best loss: past it a run has diverged (a language model's loss is not far above its start's then)
)
WINDOW = 4  # points on either side that a loss is averaged with


@dataclass(frozen=True)
class Found:
    """The curve and what it says. `rates[i]` was in force when `losses[i]` (smoothed) was reached."""

    rates: list[float]
    losses: list[float]
    steepest: float
    lowest: float

    @property
    def suggestion(self) -> float:
        """The lower of the two rules."""
        return min(self.steepest, self.lowest / 10)

    @property
    def facts(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "suggestion": self.suggestion, "steepest": self.steepest, "tenth_of_lowest": self.lowest / 10,
            "rates": self.rates, "smoothed_losses": self.losses,
        }  # fmt: skip


def find_rate(trainer: "Trainer", steps: int | None = None, low: float = LOW, high: float = HIGH) -> Found:
    """Train with growing rates; the trainer's model is spoiled afterwards.

    Raises:
        UserError: the loss never fell, or was not finite within the first steps.
    """
    steps = steps or STEPS
    growth = (high / low) ** (1 / max(1, steps - 1))
    trainer.rate = lambda step: low * growth**step
    trainer.model.train()
    losses: list[float] = []
    for step in range(steps):
        try:
            losses.append(trainer.train_step(step)["loss"])
        except UserError:  # not finite: the rate is far too high
            break
        if min(losses[-3:]) > WORSE * min(losses):
            break
    trainer.methods.remove()
    return read_curve([low * growth**step for step in range(len(losses))], smooth(losses))


def smooth(losses: Sequence[float]) -> list[float]:
    """Each with its neighbours; at the ends with fewer, as many on either side.

    >>> smooth([1.0, 2.0, 6.0])
    [1.0, 3.0, 6.0]
    """
    found = []
    for place in range(len(losses)):
        reach = min(WINDOW, place, len(losses) - 1 - place)
        found.append(fmean(losses[place - reach : place + reach + 1]))
    return found


def read_curve(rates: Sequence[float], losses: Sequence[float]) -> Found:
    """The steepest fall per factor of rate, before the lowest point.

    Raises:
        UserError: there is no fall.
    """
    bottom = min(range(len(losses)), key=losses.__getitem__) if losses else 0
    slopes = [after - before for before, after in pairwise(losses[: bottom + 1])]
    if not slopes or min(slopes) >= 0:
        what = "損失沒有下降過，找不到學習率 (the loss never fell)"
        raise UserError(what, f"{len(losses)} 步", "檢查資料，或用較大的 batch_tokens")
    steepest = min(range(len(slopes)), key=slopes.__getitem__)
    return Found(list(rates), list(losses), rates[steepest], rates[bottom])


def write_found(found: Found, folder: Path, title: str, inputs: dict[str, str], config: dict[str, Any]) -> None:
    """`lr_finder.json` and `lr_finder.png` into `folder`, and a table on the terminal."""
    write_json(folder / "lr_finder.json", found.facts)
    plot(found, folder / "lr_finder.png", title)
    write_manifest(folder, STAGE, config, inputs, metrics={"suggestion": found.suggestion})
    show(found)


def show(found: Found) -> None:
    """About a dozen points of the curve, and the suggestion."""
    from rich.console import Console
    from rich.table import Table

    table = Table("學習率 lr", "損失 loss（平滑 smoothed）")
    every = max(1, math.ceil(len(found.rates) / 12))
    for rate, loss in list(zip(found.rates, found.losses, strict=True))[::every]:
        table.add_row(f"{rate:.2e}", f"{loss:.4f}")
    console = Console()
    console.print(table)
    told = f"下降最快處 steepest fall {found.steepest:.1e}，最低點的十分之一 a tenth of the lowest point's {found.lowest / 10:.1e}"
    console.print(f"建議 (suggested) lr = {found.suggestion:.1e}（{told}）")


def plot(found: Found, target: Path, title: str) -> None:
    """PNG: loss against rate, the suggestion marked."""
    from twllm.train.plots import picture

    with picture(target, 8, 4.5) as figure:
        axes = figure.add_subplot()
        axes.plot(found.rates, found.losses, linewidth=2)
        axes.axvline(found.steepest, color="tab:green", label=f"steepest fall: {found.steepest:.1e}")
        axes.axvline(found.lowest / 10, color="tab:gray", linestyle="--", label=f"lowest / 10: {found.lowest / 10:.1e}")
        axes.set(xscale="log", xlabel="learning rate", ylabel="loss (smoothed)", title=f"{title}: learning-rate finder")
        axes.grid(alpha=0.3)
        axes.legend()
