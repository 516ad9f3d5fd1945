"""What a Llama-shaped checkpoint says about itself, for engines that build the model anew (OpenVINO, GGUF): no torch.

Llama, Mistral, Qwen2 and Qwen3 are one shape with options: biases on query, key and value, norms on query and key. Position angles
follow `rope_parameters` (transformers 5) or `rope_scaling` (before): default, linear (arXiv 2306.15595) and llama3.
Not covered, refused by name: sliding windows shorter than the context, dynamic and long rope, partial rotation, experts; YaRN where the
caller does not compute it itself (llama.cpp does: `own` names what it can).
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twllm.errors import UserError, require_file

MODELS = {"llama", "mistral", "qwen2", "qwen3"}
LLAMACPP_ROPE = frozenset({"yarn"})  # what llama.cpp computes itself
CONTEXT = 4096  # where the checkpoint names none; chosen


@dataclass(frozen=True)
class LlamaShape:
    """D width, H heads, K key/value heads, E width of a head, V vocabulary."""

    kind: str
    layers: int
    D: int
    H: int
    K: int
    E: int
    F: int
    V: int
    epsilon: float
    context: int
    rope: dict[str, Any]  # rope_type, rope_theta and the type's own numbers

    def frequencies(self) -> NDArray[np.float32]:
        """Angle per position of each pair of coordinates, (E / 2,)."""
        steps = np.arange(0, self.E, 2, dtype=np.float32) / np.float32(self.E)
        base = (np.float32(1) / np.float32(self.rope["rope_theta"]) ** steps).astype(np.float32)
        if self.rope["rope_type"] == "linear":
            return np.asarray(base / np.float32(self.rope["factor"]), np.float32)
        if self.rope["rope_type"] == "llama3":
            return _llama3(base, self.rope)
        return base


def read_shape(folder: str | Path, own: frozenset[str] = frozenset()) -> LlamaShape:
    """The shape of a checkpoint; `own`: kinds of rope that the caller computes without `frequencies`.

    Raises:
        UserError: no config.json, or a model that is not of this shape; the torch engine may know it.
    """
    file = require_file(Path(folder) / "config.json", "這個資料夾不是模型 (no config.json)")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"JSON 壞了 (broken JSON): {error}", file, "重新下載這個檔案") from error
    kind = config.get("model_type", "")
    if kind not in MODELS:
        raise _refused(f"model_type {kind!r}", file)
    context = int(config.get("max_position_embeddings") or CONTEXT)
    window = config.get("sliding_window") if config.get("use_sliding_window", kind == "mistral") else None
    if window and window < context:
        raise _refused(f"sliding_window {window}", file)
    for key, plain in (("hidden_act", "silu"), ("partial_rotary_factor", 1.0), ("mlp_bias", False)):
        if config.get(key, plain) not in (plain, None):
            raise _refused(f"{key} {config[key]!r}", file)
    rope = _rope(config)
    if rope["rope_type"] not in {"default", "linear", "llama3"} | own:
        raise _refused(f"rope_type {rope['rope_type']!r}", file)
    heads = int(config["num_attention_heads"])
    return LlamaShape(
        kind=kind,
        layers=int(config["num_hidden_layers"]),
        D=int(config["hidden_size"]),
        H=heads,
        K=int(config.get("num_key_value_heads") or heads),
        E=int(config.get("head_dim") or config["hidden_size"] // heads),
        F=int(config["intermediate_size"]),
        V=int(config["vocab_size"]),
        epsilon=float(config["rms_norm_eps"]),
        context=context,
        rope=rope,
    )


def _rope(config: dict[str, Any]) -> dict[str, Any]:
    found = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = found.get("rope_theta") or config.get("rope_theta") or 10_000.0
    return {**found, "rope_type": found.get("rope_type") or found.get("type") or "default", "rope_theta": float(theta)}


def _llama3(base: NDArray[np.float32], rope: dict[str, Any]) -> NDArray[np.float32]:
    """Long waves are stretched, short ones kept, those between blended (Llama 3.1)."""
    factor, low, high = (float(rope[key]) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    turns = float(rope["original_max_position_embeddings"]) * base / (2 * math.pi)
    share = np.clip((turns - low) / (high - low), 0, 1)
    return np.asarray((1 - share) * base / factor + share * base, np.float32)


def _refused(what: str, file: Path) -> UserError:
    return UserError(f"這個引擎不支援這種模型 (not Llama-shaped): {what}", file, "換 --engine torch")
