"""Watching a run: metrics.jsonl (one line a step), trackers, and the terminal: a live view, or a plain line now and then where there is none.

`twllm train watch RUN` draws the same view from the files, in another terminal (watch_commands.py). docs/watching.md.
"""

import json
import resource
import sys
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from twllm.artifact import write_json
from twllm.train.live import View, clock, draw, facts_line, printable
from twllm.train.rows import cut_rows
from twllm.train.trackers import open_trackers
from twllm.train.watch_config import WatchConfig

PLAIN_EVERY_S = 30.0  # between lines where stderr is no terminal
DRAW_EVERY_S = 0.25
SPEED_STEPS = 20  # steps that the speed is taken over
FACTS = "watch.json"  # name and steps of the phase, for those who look on


class Watcher:
    """Opens the logs of one phase at `step` (lines of later, lost steps are cut off) and closes them on exit.

    `flops_per_token` and `peak_flops`, where both are known, give the share of the machine's peak (MFU).
    """

    def __init__(
        self, folder: Path, name: str, step: int, steps: int, tensorboard: bool | None, *, watch: WatchConfig | None = None,
        flops_per_token: float = 0.0, peak_flops: float = 0.0,
    ) -> None:  # fmt: skip
        folder.mkdir(parents=True, exist_ok=True)
        self.file = folder / "metrics.jsonl"
        kept = cut_rows(self.file, step or -1)  # a run that begins again writes step 0 again, too
        write_json(folder / FACTS, {"name": name, "steps": steps})
        self._stream = self.file.open("a", encoding="utf-8")
        self._trackers = open_trackers(folder, name, step, tensorboard, watch)
        self._share = flops_per_token / peak_flops if flops_per_token and peak_flops else 0.0
        self._times: deque[tuple[float, int]] = deque(maxlen=SPEED_STEPS + 1)
        self._times.append((time.perf_counter(), 0))
        self.view = View(name, steps)
        self.view.rows += kept
        self._num_quiet = 0
        self._console = Console(stderr=True, highlight=False)
        self._live = Live(console=self._console, auto_refresh=False, transient=True) if sys.stderr.isatty() else None
        self._shown = self._next = time.perf_counter()

    def log(self, step: int, tokens: int, **values: float) -> None:
        """Record one optimizer step (`step` counts from 1) that saw `tokens` tokens."""
        now = time.perf_counter()
        self._times.append((now, tokens))
        speed = sum(count for _, count in list(self._times)[1:]) / max(1e-9, now - self._times[0][0])
        row: dict[str, Any] = {"step": step, "tokens": tokens, **values, "tokens_per_s": round(speed, 1)}
        row["memory_gib"] = round(peak_memory_gib(), 3)
        if self._share:
            row["mfu"] = round(speed * self._share, 4)
        self._stream.write(json.dumps(row) + "\n")
        self._stream.flush()
        extra: dict[str, float] = {key: row[key] for key in ("tokens_per_s", "memory_gib", "mfu") if key in row}
        self._trackers.log({**values, **extra}, step)
        self.view.rows.append(row)
        self._show(step, row)

    def alarm(self, step: int, text: str, loud: bool = True) -> None:
        """Something is wrong with the data, or the learning rate; not `loud`: perhaps, and one line at the end says how often."""
        self.view.alarms.append(text)
        self._trackers.text("alarm", text, step)
        if loud:
            self._console.print(Text.assemble(("⚠ ", "bold red"), f"{self.view.name}：{printable(text)}"))
        else:
            self._num_quiet += 1

    def sample(self, step: int, prompts: Sequence[str], answers: Sequence[str]) -> None:
        """What the model says now."""
        self.view.samples = [{"step": step, "prompt": p, "answer": a} for p, a in zip(prompts, answers, strict=True)]
        self._trackers.text("samples", "\n\n".join(f"{p}\n→ {a}" for p, a in zip(prompts, answers, strict=True)), step)
        if self._live:
            self._live.update(draw(self.view, self._console.width), refresh=True)

    def _show(self, step: int, row: dict[str, Any]) -> None:
        now, last = time.perf_counter(), step == self.view.steps
        if self._live:
            if now > self._next or last:
                self._live.update(draw(self.view, self._console.width), refresh=True)
                done = time.perf_counter()
                self._next = done + max(DRAW_EVERY_S, 9 * (done - now))  # a slow terminal takes a tenth at most
        elif now - self._shown > PLAIN_EVERY_S:
            eta = clock(self.view.eta_s())
            self._console.print(
                f"{self.view.name} {step}/{self.view.steps}  {facts_line(row)}  ETA {eta}", markup=False
            )
            self._shown = now

    def __enter__(self) -> "Watcher":
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()
        if self._num_quiet:
            told = f"{self.view.name}：{self._num_quiet} 步裡有文件的損失特別高，難的或壞的，記在 alarms.jsonl (unusual documents)"
            self._console.print(told, markup=False)
        self._stream.close()
        self._trackers.close()


class NoWatcher:
    """In processes that look on while another one logs."""

    def log(self, step: int, tokens: int, **values: float) -> None:
        """Nothing."""

    def alarm(self, step: int, text: str, loud: bool = True) -> None:
        """Nothing."""

    def sample(self, step: int, prompts: Sequence[str], answers: Sequence[str]) -> None:
        """Nothing."""

    def __enter__(self) -> "NoWatcher":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


def peak_memory_gib() -> float:
    """The most this process has held: on the GPU where it uses one, else resident."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        return float(torch.cuda.max_memory_allocated() / 2**30)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
