"""A LoRA adapter folder + its base → one checkpoint, tensor by tensor: W + (alpha / r) · B · A, what peft's `merge_and_unload` gives.

Reads safetensors only and needs no peft. The sum is made in fp32 and rounded once to the base's own type. Memory: one shard of the base at a time.
rsLoRA, rank and alpha patterns, `modules_to_save` (a whole trained head or embedding), adapters of embeddings and of tied
embeddings (refused: one table cannot be two) are covered. Not covered, refused by name: DoRA, aLoRA, biases, replicated layers,
single parameters, quantised bases; adapters of other kinds than LoRA.
"""

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from twllm.artifact import copy_files
from twllm.errors import UserError, require_file

PREFIX = "base_model.model."
LINEAR = re.compile(r"(?P<module>.+)\.lora_(?P<part>[AB])(?:\.[\w-]+)?\.weight$")
TABLE = re.compile(r"(?P<module>.+)\.lora_embedding_(?P<part>[AB])(?:\.[\w-]+)?$")
SAVED = re.compile(
    r"(?:\.modules_to_save(?:\.[\w-]+)?|\.base_layer)?(\.(?:weight|bias))$"
)  # whole tensors, also an adapted embedding's own
TOKENIZER = ("tokenizer*", "chat_template.jinja", "special_tokens_map.json", "added_tokens.json")
# fmt: off
REFUSED = {"use_dora": "DoRA", "alora_invocation_tokens": "aLoRA", "layer_replication": "layer_replication", "lora_bias": "lora_bias",
           "target_parameters": "target_parameters", "trainable_token_indices": "trainable_token_indices", "use_qalora": "QALoRA",
           "use_bdlora": "BD-LoRA", "velora_config": "VeLoRA", "kasa_config": "KaSA", "monteclora_config": "MonteCLoRA", "arrow_config": "Arrow"}
# fmt: on


def is_adapter(folder: Path) -> bool:
    """Whether the folder holds an adapter and no model."""
    return (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file()


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """adapter_config.json.

    Raises:
        UserError: it is broken, or an adapter that is not merged here.
    """
    file = require_file(folder / "adapter_config.json")
    try:
        config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        kind = config["peft_type"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"轉接器的設定壞了 (broken adapter_config.json): {error}", file, "重新下載這個檔案") from error
    odd = [name for key, name in REFUSED.items() if config.get(key)]
    if config.get("bias", "none") != "none":
        odd.append(f"bias={config['bias']}")
    if kind != "LORA" or odd:
        what = f"不會合併這種轉接器 (cannot merge): {kind} {'、'.join(odd)}"
        raise UserError(what, file, "用 peft 的 merge_and_unload 合併後再匯出")
    return config


def merge_adapter(adapter: Path, base: Path, out: Path) -> dict[str, Any]:
    """Write the merged checkpoint into the folder `out` (which exists); gives how many tensors changed.

    The tokenizer and template are the adapter's where it has one, else the base's.

    Raises:
        UserError: the adapter does not fit the base, or is of a kind that is not covered; nothing is half changed.
    """
    config = read_adapter_config(adapter)
    changes = Changes(adapter, config, base)
    copy_files(base, out)
    if any(adapter.glob("tokenizer.json")):
        copy_files(adapter, out, TOKENIZER)
    files = sorted(base.glob("*.safetensors"))
    if not files:
        raise UserError("底模沒有 safetensors 權重檔 (no safetensors)", base, "需要 safetensors 格式的底模")
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            done = {name: changes.apply(name, tensors.get_tensor(name)) for name in tensors.keys()}  # noqa: SIM118
            save_file(done, out / file.name, metadata=tensors.metadata() or {"format": "pt"})
    changes.require_all_used()
    return {"merged": len(changes.used), "rank": config.get("r"), "alpha": config.get("lora_alpha")}


class Changes:
    """What an adapter does to the base's tensors, by the base's names; `base` is its folder, or its config.json as read."""

    def __init__(self, adapter: Path, config: dict[str, Any], base: Path | dict[str, Any]) -> None:
        self.folder, self.config = adapter, config
        self.parts: dict[str, dict[str, torch.Tensor]] = {}
        self.tables: set[str] = set()
        self.saved: dict[str, torch.Tensor] = {}
        self.used: set[str] = set()
        for name, tensor in _tensors(adapter):
            self._sort(name.removeprefix(PREFIX), tensor)
        broken = [name for name, parts in self.parts.items() if set(parts) != {"A", "B"}]
        if broken or not (self.parts or self.saved):
            what = f"{broken[0]} 只有一半 (half of a pair)" if broken else "沒有任何張量 (no tensors)"
            raise UserError(f"轉接器不完整 (incomplete adapter): {what}", adapter, "重新下載 adapter_model.safetensors")
        self._refuse_tied(base)

    def _sort(self, name: str, tensor: torch.Tensor) -> None:
        if match := LINEAR.match(name) or TABLE.match(name):
            target = f"{match['module']}.weight"
            self.parts.setdefault(target, {})[match["part"]] = tensor
            if TABLE.match(name):
                self.tables.add(target)
        elif SAVED.search(name):
            self.saved[SAVED.sub(r"\1", name)] = tensor
        else:
            raise UserError("轉接器裡有不認得的張量 (unknown tensor)", f"{self.folder}: {name}", "用 peft 合併後再匯出")

    def _refuse_tied(self, base: Path | dict[str, Any]) -> None:
        if isinstance(base, dict):
            config = base
        else:
            config = json.loads(require_file(base / "config.json").read_text(encoding="utf-8"))
        if config.get("quantization_config"):
            where = self.folder if isinstance(base, dict) else base
            raise UserError("底模是量化過的 (quantised base)", where, "換成原始精度的底模再合併")
        tables = [n for n in (*self.parts, *self.saved) if n.endswith(("embed_tokens.weight", "lm_head.weight"))]
        both = len({name.rsplit(".", 2)[-2] for name in tables}) == 2
        if config.get("tie_word_embeddings") and tables and not (both and set(tables) <= set(self.saved)):
            what = "底模的輸入與輸出共用一張表，轉接器只改其中一邊 (tied embeddings)"
            raise UserError(what, tables[0], "用 peft 合併後再匯出，或訓練時不要改嵌入")

    def apply(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        """The tensor as it is after the merge."""
        if name in self.saved:
            self.used.add(name)
            _same_shape(name, self.saved[name], weight)
            weight = self.saved[name].to(weight.dtype).contiguous()
        if name not in self.parts:
            return weight
        self.used.add(name)
        A, B = self.parts[name]["A"].float(), self.parts[name]["B"].float()
        change = B @ A  # (out, r) @ (r, in)
        if name in self.tables or self.config.get("fan_in_fan_out"):
            change = change.T
        _same_shape(name, change, weight)
        return (weight.float() + self._scale(name) * change).to(weight.dtype)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape that each tensor has to have in the base."""
        found = {name: tuple(tensor.shape) for name, tensor in self.saved.items()}
        for name, parts in self.parts.items():
            size = (parts["B"].shape[0], parts["A"].shape[1])
            found[name] = size[::-1] if name in self.tables or self.config.get("fan_in_fan_out") else size
        return found

    def _scale(self, name: str) -> float:
        module = name.removesuffix(".weight")
        rank = _matching(self.config.get("rank_pattern"), module, self.config["r"])
        alpha = _matching(self.config.get("alpha_pattern"), module, self.config.get("lora_alpha", 8))
        return float(alpha / (math.sqrt(rank) if self.config.get("use_rslora") else rank))

    def require_all_used(self) -> None:
        """Every tensor of the adapter found its place.

        Raises:
            UserError: the base has no such module.
        """
        if left := sorted({*self.parts, *self.saved} - self.used):
            what = f"底模沒有 {left[0]} 等 {len(left)} 個張量 (no such tensor in the base)"
            raise UserError(what, self.folder, "確認轉接器與底模是一對 (--base)")


def _tensors(adapter: Path) -> Iterator[tuple[str, torch.Tensor]]:
    file = adapter / "adapter_model.safetensors"
    if not file.is_file():
        other = "有 adapter_model.bin（pickle，不讀）" if (adapter / "adapter_model.bin").is_file() else "沒有權重檔"
        raise UserError(
            f"轉接器沒有 safetensors (no adapter_model.safetensors)：{other}", adapter, "用 peft 轉存成 safetensors"
        )
    try:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  (not a dict)
                yield name, tensors.get_tensor(name)
    except SafetensorError as error:
        raise UserError(f"權重檔壞了或不完整 (broken safetensors): {error}", file, "重新下載這個檔案") from error


def _same_shape(name: str, ours: torch.Tensor, base: torch.Tensor) -> None:
    if ours.shape != base.shape:
        what = f"轉接器是 {tuple(ours.shape)}，底模是 {tuple(base.shape)} (shapes differ)"
        raise UserError(what, name, "確認底模：詞彙擴充過的轉接器要配同一個擴充過的底模")


def _matching(pattern: dict[str, Any] | None, module: str, default: Any) -> Any:
    """peft's rule: a key is a suffix of the module's name, or an expression for one."""
    for key, value in (pattern or {}).items():
        if re.match(rf"(?:.*\.)?(?:{key})$", module):
            return value
    return default
