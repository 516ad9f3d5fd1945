"""A chat model that sees: LLaVA (arXiv 2310.03744) from any CLIP or SigLIP encoder and a causal language model, all of it transformers' classes.

The encoder's patch features (of the second last layer, unless told otherwise) go through a two-layer projector and take the places
of `<image>` tokens. The folder holds what transformers' `LlavaForConditionalGeneration` and `AutoProcessor` read, and nothing of ours is
needed to open it. Pictures are padded to a square, as in LLaVA-1.5: a menu's edges are not cut off.
Not covered: encoders with several sizes or tiles of one picture (LLaVA-NeXT, NaFlex), video, freezing by layers.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForCausalLM,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedModel,
    SiglipVisionModel,
)
from transformers.utils import logging as transformers_logging

from twllm.errors import UserError, did_you_mean, require_file
from twllm.model.encoder_shapes import SIZES
from twllm.model.hub import fetch
from twllm.tokens.picture_template import IMAGE, seeing_tokenizer
from twllm.tokens.tokenizer import ChatTokenizer

ENCODERS = {"clip": CLIPVisionModel, "siglip": SiglipVisionModel}  # by model_type, with or without _vision_model
MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]  # CLIP's


def build_encoder(size: str, seed: int) -> tuple[PreTrainedModel, dict[str, Any]]:
    """A CLIP vision model of a named size with random weights, and what its pictures are prepared by.

    Raises:
        UserError: unknown size.
    """
    if size not in SIZES:
        raise UserError("沒有這個編碼器大小 (unknown encoder size)", size, did_you_mean(size, SIZES))
    torch.manual_seed(seed)
    return CLIPVisionModel(CLIPVisionConfig(**SIZES[size])), {"image_mean": MEAN, "image_std": STD}


def load_encoder(model: str, revision: str | None = None) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The vision half of a CLIP or SigLIP checkpoint (folder or hub name), and what its pictures are prepared by.

    Raises:
        UserError: no such model, or another kind of encoder.
    """
    folder = fetch(model, revision)
    require_file(folder / "config.json", "這個資料夾不是模型 (no config.json)")
    transformers_logging.disable_progress_bar()
    kind = str(json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type", ""))
    family = kind.removesuffix("_vision_model")
    if family not in ENCODERS:
        raise UserError(
            f"不支援這種圖片編碼器 (not CLIP or SigLIP): {kind or '?'}", model, "換一個 CLIP 或 SigLIP 模型"
        )
    try:
        encoder = ENCODERS[family].from_pretrained(folder, dtype=torch.float32, use_safetensors=True)
        prepared = AutoImageProcessor.from_pretrained(folder)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        what = f"讀不進這個圖片編碼器 (cannot load): {str(error).splitlines()[0]}"
        raise UserError(what, folder, "需要 safetensors 權重與 preprocessor_config.json") from error
    return encoder, {"image_mean": list(prepared.image_mean), "image_std": list(prepared.image_std)}


def join(
    language: PreTrainedModel, encoder: PreTrainedModel, tokenizer: ChatTokenizer, layer: int = -2, multiple: int = 1, seed: int = 1
) -> tuple[LlavaForConditionalGeneration, ChatTokenizer]:  # fmt: skip
    """Both in one model with a fresh projector, and the tokenizer with `<image>`; the parts' weights are taken over, not copied.

    Raises:
        UserError: the language model sees already, or the encoder has no such layer.
    """
    from twllm.model.vocabulary import resize_vocabulary

    if sees(language):
        raise UserError("這個模型已經看得見圖片 (it sees already)", language.config.model_type, "給純文字的對話模型")
    vision = encoder.config
    layers = int(vision.num_hidden_layers)
    if not -layers - 1 <= layer <= layers:
        raise UserError(f"編碼器只有 {layers} 層 (no such layer)", f"layer = {layer}", f"給 -1 到 -{layers + 1}")
    seeing = seeing_tokenizer(tokenizer)
    if seeing.vocab_size > language.get_input_embeddings().weight.shape[0]:
        resize_vocabulary(language, tokenizer, seeing, "average", multiple)
    first_token = isinstance(encoder, CLIPVisionModel)  # a class token before the patches
    config = LlavaConfig(
        vision_config=vision,
        text_config=language.config,
        image_token_index=seeing.controls[IMAGE],
        image_seq_length=(vision.image_size // vision.patch_size) ** 2,
        vision_feature_layer=layer,
        vision_feature_select_strategy="default" if first_token else "full",
        tie_word_embeddings=language.config.tie_word_embeddings,
    )
    torch.manual_seed(seed)
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
    model.model.vision_tower = encoder
    model.model.language_model = language.get_decoder()
    model.lm_head = language.get_output_embeddings()
    model.model.multi_modal_projector = _projector(config)
    return model, seeing


def _projector(config: LlavaConfig) -> nn.Module:
    from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

    projector = LlavaMultiModalProjector(config)
    width, deviation = config.vision_config.hidden_size, float(config.text_config.initializer_range)
    nn.init.normal_(projector.linear_1.weight, std=width**-0.5)
    nn.init.normal_(projector.linear_2.weight, std=deviation)  # features enter as large as embeddings do
    for layer in (projector.linear_1, projector.linear_2):
        nn.init.zeros_(layer.bias)
    return projector


def sees(model: PreTrainedModel) -> bool:
    """Whether pictures can be given to the model."""
    return getattr(model.config, "model_type", "") == "llava"


def picture_processor(model: LlavaForConditionalGeneration, prepared: dict[str, Any]) -> Any:
    """transformers' image processor for the encoder's size; `prepared`: image_mean and image_std."""
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

    side = int(model.config.vision_config.image_size)
    size = {"shortest_edge": side}, {"height": side, "width": side}
    return LlavaImageProcessorPil(size=size[0], crop_size=size[1], do_pad=True, **prepared)


def save_processor(model: LlavaForConditionalGeneration, prepared: dict[str, Any], folder: Path) -> None:
    """What `AutoProcessor` reads: pictures, and how many `<image>` tokens one of them is."""
    picture_processor(model, prepared).save_pretrained(folder)
    config = model.config
    processor = {
        "processor_class": "LlavaProcessor",
        "patch_size": config.vision_config.patch_size,
        "vision_feature_select_strategy": config.vision_feature_select_strategy,
        "num_additional_image_tokens": int(config.vision_feature_select_strategy == "default"),  # the class token
        "image_token": IMAGE,
    }
    for name, more in (
        ("processor_config.json", processor),
        ("preprocessor_config.json", {"processor_class": "LlavaProcessor"}),
    ):
        file = folder / name
        held = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        file.write_text(json.dumps({**held, **more}, indent=2) + "\n", encoding="utf-8")


def load_processor(folder: Path) -> Any:
    """The image processor of a folder.

    Raises:
        UserError: it has none.
    """
    try:
        return AutoImageProcessor.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise UserError(
            "沒有圖片處理設定 (no preprocessor_config.json)", folder, "放回訓練時的檔案，或重新匯出這個模型"
        ) from error


def language_view(model: LlavaForConditionalGeneration) -> PreTrainedModel:
    """The language model inside, as transformers' own class for it; the weights are shared."""
    config = AutoConfig.for_model(**model.config.text_config.to_dict())
    config.tie_word_embeddings = model.config.tie_word_embeddings
    with torch.device("meta"):
        view: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    decoder = model.model.language_model
    setattr(view, view.base_model_prefix, decoder)
    view.set_output_embeddings(model.lm_head)
    view.config = decoder.config
    return view.train(model.training)
