"""Which weights a phase ends with: the last, the best on the held-out set, or their moving average; and when to stop early.

The best weights lie beside the run's states, the average and the counts inside them, so that a resumed run ends with the same result
bit for bit. Price: best weights are written each time there are new ones, while training waits. Sharded weights: each process its part.
"""

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from twllm.artifact import explain_os_errors, sync, sync_tree
from twllm.errors import UserError
from twllm.train import distributed
from twllm.train.config import OptimConfig
from twllm.train.ema import Average
from twllm.train.state import load_tensors, save_tensors

LOSS = "held_out_loss"


class Keeper:
    """Follows one phase; does nothing where the config asks for nothing."""

    def __init__(self, model: nn.Module, config: OptimConfig, folder: Path, has_held_out: bool) -> None:
        if config.kept == "best" and not has_held_out:
            what = "沒有保留的資料，無法挑最好的權重 (no held-out set to choose by)"
            raise UserError(
                what, "patience, keep = best", "給 held_out（[corpus] 或 [sft]；資料少就調大），或拿掉這些設定"
            )
        self.config, self.folder = config, folder
        self.trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.average = Average(self.trained, config.ema_decay) if config.ema_decay else None
        self.best: dict[str, Any] = {"loss": math.inf, "step": 0, "of": "", "waited": 0}
        self._safe = 0  # the best step that the newest state knows of

    @property
    def stop(self) -> bool:
        """Whether patience is over."""
        return 0 < self.config.patience <= self.best["waited"]

    def after_step(self, step: int) -> None:
        """Step number `step` (from 1) is done."""
        if self.average:
            self.average.update(step)

    def evaluated(
        self, step: int, values: dict[str, float], evaluate: Callable[[], dict[str, float]]
    ) -> dict[str, float]:
        """Take notice of the held-out loss after `step`, measure the average's, too; gives what the log should say more."""
        found = {}
        if self.average:
            with self.average.in_place():
                found = {f"{key}_ema": value for key, value in evaluate().items()}
        if self.config.kept != "best" or not step:
            return found
        losses = {"weights": values[LOSS]} | ({"ema": found[f"{LOSS}_ema"]} if self.average else {})
        kind = min(losses, key=lambda key: losses[key])
        if losses[kind] < self.best["loss"]:
            self._write_best(step, kind, losses[kind])
        else:
            self.best["waited"] += 1
        return found

    def _write_best(self, step: int, kind: str, loss: float) -> None:
        tensors = self.average.tensors if self.average and kind == "ema" else self.trained
        place = self._place(step)
        partial = place.with_name(f".{place.name}.partial")
        distributed.from_main(lambda: shutil.rmtree(partial, ignore_errors=True))
        with explain_os_errors(place):
            save_tensors({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, partial)
            distributed.from_main(lambda: self._publish(partial, place))
        self.best = {"loss": loss, "step": step, "of": kind, "waited": 0}
        for old in self.folder.glob("step-*") if distributed.is_main() else ():
            if int(old.name.removeprefix("step-")) not in range(self._safe, step + 1):
                shutil.rmtree(old)

    def _publish(self, partial: Path, place: Path) -> None:
        sync_tree(partial)
        shutil.rmtree(place, ignore_errors=True)
        partial.rename(place)
        sync(self.folder)

    def _place(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What a state holds of this, by name."""
        return {f"average.{n}": t for n, t in self.average.tensors.items()} if self.average else {}

    @property
    def facts(self) -> dict[str, Any]:
        """And what it holds in JSON; once the state is safe, `is_safe` is told."""
        return {"best": dict(self.best)} if self.config.kept == "best" else {}

    def is_safe(self, facts: dict[str, Any]) -> None:
        """A state with these facts is on disk."""
        if "best" in facts:
            self._safe = facts["best"]["step"]

    def resume(self, saved: dict[str, Any]) -> dict[str, Tensor]:
        """Go on from a state's JSON; gives the tensors that its files should fill."""
        if self.config.kept == "best":
            self.best = dict(saved["best"])
            self.is_safe(saved)
        return self.tensors

    @torch.no_grad()
    def finish(self) -> dict[str, Any]:
        """Put the chosen weights into the model; gives what the manifest should say."""
        if self.config.kept == "ema":
            assert self.average
            self.average.take_over()
            return {"kept": "ema", "ema_decay": self.config.ema_decay}
        if self.config.kept == "best":
            load_tensors({n: p.detach() for n, p in self.trained.items()}, self._place(self.best["step"]))
            return {"kept": f"best ({self.best['of']})", "kept_step": self.best["step"], "kept_loss": self.best["loss"]}
        return {}
