"""A model from a size name (random weights) or from a Hugging Face checkpoint; save it so that anyone can load it.

Sizes 1b to 13b follow Llama-2 / TinyLlama shapes (arXiv 2307.09288, arXiv 2401.02385); tiny and mini are ours, chosen for
two CPU cores (dev/LOG.md). Weights are kept in fp32 while training (autocast does bf16), and saved as safetensors.
Not covered: architectures other than causal language models, sharded construction (a later part).
"""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)
from transformers.utils import logging as transformers_logging

from twllm.errors import UserError, did_you_mean, require_file
from twllm.model.seeing import is_seeing
from twllm.model.sizes import SIZES, count_parameters
from twllm.tokens.tokenizer import ChatTokenizer

__all__ = ["SIZES", "build", "count_parameters", "load", "save"]


def build(size: str, tokenizer: ChatTokenizer, context: int, seed: int) -> PreTrainedModel:
    """A Llama of a named size with random weights (fp32), its embedding as large as the tokenizer's vocabulary.

    Raises:
        UserError: unknown size.
    """
    if size not in SIZES:
        raise UserError("沒有這個模型大小 (unknown model size)", size, did_you_mean(size, SIZES))
    torch.manual_seed(seed)
    config = LlamaConfig(
        **SIZES[size].llama(tokenizer.vocab_size, context),
        bos_token_id=tokenizer.bos_id,
        eos_token_id=tokenizer.eos_id,
        pad_token_id=None,  # a padding id would zero that row of the embedding, and here it is the end token's
    )
    return LlamaForCausalLM(config)


def load(folder: str | Path) -> PreTrainedModel:
    """A causal language model, or one that sees (vision.py), from a Hugging Face folder, in fp32; safetensors only (no pickle is read).

    Raises:
        UserError: the folder is missing or holds no model.
    """
    folder = require_file(folder, "找不到模型資料夾 (no such model folder)")
    if not (folder / "config.json").is_file():
        names = "、".join(sorted(p.name for p in folder.iterdir())[:8]) if folder.is_dir() else ""
        raise UserError(
            "這個資料夾不是模型 (no config.json)",
            f"{folder}（{'有 ' + names if names else '空資料夾' if folder.is_dir() else '是檔案'}）",
            "指到 Hugging Face 格式的模型資料夾",
        )
    transformers_logging.disable_progress_bar()
    kind = AutoModelForImageTextToText if is_seeing(folder) else AutoModelForCausalLM
    try:
        model: PreTrainedModel
        model, told = kind.from_pretrained(folder, dtype=torch.float32, use_safetensors=True, output_loading_info=True)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise UserError(
            f"讀不進這個模型 (cannot load): {str(error).splitlines()[0]}", folder, "需要 safetensors 格式的因果語言模型"
        ) from error
    if missing := sorted(told["missing_keys"]):  # transformers would go on with random numbers
        what = f"少了 {len(missing)} 個張量 (weights are missing): {'、'.join(missing[:3])}{'…' if len(missing) > 3 else ''}"
        raise UserError(what, folder, "config.json 與權重檔不是同一個模型，或少了檔案：重新下載")
    model.get_input_embeddings().padding_idx = (
        None  # else the end token's row, often named as padding too, never learns
    )
    return model


def save(model: PreTrainedModel, tokenizer: ChatTokenizer, folder: Path) -> None:
    """Write config, safetensors, generation config (greedy, ends at the template's end token) and the tokenizer."""
    ends = sorted(
        {tokenizer.eos_id, tokenizer.answer_end or tokenizer.eos_id}
    )  # Phi's templates end answers with another token
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_id,
        eos_token_id=ends if len(ends) > 1 else ends[0],
        pad_token_id=tokenizer.pad_id,
        do_sample=False,
    )
    model.config.twllm = {"template_fingerprint": tokenizer.template_fingerprint}  # see tokens/contract.py
    transformers_logging.disable_progress_bar()
    model.save_pretrained(folder)
    tokenizer.save(folder)


def weights_fingerprint(state: dict[str, Any]) -> str:
    """SHA-256 over all tensors' bytes, by name: equal only for bit-equal weights."""
    import hashlib

    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode())
        tensor = state[name].detach()
        tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor  # of several processes
        digest.update(tensor.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
