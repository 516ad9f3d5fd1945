"""Scores and greedy answers for many known prompts at once, over a tree of their shared prefixes.

`score` gives log-probabilities of continuations: choices of one token cost one row of a forward, choices of several tokens hang
below their prompt, and what prompts share (template, examples, paragraph) is computed once, also from call to call
(`Shared`). `decode` answers greedily. Nothing is padded, so the order and company of prompts change float rounding only.
Models whose attention is of another kind (`packs` compares) go through padded.py.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from twllm.serve.engines.batching.prefix_tree import MIN_SHARED, PrefixTree, common_length
from twllm.serve.engines.interface import Request, Score
from twllm.serve.engines.torch.tree_attention import NAME, Group, KeyValues, Pass, Step

PASS_TOKENS = 1024  # of one forward: 25 M model on a CPU, bf16: 256 50 questions/s, 1,024 61, 4,096 57; fp32 21, 24, 19
DECODE_BYTES = 1 << 30  # keys and values of the rows answered together: chosen, not tuned
DECODE_ROWS = 128
SPREAD = 2.0  # rows share an attention call while it does at most this times the work of one call each


@dataclass
class Shared:
    """What all sequences of a call began with, kept for the next one."""

    ids: list[int] = field(default_factory=list)
    values: KeyValues = field(default_factory=list)

    def known(self, sequences: Sequence[Sequence[int]]) -> int:
        """How many of our tokens all of them begin with and go on after; 0 when it is not worth a node."""
        length = min((min(common_length(self.ids, ids), len(ids) - 1) for ids in sequences), default=0)
        return length if length >= MIN_SHARED else 0


@torch.inference_mode()
def score(model: Any, requests: Sequence[Request], shared: Shared) -> list[Score]:
    """One score for each (context, continuation); in their order."""
    places: dict[tuple[int, ...], int] = {}
    sequence = [places.setdefault((*context, *continuation[:-1]), len(places)) for context, continuation in requests]
    tree, first = _tree([list(ids) for ids in places], shared)
    wanted: dict[int, list[tuple[int, int, int]]] = {}  # node -> (offset, request, which of its tokens)
    for request, (context, continuation) in enumerate(requests):
        for token in range(len(continuation)):
            node, offset = tree.locate(sequence[request], len(context) - 1 + token)
            wanted.setdefault(node, []).append((offset, request, token))
    logprobs, greedy = [[0.0] * len(continuation) for _, continuation in requests], [True] * len(requests)
    kept: dict[int, KeyValues] = {}
    places_of = {node: [offset for offset, _, _ in ones] for node, ones in wanted.items()}
    for asked, logits in _run(model, tree, first, kept, places_of, shared):
        row = {place: at for at, place in enumerate(asked)}
        hits = [(row[(node, offset)], r, t) for node in {n for n, _ in asked} for offset, r, t in wanted[node]]
        rows = torch.tensor([hit[0] for hit in hits], device=logits.device)
        ids = torch.tensor([requests[r][1][t] for _, r, t in hits], device=logits.device)
        values = (logits[rows, ids] - logits.logsumexp(-1)[rows]).tolist()
        best = (logits.argmax(-1)[rows] == ids).tolist()
        for (_, r, t), value, top in zip(hits, values, best, strict=True):
            logprobs[r][t], greedy[r] = value, greedy[r] and top
    return [Score(sum(parts), top) for parts, top in zip(logprobs, greedy, strict=True)]


@torch.inference_mode()
def decode(
    model: Any, prompts: Sequence[Sequence[int]], limits: Sequence[int], end_ids: frozenset[int], shared: Shared
) -> list[list[int]]:
    """Greedy ids for each prompt, at most `limits[i]` of them, without the end token; in the order of the prompts."""
    most: dict[tuple[int, ...], int] = {}
    for ids, limit in zip(map(tuple, prompts), limits, strict=True):
        most[ids] = max(limit, most.get(ids, 0))
    answers: dict[tuple[int, ...], list[int]] = {ids: [] for ids in most}
    for rows in _decode_batches(sorted(ids for ids, limit in most.items() if limit > 0), most, bytes_per_token(model)):
        for ids, answer in zip(rows, _decode(model, rows, [most[ids] for ids in rows], end_ids, shared), strict=True):
            answers[ids] = answer
    return [answers[tuple(ids)][:limit] for ids, limit in zip(prompts, limits, strict=True)]


def _decode_batches(
    prompts: Sequence[tuple[int, ...]], limits: Mapping[tuple[int, ...], int], token_bytes: int
) -> Iterator[list[tuple[int, ...]]]:
    """Neighbours together, up to DECODE_ROWS rows and DECODE_BYTES of memory."""
    batch: list[tuple[int, ...]] = []
    size = 0
    for ids in prompts:
        own = (len(ids) + limits[ids]) * token_bytes
        if batch and (len(batch) == DECODE_ROWS or size + own > DECODE_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(ids)
        size += own
    if batch:
        yield batch


def _decode(
    model: Any, prompts: Sequence[Sequence[int]], limits: Sequence[int], end_ids: frozenset[int], shared: Shared
) -> list[list[int]]:
    tree, first = _tree(prompts, shared)
    ends = {tree.leaf[row]: row for row in range(len(prompts))}
    kept: dict[int, KeyValues] = {}
    places = {node: [tree.nodes[node].end - tree.nodes[node].start - 1] for node in ends}
    new: dict[int, int] = {}
    for asked, logits in _run(model, tree, first, kept, places, shared, keep_all=True):
        new.update({ends[node]: id for (node, _), id in zip(asked, logits.argmax(-1).tolist(), strict=True)})
    groups = [Group(tree, rows, [limits[row] for row in rows]) for rows in _group(tree, len(prompts))]
    for group in groups:
        group.load(kept)
    kept.clear()
    answers: list[list[int]] = [[] for _ in prompts]
    while True:
        for group in groups:
            group.active = [at for at in group.active if _goes_on(answers, limits, group.rows[at], new, end_ids)]
        groups = [group for group in groups if group.active]
        if not groups:
            return answers
        rows = [group.rows[at] for group in groups for at in group.active]
        for group in groups:
            group.open()
        positions = [len(prompts[row]) + len(answers[row]) - 1 for row in rows]
        logits = _forward(model, [answers[row][-1] for row in rows], positions, Step(groups), None)
        new = dict(zip(rows, logits.argmax(-1).tolist(), strict=True))


def _goes_on(
    answers: list[list[int]], limits: Sequence[int], row: int, new: Mapping[int, int], end_ids: frozenset[int]
) -> bool:
    """Take the row's new id in, unless it ends the answer; whether another one is to come."""
    if new[row] in end_ids:
        return False
    answers[row].append(new[row])
    return len(answers[row]) < limits[row]


def _group(tree: PrefixTree, count: int) -> list[list[int]]:
    """Rows under the same parent, split where one attention call for all would do more than SPREAD times the work."""
    families: dict[int, list[int]] = {}
    for row in range(count):
        parent = tree.nodes[tree.leaf[row]].parent
        families.setdefault(parent if parent >= 0 else -1 - row, []).append(row)
    groups: list[list[int]] = []
    for parent, rows in families.items():
        prefix = tree.nodes[parent].end if parent >= 0 else 0
        tails = 0
        for row in rows:
            tail = len(tree.sequences[row]) - prefix
            size = 0 if row == rows[0] else len(groups[-1])
            if size and (size + 1) * (prefix + tails + tail) <= SPREAD * ((size + 1) * prefix + tails + tail):
                groups[-1].append(row)
            else:
                groups.append([row])
                tails = 0
            tails += tail
    return groups


# -- passes ---------------------------------------------------------------------------------------------------------


def _tree(sequences: Sequence[Sequence[int]], shared: Shared) -> tuple[PrefixTree, int]:
    """The tree, and its first node that has to be computed: 1 where node 0 is known from an earlier call."""
    known = shared.known(sequences)
    return PrefixTree(sequences, known=known), 1 if known else 0


def _run(
    model: Any, tree: PrefixTree, first: int, kept: dict[int, KeyValues], places: Mapping[int, Sequence[int]],
    shared: Shared, keep_all: bool = False,
) -> Iterator[tuple[list[tuple[int, int]], Tensor]]:  # fmt: skip
    """Forward over all nodes, pass after pass: the (node, offset) asked for in `places` and their logits (places, V), fp32.

    `kept` is filled with the nodes that later passes need, or with all.
    """
    nodes = tree.nodes
    root = not first and len(nodes) > 1 and nodes[0].last == len(nodes) - 1  # all begin alike: keep for the next call
    if first:
        kept[0] = [(k[:, : nodes[0].end], v[:, : nodes[0].end]) for k, v in shared.values]
    for part in tree.passes(PASS_TOKENS, first):
        keep = frozenset(i for i in part if keep_all or nodes[i].last >= part.stop or (i == 0 and root))
        ids: list[int] = []
        positions: list[int] = []
        asked: dict[tuple[int, int], int] = {}
        for i in part:
            node = nodes[i]
            asked |= {(i, offset): len(ids) + offset for offset in places.get(i, ())}
            ids += tree.sequences[node.row][node.start : node.end]
            positions += range(node.start, node.end)
        logits = _forward(model, ids, positions, Pass(tree, part, kept, keep), list(asked.values()))
        if root and 0 in part:
            shared.ids, shared.values = list(tree.sequences[nodes[0].row][: nodes[0].end]), kept[0]
        if not keep_all:
            for i in [i for i in kept if nodes[i].last < part.stop]:
                del kept[i]
        if asked:
            yield list(asked), logits


def _forward(model: Any, ids: list[int], positions: list[int], tree: Pass | Step, rows: list[int] | None) -> Tensor:
    """Logits (rows, V) in fp32 of a flat row of tokens; `rows` None: all."""
    device = model.device
    keep = 0 if rows is None else torch.tensor(rows or [len(ids) - 1], device=device)
    out = model(
        input_ids=torch.tensor([ids], device=device),
        position_ids=torch.tensor([positions], device=device),
        attention_mask=torch.zeros(1, 1, 1, 1, device=device),  # four dimensions: taken as it is, and not looked at
        use_cache=False,
        logits_to_keep=keep,
        tree=tree,
    )
    logits: Tensor = out.logits[0]
    return logits.float()


def bytes_per_token(model: Any) -> int:
    """Keys and values of one token."""
    config = model.config.get_text_config()
    all_heads = (
        getattr(config, "num_attention_heads", None) or 1
    )  # recurrent models have none: counted as one wide head
    heads = getattr(config, "num_key_value_heads", None) or all_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // all_heads
    return int(2 * config.num_hidden_layers * heads * width * model.dtype.itemsize)


@torch.inference_mode()
def packs(model: Any) -> bool:
    """Give the model our attention if it can have it: whether its logits are then what they were.

    Two short sequences with a shared beginning are computed both ways. A sliding window would not show in so few tokens:
    such models are left as they are.
    """
    config = model.config.get_text_config()
    types = getattr(config, "layer_types", None) or []
    if any(kind != "full_attention" for kind in types) or (not types and getattr(config, "sliding_window", None)):
        return False
    length = MIN_SHARED + 8
    rows = [
        [(7 * i + 3) % config.vocab_size for i in range(length)],
        [(7 * i + 3 + (i >= MIN_SHARED)) % config.vocab_size for i in range(length)],
    ]
    before = config._attn_implementation
    try:
        plain = model(input_ids=torch.tensor(rows, device=model.device), use_cache=False).logits.float()
        model.set_attn_implementation(NAME)
        tree = PrefixTree(rows)
        places = {tree.leaf[row]: [7] for row in (0, 1)}
        found = [logits for _, logits in _run(model, tree, 0, {}, places, Shared())]
        error = (torch.cat(found) - plain[:, -1]).abs().max()
        if float(error) <= 0.2 * float(plain.std()):
            return True
    except (ValueError, TypeError, AttributeError, RuntimeError, KeyError):
        pass  # a model of another build: padded batches will do
    model.set_attn_implementation(before)
    return False
