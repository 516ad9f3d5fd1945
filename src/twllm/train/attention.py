"""Attention that keeps packed documents apart, in four forms of the same sum (held by tests to float rounding).

`pieces`  CPU: documents of similar length together, a few batched products each (buckets.py).
`mask`    a (B, 1, T, T) boolean mask and transformers' "sdpa": compiled whole models on CPU, GPUs without the next two.
`varlen`  GPU: torch's own FlashAttention for rows of documents (`torch.nn.attention.varlen`, bf16, from Ampere on); the shared prefix
          is put in front of each document's keys, its gradient is summed by autograd.
`flex`    GPU: FlexAttention with a block mask made from the document numbers: blocks between documents are skipped.
Chosen by machine.py. Not covered here: `varlen` and `flex` have not run on a GPU; their layout and mask are tested on CPU
(flex: forward only, torch has no backward of it there).
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import flex_attention, varlen
from transformers import AttentionInterface, AttentionMaskInterface

from twllm.train.buckets import Layout, bucketed_attention, layout_of
from twllm.train.data import Batch

NAME, VARLEN_NAME = "twllm_pieces", "twllm_varlen"
IMPLEMENTATIONS = {"pieces": NAME, "mask": "sdpa", "varlen": VARLEN_NAME, "flex": "flex_attention"}
# B rows, H heads, K key/value heads, T tokens a row, E head width


def document_mask(document: Tensor) -> Tensor:
    """(B, T) document numbers → (B, 1, T, T) mask: True where a token may look: its document and the prefix (0), not ahead."""
    T = document.shape[1]
    same = (document[:, :, None] == document[:, None, :]) | (document[:, None, :] == 0)  # (B, T, T)
    return (same & torch.ones(T, T, dtype=torch.bool, device=document.device).tril())[:, None]


def block_mask(document: Tensor) -> flex_attention.BlockMask:
    """The same mask for FlexAttention, in blocks of 128 tokens."""
    B, T = document.shape

    def may_look(b: Tensor, _: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (q >= k) & ((document[b, q] == document[b, k]) | (document[b, k] == 0))

    return flex_attention.create_block_mask(may_look, B, None, T, T, device=document.device)


def attend_pieces(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, scaling: float, **kwargs: Any
) -> tuple[Tensor, None]:  # fmt: skip
    """transformers' attention signature; query (B, H, T, E), key and value (B, K, T, E) → (B, T, H, E)."""
    B, H, T, E = query.shape
    layout: Layout = kwargs["layout"]
    q, k, v = (x.transpose(1, 2).reshape(B * T, -1, E) for x in (query, key, value))
    return bucketed_attention(q, k, v, layout, scaling).view(B, T, H, E), None


class VarlenLayout:
    """Where each document's queries and keys stand, for FlashAttention: all rows one after the other.

    `queries` and `keys` are places in the (B T) tokens, `q_ends` and `k_ends` the cumulative lengths that the kernel takes.
    """

    def __init__(self, batch: Batch) -> None:
        B, T = batch.ids.shape
        P = batch.prefix
        own = [(row * T, P) for row in range(B)] if P else []
        spans = [(np.arange(start, start + P), np.arange(start, start + P)) for start, _ in own]
        for row, start, length in batch.pieces:
            place = np.arange(row * T + start, row * T + start + length)
            spans.append((place, np.concatenate([row * T + np.arange(P), place])))
        device = batch.ids.device

        def ends(which: int) -> Tensor:
            found = np.cumsum([0, *(len(span[which]) for span in spans)])
            return torch.from_numpy(found.astype(np.int32)).to(device)

        self.queries = torch.from_numpy(np.concatenate([q for q, _ in spans])).to(device)
        self.keys = torch.from_numpy(np.concatenate([k for _, k in spans])).to(device)
        self.q_ends, self.k_ends = ends(0), ends(1)
        self.longest_q, self.longest_k = max(len(q) for q, _ in spans), max(len(k) for _, k in spans)


def attend_varlen(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, scaling: float, **kwargs: Any
) -> tuple[Tensor, None]:  # fmt: skip
    """transformers' attention signature over torch's FlashAttention of variable lengths (causal, aligned at the end)."""
    B, H, T, E = query.shape
    layout: VarlenLayout = kwargs["varlen"]
    q, k, v = (x.transpose(1, 2).reshape(B * T, -1, E).to(value.dtype) for x in (query, key, value))
    found = varlen.varlen_attn(
        q.index_select(0, layout.queries), k.index_select(0, layout.keys), v.index_select(0, layout.keys),
        layout.q_ends, layout.k_ends, layout.longest_q, layout.longest_k,
        scale=scaling, window_size=(-1, 0), enable_gqa=key.shape[1] != H,
    )  # fmt: skip
    assert isinstance(found, Tensor)
    return found.new_zeros(B * T, H, E).index_copy(0, layout.queries, found).view(B, T, H, E), None


AttentionInterface.register(NAME, attend_pieces)
AttentionInterface.register(VARLEN_NAME, attend_varlen)
for name in (NAME, VARLEN_NAME):
    AttentionMaskInterface.register(name, lambda *args, **kwargs: None)


def attention_inputs(kind: str) -> Callable[[Batch], dict[str, Any]]:
    """What the model's forward needs besides ids and positions, for a form of attention."""
    if kind == "pieces":
        return lambda batch: {"layout": layout_of(batch)}
    if kind == "varlen":
        return lambda batch: {"varlen": VarlenLayout(batch)}
    if kind == "flex":
        return lambda batch: {"attention_mask": block_mask(batch.document)}
    return lambda batch: {"attention_mask": document_mask(batch.document)}
