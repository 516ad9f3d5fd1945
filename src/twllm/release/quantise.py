"""Smaller weights that stay Hugging Face folders: int8 by torchao, GPTQ and AWQ (four bits) by GPTQModel, calibrated on Taiwan text.

int8: one scale a row of each linear layer, nothing to calibrate; embeddings and head stay. Opened by transformers (with torchao), the torch engine, vLLM.
GPTQ, AWQ: groups of 128 (or 64, 32 where the width asks for it). GPTQModel sets numpy's version and is best kept in an environment of its own;
on a CPU it takes hours for 7B. The library's own choice of layers is kept. Opened by vLLM, TGI, transformers with gptqmodel and optimum.
Texts for calibration are the shipped encyclopedia and conversations, in the model's own template. AutoAWQ is archived, llm-compressor holds
older versions of torch and transformers, torchao's own GPTQ needs CUDA; that is why.
Not covered: mixtures of experts, quantised embeddings, int8 activations.
"""

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any, Literal

from twllm import data
from twllm.artifact import copy_files
from twllm.errors import UserError
from twllm.tokens.tokenizer import ChatTokenizer

Method = Literal["int8", "gptq", "awq"]
CALIBRATION_ROWS = 256  # what GPTQ's paper (arXiv 2210.17323) doubles; rows here are short
CALIBRATION_TOKENS = 512  # of a row; chosen
NOT_KEPT = ("config.json", "model.safetensors.index.json", "manifest.json", "README*")


def quantise(folder: Path, out: Path, method: Method, rows: int = CALIBRATION_ROWS) -> dict[str, Any]:
    """Fill the folder `out` (which exists) with the quantised checkpoint; gives method, bits, group size, rows of calibration.

    Raises:
        UserError: the library is missing, the model is quantised already, or its widths fit no group.
    """
    config = plain_config(folder)
    facts = _int8(folder, out) if method == "int8" else _four_bits(folder, out, method, config, rows)
    copy_files(folder, out, but=NOT_KEPT)
    _keep_contract(config, out)
    return facts


def plain_config(folder: Path) -> dict[str, Any]:
    """config.json of a checkpoint that is not quantised.

    Raises:
        UserError: it is.
    """
    config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if config.get("quantization_config"):
        raise UserError("這個模型已經量化過 (quantised already)", folder, "從原始精度的資料夾匯出")
    return config


def _int8(folder: Path, out: Path) -> dict[str, Any]:
    try:
        import torchao.quantization as ao
        from transformers import AutoModelForCausalLM, TorchAoConfig
    except ImportError as error:
        raise UserError("int8 要 torchao (package missing)", folder, "pip install 'twllm[quantise]'") from error
    from transformers.utils import logging

    logging.disable_progress_bar()
    settings = TorchAoConfig(ao.Int8WeightOnlyConfig())
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype="auto", quantization_config=settings, use_safetensors=True
    )
    model.save_pretrained(out)
    return {"method": "int8", "library": "torchao", "bits": 8}


def _four_bits(folder: Path, out: Path, method: Method, config: dict[str, Any], rows: int) -> dict[str, Any]:
    os.environ.setdefault("GPTQMODEL_DISABLE_TELEMETRY", "1")
    os.environ.setdefault(
        "GPTQMODEL_CPU_WORKERS", str(max(2, (os.cpu_count() or 2) // 2))
    )  # with one it does not start
    try:
        from gptqmodel import GPTQModel, QuantizeConfig
        from gptqmodel.quantization.config import FORMAT, METHOD
    except ImportError as error:
        fix = "pip install 'twllm[gptq]'（最好另開一個環境），或用 --format int8"
        raise UserError(f"{method} 要 GPTQModel (package missing)", folder, fix) from error
    group = group_size(config, method)
    settings = QuantizeConfig(
        bits=4, group_size=group, method=METHOD.GPTQ if method == "gptq" else METHOD.AWQ,
        format=FORMAT.GPTQ if method == "gptq" else FORMAT.GEMM, offload_to_disk=False,
    )  # fmt: skip
    tokenizer = ChatTokenizer.load(folder)
    given = [
        {"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in islice(calibration(tokenizer, config), rows)
    ]
    folder, out = folder.resolve(), out.resolve()
    with tempfile.TemporaryDirectory() as work, contextlib.chdir(work):  # it writes ./logs
        model = GPTQModel.load(str(folder), settings)
        model.quantize(given, batch_size=1)
        model.save(str(out))
    return {"method": method, "library": "gptqmodel", "bits": 4, "group_size": group, "calibration_rows": len(given)}


def group_size(config: dict[str, Any], method: Method) -> int:
    """The largest usual group that cuts every layer's rows evenly; AWQ also wants the layers' outputs in multiples of 64.

    Raises:
        UserError: none does.
    """
    width, heads = config.get("hidden_size", 0), config.get("num_attention_heads", 1)
    head = config.get("head_dim") or width // heads
    inputs = [width, config.get("intermediate_size", 0), heads * head]
    outputs = [*inputs, (config.get("num_key_value_heads") or heads) * head]
    for size in (128, 64, 32):
        if all(each and each % size == 0 for each in inputs):
            break
    else:
        raise UserError(f"這個模型的寬度 {inputs} 分不成 32 的組 (no group fits)", "config.json", "用 --format int8")
    if method == "awq" and any(each % 64 for each in outputs):
        raise UserError(f"AWQ 要寬度是 64 的倍數 (widths {outputs})", "config.json", "用 --format gptq 或 int8")
    return size


def calibration(tokenizer: ChatTokenizer, config: dict[str, Any]) -> Iterator[list[int]]:
    """Ids of paragraphs and conversations in turn; none of it is a question of the evaluation."""
    limit = min(CALIBRATION_TOKENS, config.get("max_position_embeddings") or CALIBRATION_TOKENS)
    chats = _rows("twllm:taiwan_instruction") if tokenizer.template else iter(())
    for page, chat in zip_longest(_rows("twllm:knowledge"), chats):
        if page:
            yield tokenizer.encode(page["text"], bos=True)[:limit]
        if chat:
            yield tokenizer.encode_chat(chat["messages"]).ids[:limit]


def _rows(name: str) -> Iterator[dict[str, Any]]:
    """Rows of a shipped data set, its files in turn, so that any first part has all topics."""
    files = [file.read_text(encoding="utf-8").splitlines() for file in sorted(data.resolve(name).glob("*.jsonl"))]
    for lines in zip_longest(*files):
        yield from (json.loads(line) for line in lines if line)


def _keep_contract(config: dict[str, Any], out: Path) -> None:
    """config.json goes on saying which template the model was trained with."""
    file = out / "config.json"
    written = json.loads(file.read_text(encoding="utf-8"))
    if "twllm" in config and written.get("twllm") != config["twllm"]:
        file.write_text(
            json.dumps(written | {"twllm": config["twllm"]}, ensure_ascii=False, indent=2) + "\n", encoding="utf-8"
        )
