"""What a phase does not train, held in the precision that its products run in: 2 bytes a parameter in bf16 runs instead of 4.

Autocast rounds a frozen fp32 matrix for each product anyway, once more for each layer that is computed again; rounded once, every product is
bit for bit the same and the copies are saved (4 bytes a parameter). Tables and matrices only; norms and biases stay fp32, and so does the residual stream: what
a table gives is widened. Only a frozen table of a checkpoint finer than bf16 (fp16, fp32) changes what is computed, by one rounding.
What is saved is the base as it was: `restore` widens what lost nothing (bf16 checkpoints) and reads the rest again.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from twllm.errors import UserError
from twllm.train.machine import Machine


class Frozen:
    """The frozen tensors of a model, small while a phase runs. In fp32 runs nothing is done."""

    def __init__(self, model: nn.Module, machine: Machine) -> None:
        self.rounded: list[str] = []  # names of those that bf16 does not hold exactly
        self.hooks: list[Any] = []
        if machine.precision != "bf16":
            return
        for name, parameter in model.named_parameters():
            if parameter.requires_grad or parameter.ndim < 2 or parameter.dtype != torch.float32:
                continue
            small = parameter.detach().to(torch.bfloat16)
            if not torch.equal(small.float(), parameter):
                self.rounded.append(name)
            parameter.data = small
        for module in model.modules():
            if isinstance(module, nn.Embedding) and module.weight.dtype == torch.bfloat16:
                self.hooks.append(module.register_forward_hook(widen))

    def restore(self, model: nn.Module, again: Callable[[], nn.Module] | None = None) -> None:
        """`model`, on the host, in fp32 as it was; `again` makes it anew where something was rounded.

        Raises:
            UserError: something was, and it cannot be made anew.
        """
        for hook in self.hooks:
            hook.remove()
        if not any(parameter.dtype == torch.bfloat16 for parameter in model.parameters()):
            return
        if self.rounded and again is None:
            raise UserError(
                "凍結的底模以 bf16 訓練，要重新載入才能存 (the base is needed again)", self.rounded[0], "給底模資料夾"
            )
        model.to("cpu")
        whole = dict(again().named_parameters()) if self.rounded and again else {}
        for name, parameter in model.named_parameters():
            if parameter.dtype == torch.bfloat16:
                parameter.data = whole[name].detach() if name in self.rounded else parameter.detach().float()


def widen(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    """A table's hook: the residual stream is fp32."""
    return output.float()
