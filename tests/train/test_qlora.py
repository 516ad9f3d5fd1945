"""QLoRA: the frozen layers are in 4 bits, training and resuming work, the merge goes into the base at full precision."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.train.test_loop import run_and_kill
from tests.train.test_methods import LORA, SMALL, phase_on
from twllm.errors import UserError
from twllm.model.build import load, weights_fingerprint
from twllm.tokens.shards import TokenShard
from twllm.tokens.tokenizer import ChatTokenizer
from twllm.train.config import SftConfig
from twllm.train.loop import Trainer

Make = Callable[..., Trainer]
NF4 = {**LORA, "quantise": "nf4"}
QUIET = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.jit, inside bitsandbytes


def test_without_bitsandbytes_it_says_what_to_install(
    make_trainer: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UserError, match=r"twllm\[qlora\]"):
        make_trainer(tmp_path, lora=NF4)


@QUIET
def test_layers_are_four_bits_and_the_run_resumes(make_trainer: Make, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    whole = make_trainer(tmp_path / "whole", lora=NF4, epochs=2)
    layer: Any = whole.model.model.layers[0].mlp.up_proj
    assert layer.base_layer.weight.dtype == torch.uint8 and layer.base_layer.weight.numel() == 64 * 32 // 2
    plain = make_trainer(tmp_path / "plain", lora=LORA)
    assert whole.evaluate()["held_out_loss"] == pytest.approx(plain.evaluate()["held_out_loss"], rel=0.03)
    start = whole.evaluate()["held_out_loss"]
    assert whole.run()["held_out_loss"] < start - 0.1
    run_and_kill(make_trainer(tmp_path / "w", checkpoint_every_s=1e-9, lora=NF4, epochs=2), 7)
    resumed = make_trainer(tmp_path / "w", lora=NF4, epochs=2)
    resumed.run()
    assert weights_fingerprint(resumed.model.state_dict()) == weights_fingerprint(whole.model.state_dict())


@QUIET
def test_in_bf16_a_four_bit_layer_gives_bf16(make_trainer: Make, tmp_path: Path) -> None:
    """It gives what it is given, and the norms give fp32: twice the activations, and nothing that FlashAttention takes."""
    pytest.importorskip("bitsandbytes")
    found, losses = set(), []
    for precision in ("bf16", "fp32"):
        trainer = make_trainer(tmp_path / precision, lora=NF4, precision=precision)
        layer: Any = trainer.model.model.layers[0]
        for part in (layer.self_attn.v_proj, layer.mlp.gate_proj, layer.mlp.up_proj):
            part.register_forward_hook(lambda module, inputs, output, p=precision: found.add((p, output.dtype)))
        losses.append([trainer.train_step(step)["loss"] for step in range(3)])
    assert found == {("bf16", torch.bfloat16), ("fp32", torch.float32)}
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)


@QUIET
def test_the_merge_is_in_full_precision(
    tiny_checkpoint: Path, tiny_tokenizer: ChatTokenizer, shard: TokenShard, tmp_path: Path
) -> None:
    pytest.importorskip("bitsandbytes")
    from peft import PeftModel

    config = SftConfig.model_validate({**SMALL, "lora": NF4})
    phase_on(tmp_path, tiny_checkpoint, shard, tiny_tokenizer, config, again=lambda: load(tiny_checkpoint))
    merged = load(tmp_path / "out")
    adapted = PeftModel.from_pretrained(load(tiny_checkpoint), tmp_path / "out" / "adapter").eval()
    ids = torch.tensor([[0, 5, 9, 33, 70, 8, 2, 90, 91, 92, 1]])
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, adapted(ids).logits, rtol=1e-5, atol=1e-5)
    with pytest.raises(UserError, match="base is needed again"):
        phase_on(tmp_path / "x", tiny_checkpoint, shard, tiny_tokenizer, config)
