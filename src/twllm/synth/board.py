"""The progress bar: rows done, kept and dropped, tokens, cost and answers a second; on stderr, and only on a terminal."""

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from twllm.synth.limits import Budget


class Board:
    """Shows how far a run is. `num_jobs` None: not known."""

    def __init__(self, stage: str, num_jobs: int | None, budget: Budget) -> None:
        self.budget = budget
        self.num_kept = self.num_dropped = self.num_answers = 0
        self._started = time.monotonic()
        self._progress = Progress(
            TextColumn(stage),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[facts]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not sys.stderr.isatty(),
        )
        self._task = self._progress.add_task(stage, total=num_jobs, facts="")

    def __enter__(self) -> "Board":
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def paid(self) -> None:
        """An answer came in."""
        self.num_answers += 1
        self._update()

    def done(self, kept: bool) -> None:
        """A row is finished."""
        self.num_kept += kept
        self.num_dropped += not kept
        self._progress.advance(self._task)
        self._update()

    def say(self, text: str) -> None:
        """A line above the bar (on stderr also without a bar)."""
        self._progress.console.print(text)

    def _update(self) -> None:
        tokens_in, tokens_out = self.budget.tokens_in, self.budget.tokens_out
        cost = self.budget.cost(tokens_in, tokens_out)
        rate = self.num_answers / max(1e-9, time.monotonic() - self._started)
        facts = f"留 {self.num_kept} 丟 {self.num_dropped} · {tokens_in + tokens_out:,} 詞元 · {rate:.1f} 回答/秒"
        self._progress.update(self._task, facts=facts + (f" · 花費 {cost:.4f}" if cost is not None else ""))
