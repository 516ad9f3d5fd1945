"""Training rows from token shards: which documents, packed how, in what order — a pure function of (seed, epoch, step).

Because the order depends on nothing else, a resumed run needs only its step number to see exactly the rows that an
uninterrupted run would have seen.

Shared prefix: every conversation begins with the template's system text (about 20 tokens with our tokenizers, 100 with
Llama-2's). It is the same at the same positions, so its hidden states are the same: a row holds it once and its
conversations all look at it. Loss and gradient stay exactly those of the conversations one by one (held by a test).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from twllm.errors import UserError
from twllm.tokens.pack import Piece, Row, epoch_documents, pack
from twllm.tokens.shards import TokenShard

if TYPE_CHECKING:
    from twllm.train.context import Cut

# B rows, T tokens a row, P tokens of shared prefix
MIN_PREFIX = 8  # below this, sharing costs more than it saves; chosen, not tuned


@dataclass(frozen=True)
class Batch:
    """A micro-batch. A row is [prefix] piece piece … padding; a label of -100 carries no loss."""

    ids: Tensor  # (B, T) int64
    labels: Tensor  # (B, T) int64: the next token of the same piece, or -100
    position: Tensor  # (B, T) int64: from 0 in each document
    document: Tensor  # (B, T) int64: the prefix is 0, the pieces are 1, 2, …, padding is -1
    pieces: tuple[tuple[int, int, int], ...]  # (row, first token, number of tokens), the prefix not among them
    rows: tuple[Row, ...]
    prefix: int  # tokens of the shared prefix at the start of each row, 0 if there is none
    filler: bool = False  # of several processes this one has fewer rows: it computes along, and nothing counts
    labelled: Tensor | None = None  # places that labels stand at, where it is known (to)
    cut: "Cut | None" = None  # other processes have the rows' other tokens (context.py)

    @property
    def documents(self) -> list[int]:
        """The document of each piece."""
        found = [document for row in self.rows for document, _, _ in row.pieces]
        return [found[owner] for owner in self.cut.owners] if self.cut else found

    def label_spans(self) -> NDArray[np.int64]:
        """(S, 2) where each piece's labelled tokens begin and end among the micro-batch's."""
        before = np.append(0, np.cumsum(self.labels.cpu().numpy().ravel() >= 0))
        rows, starts, lengths = np.array(self.pieces, np.int64).reshape(-1, 3).T
        first = rows * self.ids.shape[1] + starts
        return np.asarray(before[np.stack([first, first + lengths], 1)])

    def inputs(self, model: Any) -> dict[str, Tensor]:
        """What the decoder of `model` is given to read: ids here, embeddings where there are pictures (pictures.py)."""
        return {"input_ids": self.ids}

    def to(self, device: torch.device) -> "Batch":
        """The same batch with its tensors on `device`."""
        names = ("ids", "labels", "position", "document")
        tensors: dict[str, Any] = {name: to_device(getattr(self, name), device) for name in names}
        return replace(self, **tensors, labelled=to_device(self.places(), device))

    def places(self) -> Tensor:
        """(N,) which of the (B T) places have a label."""
        return (self.labels.reshape(-1) >= 0).nonzero().squeeze(1) if self.labelled is None else self.labelled


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """There; to a GPU through pinned memory: a copy from ordinary memory waits for all that the GPU was given to do."""
    if device.type == "cuda" and not tensor.is_cuda:
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


class PackedData:
    """One or more weighted shards, served as rows of `context` tokens, epoch after epoch.

    `group` documents that follow each other belong together: they are drawn together and stand in one row, side by side.
    """

    def __init__(
        self, shards: Sequence[TokenShard], weights: Sequence[float], context: int, seed: int, group: int = 1
    ) -> None:
        self.shards, self.weights, self.context, self.seed = list(shards), list(weights), context, seed
        self.group = group
        self.counts = [len(shard) for shard in shards]
        self.first = np.cumsum([0, *self.counts])
        self.lengths = np.concatenate([shard.lengths for shard in shards]) if shards else np.zeros(0, np.int64)
        if not len(self.lengths):
            raise UserError("沒有訓練資料 (no training documents)", "tokens", "檢查 [corpus] 與 datasets 的路徑")
        self.prefix = self._shared_prefix()
        self.epoch_rows = lru_cache(maxsize=2)(self._epoch_rows)

    def _epoch_rows(self, epoch: int) -> list[Row]:
        rows = self._pack(epoch_documents([n // self.group for n in self.counts], self.weights, self.seed, epoch))
        order = np.random.default_rng([self.seed, epoch, 1]).permutation(len(rows))
        return [rows[i] for i in order]

    def each_once(self) -> list[Row]:
        """Rows that hold every document exactly once, whatever the weights say."""
        return self._pack(np.arange(len(self.lengths) // self.group))

    def _pack(self, groups: NDArray[np.int64]) -> list[Row]:
        """Rows of these groups; without grouping, of these documents."""
        lengths, G = self.lengths - self.prefix, self.group
        rows = pack(lengths.reshape(-1, G).sum(1), self.context - self.prefix, groups)
        if G == 1:
            return rows
        return [
            Row(tuple((d, 0, int(lengths[d])) for g, _, _ in row.pieces for d in range(g * G, g * G + G)))
            for row in rows
        ]

    def _shared_prefix(self) -> int:
        """Tokens all documents begin with, none of them learned, nor the token after them (what would predict it is shared);
        0 where that saves little or a document needs cutting.
        """
        if len(self.lengths) < 2 or self.lengths.max() > self.context:
            return 0
        first, learned = self._read((0, 0, int(self.lengths[0])))
        shared = max(0, int(np.argmax(learned)) - 1) if learned.any() else 0
        for document in range(1, len(self.lengths)):
            tokens, learned = self._read((document, 0, min(shared, int(self.lengths[document]))))
            free = ~np.append(learned[1:], False)[:shared]
            same = (tokens[:shared] == first[: len(tokens[:shared])]) & free
            shared = len(same) if same.all() else int(np.argmin(same))
            if shared < MIN_PREFIX:
                return 0
        return min(shared, int(self.lengths.min()) - 1)

    def rows(self, start: int, count: int) -> list[Row]:
        """Rows number start … start + count of the endless sequence of epochs."""
        epoch = 0
        found: list[Row] = []
        while start >= (size := len(self.epoch_rows(epoch))):
            start, epoch = start - size, epoch + 1
        while len(found) < count:
            rows = self.epoch_rows(epoch)[start : start + count - len(found)]
            found += rows
            start, epoch = 0, epoch + 1
        return found

    def num_rows(self, epochs: float) -> int:
        """Rows in so many epochs."""
        whole = sum(len(self.epoch_rows(e)) for e in range(int(epochs)))
        rest = epochs - int(epochs)
        return whole + (round(len(self.epoch_rows(int(epochs))) * rest) if rest else 0)

    def _read(self, piece: Piece) -> tuple[np.ndarray, np.ndarray]:
        """Ids and loss mask of a piece, with one token more where the document goes on (it is the last label)."""
        document, start, length = piece
        shard, number = self._place(document)
        low, high = shard.offsets[number:][:2]
        begin, end = int(low) + start, min(int(low) + start + length + 1, int(high))
        return np.asarray(shard.ids[begin:end], np.int64), shard.mask(begin, end)

    def batch(self, rows: Sequence[Row]) -> Batch:
        """Tensors of these rows."""
        B, T, P = len(rows), self.context, self.prefix
        ids, labels = np.zeros((B, T), np.int64), np.full((B, T), -100)
        position, document = np.zeros((B, T), np.int64), np.full((B, T), -1)
        pieces = []
        if P:
            ids[:, :P], position[:, :P], document[:, :P] = self._read((0, 0, P))[0][:P], np.arange(P), 0
        for r, row in enumerate(rows):
            at = P
            for number, (which, start, length) in enumerate(row.pieces, 1):
                tokens, learned = self._read((which, start + P, length))
                here = slice(at, at + length)
                ids[r, here], position[r, here], document[r, here] = tokens[:length], P + np.arange(length), number
                following = np.where(learned[1:], tokens[1:], -100)
                labels[r, at : at + len(following)] = following
                pieces.append((r, at, length))
                at += length
        tensor = torch.from_numpy
        return Batch(tensor(ids), tensor(labels), tensor(position), tensor(document), tuple(pieces), tuple(rows), P)

    def num_document_tokens(self, rows: Sequence[Row]) -> int:
        """Tokens of the documents in these rows, each with its own prefix: what a trainer without sharing would compute."""
        return sum(row.num_tokens + self.prefix * len(row.pieces) for row in rows)

    def names(self, rows: Sequence[Row]) -> list[str]:
        """`shard: document` of the documents in these rows, for messages."""
        documents = sorted({piece[0] for row in rows for piece in row.pieces})
        return [": ".join(self.document_name(document)) for document in documents]

    def document_name(self, document: int) -> tuple[str, str]:
        """(shard, document) of a document's number."""
        shard, number = self._place(document)
        return shard.folder.name, str(shard.name(number))

    def shard_of(self, document: int) -> int:
        """The number of a document's shard."""
        return int(np.searchsorted(self.first, document, "right")) - 1

    def _place(self, document: int) -> tuple[TokenShard, int]:
        """The shard of a document, and its number there."""
        shard = self.shard_of(document)
        return self.shards[shard], document - int(self.first[shard])

    @property
    def waste(self) -> float:
        """Share of padding in the first epoch's rows."""
        rows = self.epoch_rows(0)
        return 1 - sum(self.prefix + row.num_tokens for row in rows) / (len(rows) * self.context)
