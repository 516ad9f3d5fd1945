"""How a model's forward and backward passes run on this machine: attention form, fused layers, compiling, what is computed again.

Nothing here changes what is computed, only where its last bits and its memory go: all forms are the same sum (tests/train/test_execution.py).
`checkpointing`  none: keep all activations; selective: compute the second region of each layer again (output, SwiGLU: about
                 two thirds of a layer's activations for about half of its products); full: keep only each layer's input.
`offload`        activations wait for the backward pass in the host's pinned memory (GPU only); weights and what is small stay. Copies run
                 in the order of the computation, beside nothing: it saves memory, never time. With full checkpointing only the
                 layers' inputs are there to be moved (transformers does that).
Not covered: moments or weights in the host's memory (planning them over several GPUs is sharding: parallel.py).
"""

from collections.abc import Collection
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from transformers import PreTrainedModel

from twllm.errors import UserError
from twllm.train.attention import IMPLEMENTATIONS
from twllm.train.experts import choose
from twllm.train.fused import Fused, can_fuse
from twllm.train.kernel import can_attend
from twllm.train.machine import Machine

SMALL = 1 << 20  # bytes; below this a copy is not worth its launch; chosen


class HostKept(saved_tensors_hooks):
    """Around a forward pass: what is saved for the backward pass goes to the host. torch's own `save_on_cpu` would move the weights, too,
    and their bf16 copies (all of a 7 B model's for each micro-batch); here what has the shape of a weight stays where it is.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        shapes = {tuple(p.shape) for p in model.parameters() if p.ndim > 1}
        stay = shapes | {shape[::-1] for shape in shapes}
        super().__init__(lambda tensor: to_host(tensor, stay), from_host)


def to_host(tensor: Tensor, stay: Collection[tuple[int, ...]]) -> Tensor | tuple[torch.device, Tensor]:
    """The tensor itself, or its device and a copy of it in the host's pinned memory."""
    if not tensor.is_cuda or tensor.nbytes < SMALL or tuple(tensor.shape) in stay:
        return tensor
    kept = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return tensor.device, kept.copy_(tensor, non_blocking=True)


def from_host(kept: Tensor | tuple[torch.device, Tensor]) -> Tensor:
    """What `to_host` was given."""
    return kept if isinstance(kept, Tensor) else kept[1].to(kept[0], non_blocking=True)


@dataclass
class Execution:
    """What was done to a model; `remove` undoes it, so that it can be saved and used as any other."""

    model: PreTrainedModel
    fused: Fused | None
    offload: bool  # all that is kept; with full checkpointing, transformers moves the layers' inputs
    experts: str | None = None  # how a mixture's ran before

    def forward_context(self) -> AbstractContextManager[Any]:
        """Around the forward pass of a micro-batch."""
        return HostKept(self.model) if self.offload else nullcontext()

    def remove(self) -> None:
        """Back to transformers' own layers and attention."""
        if self.fused:
            self.fused.remove()
        if self.model.is_activation_checkpointing:
            self.model.activation_checkpointing_disable()
        self.model.set_attn_implementation("sdpa")
        if self.experts:
            self.model.set_experts_implementation(self.experts)


def prepare(
    model: PreTrainedModel, machine: Machine, shape: tuple[int, int], fuse: bool = True, cut: bool = False
) -> tuple[Machine, Execution]:
    """Set `model` up for micro-batches of `shape` (rows, tokens a row); returns the machine with its form of attention.

    `fuse = False` keeps transformers' layers, for weights that are not plain tensors (tensor parallel). `cut`: rows are shared out.

    Raises:
        UserError: selective checkpointing, or compiling with rows shared out, of a model whose layers cannot be fused.
    """
    fuse = fuse and can_fuse(model)
    form = attention_form(machine, fuse, head_width(model))
    if cut and machine.compile and not fuse:
        what = "這種模型的一列不能編譯後再分給幾個行程 (no compiling of whole models with context parallel)"
        raise UserError(what, "machine.compile, context_parallel", 'compile = "off"')
    machine = replace(machine, attention=form if form == "varlen" or not cut else "each")
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
    experts = choose(model, machine.precision)
    return machine, Execution(model, fused, machine.offload and machine.checkpointing != "full", experts)


def attention_form(machine: Machine, fused: bool, head_width: int) -> str:
    """The fastest form where it runs: see attention.py. FlashAttention takes heads in eights up to 256, FlexAttention from 16 on."""
    whole = machine.compile and not fused  # one graph, that a kernel's Python cannot be part of
    if machine.device != "cuda":
        precise = torch.bfloat16 if machine.precision == "bf16" else torch.float32
        return "mask" if whole else "kernel" if fused and can_attend(precise, head_width) else "pieces"
    flash = torch.version.hip is None and torch.cuda.get_device_capability() >= (8, 0)
    if machine.precision == "bf16" and flash and not whole and head_width % 8 == 0 and head_width <= 256:
        return "varlen"
    return "mask" if whole or head_width < 16 else "flex"


def head_width(model: PreTrainedModel) -> int:
    """E, as the model's config says it."""
    config = model.config.get_text_config()
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
