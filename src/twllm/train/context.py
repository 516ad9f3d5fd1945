"""Context parallel: several processes share out each row's tokens, for rows whose activations do not fit on one card (Llama 3, arXiv 2407.21783).

A row is cut into 2 N chunks; process r of N has chunks r and 2 N - 1 - r, so that all have as much to look back at. Everything but attention
is a token's own business. For attention a layer's keys and values are gathered, a process's queries look at those of their documents up
to their own place (attention.py), and gradients of keys and values are summed where they come from. Loss and gradients are summed over
all processes as those of other rows are: to FSDP and to the loop these are processes with other data.
Why not torch's (2.13, torch.distributed.tensor.experimental): its ring attention has no mask for documents; its form for FlexAttention is private,
compiled, for GPUs and rows in multiples of 128 N. transformers' and accelerate's is torch's ring.
Price: 2 T K E numbers gathered a row, layer and pass, twice as many bytes back; and they stand whole in each process, T + C of T tokens at most
a layer that is kept. Not covered, and refused: tensor parallel, mixtures of experts (their balance is a matter of whole micro-batches), KTO
and DPO, noise and dropout, RoPE that looks at the length of the row.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from twllm.errors import UserError
from twllm.model.moe import is_moe
from twllm.train.config import FeedbackConfig, OptimConfig

if TYPE_CHECKING:
    from twllm.train.data import Batch

# B rows, T tokens a row, N processes, C tokens of a chunk, K key/value heads, E head width


@dataclass(frozen=True)
class Cut:
    """Which tokens of a micro-batch's rows a process has: chunks `rank` and 2 N - 1 - `rank`, one after the other."""

    rank: int
    size: int
    chunk: int
    group: Any  # the processes that have the others
    pieces: tuple[tuple[int, int, int], ...]  # of the whole rows
    owners: tuple[int, ...]  # of the pieces that the process has, which of those they are part of

    @property
    def spans(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """(first token, end) in the whole row."""
        found = tuple((c * self.chunk, (c + 1) * self.chunk) for c in (self.rank, 2 * self.size - 1 - self.rank))
        return found[0], found[1]

    def places(self, row: int, first: int, end: int, rows: int) -> NDArray[np.int64]:
        """Where tokens `first` to `end` of a row stand among those gathered from all processes, (N, B, 2 C)."""
        chunk, inside = np.divmod(np.arange(first, end), self.chunk)
        tail = chunk >= self.size
        rank = np.where(tail, 2 * self.size - 1 - chunk, chunk)
        return np.asarray(((rank * rows + row) * 2 + tail) * self.chunk + inside)


def chunk_size(tokens: int, size: int) -> int:
    """C of a row of `tokens`, filled up where it does not divide."""
    return -(-tokens // (2 * size))


def cut(batch: "Batch", rank: int, size: int, group: Any) -> "Batch":
    """This process's tokens of a micro-batch, (B, 2 C)."""
    T = batch.ids.shape[1]
    made = Cut(rank, size, chunk_size(T, size), group, batch.pieces, ())
    pieces, owners = [], []
    for slot, (low, high) in enumerate(made.spans):
        for number, (row, start, length) in enumerate(batch.pieces):
            first, end = max(start, low), min(start + length, high)
            if first < end:
                pieces.append((row, first - low + slot * made.chunk, end - first))
                owners.append(number)
    tensors: dict[str, Any] = {
        name: torch.cat(
            [
                F.pad(getattr(batch, name), (0, 2 * size * made.chunk - T), value=fill)[:, low:high]
                for low, high in made.spans
            ],
            1,
        )
        for name, fill in (("ids", 0), ("labels", -100), ("position", 0), ("document", -1))
    }
    return replace(batch, **tensors, pieces=tuple(pieces), cut=replace(made, owners=tuple(owners)), labelled=None)


class _Gathered(torch.autograd.Function):
    """(n, …) of this process → (N n, …) of all; gradients are summed in fp32 and each process gets its own back."""

    @staticmethod
    def forward(ctx: Any, mine: Tensor, group: Any) -> Tensor:
        ctx.group, ctx.shape = group, mine.shape
        found = mine.new_empty(dist.get_world_size(group) * len(mine), *mine.shape[1:])
        dist.all_gather_single(found, mine.contiguous(), group=group)
        return found

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        found = grads[0].new_empty(ctx.shape, dtype=torch.float32)
        dist.reduce_scatter_single(found, grads[0].float().contiguous(), group=ctx.group)
        return found.to(grads[0].dtype), None


def gather_keys(key: Tensor, value: Tensor, group: Any) -> tuple[Tensor, Tensor]:
    """Keys and values (B 2C, K, E) of this process → those of all, (N B 2C, K, E), in one message."""
    found: Tensor = _Gathered.apply(torch.cat([key, value], 1), group)
    return found[:, : key.shape[1]], found[:, key.shape[1] :]


def check_phase(name: str, config: OptimConfig) -> None:
    """Refuse methods that would not be the same as in one process; before the first costly step of a run.

    Raises:
        UserError: the phase compares documents, or draws random numbers for a row.
    """
    _refuse(
        name,
        {
            "method = kto, dpo": isinstance(config, FeedbackConfig) and config.method != "sft-positive",
            "neftune_alpha": config.neftune_alpha > 0,
            "lora.dropout": bool(config.lora and config.lora.dropout),
        },
    )


def check_cut(name: str, model: PreTrainedModel, config: OptimConfig) -> None:
    """The same, and models that look at more than a token and what is before it.

    Raises:
        UserError: a mixture of experts, angles by the row's length, layers that are not attention.
    """
    check_phase(name, config)
    text = model.config.get_text_config()
    rope = str((getattr(text, "rope_parameters", None) or {}).get("rope_type", "default"))
    strange = sorted(set(getattr(text, "layer_types", None) or ()) - {"full_attention", "sliding_attention"})
    found = {"專家混合 mixture of experts": is_moe(model), f"rope {rope}": rope in ("dynamic", "longrope")}
    _refuse(name, found | dict.fromkeys(strange, True))


def _refuse(name: str, found: dict[str, bool]) -> None:
    told = "、".join(key for key, there in found.items() if there)
    if told:
        what = f"一列不能分給幾個行程 (no context parallel with this): {told}"
        raise UserError(
            what, f"{name}：machine.context_parallel", 'context_parallel = 1，改用 sharding = "full" 與 checkpointing'
        )
