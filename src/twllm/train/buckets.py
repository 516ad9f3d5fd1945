"""Attention of packed rows on a CPU: documents of about the same length together, a few batched products each.

Why not one call of torch's flash kernel for each document: its backward takes 0.8 ms for 90 tokens and 4 heads in bf16 (it does
not use the matrix unit there), and a training step has hundreds of such calls. Here a bucket's scores stand in the cache
(`CACHED_SCORES`), are fp32 whatever the precision, and the other products run in the precision of the values. Equal to
transformers' attention on each document alone (tests/train/test_loss.py). Documents longer than `LONGEST` would pay for the
square of scores that causal attention does not need: they go through torch's kernel, in fp32, whose backward is six times as fast as its
bf16 one here (dev/LOG.md). Kept for the backward: one probability for each pair of tokens of a document.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from twllm.train.data import Batch

LONGEST = 512  # tokens; measured: dev/LOG.md
CACHED_SCORES = 1 << 20  # scores of a bucket and head, all in all 4 MB in fp32; measured
SIMILAR = 0.8  # a bucket's shortest document against its longest; chosen, not tuned
# N tokens of all rows, n documents of a bucket, L their longest, P tokens of shared prefix, S = P + L keys
# H heads, K key/value heads, G = H / K, E head width


@dataclass(frozen=True)
class Bucket:
    """Documents of similar length. Where a document is shorter than L: reads take its last token, writes go to row N."""

    read: Tensor  # (n, L) places of its tokens
    write: Tensor  # (n, L)
    keys: Tensor  # (n, S) places of the prefix and of its tokens
    padding: Tensor | None  # (n, L): True where there is no token; None if there is one everywhere
    rows: Tensor | None  # (n,) rows, whose prefix takes the gradient; None without prefix
    prefix: int


@dataclass(frozen=True)
class Layout:
    """Which tokens of a micro-batch look at which: the same for all layers."""

    shape: tuple[int, int]  # (B, T)
    prefix: int
    buckets: tuple[Bucket, ...]
    long: tuple[tuple[int, int, int], ...]  # (row, first place, length) of documents that are not in buckets


def layout_of(batch: Batch) -> Layout:
    """Sort a micro-batch's documents into buckets."""
    B, T = batch.ids.shape
    pieces = [(row, row * T + start, length) for row, start, length in batch.pieces]
    pieces.sort(key=lambda piece: -piece[2])
    long = tuple(piece for piece in pieces if piece[2] > LONGEST)
    buckets = _buckets(pieces[len(long) :], batch.prefix, B * T, T)
    if batch.prefix:
        buckets += _buckets([(row, row * T, batch.prefix) for row in range(B)], 0, B * T, T)
    return Layout((B, T), batch.prefix, tuple(buckets), long)


def _buckets(pieces: list[tuple[int, int, int]], prefix: int, N: int, T: int) -> list[Bucket]:
    """`pieces`, longest first, cut into buckets."""
    found, at = [], 0
    while at < len(pieces):
        longest, end = pieces[at][2], at
        limit = max(1, CACHED_SCORES // (longest * (longest + prefix)))
        while end < len(pieces) and end - at < limit and pieces[end][2] >= SIMILAR * longest:
            end += 1
        found.append(_bucket(np.array(pieces[at:end]), prefix, N, T))
        at = end
    return found


def _bucket(pieces: NDArray[np.int64], prefix: int, N: int, T: int) -> Bucket:
    rows, starts, lengths = pieces.T
    offsets = np.arange(-(-lengths.max() // 8) * 8)  # (L,), a multiple of 8: fewer shapes
    read = starts[:, None] + np.minimum(offsets, lengths[:, None] - 1)
    outside = offsets >= lengths[:, None]
    keys = np.concatenate([rows[:, None] * T + np.arange(prefix), read], 1)
    write, padding = torch.from_numpy(np.where(outside, N, read)), torch.from_numpy(outside)
    return Bucket(
        torch.from_numpy(read), write, torch.from_numpy(keys), padding if outside.any() else None,
        torch.from_numpy(rows.copy()) if prefix else None, prefix,
    )  # fmt: skip


@lru_cache(maxsize=256)
def causal_bias(L: int, prefix: int, groups: int) -> Tensor:
    """(groups L, prefix + L): 0 where a token may look, -inf ahead of it."""
    return torch.full((L, prefix + L), -torch.inf).triu_(prefix + 1).repeat(groups, 1)


def _heads_first(x: Tensor, places: Tensor, K: int) -> Tensor:
    """(N, H, E) at (n, L) places → (n K, G L, E)."""
    n, L = places.shape
    H, E = x.shape[1:]
    found = x.index_select(0, places.reshape(-1)).view(n, L, K, H // K, E)
    return found.permute(0, 2, 3, 1, 4).reshape(n * K, H // K * L, E)


def _weights(q: Tensor, k: Tensor, bias: Tensor, scaling: float) -> Tensor:
    """Softmax of fp32 scores, in the precision of `q`: (n K, G L, S)."""
    return torch.baddbmm(bias, q.float(), k.float().transpose(1, 2), alpha=scaling).softmax(-1).to(q.dtype)


def _tokens_first(x: Tensor, n: int, K: int, L: int) -> Tensor:
    """(n K, G L, E) → (n L, H, E)."""
    return x.view(n, K, -1, L, x.shape[-1]).permute(0, 3, 1, 2, 4).reshape(n * L, -1, x.shape[-1])


class _Bucketed(torch.autograd.Function):
    """Attention within the buckets of a layout: query (N, H, E), key and value (N, K, E) → (N, H, E)."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, layout: Layout, scaling: float) -> Tensor:
        N, H, E = query.shape
        K = key.shape[1]
        out, kept = value.new_zeros(N + 1, H, E), []
        with torch.autocast(query.device.type, enabled=False):
            for bucket in layout.buckets:
                q, k, v = (
                    _heads_first(query, bucket.read, K), _heads_first(key, bucket.keys, K), _heads_first(value, bucket.keys, K),
                )  # fmt: skip
                n, L = bucket.read.shape
                weights = _weights(q, k, causal_bias(L, bucket.prefix, H // K), scaling)
                out.index_copy_(0, bucket.write.reshape(-1), _tokens_first(torch.bmm(weights, v), n, K, L))
                kept += [q, k, v, weights]
        ctx.save_for_backward(*kept)
        ctx.layout, ctx.scaling, ctx.heads = layout, scaling, (H, K)
        return out[:N]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        layout, (H, K), kept = ctx.layout, ctx.heads, ctx.saved_tensors
        B, T = layout.shape
        N, E, P = B * T, grads[0].shape[-1], layout.prefix
        d_query, d_key, d_value = (grads[0].new_zeros(N + 1, heads, E) for heads in (H, K, K))
        shared = [grads[0].new_zeros(B, P, K, E, dtype=torch.float32) for _ in range(2)]
        with torch.autocast(grads[0].device.type, enabled=False):
            for number, bucket in enumerate(layout.buckets):
                q, k, v, weights = kept[4 * number : 4 * number + 4]
                n, L = bucket.read.shape
                place = bucket.write.reshape(-1)
                d_out = _heads_first(grads[0], bucket.read, K)
                if bucket.padding is not None:
                    d_out.view(n, -1, L, E).masked_fill_(bucket.padding[:, None, :, None], 0)
                d_weights = torch.bmm(d_out, v.transpose(1, 2))
                d_scores = torch._softmax_backward_data(d_weights, weights, -1, weights.dtype)
                d_query.index_copy_(0, place, _tokens_first(torch.bmm(d_scores, k), n, K, L))
                for target, part, pair in (
                    (d_key, shared[0], torch.bmm(d_scores.transpose(1, 2), q)),
                    (d_value, shared[1], torch.bmm(weights.transpose(1, 2), d_out)),
                ):
                    found = pair.view(n, K, -1, E).transpose(1, 2)  # (n, S, K, E)
                    target.index_copy_(0, place, found[:, bucket.prefix :].reshape(n * L, K, E))
                    if bucket.rows is not None:
                        part.index_add_(0, bucket.rows, found[:, :P].float())
        if P:
            for target, part in ((d_key, shared[0]), (d_value, shared[1])):
                target[:N].view(B, T, K, E)[:, :P] += part
        return d_query[:N].mul_(ctx.scaling), d_key[:N].mul_(ctx.scaling), d_value[:N], None, None


def bucketed_attention(query: Tensor, key: Tensor, value: Tensor, layout: Layout, scaling: float) -> Tensor:
    """Each document on its own, and the prefix of its row: query (N, H, E), key and value (N, K, E) → (N, H, E)."""
    query, key = query.to(value.dtype), key.to(value.dtype)
    out: Tensor = _Bucketed.apply(query, key, value, layout, scaling)
    if not layout.long:
        return out
    return _with_long(out, query, key, value, layout, scaling)


def _with_long(out: Tensor, query: Tensor, key: Tensor, value: Tensor, layout: Layout, scaling: float) -> Tensor:
    """`out`, with the long documents filled in by torch's kernel."""
    T, P = layout.shape[1], layout.prefix
    parts, places = [], []
    with torch.autocast(query.device.type, enabled=False):
        for row, start, length in layout.long:
            # the prefix asks, too, and what it finds is dropped: a mask would be as large as the square of the document
            spans = slice(row * T, row * T + P), slice(start, start + length)
            q, k, v = (
                torch.cat([x[span] for span in spans]).float().transpose(0, 1)[None] for x in (query, key, value)
            )
            found = F.scaled_dot_product_attention(
                q, k, v, is_causal=True, scale=scaling, enable_gqa=k.shape[1] != q.shape[1]
            )
            parts.append(found[0, :, P:].transpose(0, 1).to(value.dtype))
            places.append(torch.arange(start, start + length))
    return out.index_copy(0, torch.cat(places), torch.cat(parts))
