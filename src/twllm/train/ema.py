"""A moving average of the trained weights: average ← d · average + (1 − d) · weights after each step, d = min(decay, (1 + n) / (10 + n)).

The ramp (n steps so far) lets short runs leave their random start. Price: one more fp32 copy of what is trained, and one pass over it a step.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from twllm.train.parallel import local


class Average:
    """The average of some parameters, kept on their device."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self.parameters, self.decay = dict(parameters), decay
        self.tensors = {name: parameter.detach().clone() for name, parameter in parameters.items()}

    def update(self, steps: int) -> None:
        """Take in the weights after step number `steps` (from 1)."""
        fold = get_ema_multi_avg_fn(min(self.decay, (1 + steps) / (10 + steps)))
        mine = [local(tensor) for tensor in self.tensors.values()]
        fold(mine, [local(self.parameters[name].detach()) for name in self.tensors], steps)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model computes with the average inside, with its own weights again afterwards."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in self.parameters.items():
            mine = parameter.detach().clone()
            parameter.copy_(self.tensors[name])
            self.tensors[name].copy_(mine)

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from a saved average."""
        for name, tensor in self.tensors.items():
            tensor.copy_(tensors[name])

    @torch.no_grad()
    def take_over(self) -> None:
        """The average becomes the model's weights."""
        for name, parameter in self.parameters.items():
            parameter.copy_(self.tensors[name])
