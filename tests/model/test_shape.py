"""Deeper and smaller models out of a checkpoint: exact where they must be, plain folders, and what is cut is what contributes nothing."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)  # fmt: skip

from tests.conftest import SENTENCES
from twllm.errors import UserError
from twllm.model.build import load, save
from twllm.model.deepen import deepen, describe, plan_layers
from twllm.model.importance import calibration_rows, mean_loss, measure
from twllm.model.prune import prune
from twllm.model.shape_config import PruneConfig
from twllm.model.sizes import SIZES, Size, count_parameters
from twllm.tokens.tokenizer import ChatTokenizer

KINDS = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "mistral": (MistralConfig, MistralForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
}
IDS = torch.arange(2, 62).reshape(2, 30) * 7 % 600
ROWS = [(torch.arange(40) * (3 + i) % 597 + 2).tolist() for i in range(6)]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def base(kind: str = "llama", *, tied: bool = False, layers: int = 4) -> PreTrainedModel:
    """32 wide, 8 heads of 8 in 4 groups (wider than the stream, as in Qwen3), 48 feed-forward units."""
    torch.manual_seed(0)
    config, model = KINDS[kind]
    built = model(
        config(
            vocab_size=600, hidden_size=32, intermediate_size=48, num_hidden_layers=layers, num_attention_heads=8,
            num_key_value_heads=4, head_dim=8, max_position_embeddings=256, tie_word_embeddings=tied, initializer_range=0.2,
            bos_token_id=0, eos_token_id=1, pad_token_id=None,
        )
    )  # fmt: skip
    for name, parameter in built.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.2)
    return built.eval()


@torch.no_grad()
def logits(model: PreTrainedModel) -> torch.Tensor:
    return model.eval()(IDS).logits


def reopened(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    model.save_pretrained(folder)
    found = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert type(found) is type(model) and torch.equal(logits(found), logits(model))
    return found


# -- deeper -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tied", [True, False])
def test_expanded_blocks_change_nothing_before_training(kind: str, tied: bool, tmp_path: Path) -> None:
    model = base(kind, tied=tied)
    deeper, sources = deepen(model, 6, "expand")
    assert torch.equal(logits(deeper), logits(model)) and sources == [0, 1, 1, 2, 3, 3]
    found = reopened(deeper, tmp_path)
    assert found.config.num_hidden_layers == len(getattr(found.config, "layer_types", None) or range(6)) == 6
    deeper.train()(IDS, labels=IDS).loss.backward()  # what was zero learns at once
    grown = deeper.model.layers[2]
    assert (
        float(grown.self_attn.o_proj.weight.grad.abs().max()) > 0 < float(grown.mlp.down_proj.weight.grad.abs().max())
    )


def test_solar_stacks_overlapping_halves() -> None:
    sources, copies = plan_layers(32, 48, "solar")
    assert sources == [*range(24), *range(8, 32)] and len(copies) == 16  # the paper's numbers
    assert describe(sources) == "0–23, 8–31"
    model = base()
    deeper, sources = deepen(model, 7, "solar")
    assert sources == [0, 1, 2, 3, 1, 2, 3]
    for place, source in enumerate(sources):
        old, new = model.model.layers[source], deeper.model.layers[place]
        assert all(torch.equal(a, b) for a, b in zip(old.parameters(), new.parameters(), strict=True))
        assert new.self_attn.layer_idx == place
    assert not torch.equal(logits(deeper), logits(model))
    with torch.no_grad():  # copies are copies: training one leaves the other
        deeper.model.layers[1].mlp.down_proj.weight.zero_()
    others = deeper.model.layers[4], model.model.layers[1]
    assert all(float(layer.mlp.down_proj.weight.detach().abs().max()) > 0 for layer in others)


def test_every_reachable_depth(tmp_path: Path) -> None:
    for before in (1, 3, 5, 8):
        for after in range(before + 1, 2 * before + 1):
            for method in ("solar", "interleave", "expand"):
                sources, copies = plan_layers(before, after, method)
                assert len(sources) == after and set(sources) == set(range(before)) and len(copies) == after - before
    for bad in (4, 9, 2):
        with pytest.raises(UserError, match="out of reach"):
            deepen(base(), bad)
    with pytest.raises(UserError, match="unknown method"):
        deepen(base(), 6, "slar")


# -- smaller ----------------------------------------------------------------------------------------------------


def with_dead_parts(model: PreTrainedModel) -> PreTrainedModel:
    """Layer 2, heads 1 and 3, 5, 6 of the others, odd units, channels 5 to 12: they contribute nothing at all."""
    with torch.no_grad():
        for number, layer in enumerate(model.model.layers):
            out, down = layer.self_attn.o_proj.weight, layer.mlp.down_proj.weight
            for head in (1, 3, 5, 6):
                out[:, head * 8 : head * 8 + 8] = 0
            down[:, 1::2] = 0
            out[5:13], down[5:13] = 0, 0
            if number == 2:
                out.zero_(), down.zero_()
        model.get_input_embeddings().weight[:, 5:13] = 0
    return model


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tied", [True, False])
def test_what_contributes_nothing_is_what_goes(kind: str, tied: bool, tmp_path: Path) -> None:
    """Cut layer, heads, units and channels that are dead: the smaller model says the same."""
    model = with_dead_parts(base(kind, tied=tied))
    before = logits(model)
    cut = PruneConfig(layers=3, heads=4, intermediate=24, width=24)
    smaller, report = prune(model, cut, ROWS[:4], ROWS[4:])
    assert report["layers_cut"] == [2] and report["heads_kept"][0] == [0, 2, 4, 7]
    assert float((logits(smaller) - before).abs().max()) < 2e-4 * float(before.abs().max())
    assert report["loss"][0] == pytest.approx(report["loss"][1], abs=2e-4)
    assert report["neuron_importance_kept"] == [1.0] * 4 and report["channel_importance_kept"] == 1.0
    assert torch.equal(logits(model), before)  # the old model is as it was
    found = reopened(smaller, tmp_path)
    config = found.config
    assert (config.hidden_size, config.intermediate_size, config.num_hidden_layers) == (24, 24, 3)
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (4, 4, 8)
    assert report["parameters"][1] == sum(p.numel() for p in found.parameters())


def test_whole_groups_of_heads_go_together() -> None:
    """6 of 8 queries in 4 groups: three whole groups; 2 of 8 with two groups kept: one query each."""
    model = base()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight[:, 2 * 8 : 4 * 8] = 0  # group 1
    before = logits(model)
    smaller, report = prune(model, PruneConfig(heads=6), ROWS[:4], ROWS[4:])
    assert report["heads_kept"] == [[0, 1, 4, 5, 6, 7]] * 4 and smaller.config.num_key_value_heads == 3
    assert float((logits(smaller) - before).abs().max()) < 1e-4
    few, _ = prune(model, PruneConfig(heads=2, kv_heads=2), ROWS[:4], ROWS[4:])
    assert few.model.layers[0].self_attn.k_proj.weight.shape == (16, 32) and torch.isfinite(logits(few)).all()
    for bad, why in (
        ({"heads": 3}, "come out even"),
        ({"heads": 6, "kv_heads": 2}, "come out even"),
        ({"heads": 16}, "more than"),
    ):
        with pytest.raises(UserError, match=why):
            prune(model, PruneConfig(**bad), ROWS[:4], ROWS[4:])


@torch.no_grad()
def test_scores_are_what_they_say() -> None:
    """Of one layer, one unit and one head, computed again from the hidden states."""
    model = base()
    found = measure(model, ROWS[:2])
    layer, units, heads = model.model.layers[1], [], []
    hooks = [
        layer.mlp.down_proj.register_forward_pre_hook(lambda _, given: units.append(given[0][0, :, 7])),
        layer.self_attn.o_proj.register_forward_pre_hook(lambda _, given: heads.append(given[0][0, :, 24:32])),
    ]
    states = [model.model(input_ids=torch.tensor([row]), output_hidden_states=True).hidden_states for row in ROWS[:2]]
    for hook in hooks:
        hook.remove()
    cosine = torch.cat([F.cosine_similarity(s[1][0], s[2][0], dim=-1) for s in states]).mean()
    assert found.layers[1] == pytest.approx(1 - float(cosine), abs=1e-5) and found.tokens == 80
    unit = (
        torch.cat(units)[:, None] * layer.mlp.down_proj.weight[:, 7]
    )  # what unit 7 adds to the stream, token by token
    assert float(found.neurons[1][7]) == pytest.approx(float(unit.square().sum(1).mean()), rel=1e-4)
    head = torch.cat(heads) @ layer.self_attn.o_proj.weight[:, 24:32].T  # what head 3 adds
    assert float(found.heads[1][3]) == pytest.approx(float(head.square().sum(1).mean()), rel=1e-4)
    ids = torch.tensor(ROWS[:1])
    assert mean_loss(model, ROWS[:1]) == pytest.approx(float(model(ids, labels=ids).loss), rel=1e-5)


def test_bad_requests(tiny_tokenizer: ChatTokenizer) -> None:
    for settings in ({}, {"kv_heads": 2, "layers": 2}, {"layers": 0}):
        with pytest.raises(ValidationError):
            PruneConfig.model_validate(settings)
    with pytest.raises(UserError, match="more than there is"):
        prune(base(), PruneConfig(layers=5), ROWS[:4], ROWS[4:])
    from twllm.model.moe_config import MoeShape
    from twllm.model.upcycle import upcycle

    mixture = upcycle(base(), MoeShape(experts=2, top_k=1))
    with pytest.raises(UserError, match="not a Llama-shaped"):
        prune(mixture, PruneConfig(layers=2), ROWS[:4], ROWS[4:])
    with pytest.raises(UserError, match="not a Llama-shaped"):
        deepen(mixture, 6)


def test_calibration_rows(tiny_tokenizer: ChatTokenizer) -> None:
    texts = SENTENCES * 20
    rows, held_out = calibration_rows(tiny_tokenizer, texts, 8, 600)
    assert calibration_rows(tiny_tokenizer, texts, 8, 600) == (rows, held_out)
    assert 600 <= sum(map(len, rows + held_out)) < 700 and max(map(len, rows)) == 8
    assert len(held_out) == -(-len(rows + held_out) // 5)


def test_the_plan_knows_the_shape() -> None:
    size = PruneConfig(layers=16, intermediate=5504, width=2048).shape(SIZES["7b"])
    assert (size.D, size.L, size.F, size.H, size.K) == (2048, 16, 5504, 32, 32)
    assert PruneConfig(heads=16).shape(Size(2048, 22, 32, 4, 5632)).K == 4
    assert count_parameters(PruneConfig(layers=11).shape(SIZES["1b"]), 32_000) < 0.6 * count_parameters(
        SIZES["1b"], 32_000
    )


def test_commands(tmp_path: Path, tiny_tokenizer: ChatTokenizer, capsys: pytest.CaptureFixture[str]) -> None:
    from twllm.model.commands_size import deepen_model, prune_model

    save(base(tied=True), tiny_tokenizer, tmp_path / "base")
    (tmp_path / "texts.txt").write_text("\n".join(SENTENCES * 10), encoding="utf-8")
    deepen_model(str(tmp_path / "base"), 6, tmp_path / "deep", method="expand")
    assert torch.equal(logits(load(tmp_path / "deep")), logits(load(tmp_path / "base")))
    prune_model(
        str(tmp_path / "deep"),
        tmp_path / "texts.txt",
        tmp_path / "small",
        layers=3,
        heads=4,
        intermediate=32,
        tokens=500,
    )
    told = capsys.readouterr().out
    facts = json.loads((tmp_path / "small" / "manifest.json").read_text())["metrics"]
    assert {2, 5} < set(facts["layers_cut"])  # blocks that add nothing go first
    assert f"{facts['parameters'][1]:,}" in told and "0–1, 1–3, 3" in told
    tokenizer = ChatTokenizer.load(tmp_path / "small")
    assert tokenizer.template_fingerprint == tiny_tokenizer.template_fingerprint
    with pytest.raises(UserError, match="nothing to cut"):
        prune_model(str(tmp_path / "deep"), tmp_path / "texts.txt", tmp_path / "none")
    assert not (tmp_path / "none").exists()
