"""Longer contexts by other position angles, written into config.json as transformers 5 reads it (`rope_parameters`).

  linear   angles ÷ factor (arXiv 2306.15595)                                  max_position_embeddings × factor
  yarn     long waves ÷ factor, short ones kept, attention sharpened (arXiv 2309.00071)         × factor
  theta    a larger base; without a number the NTK-aware base × factor^(E / (E − 2))            × factor
  dynamic  that base, grown with the length of the text at hand (NTK)          stays: transformers reads the old length there

vLLM reads the same keys. GGUF holds linear, theta and YaRN, our OpenVINO engine linear and theta; the others are refused by name.
In rungs (4k → 8k → 32k): the same type once more, factors multiply and the length it was first trained on stays; another type on top is refused.
Not covered: llama3 scaling and longrope as targets, partial rotation.
"""

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twllm.errors import UserError, require_file
from twllm.model.rope_config import RopeConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def scaled(config: dict[str, Any], rope: RopeConfig, where: object = "[base.rope]") -> dict[str, Any]:
    """The keys of a config.json that change.

    Raises:
        UserError: a model without rotary positions of one kind, or with a scaling of its own.
    """
    now = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = now.get("rope_theta") or config.get("rope_theta")
    length = config.get("max_position_embeddings")
    kind = now.get("rope_type") or now.get("type") or "default"
    if not theta or not length:
        raise UserError("這個模型沒有（單一一種）旋轉位置 (no single rotary embedding)", where, "拿掉 [base.rope]")
    if kind not in ("default", rope.type):
        fix = (
            f'從縮放前的模型開始，或用同樣的 type = "{kind}" 再加長 (start before the scaling, or the same type again)'
        )
        raise UserError(f"模型已經有 RoPE 縮放 {kind} (already scaled)", where, fix)
    before = 1.0 if kind == "default" else float(now["factor"])
    kept = {key: value for key, value in now.items() if key not in ("rope_type", "type", "rope_theta")}
    found: dict[str, Any] = {**kept, "rope_type": rope.type, "rope_theta": float(theta)}
    longer = round(length * rope.factor)
    if rope.type == "theta":
        E = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
        found |= {"rope_type": "default", "rope_theta": rope.theta or float(theta) * rope.factor ** (E / (E - 2))}
    else:
        found["factor"] = before * rope.factor
    if rope.type == "yarn":
        found["original_max_position_embeddings"] = now.get("original_max_position_embeddings") or length
    return {"rope_parameters": found, "max_position_embeddings": length if rope.type == "dynamic" else longer}


def context_limit(config: Any) -> int | None:
    """Positions that a model's config (an object or a dict) allows, dynamic scaling counted; None: it does not say."""
    get = config.get if isinstance(config, dict) else lambda key: getattr(config, key, None)
    length, rope = get("max_position_embeddings"), get("rope_parameters") or get("rope_scaling") or {}
    if not isinstance(length, int):
        return None
    dynamic = isinstance(rope, dict) and (rope.get("rope_type") or rope.get("type")) == "dynamic"
    return round(length * float(rope["factor"])) if dynamic else length


def folder_limit(folder: Path) -> int | None:
    """`context_limit` of a checkpoint folder.

    Raises:
        UserError: it is none.
    """
    file = require_file(folder / "config.json", "這個資料夾不是模型 (no config.json)")
    try:
        return context_limit(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, AttributeError) as error:
        raise UserError(f"JSON 壞了 (broken JSON): {error}", file, "重新下載或重建這個檔案") from error


def extend(model: "PreTrainedModel", rope: RopeConfig) -> None:
    """Give a loaded model the longer positions, in place.

    Raises:
        UserError: see `scaled`, or its class keeps its angles where this does not know them.
    """
    changes = scaled(model.config.to_dict(), rope, model.config.model_type)
    rotary = getattr(model.get_decoder(), "rotary_emb", None)
    if rotary is None:
        raise UserError(
            "不認得這個模型的位置編碼 (unknown rotary embedding)", model.config.model_type, "拿掉 [base.rope]"
        )
    model.config.rope_parameters = changes["rope_parameters"]
    model.config.max_position_embeddings = changes["max_position_embeddings"]
    model.get_decoder().rotary_emb = type(rotary)(config=model.config).to(model.device)


def forget_lengths(model: "PreTrainedModel") -> bool:
    """Make dynamic angles a function of the rows at hand alone; returns whether the model has such.

    transformers keeps those of the longest text seen so far, with which a resumed run would differ from an uninterrupted one, and one
    user's answer from another's.
    """
    rotary = getattr(model.get_decoder(), "rotary_emb", None)
    if rotary is None or "dynamic" not in str(getattr(rotary, "rope_type", "")):
        return False

    def forget(module: Any, inputs: Any) -> None:
        module.inv_freq = module.original_inv_freq.to(module.inv_freq.device)
        module.max_seq_len_cached = module.original_max_seq_len

    rotary.register_forward_pre_hook(forget)
    return True


def extend_folder(source: Path, rope: RopeConfig, out: Path) -> dict[str, Any]:
    """Copy a checkpoint into the folder `out` (which exists) with longer positions; gives what changed in config.json."""
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    changes = scaled(config, rope, source / "config.json")
    for file in sorted(source.iterdir()):
        if file.is_file() and file.name not in ("config.json", "manifest.json"):
            shutil.copyfile(file, out / file.name)
    for old in ("rope_theta", "rope_scaling"):
        config.pop(old, None)
    text = json.dumps(config | changes, ensure_ascii=False, indent=2)
    (out / "config.json").write_text(text + "\n", encoding="utf-8")
    return changes
