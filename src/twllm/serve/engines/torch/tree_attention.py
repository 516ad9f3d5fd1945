"""Attention for a flat row of many sequences that share prefixes: each node of a tree looks at the nodes above it and at itself.

One forward takes a row (1, T) of whole nodes with their own positions; the keys and values of nodes above come from this pass
or from those kept from earlier ones. While answering, each forward is one token of every row, and rows whose prompts begin alike
are one call over the shared keys and the tails of all of them, so what they share is read once.
A model is given this attention for good; calls without `tree=` go to transformers' own.
Not covered: sliding windows, capped scores, sinks, cross-attention; `packs` finds out.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from twllm.serve.engines.batching.prefix_tree import PrefixTree

NAME = "twllm_tree"
KeyValues = list[tuple[Tensor, Tensor]]  # by layer: (K, T, E) each
# H heads, K key/value heads, T tokens, E head width, N rows that are being answered


def attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """transformers' attention signature; query (1, H, T, E), key and value (1, K, T, E) → (1, T, H, E)."""
    tree = kwargs.pop("tree", None)
    if tree is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    out = tree.attend(module.layer_idx, query[0], key[0], value[0], kwargs["scaling"])  # (H, T, E)
    return out.transpose(0, 1)[None], None


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)


@dataclass
class Pass:
    """The nodes of one forward; `kept` holds keys and values by node, of earlier passes and of this one while it runs."""

    tree: PrefixTree
    nodes: range
    kept: dict[int, KeyValues]
    keep: frozenset[int]  # which of its nodes stay in `kept`
    masks: dict[tuple[int, int], Tensor] = field(default_factory=dict)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """query (H, T, E), key and value (K, T, E) of the pass → (H, T, E)."""
        nodes = self.tree.nodes
        lengths = [nodes[i].end - nodes[i].start for i in self.nodes]
        here: dict[int, tuple[Tensor, Tensor]] = {}
        found = []
        parts = zip(self.nodes, query.split(lengths, 1), key.split(lengths, 1), value.split(lengths, 1), strict=True)
        for index, q, k, v in parts:
            here[index] = (k, v)
            above = [here[i] if i in here else self.kept[i][layer] for i in self.tree.path(nodes[index].parent)]
            mask = None
            if above:
                k = torch.cat([*(pair[0] for pair in above), k], 1)
                v = torch.cat([*(pair[1] for pair in above), v], 1)
                mask = self._mask(q.shape[1], k.shape[1], q)
            found.append(attention(q, k, v, mask, scaling))
        for index, (k, v) in here.items():
            if index in self.keep:
                self.kept.setdefault(index, []).append((k.clone(), v.clone()))
        return torch.cat(found, 1)

    def _mask(self, length: int, total: int, like: Tensor) -> Tensor:
        """(length, total): all that stands above, and the node itself up to each token; 0 where one may look."""
        if (length, total) not in self.masks:
            blocked = torch.ones(length, total, dtype=torch.bool, device=like.device).tril(total - length).logical_not()
            mask = torch.zeros(length, total, dtype=like.dtype, device=like.device)
            self.masks[(length, total)] = mask.masked_fill(blocked, float("-inf"))
        return self.masks[(length, total)]


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
    """q (H, T, E), k and v (K, T', E) → (H, T, E); causal without a mask (a single query sees all)."""
    shared, causal = q.shape[0] != k.shape[0], mask is None and q.shape[1] > 1
    return F.scaled_dot_product_attention(
        q[None], k[None], v[None], attn_mask=mask, is_causal=causal, scale=scaling, enable_gqa=shared
    )[0]


class Group:
    """Rows answered over one piece of memory: the nodes they share, their tails, then a place for every new token."""

    def __init__(self, tree: PrefixTree, rows: Sequence[int], limits: Sequence[int]) -> None:
        """`rows` are sequences of the tree that have the same parent node (or one row alone)."""
        self.rows = list(rows)
        self.active = list(range(len(rows)))
        parent = tree.nodes[tree.leaf[rows[0]]].parent
        self._shared = tree.path(parent)
        self._tails = [tree.leaf[row] for row in rows]
        self.prefix = tree.nodes[parent].end if parent >= 0 else 0
        self.lengths = [tree.nodes[i].end - tree.nodes[i].start for i in self._tails]
        self.used = self.prefix + sum(self.lengths)
        self.capacity = self.used + sum(limits)
        self._memory: dict[int, tuple[Tensor, Tensor]] = {}
        self._mask: Tensor | None = None  # (rows, capacity), 0 or -inf

    def load(self, kept: dict[int, KeyValues]) -> None:
        """Copy the prompts' keys and values in."""
        order = [*self._shared, *self._tails]
        for layer in range(len(kept[order[0]])):
            pieces = [kept[i][layer] for i in order]
            heads, _, width = pieces[0][0].shape
            pair = tuple(pieces[0][0].new_zeros(heads, self.capacity, width) for _ in range(2))
            for side in (0, 1):
                torch.cat([piece[side] for piece in pieces], 1, out=pair[side][:, : self.used])
            self._memory[layer] = pair  # type: ignore[assignment]
        if len(self.rows) > 1:
            like = self._memory[0][0]
            mask = like.new_full((len(self.rows), self.capacity), float("-inf"))
            mask[:, : self.prefix] = 0
            start = self.prefix
            for row, length in enumerate(self.lengths):
                mask[row, start : start + length] = 0
                start += length
            self._mask = mask

    def open(self) -> None:
        """Make room for one token of every active row; before each forward."""
        if self._mask is not None:
            for place, row in enumerate(self.active):
                self._mask[row, self.used + place] = 0
        self.used += len(self.active)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """query (H, N, E), key and value (K, N, E) of the active rows → (H, N, E)."""
        keys, values = self._memory[layer]
        keys[:, self.used - len(self.active) : self.used] = key
        values[:, self.used - len(self.active) : self.used] = value
        mask = None if self._mask is None else self._mask[self.active, : self.used]
        return attention(query, keys[:, : self.used], values[:, : self.used], mask, scaling)


@dataclass
class Step:
    """One token of every active row, group after group."""

    groups: list[Group]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """query (H, N, E), key and value (K, N, E) → (H, N, E)."""
        counts = [len(group.active) for group in self.groups]
        parts = zip(self.groups, query.split(counts, 1), key.split(counts, 1), value.split(counts, 1), strict=True)
        return torch.cat([group.attend(layer, q, k, v, scaling) for group, q, k, v in parts], 1)
