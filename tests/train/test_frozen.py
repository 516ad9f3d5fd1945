"""Frozen weights in bf16: the same products as before, half the bytes, and the base as it was in what is saved; experts in bf16."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import MixtralConfig, MixtralForCausalLM

from tests.train.test_methods import LORA, SMALL
from twllm.errors import UserError
from twllm.model.build import load
from twllm.tokens.shards import TokenShard
from twllm.tokens.tokenizer import ChatTokenizer
from twllm.train import experts
from twllm.train.config import MachineConfig, SftConfig
from twllm.train.data import PackedData
from twllm.train.frozen import Frozen
from twllm.train.loop import Trainer
from twllm.train.phase import train_phase

Make = Callable[..., Trainer]
LAYER = {"freeze": ["embed_tokens", "layers.0-0"]}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def phase(
    folder: Path, checkpoint: Path, shard: TokenShard, tokenizer: ChatTokenizer, settings: dict[str, Any], again: bool = True
) -> dict[str, torch.Tensor]:  # fmt: skip
    """A bf16 phase as the stages run it; the saved tensors."""
    tokens, out = folder / "tokens", folder / "out"
    tokens.mkdir(parents=True)
    (tokens / "000").symlink_to(shard.folder)
    out.mkdir()
    machine = MachineConfig(threads=1, precision="bf16", tensorboard=False)
    config = SftConfig.model_validate({**SMALL, **settings, "max_tokens": 256})
    begin = (lambda: load(checkpoint)) if again else None
    train_phase(
        "sft", config, [1.0], load(checkpoint), tokenizer, tokens, out, folder / "work", machine, begin
    )  # fmt: skip
    return load_file(out / "model.safetensors")


@pytest.mark.parametrize("settings", [{"lora": LORA}, LAYER], ids=["lora", "freeze"])
def test_nothing_that_is_computed_changes(
    make_trainer: Make, shard: TokenShard, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any],
) -> None:  # fmt: skip
    """A checkpoint in bf16: bit for bit; one in fp32: to what rounding the embedding changes."""
    config = SftConfig.model_validate({"lr": 1e-2, "epochs": 4, "batch_tokens": 128, "context": 64, **settings})
    machine = MachineConfig(threads=1, precision="bf16", tensorboard=False)

    def losses(name: str, rounded: bool) -> list[float]:
        model, data = load(tiny_checkpoint), PackedData([shard], [1.0], 64, 1)
        with torch.no_grad():
            for parameter in model.parameters() if rounded else ():
                parameter.copy_(parameter.bfloat16())
        trainer = Trainer("sft", model, data, config, machine, tmp_path / name)
        kinds = {(p.requires_grad, p.ndim > 1, p.dtype) for p in trainer.model.parameters()}
        assert (False, True, torch.float32 if name.endswith("whole") else torch.bfloat16) in kinds
        assert (True, True, torch.float32) in kinds and not any(
            dtype == torch.bfloat16 for learns, matrix, dtype in kinds if learns or not matrix
        )
        return [trainer.train_step(step)["loss"] for step in range(3)]

    small = [losses("a", True), losses("b", False)]
    monkeypatch.setattr(
        "twllm.train.methods.Frozen", lambda model, machine: Frozen(model, replace(machine, precision="fp32"))
    )
    assert small[0] == losses("a whole", True)
    assert small[1] == pytest.approx(losses("b whole", False), rel=2e-3)


def test_the_residual_stream_stays_fp32(make_trainer: Make, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, precision="bf16", lora=LORA)
    seen: list[torch.dtype] = []
    layer = trainer.model.get_decoder().layers[1]
    layer.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].dtype))
    trainer.train_step(0)
    assert set(seen) == {torch.float32}


def test_what_is_saved_is_the_base_as_it_was(
    tiny_checkpoint: Path, tiny_tokenizer: ChatTokenizer, shard: TokenShard, tmp_path: Path
) -> None:
    from peft import PeftModel

    base = {name: p.detach() for name, p in load(tiny_checkpoint).named_parameters()}
    frozen = phase(tmp_path / "freeze", tiny_checkpoint, shard, tiny_tokenizer, LAYER)
    same = {name for name, tensor in base.items() if torch.equal(frozen[name], tensor)}
    assert same == {name for name in base if "embed_tokens" in name or "layers.0." in name}
    merged = phase(tmp_path / "lora", tiny_checkpoint, shard, tiny_tokenizer, {"lora": LORA})
    peft = PeftModel.from_pretrained(load(tiny_checkpoint), tmp_path / "lora" / "out" / "adapter").merge_and_unload()
    for name, tensor in peft.named_parameters():
        torch.testing.assert_close(merged[name], tensor.detach(), rtol=1e-6, atol=1e-7)
    assert sum(torch.equal(merged[name], tensor) for name, tensor in base.items()) == len(base) - 14  # two layers
    with pytest.raises(UserError, match="base is needed again"):
        phase(tmp_path / "x", tiny_checkpoint, shard, tiny_tokenizer, LAYER, again=False)


def test_a_bf16_base_is_not_read_again(
    tiny_checkpoint: Path, tiny_tokenizer: ChatTokenizer, shard: TokenShard, tmp_path: Path
) -> None:
    for file in tiny_checkpoint.iterdir():
        (tmp_path / "base").mkdir(exist_ok=True)
        (tmp_path / "base" / file.name).symlink_to(file)
    tensors = load_file(tiny_checkpoint / "model.safetensors")
    (tmp_path / "base" / "model.safetensors").unlink()
    save_file(
        {k: v.bfloat16() for k, v in tensors.items()},
        tmp_path / "base" / "model.safetensors",
        metadata={"format": "pt"},
    )
    found = phase(tmp_path / "w", tmp_path / "base", shard, tiny_tokenizer, LAYER, again=False)
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(found[name], tensors[name].bfloat16().float())


def test_experts_take_part_in_autocast(make_trainer: Make, shard: TokenShard, tmp_path: Path) -> None:
    """bf16 products with gradients near those of fp32; the model is as it was afterwards."""
    torch.manual_seed(1)
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": None, "vocab_size": 600}
    shape = MixtralConfig(hidden_size=32, intermediate_size=32, num_local_experts=4, num_hidden_layers=2, **heads)
    config = SftConfig.model_validate({"lr": 1e-3, "epochs": 4, "batch_tokens": 128, "context": 64})
    machine = MachineConfig(threads=1, precision="bf16", tensorboard=False)
    model = MixtralForCausalLM(shape)
    trainer = Trainer("sft", model, PackedData([shard], [1.0], 64, 1), config, machine, tmp_path)
    layer: Any = model.model.layers[0].mlp.experts
    kinds: list[torch.dtype] = []
    layer.act_fn.register_forward_pre_hook(lambda module, inputs: kinds.append(inputs[0].dtype))
    trainer.train_step(0)
    assert set(kinds) == {torch.bfloat16} and layer.down_proj.dtype == torch.float32
    hidden, chosen, shares = torch.randn(50, 32), torch.rand(50, 4).topk(2).indices, torch.rand(50, 2)
    found = []
    for low in (False, True):
        layer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            out = layer(hidden, chosen, shares)
        out.square().sum().backward()
        found.append((out.detach(), layer.gate_up_proj.grad.clone(), layer.down_proj.grad.clone()))
    for whole, rounded in zip(*found, strict=True):
        assert rounded.dtype == torch.float32 and not torch.equal(whole, rounded)
        assert (whole - rounded).norm() < 0.02 * whole.norm()
    assert model.config._experts_implementation == experts.NAME
    trainer.execution.remove()
    assert model.config._experts_implementation == "grouped_mm"


def test_adapters_of_a_mixture_stand_on_its_attention(shard: TokenShard, tmp_path: Path) -> None:
    """peft's all-linear would put some on the experts, and no merge takes those: known only after the training."""
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": None, "vocab_size": 600}
    model = MixtralForCausalLM(
        MixtralConfig(hidden_size=32, intermediate_size=32, num_local_experts=4, num_hidden_layers=1, **heads)
    )
    config = SftConfig.model_validate({"lr": 1e-3, "batch_tokens": 128, "context": 64, "lora": LORA})
    machine = MachineConfig(threads=1, precision="bf16", tensorboard=False)
    trainer = Trainer("sft", model, PackedData([shard], [1.0], 64, 1), config, machine, tmp_path / "w")
    trainer.train_step(0)
    learned = {name.split(".")[-4] for name, p in model.named_parameters() if p.requires_grad}
    assert learned == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert trainer.methods.adapter
    trainer.methods.adapter.save(tmp_path / "adapter")
    merged = trainer.methods.adapter.merge(
        tmp_path / "adapter", trainer.methods.frozen, lambda: MixtralForCausalLM(model.config)
    )
    assert {p.dtype for p in merged.parameters()} == {torch.float32}
