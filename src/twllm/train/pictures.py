"""Training on conversations with pictures, in the one loop: rows as always, `<image>` tokens where features go, the pictures beside them.

A document's pictures are opened and prepared when its row comes up; the features replace the token embeddings exactly as in
transformers' `LlavaForConditionalGeneration`, whose loss on the same conversations is the same (held by a test). The shared prefix
of the rows ends before the first picture, and a document is never cut, so that no picture is.
Not covered: features of a frozen encoder kept from epoch to epoch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration, PreTrainedModel

from twllm.errors import UserError
from twllm.tokens.pack import Row
from twllm.tokens.picture_chats import shard_pictures
from twllm.tokens.pictures import read_picture
from twllm.tokens.shards import TokenShard
from twllm.train.data import Batch, PackedData
from twllm.train.machine import Machine
from twllm.train.objective import TokenObjective

CACHED = 4096  # prepared pictures kept in memory: tiny ones are 110 kB each; real ones are opened again (CACHED_BYTES)
CACHED_BYTES = 1 << 29
PARTS = {"projector": "multi_modal_projector", "encoder": "vision_tower", "language": "language_model"}
# B rows, T tokens, I pictures, n tokens a picture, D model width


@dataclass(frozen=True)
class PictureBatch(Batch):
    """A micro-batch with its pictures, in the order in which their tokens stand in the rows."""

    pixels: Tensor = field(default_factory=lambda: torch.zeros(0))  # (I, 3, side, side)
    image_id: int = -1

    def to(self, device: torch.device) -> "PictureBatch":
        """The same batch on `device`."""
        moved: Any = super().to(device)
        return replace(moved, pixels=self.pixels.to(device, non_blocking=True))

    def inputs(self, model: Any) -> dict[str, Tensor]:
        """Embeddings (B, T, D), with features in the places of the pictures."""
        return {"inputs_embeds": embed(model, self.ids, self.pixels, self.image_id)}


def embed(model: LlavaForConditionalGeneration, ids: Tensor, pixels: Tensor, image_id: int) -> Tensor:
    """What transformers' model makes of ids and pictures before its first layer."""
    embedded: Tensor = model.get_input_embeddings()(ids)  # (B, T, D)
    if not len(pixels):
        return embedded
    found = model.get_image_features(pixel_values=pixels.to(model.model.vision_tower.dtype), return_dict=True)
    features = torch.cat(list(found.pooler_output)).to(embedded.dtype)  # (I n, D)
    places = ids == image_id
    if int(places.sum()) != len(features):
        raise ValueError(f"{int(places.sum())} image tokens for {len(features)} features")
    return embedded.masked_scatter(places[..., None], features)


class PictureData(PackedData):
    """Rows of documents whose pictures come along. `processor` is transformers' image processor."""

    def __init__(
        self, shards: Sequence[TokenShard], weights: Sequence[float], context: int, seed: int, processor: Any, image_id: int
    ) -> None:  # fmt: skip
        self.processor, self.image_id = processor, image_id
        self.pictures = [references for shard in shards for references in shard_pictures(shard.folder)]
        side = int(processor.crop_size["height"])
        self._prepared = lru_cache(maxsize=min(CACHED, max(1, CACHED_BYTES // (12 * side * side))))(self._prepare)
        super().__init__(shards, weights, context, seed)
        if len(self.lengths) and self.lengths.max() > context:
            what = f"有 {self.lengths.max()} 個詞元的對話，比 context {context} 長 (longer than a row)"
            raise UserError(what, "context", "圖片不能切開：提高 context，或重新切詞元")

    def _shared_prefix(self) -> int:
        """As for texts, but never a picture's tokens: they are equal for all pictures."""
        prefix = super()._shared_prefix()
        if not prefix:
            return 0
        first = (self._read((0, 0, prefix))[0][:prefix] == self.image_id).nonzero()[0]
        return min(prefix, int(first[0])) if len(first) else prefix

    def _prepare(self, reference: str) -> np.ndarray[Any, Any]:
        """(3, side, side) in float32."""
        picture = read_picture(reference, None)
        found: np.ndarray[Any, Any] = self.processor(images=picture, return_tensors="np")["pixel_values"][0]
        return found

    def batch(self, rows: Sequence[Row]) -> PictureBatch:
        """Tensors of these rows, pictures included."""
        plain = super().batch(rows)
        found = [
            self._prepared(reference) for row in rows for piece in row.pieces for reference in self.pictures[piece[0]]
        ]
        pixels = torch.from_numpy(np.stack(found)) if found else torch.zeros(0)
        return PictureBatch(
            **{name: getattr(plain, name) for name in Batch.__dataclass_fields__}, pixels=pixels, image_id=self.image_id
        )


class PictureObjective(TokenObjective):
    """Next-token cross entropy of the assistant's tokens; the encoder keeps its own attention."""

    def __init__(self, model: PreTrainedModel, machine: Machine) -> None:
        super().__init__(model, machine)
        model.model.vision_tower.set_attn_implementation("sdpa")  # documents are the language model's affair


def choose_parts(model: LlavaForConditionalGeneration, parts: Sequence[str]) -> dict[str, int]:
    """Let these parts learn and no others; returns how many parameters each of them has.

    The head and the table of embeddings belong to the language model.
    """
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    counts = {}
    for part in parts:
        modules = [getattr(model.model, PARTS[part]), *([model.lm_head] if part == "language" else [])]
        own = {id(p): p for module in modules for p in module.parameters()}
        for parameter in own.values():
            parameter.requires_grad_(True)
        counts[part] = sum(p.numel() for p in own.values())
    _freeze_unused(model)
    return counts


def _freeze_unused(model: LlavaForConditionalGeneration) -> None:
    """The encoder's parts after the layer whose features are taken never learn: an optimizer should not hold them."""
    tower: Any = model.model.vision_tower
    tower = getattr(tower, "vision_model", tower)
    layer = model.config.vision_feature_layer
    unused = [getattr(tower, name, None) for name in ("post_layernorm", "head")]
    if isinstance(layer, int) and layer < -1:
        unused += list(tower.encoder.layers[layer + 1 :])
    for module in unused:
        if module is not None:
            module.requires_grad_(False)


def load_picture_data(
    tokens: Path, weights: Sequence[float], context: int, seed: int, processor: Any, image_id: int
) -> PictureData:
    """Rows from the shards `000`, `001`, …"""
    shards = [TokenShard(tokens / f"{i:03}") for i in range(len(weights))]
    return PictureData(shards, weights, context, seed, processor, image_id)


class BagObjective(PictureObjective):
    """For an encoder from scratch: which tokens a picture's caption has, told from its patches (SuperClass, arXiv 2411.03313).

    A linear head over the mean of the patches, on the layer that LLaVA will use; the target is the caption's tokens, rare ones counting
    more. The language model is not run, so that a picture costs a tenth of captioning it; at this size captioning taught the encoder
    next to nothing in the same time (dev/LOG.md). The head is thrown away.
    """

    def __init__(self, model: PreTrainedModel, machine: Machine, classes: "CaptionTokens") -> None:
        super().__init__(model, machine)
        self.classes = classes

    def begin(self, batches: Sequence[Batch]) -> float:
        """The number of pictures."""
        return max(1, sum(len(batch.pixels) for batch in batches if isinstance(batch, PictureBatch)))

    def loss(self, batch: Batch) -> Tensor:
        """Cross entropy to the caption's tokens, summed over pictures."""
        assert isinstance(batch, PictureBatch)
        batch = batch.to(self.model.device)
        tower, config = self.model.model.vision_tower, self.model.config
        with self.machine.autocast():
            hidden = tower(batch.pixels, output_hidden_states=True).hidden_states[config.vision_feature_layer]
            patches = hidden[:, -config.image_seq_length :]  # without the class token, (I, n, D)
            logits = self.model.caption_head(patches.mean(1))
        return -(self.classes.targets(batch, config.image_seq_length) * logits.float().log_softmax(-1)).sum()


class CaptionTokens:
    """The tokens that occur in the learned parts of a data set, as classes, and how rare each is."""

    def __init__(self, data: PictureData) -> None:
        counts: dict[int, int] = {}
        for document in range(len(data.lengths)):
            ids, learned = data._read((document, 0, int(data.lengths[document])))
            for id in np.unique(ids[: len(learned)][learned]).tolist():
                counts[id] = counts.get(id, 0) + 1
        self.number = {id: place for place, id in enumerate(sorted(counts))}
        documents = len(data.lengths)
        self._rarity = torch.tensor(
            [np.log((documents + 1) / (counts[id] + 1)) for id in sorted(counts)], dtype=torch.float32
        )

    def head(self, width: int) -> torch.nn.Module:
        """A classifier of pooled patches."""
        return torch.nn.Sequential(torch.nn.LayerNorm(width), torch.nn.Linear(width, len(self.number)))

    def targets(self, batch: PictureBatch, tokens_each: int) -> Tensor:
        """(I, classes): the tokens of each picture's document, weighted, sum 1."""
        found = []
        for row, start, length in batch.pieces:
            here = slice(start, start + length)
            labels = batch.labels[row, here]
            target = torch.zeros_like(self._rarity)
            target[[self.number[id] for id in set(labels[labels >= 0].tolist())]] = 1
            target = target * self._rarity
            pictures = int((batch.ids[row, here] == batch.image_id).sum()) // tokens_each
            found += [target / target.sum().clamp_min(1e-9)] * pictures
        return torch.stack(found).to(batch.ids.device)
