"""A small model that sees: random CLIP encoder (four patches) and the tests' random Llama, as a folder; and a few pictures."""

import base64
import io
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import CLIPVisionConfig, CLIPVisionModel, SiglipVisionConfig, SiglipVisionModel

from twllm.model.build import load
from twllm.model.vision import MEAN, STD, join
from twllm.tokens.tokenizer import ChatTokenizer
from twllm.train.picture_phase import save_seeing

SHAPE: dict[str, Any] = {
    "image_size": 24, "patch_size": 12, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "initializer_range": 0.1,
}  # fmt: skip
PREPARED = {"image_mean": MEAN, "image_std": STD}


def encoder(kind: str = "clip") -> Any:
    torch.manual_seed(3)
    return (
        CLIPVisionModel(CLIPVisionConfig(**SHAPE)) if kind == "clip" else SiglipVisionModel(SiglipVisionConfig(**SHAPE))
    )


def seeing_model(checkpoint: Path, kind: str = "clip", layer: int = -2) -> tuple[Any, ChatTokenizer]:
    return join(load(checkpoint), encoder(kind), ChatTokenizer.load(checkpoint), layer)


def seeing_folder(checkpoint: Path, out: Path) -> Path:
    model, tokenizer = seeing_model(checkpoint)
    out.mkdir(parents=True)
    save_seeing(model, tokenizer, PREPARED, out)
    return out


def picture(number: int) -> Image.Image:
    torch.manual_seed(number)
    return Image.fromarray(torch.randint(0, 255, (20 + number, 30, 3), dtype=torch.uint8).numpy())


def data_url(image: Image.Image) -> str:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"
