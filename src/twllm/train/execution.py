"""How a model's forward and backward passes run on this machine: attention form, fused layers, compiling, what is computed again.

Nothing here changes what is computed, only where its last bits and its memory go: all forms are the same sum (tests/train/test_execution.py).
`checkpointing`  none: keep all activations; selective: compute the second region of each layer again (output, SwiGLU: about
                 two thirds of a layer's activations for about half of its products); full: keep only each layer's input.
`offload`        activations wait for the backward pass in the host's memory (GPU only).
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import PreTrainedModel

from twllm.errors import UserError
from twllm.train.attention import IMPLEMENTATIONS
from twllm.train.fused import Fused, can_fuse
from twllm.train.machine import Machine


@dataclass
class Execution:
    """What was done to a model; `remove` undoes it, so that it can be saved and used as any other."""

    model: PreTrainedModel
    fused: Fused | None
    offload: bool  # all that is kept; with full checkpointing, transformers moves the layers' inputs

    def forward_context(self) -> AbstractContextManager[Any]:
        """Around the forward pass of a micro-batch."""
        return torch.autograd.graph.save_on_cpu(pin_memory=True) if self.offload else nullcontext()

    def remove(self) -> None:
        """Back to transformers' own layers and attention."""
        if self.fused:
            self.fused.remove()
        if self.model.is_activation_checkpointing:
            self.model.activation_checkpointing_disable()
        self.model.set_attn_implementation("sdpa")


def prepare(
    model: PreTrainedModel, machine: Machine, shape: tuple[int, int], fuse: bool = True
) -> tuple[Machine, Execution]:
    """Set `model` up for micro-batches of `shape` (rows, tokens a row); returns the machine with its form of attention.

    `fuse = False` keeps transformers' layers, for weights that are not plain tensors (tensor parallel).

    Raises:
        UserError: selective checkpointing of a model whose layers cannot be fused.
    """
    fuse = fuse and can_fuse(model)
    machine = replace(machine, attention=attention_form(machine, fuse))
    model.set_attn_implementation(IMPLEMENTATIONS[machine.attention])
    if machine.checkpointing == "selective" and not fuse:
        raise UserError(
            "這種模型的層不能只重算一部分 (selective checkpointing needs plain Llama layers)",
            "machine.checkpointing = selective",
            'LoRA 或其他架構請用 checkpointing = "full" 或 "none"',
        )
    fused = Fused(model, shape if machine.compile else None, machine.checkpointing == "selective") if fuse else None
    if machine.checkpointing == "full":
        model.activation_checkpointing_enable({"use_reentrant": False}, offload=machine.offload)
    if machine.compile and not fuse:
        model.get_decoder().compile(dynamic=False)
    return machine, Execution(model, fused, machine.offload and machine.checkpointing != "full")


def attention_form(machine: Machine, fused: bool) -> str:
    """The fastest form where it runs: see attention.py."""
    if machine.device == "cuda":
        if (
            machine.precision == "bf16"
            and torch.cuda.get_device_capability() >= (8, 0)
            and (fused or not machine.compile)
        ):
            return "varlen"
        return "flex" if fused or not machine.compile else "mask"
    return "mask" if machine.compile and not fused else "pieces"
