"""LoRA, frozen parts, noise, averages, early stop: they do what they say, resume bit for bit, and end in a whole checkpoint."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.train.test_loop import run_and_kill
from twllm.errors import UserError
from twllm.model.build import load, weights_fingerprint
from twllm.tokens.shards import TokenShard
from twllm.tokens.tokenizer import ChatTokenizer
from twllm.train.attention import IMPLEMENTATIONS
from twllm.train.config import FeedbackConfig, MachineConfig, OptimConfig, SftConfig
from twllm.train.data import PackedData
from twllm.train.launch import as_deepspeed
from twllm.train.loop import Trainer
from twllm.train.muon import Muon
from twllm.train.phase import train_phase

Make = Callable[..., Trainer]
LORA = {"r": 4, "alpha": 8}
IDS = torch.tensor([[0, 5, 9, 33, 70, 8, 2, 90, 91, 92, 1]])


def weights(trainer: Trainer) -> str:
    return weights_fingerprint(trainer.model.state_dict())


# -- adapters -------------------------------------------------------------------------------------------------------


def test_lora_trains_the_adapter_only_and_starts_as_the_base(make_trainer: Make, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "w", lora=LORA, epochs=1)
    base = {name: p.detach().clone() for name, p in trainer.model.named_parameters() if not p.requires_grad}
    whole = make_trainer(tmp_path / "whole", epochs=1)
    assert trainer.train_step(0)["loss"] == pytest.approx(whole.train_step(0)["loss"], rel=1e-6)
    start = trainer.evaluate()["held_out_loss"]
    metrics = trainer.run()
    assert metrics["held_out_loss"] < start - 0.1 and metrics["lora"]["trained_share"] < 0.2
    left = dict(trainer.model.named_parameters())
    assert base and all(torch.equal(left[name], tensor) for name, tensor in base.items())


@pytest.mark.parametrize("form", ["pieces", "mask"])
def test_lora_learns_the_same_in_both_forms_of_attention(make_trainer: Make, tmp_path: Path, form: str) -> None:
    trainer = make_trainer(tmp_path / form, lora={**LORA, "targets": ["q_proj", "v_proj"]})
    trainer.machine = trainer.objective.machine = replace(trainer.machine, attention=form)  # type: ignore[attr-defined]
    trainer.model.set_attn_implementation(IMPLEMENTATIONS[form])
    losses = [trainer.train_step(step)["loss"] for step in range(3)]
    other = make_trainer(tmp_path / "other", lora={**LORA, "targets": ["q_proj", "v_proj"]})
    assert losses == pytest.approx([other.train_step(step)["loss"] for step in range(3)], rel=1e-5)


@pytest.mark.parametrize(
    "settings", [{"dropout": 0.2}, {"modules_to_save": ["embed_tokens", "lm_head"], "rslora": True}]
)
def test_lora_resumes_bit_for_bit(make_trainer: Make, tmp_path: Path, settings: dict[str, Any]) -> None:
    lora = {**LORA, **settings}
    whole = make_trainer(tmp_path / "whole", lora=lora, epochs=2)
    whole.run()
    run_and_kill(make_trainer(tmp_path / "w", checkpoint_every_s=1e-9, lora=lora, epochs=2), 7)
    state = next((tmp_path / "w" / "states").iterdir())
    assert (state / "model.safetensors").stat().st_size < 600_000  # the adapter and its moments, not the base
    resumed = make_trainer(tmp_path / "w", lora=lora, epochs=2)
    assert resumed.run()["resumed_at"] == 7 and weights(resumed) == weights(whole)


def phase_on(
    folder: Path, checkpoint: Path, shard: TokenShard, tokenizer: ChatTokenizer, config: OptimConfig, **more: Any
) -> dict[str, Any]:
    """Run one phase on the shard, as the stages do."""
    tokens = folder / "tokens"
    tokens.mkdir(parents=True)
    (tokens / "000").symlink_to(shard.folder)
    (tokens / "held_out").symlink_to(shard.folder)
    out = folder / "out"
    out.mkdir()
    machine = MachineConfig(threads=1, precision="fp32", tensorboard=False)
    model = load(checkpoint)
    if more.pop("tied", False):
        model.config.tie_word_embeddings = True
        model.tie_weights()
    return train_phase("sft", config, [1.0], model, tokenizer, tokens, out, folder / "work", machine, **more)


SMALL = {"lr": 1e-2, "epochs": 1, "batch_tokens": 128, "context": 64}


@pytest.mark.parametrize(
    ("lora", "tied"),
    [
        ({}, False),
        ({"modules_to_save": ["embed_tokens"]}, True),
        ({"rslora": True, "modules_to_save": ["lm_head"]}, False),
    ],
)
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
def test_the_artifact_is_merged_and_equals_the_adapter(
    tiny_checkpoint: Path,
    tiny_tokenizer: ChatTokenizer,
    shard: TokenShard,
    tmp_path: Path,
    lora: dict[str, Any],
    tied: bool,
) -> None:
    from peft import PeftModel

    config = SftConfig.model_validate({**SMALL, "lora": {**LORA, **lora}})
    metrics = phase_on(tmp_path, tiny_checkpoint, shard, tiny_tokenizer, config, tied=tied)
    merged = load(tmp_path / "out")
    assert metrics["weights_fingerprint"] == weights_fingerprint(merged.state_dict())
    base = load(tiny_checkpoint)
    if tied:
        base.config.tie_word_embeddings = True
        base.tie_weights()
    adapted = PeftModel.from_pretrained(base, tmp_path / "out" / "adapter").eval()
    with torch.no_grad():
        difference = (merged(IDS).logits - adapted(IDS).logits).abs().max()
        moved = (merged(IDS).logits - load(tiny_checkpoint)(IDS).logits).abs().max()
    assert difference < 1e-5 * 10 and moved > 0.1  # logits are up to 10


def test_a_head_adapter_and_unknown_names_are_refused(make_trainer: Make, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="modules_to_save"):
        make_trainer(tmp_path / "a", lora={"targets": ["lm_head"]})
    with pytest.raises(UserError, match="qproj"):
        make_trainer(tmp_path / "b", lora={"targets": ["qproj"]})


def test_kto_compares_with_the_base_below_the_adapter(tiny_checkpoint: Path, tmp_path: Path) -> None:
    from tests.train.test_preference import trainer, write

    shard = write(tmp_path / "s", "kto")
    plain = trainer(tmp_path / "w", tiny_checkpoint, shard, "kto")
    adapted = trainer(tmp_path / "l", tiny_checkpoint, shard, "kto", lora=LORA)
    torch.testing.assert_close(adapted.objective.reference, plain.objective.reference)  # type: ignore[attr-defined]
    with torch.no_grad():
        for name, parameter in adapted.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    again = trainer(tmp_path / "m", tiny_checkpoint, shard, "kto", lora=LORA)  # another work folder: computed anew
    again.model.load_state_dict(adapted.model.state_dict())
    data = PackedData([shard], [1.0], 64, 1, group=2)
    found = torch.from_numpy(again.objective._reference(data, tmp_path / "r.safetensors"))  # type: ignore[attr-defined]
    torch.testing.assert_close(found, plain.objective.reference)  # type: ignore[attr-defined]
    values = [adapted.train_step(step) for step in range(2)]
    assert values[0]["loss"] != values[1]["loss"]


# -- frozen parts, rates, noise -------------------------------------------------------------------------------------


def test_frozen_parts_stay_and_the_rest_learns(make_trainer: Make, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "w", freeze=["embed_tokens", "layers.0-0"], epochs=1)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    metrics = trainer.run()
    moved = {name for name, p in trainer.model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {n for n in before if "embed_tokens" not in n and "layers.0" not in n}
    assert metrics["frozen_parameters"] == sum(p.numel() for n, p in before.items() if n not in moved)
    with pytest.raises(UserError, match="embed_token"):
        make_trainer(tmp_path / "x", freeze=["embed_token"])
    with pytest.raises(UserError, match="everything is frozen"):
        make_trainer(tmp_path / "y", freeze=["model", "lm_head"])


def test_parts_have_rates_of_their_own(make_trainer: Make, tmp_path: Path) -> None:
    usual = make_trainer(tmp_path / "a")
    slow = make_trainer(tmp_path / "b", lr_factors={"embed_tokens": 1e-6, "layers.1": 0.5})
    start = slow.model.get_input_embeddings().weight.detach().clone()
    for trainer in (usual, slow):
        trainer.train_step(0)
    assert {(g["factor"], g["lr"] / slow.rate(0)) for g in slow.optimizer.param_groups} == {
        (1, 1),
        (1e-6, 1e-6),
        (0.5, 0.5),
    }
    assert (slow.model.get_input_embeddings().weight - start).abs().max() < 1e-6
    assert (usual.model.get_input_embeddings().weight - start).abs().max() > 1e-4
    with pytest.raises(UserError, match=r"lr_factors: layers\.7"):
        make_trainer(tmp_path / "c", lr_factors={"layers.7": 0.5})


def test_noise_is_drawn_by_the_step_and_only_while_training(make_trainer: Make, tmp_path: Path) -> None:
    plain, noisy = make_trainer(tmp_path / "a", epochs=2), make_trainer(tmp_path / "b", epochs=2, neftune_alpha=5.0)
    assert plain.evaluate() == noisy.evaluate()
    noisy.run()
    run_and_kill(make_trainer(tmp_path / "w", checkpoint_every_s=1e-9, epochs=2, neftune_alpha=5.0), 5)
    resumed = make_trainer(tmp_path / "w", epochs=2, neftune_alpha=5.0)
    resumed.run()
    assert weights(resumed) == weights(noisy)
    plain.run()
    assert weights(plain) != weights(noisy)


def test_noise_has_the_reach_of_the_paper(make_trainer: Make, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "w", neftune_alpha=5.0)
    batch = trainer.data.batch(trainer.data.rows(0, 1))
    clean = trainer.model.get_input_embeddings().weight[batch.ids]
    trainer.methods.announce(batch)
    trainer.model.train()
    noise = (trainer.model.get_input_embeddings()(batch.ids) - clean).detach().abs()
    _, start, length = batch.pieces[0]
    reach = 5.0 / (length * 32) ** 0.5
    assert 0.8 * reach < noise[0, start : start + length].max() <= reach * 1.0001


# -- averages, the best weights, early stop -----------------------------------------------------------------------------


def test_the_average_is_kept_and_measured_and_resumes(make_trainer: Make, tmp_path: Path) -> None:
    settings = {"ema_decay": 0.9, "epochs": 2, "eval_every": 5}
    whole = make_trainer(tmp_path / "whole", **settings)
    tensors: list[torch.Tensor] = []
    step = whole.train_step

    def watched(number: int) -> dict[str, float]:
        values = step(number)
        tensors.append(whole.model.lm_head.weight.detach().clone())
        return values

    whole.train_step = watched  # type: ignore[method-assign]
    start = whole.model.lm_head.weight.detach().clone()
    metrics = whole.run()
    expected = start
    for n, tensor in enumerate(tensors, 1):
        decay = min(0.9, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * tensor
    torch.testing.assert_close(whole.model.lm_head.weight.detach(), expected, rtol=1e-4, atol=1e-5)
    assert metrics["kept"] == "ema"
    assert whole.evaluate()["held_out_loss"] == pytest.approx(metrics["held_out_loss_ema"], rel=1e-6)
    run_and_kill(make_trainer(tmp_path / "w", checkpoint_every_s=1e-9, **settings), 6)
    resumed = make_trainer(tmp_path / "w", **settings)
    resumed.run()
    assert weights(resumed) == weights(whole)


def test_patience_stops_and_the_best_weights_are_kept(make_trainer: Make, tmp_path: Path) -> None:
    """A rate that is far too high after the start: the held-out loss is best early."""
    settings = {"lr": 0.3, "warmup_share": 0.5, "epochs": 6, "eval_every": 2, "patience": 3}
    whole = make_trainer(tmp_path / "whole", **settings)
    metrics = whole.run()
    rows = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    held = {row["step"]: row["held_out_loss"] for row in rows if row["step"] and "held_out_loss" in row}
    best = min(held, key=lambda step: held[step])
    assert metrics["kept_step"] == best and metrics["stopped_at"] == best + 6 == max(held) < whole.plan.steps
    assert whole.evaluate()["held_out_loss"] == pytest.approx(held[best], rel=1e-6)
    run_and_kill(make_trainer(tmp_path / "w", checkpoint_every_s=1e-9, **settings), best + 3)
    resumed = make_trainer(tmp_path / "w", **settings)
    assert resumed.run()["stopped_at"] == metrics["stopped_at"] and weights(resumed) == weights(whole)


def test_the_best_needs_something_to_be_measured_on(make_trainer: Make, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "a")
    config = SftConfig.model_validate({**SMALL, "keep": "best"})
    with pytest.raises(UserError, match="held-out"):
        Trainer("sft", trainer.model, trainer.data, config, MachineConfig(threads=1, tensorboard=False), tmp_path / "b")


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"patience": 2}, "eval_every"),
        ({"patience": 2, "eval_every": 1, "keep": "last"}, "at odds"),
        ({"keep": "ema"}, "ema_decay"),
        ({"schedule": "restarts"}, "cycles"),
        ({"decay_share": 0.5}, "ignored"),
        ({"freeze": ["norm"], "lora": {}}, "ignored"),
        ({"lr_factors": {"norm": 0.0}}, "above 0"),
    ],
)
def test_settings_that_would_be_ignored_are_refused(settings: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        OptimConfig.model_validate(settings)


def test_feedback_refuses_what_only_texts_can_have() -> None:
    for settings in ({"neftune_alpha": 5.0}, {"keep": "best"}):
        with pytest.raises(ValueError):
            FeedbackConfig.model_validate({"method": "dpo", **settings})


def test_the_other_schedules() -> None:
    from twllm.train.optim import learning_rate

    restarts = OptimConfig(lr=1.0, warmup_share=0.0, schedule="restarts", cycles=2)
    found = [learning_rate(restarts, step, 100) for step in range(100)]
    assert found[0] == found[50] == 1.0 and found[25] == pytest.approx(0.5) and found[49] < 0.01
    wsd = OptimConfig(lr=1.0, warmup_share=0.1, schedule="wsd", decay_share=0.2, min_lr_share=0.1)
    found = [learning_rate(wsd, step, 100) for step in range(100)]
    assert found[:2] == [0.1, 0.2] and set(found[9:82]) == {1.0} and found[83] < 1 and 0.1 < found[99] < 0.2
    assert learning_rate(OptimConfig(lr=1.0, schedule="constant", warmup_share=0.0), 99, 100) == 1.0


# -- optimizers -----------------------------------------------------------------------------------------------------


def test_muon_turns_every_direction_of_a_matrix_alike_and_leaves_the_tables_to_adamw(
    make_trainer: Make, tmp_path: Path
) -> None:
    found = {}
    for name in ("adamw", "muon"):
        trainer = make_trainer(tmp_path / name, optimizer=name, warmup_share=0.0, clip=1e9)
        before = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
        trainer.train_step(0)
        found[name] = {n: p.detach() - before[n] for n, p in trainer.model.named_parameters()}
    lr, matrices = trainer.rate(0), 0
    for name, moved in found["muon"].items():
        if moved.ndim < 2 or "embed" in name or "lm_head" in name:
            assert torch.equal(moved, found["adamw"][name])
            continue
        singular = torch.linalg.svdvals(moved) / (
            0.2 * lr * max(moved.shape) ** 0.5
        )  # arXiv 2502.16982: AdamW's usual size
        kept = singular[singular > 0.3]  # a gradient of few tokens has directions without any signal
        assert len(kept) >= len(singular) / 2 and float(kept.min()) > 0.4 and float(kept.max()) < 1.5
        matrices += 1
    assert matrices == 7 * len(trainer.model.get_decoder().layers)


def test_muon_of_many_matrices_at_once_is_torchs_own_bit_for_bit() -> None:
    torch.manual_seed(0)
    shapes = [(32, 32), (32, 32), (48, 32), (32, 48), (32, 48)]
    start, ways = [torch.randn(shape) for shape in shapes], (torch.optim.Muon, Muon)
    found = {way: [torch.nn.Parameter(matrix.clone()) for matrix in start] for way in ways}
    settings: dict[str, Any] = {"lr": 0.01, "adjust_lr_fn": "match_rms_adamw", "weight_decay": 0.1}
    optimizers = [way(matrices, **settings) for way, matrices in found.items()]
    for _ in range(3):
        gradients = [torch.randn(shape) for shape in shapes]
        for matrices, optimizer in zip(found.values(), optimizers, strict=True):
            for matrix, gradient in zip(matrices, gradients, strict=True):
                matrix.grad = gradient.clone()
            optimizer.step()
    theirs, ours = found.values()
    assert all(torch.equal(a, b) for a, b in zip(theirs, ours, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(ours, start, strict=True))


def test_muon_learns_and_resumes_bit_for_bit(make_trainer: Make, tmp_path: Path) -> None:
    more = {"optimizer": "muon", "lr_factors": {"mlp": 0.5}, "epochs": 2}
    whole = make_trainer(tmp_path / "whole", **more)
    start = whole.evaluate()["held_out_loss"]
    assert whole.run()["held_out_loss"] < start - 0.5
    run_and_kill(make_trainer(tmp_path / "w", checkpoint_every_s=1e-9, **more), 7)
    resumed = make_trainer(tmp_path / "w", **more)
    assert resumed.run()["resumed_at"] == 7 and weights(resumed) == weights(whole)


def test_muon_is_refused_where_it_would_be_wrong(make_trainer: Make, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="adapters"):
        OptimConfig(optimizer="muon", lora=LORA)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="only AdamW"):
        as_deepspeed(OptimConfig(optimizer="muon"), MachineConfig(), 1)
    with pytest.raises(UserError, match="no matrix for Muon"):
        make_trainer(tmp_path / "a", optimizer="muon", freeze=("layers",))
