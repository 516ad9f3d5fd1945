"""A recipe's [vision] as phases of a plan: how many tokens with pictures, which parts learn.

Pictures that the recipe draws are counted by their number and what an average one says (measured on 300: CAPTION_TOKENS, CHAT_TOKENS with the
template's own); other data by its characters, without its pictures.
"""

import json
from collections.abc import Callable, Iterator
from typing import Any

from twllm.errors import UserError
from twllm.model.encoder_shapes import HUB_ENCODERS, SIZES, count_encoder, patch_count
from twllm.planning.job import Eyes
from twllm.planning.search import Phase
from twllm.tokens.config import DatasetConfig
from twllm.train.picture_config import PicturePhaseConfig, VisionConfig

CAPTION_TOKENS, CHAT_TOKENS = 50, 120


def picture_phases(vision: VisionConfig, tokens_of: Callable[[DatasetConfig], float]) -> Iterator[tuple[Phase, bool]]:
    """The enabled phases in order, and whether max_tokens ended them. `tokens_of`: of a data set, weight included."""
    shape = encoder_shape(vision)
    for name, phase in (("encode", vision.encode), ("align", vision.align), ("instruct", vision.instruct)):
        if phase and phase.enabled:
            yield _as_phase(vision, name, phase, shape, tokens_of)


def _as_phase(
    vision: VisionConfig, name: str, phase: PicturePhaseConfig, shape: dict[str, Any], tokens_of: Callable[[DatasetConfig], float]
) -> tuple[Phase, bool]:  # fmt: skip
    patches = patch_count(shape)
    epoch = sum(tokens_of(dataset) for dataset in phase.datasets)
    if vision.draw:
        epoch += vision.draw.pictures * (patches + (CHAT_TOKENS if name == "instruct" else CAPTION_TOKENS))
    tokens = max(1, int(epoch * phase.epochs))
    capped = phase.max_tokens is not None and phase.max_tokens < tokens
    eyes = Eyes(
        shape["hidden_size"], shape["num_hidden_layers"], shape["intermediate_size"], patches, count_encoder(shape), phase.train,
        classifies=name == "encode",
    )  # fmt: skip
    batch = max(1, phase.batch_tokens // phase.context) * phase.context
    return Phase(name, min(tokens, phase.max_tokens or tokens), phase.context, batch, eyes=eyes), capped


def encoder_shape(vision: VisionConfig) -> dict[str, Any]:
    """By size, as the table of hub encoders knows it, or from the checkpoint's config.json.

    Raises:
        UserError: a config that says no shape.
    """
    if vision.size:
        if vision.size not in SIZES:
            raise UserError("沒有這個編碼器大小 (unknown encoder size)", vision.size, "、".join(SIZES))
        return SIZES[vision.size]
    name = str(vision.encoder)
    if name in HUB_ENCODERS:
        return HUB_ENCODERS[name]
    from twllm.model.hub import fetch

    file = fetch(name, vision.revision, ["config.json"]) / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    shape: dict[str, Any] = config.get("vision_config", config)
    needed = {"image_size", "patch_size", "hidden_size", "intermediate_size", "num_hidden_layers"}
    if missing := needed - set(shape):
        raise UserError(
            f"看不懂這個編碼器的形狀 (no {sorted(missing)[0]} in its config)", file, "--dry-run 目前支援 CLIP、SigLIP"
        )
    return shape
