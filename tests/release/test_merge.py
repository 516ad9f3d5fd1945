"""LoRA merged without peft: equal to peft's own merge, and refused where it would not be."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from twllm.errors import UserError
from twllm.release.merge import merge_adapter

ADAPTERS: dict[str, dict[str, Any]] = {
    "attention": {"target_modules": ["q_proj", "v_proj"]},
    "all, rank-stabilised, patterns": {
        "target_modules": "all-linear", "use_rslora": True, "r": 4, "rank_pattern": {"q_proj": 2},
        "alpha_pattern": {"layers.1.self_attn.v_proj": 3},
    },
    "embedding and head": {"target_modules": ["q_proj", "embed_tokens"], "modules_to_save": ["lm_head"]},
}  # fmt: skip


def base_model(folder: Path, dtype: torch.dtype = torch.float32, tied: bool = False) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=tied)).to(dtype)  # fmt: skip
    model.save_pretrained(folder)
    return model


def hand_made(folder: Path, base: Path, **config: Any) -> dict[str, torch.Tensor]:
    """An adapter of one module, written without peft."""
    folder.mkdir()
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "base_model_name_or_path": str(base), **config}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    name = "base_model.model.model.layers.0.self_attn.k_proj"
    torch.manual_seed(1)
    tensors = {f"{name}.lora_A.weight": torch.randn(2, 32), f"{name}.lora_B.weight": torch.randn(16, 2)}
    save_file(tensors, folder / "adapter_model.safetensors")
    return tensors


@pytest.mark.parametrize("kind", ADAPTERS)
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning")
def test_equals_pefts_merge(kind: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model = base_model(tmp_path / "base")
    config = peft.LoraConfig(**{"r": 8, "lora_alpha": 5, "init_lora_weights": False, **ADAPTERS[kind]})
    adapted = peft.get_peft_model(model, config)
    for name, parameter in adapted.named_parameters():
        if "modules_to_save" in name:
            parameter.data.normal_()
    adapted.save_pretrained(tmp_path / "adapter")
    expected = adapted.merge_and_unload().state_dict()
    (tmp_path / "out").mkdir()
    merge_adapter(tmp_path / "adapter", tmp_path / "base", tmp_path / "out")
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert set(found) == set(expected)
    assert all(torch.equal(found[name], expected[name]) for name in found)


def test_the_sum_is_made_in_fp32_and_rounded_once(tmp_path: Path) -> None:
    base_model(tmp_path / "base", torch.bfloat16)
    before = load_file(tmp_path / "base" / "model.safetensors")
    A, B = hand_made(tmp_path / "adapter", tmp_path / "base").values()
    (tmp_path / "out").mkdir()
    assert merge_adapter(tmp_path / "adapter", tmp_path / "base", tmp_path / "out")["merged"] == 1
    after = load_file(tmp_path / "out" / "model.safetensors")
    name = "model.layers.0.self_attn.k_proj.weight"
    assert torch.equal(after[name], (before[name].float() + 3 * (B @ A)).bfloat16())
    assert all(torch.equal(after[other], before[other]) for other in after if other != name)


@pytest.mark.parametrize(
    ("config", "what"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"bias": "all"}, "bias=all"),
        ({"peft_type": "IA3"}, "IA3"),
        ({"lora_bias": True}, "lora_bias"),
    ],
)
def test_other_kinds_are_refused(config: dict[str, Any], what: str, tmp_path: Path) -> None:
    base_model(tmp_path / "base")
    hand_made(tmp_path / "adapter", tmp_path / "base", **config)
    with pytest.raises(UserError, match=what):
        merge_adapter(tmp_path / "adapter", tmp_path / "base", tmp_path)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    base_model(tmp_path / "base")
    base_model(tmp_path / "tied", tied=True)
    tensors = hand_made(tmp_path / "adapter", tmp_path / "base")
    out = tmp_path / "out"
    out.mkdir()

    def write(**changes: torch.Tensor | None) -> None:
        kept = {name: changes.get(name, tensor) for name, tensor in {**tensors, **changes}.items()}
        save_file({k: v for k, v in kept.items() if v is not None}, tmp_path / "adapter" / "adapter_model.safetensors")

    first, second = tensors
    for changes, what in (
        ({second: None}, "half of a pair"),
        ({second: torch.zeros(20, 2)}, "shapes differ"),
        ({first: None, second: None, first.replace(".0.", ".7."): tensors[first], second.replace(".0.", ".7."): tensors[second]}, "no such tensor"),
        ({"base_model.model.odd": torch.zeros(1)}, "unknown tensor"),
    ):  # fmt: skip
        write(**changes)  # type: ignore[arg-type]
        with pytest.raises(UserError, match=what):
            merge_adapter(tmp_path / "adapter", tmp_path / "base", out)
    write(**{"base_model.model.lm_head.weight": torch.zeros(300, 32)})
    with pytest.raises(UserError, match="tied"):
        merge_adapter(tmp_path / "adapter", tmp_path / "tied", out)
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    (tmp_path / "adapter" / "adapter_model.bin").write_bytes(b"pickle")
    with pytest.raises(UserError, match="pickle"):
        merge_adapter(tmp_path / "adapter", tmp_path / "base", out)
    shutil.rmtree(out)
