"""What a training step makes small. The loop asks an objective for a step's divisor, then for each micro-batch's summed loss.

`TokenObjective` is next-token cross entropy (pretraining, SFT, positive-only feedback); preference.py has DPO and KTO.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from torch import Tensor
from transformers import PreTrainedModel

from twllm.model.moe import balance_loss, is_moe
from twllm.train.data import Batch
from twllm.train.distributed import all_sum
from twllm.train.loss import token_loss
from twllm.train.machine import Machine

if TYPE_CHECKING:
    from collections.abc import Mapping


class Objective(Protocol):
    """A loss over one optimizer step, whose micro-batches are summed: the result does not depend on accumulation."""

    def begin(self, batches: Sequence[Batch]) -> float:
        """Look at this process's micro-batches of a step before the first one; returns what their summed losses are divided by
        (with several processes: by the sum of what all return).
        """
        ...

    def loss(self, batch: Batch) -> Tensor:
        """Summed loss of a micro-batch."""
        ...

    def metrics(self) -> "Mapping[str, float]":
        """More numbers about the step, for the log."""
        ...


class TokenObjective:
    """Mean cross entropy, in nats, of the labelled tokens; while a mixture of experts trains, plus its balance loss."""

    def __init__(self, model: PreTrainedModel, machine: Machine) -> None:
        self.model, self.machine = model, machine
        self._balance_weight = float(model.config.router_aux_loss_coef) if is_moe(model) else 0.0
        self._balance, self._labelled = 0.0, 1  # of this step: summed over labelled tokens, and their number
        self.told: list[Tensor] | None = None  # a list: it gets the token losses of each micro-batch of a step (alarms)

    def begin(self, batches: Sequence[Batch]) -> float:
        """The number of labelled tokens."""
        self._balance, self._labelled = 0.0, sum(int((batch.labels >= 0).sum()) for batch in batches)
        self.told = None if self.told is None else []
        return self._labelled

    def loss(self, batch: Batch) -> Tensor:
        """Summed loss, in nats."""
        batch = batch.to(self.model.device)
        routers: list[Tensor] | None = [] if self._balance_weight and self.model.training else None
        with self.machine.autocast():
            loss, labelled = self.token_loss(batch, routers)
        if not routers:
            return loss
        valid = batch.document.reshape(-1) >= 0
        balance = labelled * balance_loss(routers, self.model.config.num_experts_per_tok, valid)
        self._balance += float(balance.detach())
        return loss + self._balance_weight * balance

    def token_loss(self, batch: Batch, routers: list[Tensor] | None) -> tuple[Tensor, int]:
        """(summed loss, number of labelled tokens); distill.py mixes the teacher's in."""
        told = self.told if self.model.training else None
        return token_loss(self.model, batch, self.machine.attention, routers, told)

    def metrics(self) -> dict[str, float]:
        """How evenly a mixture's experts were used: 1 is even. `loss` in the log contains it, times its weight."""
        return self._means({"balance": self._balance}) if self._balance_weight else {}

    def _means(self, sums: dict[str, float]) -> dict[str, float]:
        """Over the labelled tokens of all processes."""
        *found, labelled = all_sum([*sums.values(), self._labelled])
        return {name: value / max(1, labelled) for name, value in zip(sums, found, strict=True)}
