"""First rows for new tokens that say more than the mean of their pieces.

`focus`: co-occurrence vectors of all tokens are learned on the corpus, cut by the new tokenizer (PPMI and a truncated SVD), and a
new token becomes a mix of the old tokens nearest to it. FOCUS (arXiv 2305.14481) with SVD in place of fastText and a softmax over
the nearest in place of sparsemax: no other library, the same idea.
`fitted`: the model reads the corpus as the old tokenizer cuts it. Of each old token we know its head row and the mean hidden state
before it; a ridge regression from that and the token's frequency gives head rows to new pieces from the mean state before them.
Price: focus, seconds a million tokens and 4 bytes × tokens seen × 2,000; fitted, one forward pass over `MAX_TOKENS`.
Not covered: inputs in `fitted` stay means of pieces; tokens seen fewer than `MIN_COUNT` times keep that, too.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from twllm.tokens.tokenizer import ChatTokenizer

WINDOW = 5  # tokens to each side; chosen
CONTEXTS = 2000  # most frequent tokens that co-occurrence is counted with; chosen
WIDTH = 128  # of the co-occurrence vectors; chosen
NEAREST = 10
TEMPERATURE = 0.1
MIN_COUNT = 3
MAX_TOKENS = 300_000
RIDGE = 0.1  # times the mean square of the features; the best of 1e-3 to 1 (dev/LOG.md)
ROW = 256  # tokens the model reads at once
# V vocabulary, N new tokens, D model width, S tokens seen


def focus(new: ChatTokenizer, fresh: Sequence[int], texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """(N, V_old) weights of old tokens for each new one, and which new tokens occurred often enough, (N,)."""
    first = min(fresh)
    ids = [torch.tensor(row) for row in new.encode_batch(texts) if len(row) > WINDOW]
    counts = torch.bincount(torch.cat(ids), minlength=new.vocab_size)
    vectors = torch.nn.functional.normalize(_cooccurrence(ids, counts), dim=1)  # (V, WIDTH)
    seen = counts >= MIN_COUNT
    old = torch.ones(new.vocab_size, dtype=torch.bool)
    old[torch.tensor(fresh)] = False
    anchors = (seen & old).nonzero().squeeze(1)
    wanted = torch.tensor(fresh)
    near, place = (vectors[wanted] @ vectors[anchors].T).topk(min(NEAREST, len(anchors)))  # (N, NEAREST)
    mix = torch.zeros(len(fresh), int(max(first, int(anchors.max()) + 1)))
    mix.scatter_(1, anchors[place], (near / TEMPERATURE).softmax(1))
    return mix, seen[wanted]


def _cooccurrence(ids: Sequence[Tensor], counts: Tensor) -> Tensor:
    """(V, WIDTH) vectors; tokens never seen are zero."""
    V = len(counts)
    contexts = counts.topk(min(CONTEXTS, V)).indices
    column = torch.full((V,), -1)
    column[contexts] = torch.arange(len(contexts))
    seen = counts.nonzero().squeeze(1)
    row = torch.full((V,), -1)
    row[seen] = torch.arange(len(seen))
    table = torch.zeros(len(seen) * len(contexts))
    for line in ids:
        for distance in range(1, WINDOW + 1):
            for a, b in ((line[:-distance], line[distance:]), (line[distance:], line[:-distance])):
                kept = column[b] >= 0
                at = row[a[kept]] * len(contexts) + column[b[kept]]
                table.index_add_(0, at, torch.full((len(at),), 1.0 / distance))
    table = table.view(len(seen), len(contexts))
    total, rows, columns = table.sum(), table.sum(1, keepdim=True), table.sum(0, keepdim=True)
    ppmi = (table * total / (rows * columns).clamp_min(1e-9)).clamp_min(1).log()
    torch.manual_seed(0)
    u, s, _ = torch.svd_lowrank(ppmi, q=min(WIDTH, *ppmi.shape))
    vectors = torch.zeros(V, u.shape[1])
    vectors[seen] = u * s.sqrt()
    return vectors


def fitted(
    model: PreTrainedModel, old: ChatTokenizer, new: ChatTokenizer, fresh: Sequence[int], texts: Sequence[str]
) -> tuple[Tensor, Tensor]:
    """(N, D) head rows, and which of the new tokens occurred often enough, (N,)."""
    D = model.get_output_embeddings().weight.shape[1]
    before_old, count_old = torch.zeros(old.vocab_size, D), torch.zeros(old.vocab_size)
    before_new, count_new = torch.zeros(new.vocab_size, D), torch.zeros(new.vocab_size)
    for ids, hidden, starts in _read(model, old, new, set(fresh), texts):
        before_old.index_add_(0, ids[1:], hidden[:-1])
        count_old.index_add_(0, ids[1:], torch.ones(len(ids) - 1))
        if starts:
            tokens, places = (torch.tensor(part) for part in zip(*starts, strict=True))
            before_new.index_add_(0, tokens, hidden[places - 1])
            count_new.index_add_(0, tokens, torch.ones(len(tokens)))
    known = (count_old >= MIN_COUNT).nonzero().squeeze(1)
    states = _features(before_old[known], count_old[known])  # (S, D + 2)
    rows = model.get_output_embeddings().weight.detach()[known].float().cpu()  # (S, D)
    weight = count_old[known, None].sqrt()
    square = (states * weight).T @ (states * weight)
    ridge = RIDGE * square.diagonal().mean() * torch.eye(D + 2)
    solution = torch.linalg.solve(square + ridge, (states * weight).T @ (rows * weight))  # (D + 2, D)
    wanted = torch.tensor(fresh)
    enough = count_new[wanted] >= MIN_COUNT
    found = _features(before_new[wanted], count_new[wanted]) @ solution
    return found.to(model.device), enough.to(model.device)


def _features(summed: Tensor, counts: Tensor) -> Tensor:
    """Mean state, one, and the logarithm of the count: without it a rare piece is as likely as a frequent one (dev/LOG.md)."""
    counts = counts[:, None].clamp_min(1)
    return torch.cat([summed / counts, torch.ones_like(counts), counts.log()], dim=1)


@torch.no_grad()
def _read(
    model: PreTrainedModel, old: ChatTokenizer, new: ChatTokenizer, fresh: set[int], texts: Sequence[str]
) -> Iterator[tuple[Tensor, Tensor, list[tuple[int, int]]]]:
    """Old ids of a stretch (T,), the final hidden states (T, D), and (new id, place of its first old token)."""
    training, read = model.training, 0
    model.eval()
    for text in texts:
        for start in range(0, len(text), ROW // 2):
            part = text[start : start + ROW // 2]
            encoding = old.backend.encode(part, add_special_tokens=False)
            ids = encoding.ids[: 2 * ROW]
            if len(ids) < 2:
                continue
            first: dict[int, int] = {}
            for place, (begin, _) in enumerate(encoding.offsets[: len(ids)]):
                first.setdefault(begin, place)
            again = new.backend.encode(part, add_special_tokens=False)
            starts = [
                (id, first[begin])
                for id, (begin, _) in zip(again.ids, again.offsets, strict=True)
                if id in fresh and first.get(begin, 0) > 0
            ]
            hidden = model.get_decoder()(input_ids=torch.tensor([ids], device=model.device), use_cache=False)
            yield torch.tensor(ids), hidden.last_hidden_state[0].float().cpu(), starts
            read += len(ids)
        if read > MAX_TOKENS:
            break
    model.train(training)
