"""What a training step makes small. The loop asks an objective for a step's divisor, then for each micro-batch's summed loss.

`TokenObjective` is next-token cross entropy (pretraining, SFT, positive-only feedback); preference.py has DPO and KTO.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from torch import Tensor
from transformers import PreTrainedModel

from twllm.train.data import Batch
from twllm.train.loss import token_loss
from twllm.train.machine import Machine

if TYPE_CHECKING:
    from collections.abc import Mapping


class Objective(Protocol):
    """A loss over one optimizer step, whose micro-batches are summed: the result does not depend on accumulation."""

    def begin(self, batches: Sequence[Batch]) -> float:
        """Look at the micro-batches of a step before the first one; returns what their summed losses are divided by."""
        ...

    def loss(self, batch: Batch) -> Tensor:
        """Summed loss of a micro-batch."""
        ...

    def metrics(self) -> "Mapping[str, float]":
        """More numbers about the step, for the log."""
        ...


class TokenObjective:
    """Mean cross entropy, in nats, of the labelled tokens."""

    def __init__(self, model: PreTrainedModel, machine: Machine) -> None:
        self.model, self.machine = model, machine

    def begin(self, batches: Sequence[Batch]) -> float:
        """The number of labelled tokens."""
        return max(1, sum(int((batch.labels >= 0).sum()) for batch in batches))

    def loss(self, batch: Batch) -> Tensor:
        """Summed loss, in nats."""
        with self.machine.autocast():
            return token_loss(self.model, batch.to(self.model.device), self.machine.attention)[0]

    def metrics(self) -> dict[str, float]:
        """None."""
        return {}
