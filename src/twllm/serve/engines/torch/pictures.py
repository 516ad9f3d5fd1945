"""Pictures in prompts: the encoder, its features kept for a while, and ids that stand for them.

A picture becomes a block of ids above the vocabulary, one for each of its features; the same picture gets the same block while it is kept.
So prompts stay lists of ids: slots, shared beginnings, batching and preemption need to know nothing of pictures, and two prompts begin
alike exactly when their pictures are the same. Such ids are only valid in a `SeenPrompt`, which holds the features as long as it lives;
as plain ids from a client they are refused as unknown, so that nobody can look at another's picture.
"""

import hashlib
import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from twllm.tokens.picture_template import IMAGE, count_pictures, expand
from twllm.tokens.tokenizer import ChatTokenizer

KEPT_BYTES = 1 << 28  # features of pictures seen lately; chosen
AT_ONCE = 8  # pictures in one pass of the encoder; chosen
# n features a picture, D model width, V vocabulary


class Seen:
    """Features of one picture (n, D), and the ids that stand for them."""

    def __init__(self, first: int, features: Tensor) -> None:
        self.features, self.ids = features, range(first, first + len(features))


class SeenPrompt(list[int]):
    """A prompt with pictures; `plain` are its ids of the vocabulary."""

    def __init__(self, ids: Iterable[int], seen: Sequence[Seen]) -> None:
        super().__init__(ids)
        self.seen = tuple(seen)
        taken = {id for one in seen for id in one.ids}
        self.plain = [id for id in self if id not in taken]


def picture_prompt(
    tokenizer: ChatTokenizer, messages: Sequence[Mapping[str, Any]], seen: Sequence[Seen], **more: Any
) -> list[int]:
    """The prompt of a chat whose n-th picture part is `seen[n]`; `more` goes to `encode_chat`."""
    encoded = tokenizer.encode_chat(messages, add_generation_prompt=True, **more)
    if not count_pictures(messages):
        return encoded.ids
    return SeenPrompt(expand(encoded, tokenizer.controls[IMAGE], [one.ids for one in seen]).ids, seen)


class Eyes:
    """Encoder and projector of a LLaVA model. `see` may be called from any thread, `embed` from the engine's."""

    def __init__(self, model: Any, processor: Any, kept_bytes: int = KEPT_BYTES) -> None:
        self._model, self._processor, self._kept_bytes = model, processor, kept_bytes
        self._table = model.get_input_embeddings().weight
        self._vocab = int(self._table.shape[0])
        self.tokens_each = int(model.config.image_seq_length)
        self._lock = threading.Lock()
        self._next = 0
        self._kept: OrderedDict[str, Seen] = OrderedDict()  # by digest, the latest last
        self._blocks: weakref.WeakValueDictionary[int, Seen] = weakref.WeakValueDictionary()

    def see(self, pictures: Sequence[Any]) -> list[Seen]:
        """Features of RGB pictures, in their order; those kept from before are not computed again."""
        digests = [_digest(picture) for picture in pictures]
        with self._lock:
            found = {digest: self._kept[digest] for digest in digests if digest in self._kept}
            new = {digest: picture for digest, picture in zip(digests, pictures, strict=True) if digest not in found}
            names = list(new)
            for start in range(0, len(names), AT_ONCE):
                part = names[start : start + AT_ONCE]
                for digest, features in zip(part, self._features([new[name] for name in part]), strict=True):
                    found[digest] = self._keep(digest, features)
            for digest in digests:
                if digest in self._kept:
                    self._kept.move_to_end(digest)
        return [found[digest] for digest in digests]

    @torch.inference_mode()
    def _features(self, pictures: Sequence[Any]) -> list[Tensor]:
        """(n, D) for each."""
        prepared = [self._processor(images=picture, return_tensors="np")["pixel_values"][0] for picture in pictures]
        pixels = torch.from_numpy(np.stack(prepared)).to(self._table.device, self._table.dtype)
        found = self._model.get_image_features(pixel_values=pixels, return_dict=True).pooler_output
        return [features.to(self._table.dtype).clone() for features in found]

    def _keep(self, digest: str, features: Tensor) -> Seen:
        seen = Seen(self._vocab + self._next * self.tokens_each, features)
        self._blocks[self._next] = seen
        self._next += 1
        self._kept[digest] = seen
        size = features.numel() * features.element_size()
        while len(self._kept) > 1 and len(self._kept) * size > self._kept_bytes:
            self._kept.popitem(last=False)
        return seen

    def embed(self, ids: Tensor) -> Tensor:
        """(N,) ids → (N, D): rows of the table, features where the ids are a picture's."""
        pictured = ids >= self._vocab
        hidden = F.embedding(torch.where(pictured, 0, ids), self._table)
        if not bool(pictured.any()):
            return hidden
        hidden = hidden.clone()
        block = (ids - self._vocab) // self.tokens_each
        for number in block[pictured].unique().tolist():
            rows = pictured & (block == number)
            hidden[rows] = self._blocks[number].features[(ids[rows] - self._vocab) % self.tokens_each]
        return hidden


def _digest(picture: Any) -> str:
    return hashlib.sha256(repr(picture.size).encode() + picture.tobytes()).hexdigest()
