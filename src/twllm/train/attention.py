"""Attention that keeps packed documents apart, in six forms of the same sum (held by tests to float rounding).

`pieces`  CPU: documents of similar length together, a few batched products each (buckets.py).
`kernel`  CPU, for Llama's layers where this machine can build it: the same in one C++ kernel (kernel.py).
`mask`    a (B, 1, T, T) boolean mask and transformers' "sdpa": compiled whole models on CPU, GPUs without the next two.
`varlen`  GPU: torch's own FlashAttention for rows of documents (`torch.nn.attention.varlen`, bf16, from Ampere on). Rows are one long
          sequence of documents as they stand, padding is a document of its own; only a shared prefix is gathered, in front of each
          document's keys, and its gradient is summed by autograd. Where processes share out rows (context.py), each has pieces of
          documents as queries, and gathers what these look at.
`each`    the same layout with a product for each piece, where rows are shared out and there is no FlashAttention.
`flex`    GPU: FlexAttention with a block mask made from the document numbers: blocks between documents are skipped.
Chosen by execution.py. Not covered: `varlen` and `flex` have not run on a GPU (tests/train/test_gpu.py does it where there is one); on CPU
their layout, mask, values and gradients are held against `mask`, with a loop in place of the kernel. FlashAttention's backward adds in no
fixed order, so a run on a GPU repeats to rounding, not bit for bit.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.attention import flex_attention, varlen
from transformers import AttentionInterface, AttentionMaskInterface

from twllm.train.buckets import Layout, bucketed_attention, layout_of
from twllm.train.context import gather_keys
from twllm.train.data import Batch, to_device
from twllm.train.kernel import Pieces, attend, pieces_of

NAME, VARLEN_NAME, FLEX_NAME, EACH_NAME = "twllm_pieces", "twllm_varlen", "twllm_flex", "twllm_each"
IMPLEMENTATIONS = {
    "pieces": NAME, "kernel": NAME, "mask": "sdpa", "varlen": VARLEN_NAME, "flex": FLEX_NAME, "each": EACH_NAME,
}  # fmt: skip
BLOCK = 128  # tokens of a block of FlexAttention's mask, torch's own default
# B rows, H heads, K key/value heads, T tokens a row, E head width


def document_mask(document: Tensor) -> Tensor:
    """(B, T) document numbers → (B, 1, T, T) mask: True where a token may look: its document and the prefix (0), not ahead."""
    T = document.shape[1]
    same = (document[:, :, None] == document[:, None, :]) | (document[:, None, :] == 0)  # (B, T, T)
    return (same & torch.ones(T, T, dtype=torch.bool, device=document.device).tril())[:, None]


def block_mask(document: Tensor) -> flex_attention.BlockMask:
    """The same mask for FlexAttention. Which blocks matter follows from the first and last document in each, since numbers rise along
    a row: torch's create_block_mask would make all T² places first (a gigabyte and more at 32k tokens).
    """
    B, T = document.shape
    n, last = -(-T // BLOCK), T + 1  # padding comes after the last document, what is beyond the row after the padding
    rising = F.pad(document.masked_fill(document < 0, last), (0, n * BLOCK - T), value=last + 1).view(B, n, BLOCK)
    low, high = rising[..., 0], rising[..., -1]  # (B, n)
    low_q, high_q, low_k, high_k = low[:, :, None], high[:, :, None], low[:, None], high[:, None]
    square = torch.ones(n, n, dtype=torch.bool, device=document.device)
    seen = square.tril() & ((high_k >= low_q) | (low_k == 0))  # (B, n, n)
    one = (
        (low_q == high_q) & (high_k == low_q) & ((low_k == high_k) | (low_k + high_k == 1))
    )  # of the prefix and document 1, too
    whole = square.tril(-1) & (one | (high_k == 0)) & (high_q <= last)

    def may_look(b: Tensor, _: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (q >= k) & ((document[b, q] == document[b, k]) | (document[b, k] == 0))

    return flex_attention.BlockMask.from_kv_blocks(
        *_ordered(seen & ~whole), *_ordered(whole), BLOCK_SIZE=BLOCK, mask_mod=may_look, seq_lengths=(T, T)
    )


def _ordered(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """(B, n, n) → how many key blocks each query block has, and which: these first."""
    order = torch.argsort(blocks.to(torch.int8), dim=-1, descending=True, stable=True)
    return blocks.sum(-1, dtype=torch.int32)[:, None], order.to(torch.int32)[:, None]


def attend_pieces(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, scaling: float, **kwargs: Any
) -> tuple[Tensor, None]:  # fmt: skip
    """transformers' attention signature; query (B, H, T, E), key and value (B, K, T, E) → (B, T, H, E)."""
    B, H, T, E = query.shape
    layout: Layout | Pieces = kwargs["layout"]
    q, k, v = (x.transpose(1, 2).reshape(B * T, -1, E) for x in (query, key, value))
    found = (
        attend(q, k, v, layout, scaling) if isinstance(layout, Pieces) else bucketed_attention(q, k, v, layout, scaling)
    )
    return found.view(B, T, H, E), None


class VarlenLayout:
    """Where each document's queries and keys end, for FlashAttention: all rows one after the other.

    `q_ends` and `k_ends` are the cumulative lengths that the kernel takes; `keys` are places in the (B T) tokens, None where they are
    simply all of them (no shared prefix). Of rows that are cut (context.py): places in all processes' tokens, and a process's
    part of a document looks at the document from its start.
    """

    def __init__(self, batch: Batch) -> None:
        cut = batch.cut
        B, T = batch.ids.shape
        P, spans = batch.prefix, cut.spans if cut else ((0, T),)
        queries, keys, places = list[int](), list[int](), list[NDArray[np.int64]]()
        for row, documents in enumerate(_documents(batch, T * cut.size if cut else T)):
            for low, high in spans:
                for start, end, shared in documents:
                    first, last = max(start, low), min(end, high)
                    if first < last:
                        parts = ((0, shared), (start, last))
                        queries.append(last - first)
                        keys.append(shared + last - start)
                        if cut:
                            places += [cut.places(row, *part, B) for part in parts]
                        elif P:
                            places += [row * T + np.arange(*part) for part in parts]
        q, k = np.array(queries), np.array(keys)
        device = batch.ids.device
        self.lengths, self.group = (queries, keys), cut.group if cut else None
        self.q_ends, self.k_ends = (to_device(_ends(found), device) for found in (q, k))
        self.keys = to_device(torch.from_numpy(np.concatenate(places)), device) if places else None
        self.longest_q, self.longest_k = int(q.max()), int(k.max())
        self._masks: dict[tuple[Any, ...], Tensor] = {}

    def mask(self, q: int, k: int, like: Tensor) -> Tensor:
        """(q, k): -inf ahead of the last `q` of `k` places; made once for all layers."""
        key = (q, k, like.dtype)
        if key not in self._masks:
            self._masks[key] = torch.full((q, k), -torch.inf, dtype=like.dtype, device=like.device).triu_(k - q + 1)
        return self._masks[key]


def _documents(batch: Batch, T: int) -> list[list[tuple[int, int, int]]]:
    """(start, end, tokens of shared prefix) of what stands in each whole row of `T`, the prefix and the padding among it."""
    P = batch.prefix
    rows: list[list[tuple[int, int, int]]] = [[(0, P, 0)] for _ in range(len(batch.ids))]
    for row, start, length in batch.cut.pieces if batch.cut else batch.pieces:
        rows[row].append((start, start + length, P))
    return [[*found, (found[-1][1], T, 0)] for found in rows]


def _ends(lengths: NDArray[np.int64]) -> Tensor:
    return torch.from_numpy(np.concatenate([[0], lengths.cumsum()]).astype(np.int32))


def _laid_out(layout: VarlenLayout, *parts: Tensor) -> list[Tensor]:
    """(B, H, T, E) → (B T, H, E), keys and values as the layout has them."""
    q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in _same_dtype(*parts))
    if layout.group is not None:
        k, v = gather_keys(k, v, layout.group)
    if layout.keys is not None:
        k, v = k.index_select(0, layout.keys), v.index_select(0, layout.keys)
    return [q, k, v]


def attend_varlen(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, scaling: float, **kwargs: Any
) -> tuple[Tensor, None]:  # fmt: skip
    """transformers' attention signature over torch's FlashAttention of variable lengths (causal, aligned at the end)."""
    B, H, T, E = query.shape
    layout: VarlenLayout = kwargs["varlen"]
    q, k, v = _laid_out(layout, query, key, value)
    found = varlen.varlen_attn(
        q, k, v, layout.q_ends, layout.k_ends, layout.longest_q, layout.longest_k, scale=scaling, window_size=(-1, 0),
        enable_gqa=key.shape[1] != H,
    )  # fmt: skip
    assert isinstance(found, Tensor)
    return found.view(B, T, H, E), None


def attend_each(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, scaling: float, **kwargs: Any
) -> tuple[Tensor, None]:  # fmt: skip
    """The same with torch's product for each piece, the G heads of a key as G rows: nothing is repeated."""
    B, H, T, E = query.shape
    layout: VarlenLayout = kwargs["varlen"]
    q, k, v = _laid_out(layout, query, key, value)
    K = k.shape[1]
    found = []
    for one, keys, values in zip(
        q.split(layout.lengths[0]), *(x.split(layout.lengths[1]) for x in (k, v)), strict=True
    ):
        heads = one.unflatten(1, (K, -1)).permute(2, 1, 0, 3)  # (G, K, q, E)
        seen, told = (x.transpose(0, 1).expand(len(heads), -1, -1, -1) for x in (keys, values))
        square = len(one) == len(keys)
        mask = None if square else layout.mask(len(one), len(keys), one)
        out = F.scaled_dot_product_attention(heads, seen, told, mask, is_causal=square, scale=scaling)
        found.append(out.permute(2, 1, 0, 3).flatten(1, 2))  # (q, H, E)
    return torch.cat(found).view(B, T, H, E), None


def attend_flex(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: flex_attention.BlockMask, scaling: float, **kwargs: Any
) -> tuple[Tensor, None]:  # fmt: skip
    """transformers' attention signature over FlexAttention. transformers' own takes no mixed precisions (rotary makes q and k fp32
    under autocast) and compiles anew whenever training and evaluation take turns.
    """
    query, key, value = _same_dtype(query, key, value)
    G = query.shape[1] // key.shape[1]
    if G & (G - 1):  # its kernel for short rows takes powers of two only
        key, value, G = key.repeat_interleave(G, 1), value.repeat_interleave(G, 1), 1
    plain: Any = flex_attention.flex_attention
    attend = _compiled_flex() if query.is_cuda else plain
    found = attend(query, key, value, block_mask=attention_mask, scale=scaling, enable_gqa=G > 1)
    assert isinstance(found, Tensor)
    return found.transpose(1, 2), None


@lru_cache(maxsize=1)
def _compiled_flex() -> Callable[..., Any]:
    return torch.compile(flex_attention.flex_attention)


def _same_dtype(*parts: Tensor) -> list[Tensor]:
    """In the precision that products run in: autocast leaves q and k in fp32 after the rotation, 4-bit layers their value."""
    device = parts[0].device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else parts[-1].dtype
    return [part.to(dtype) for part in parts]


AttentionInterface.register(NAME, attend_pieces)
AttentionInterface.register(VARLEN_NAME, attend_varlen)
AttentionInterface.register(FLEX_NAME, attend_flex)
AttentionInterface.register(EACH_NAME, attend_each)
for name in (NAME, VARLEN_NAME, EACH_NAME):
    AttentionMaskInterface.register(name, lambda *args, **kwargs: None)


def attention_inputs(kind: str) -> Callable[[Batch], dict[str, Any]]:
    """What the model's forward needs besides ids and positions, for a form of attention."""
    if kind == "kernel":
        return lambda batch: {"layout": pieces_of(batch)}
    if kind == "pieces":
        return lambda batch: {"layout": layout_of(batch)}
    if kind in ("varlen", "each"):
        return lambda batch: {"varlen": VarlenLayout(batch)}
    if kind == "flex":
        return lambda batch: {"attention_mask": block_mask(batch.document)}
    return lambda batch: {"attention_mask": document_mask(batch.document)}
