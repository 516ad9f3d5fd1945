"""Every size by name: counts held against transformers' own modules, FLOPs against torch's counter, memory against what is allocated."""

import json

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from twllm.model.size_table import cache_bytes_per_token, serve_flops_per_token, size_row
from twllm.model.sizes import SIZES, count_parameters, train_flops_per_token


def built(name: str, vocabulary: int, context: int = 64) -> LlamaForCausalLM:
    with torch.device("meta"):
        return LlamaForCausalLM(LlamaConfig(**SIZES[name].llama(vocabulary, context), attn_implementation="eager"))


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("vocabulary", [4096, 32_000])
def test_parameters_are_transformers(name: str, vocabulary: int) -> None:
    model = built(name, vocabulary)
    assert sum(p.numel() for p in model.parameters()) == count_parameters(SIZES[name], vocabulary)
    assert model.config.tie_word_embeddings == SIZES[name].tied


def test_known_sizes() -> None:
    """Llama-2's and TinyLlama's own numbers; a size's name is what it holds."""
    assert count_parameters(SIZES["7b"], 32_000) == 6_738_415_616
    assert count_parameters(SIZES["13b"], 32_000) == 13_015_864_320
    assert count_parameters(SIZES["1b"], 32_000) == 1_100_048_384
    for name in ("1b", "3b", "7b", "13b"):
        assert count_parameters(SIZES[name], 32_000) / 1e9 == pytest.approx(float(name[:-1]), rel=0.11)


@pytest.mark.parametrize("name", ["tiny", "1b", "7b"])
def test_flops_are_torchs(name: str) -> None:
    """A forward pass of one row on the meta device; torch counts the whole square of attention, we half of it (causal)."""
    from torch.utils.flop_counter import FlopCounterMode

    V, T = 4096, 64
    model, size = built(name, V, T), SIZES[name]
    mask = torch.zeros(1, 1, T, T, device="meta")
    with FlopCounterMode(display=False) as counter:
        model(input_ids=torch.zeros(1, T, dtype=torch.long, device="meta"), attention_mask=mask, use_cache=False)
    half = 2 * size.L * size.D * T  # the part of attention that the causal mask hides
    assert counter.get_total_flops() / T == pytest.approx(train_flops_per_token(size, V, T) / 3 + half, rel=2e-3)
    assert serve_flops_per_token(size, V, T) == pytest.approx(counter.get_total_flops() / T, rel=2e-3)


def test_cache_is_what_transformers_keeps() -> None:
    from transformers import DynamicCache

    model = LlamaForCausalLM(LlamaConfig(**SIZES["tiny"].llama(512, 64))).to(torch.bfloat16)
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(input_ids=torch.ones(1, 10, dtype=torch.long), cache=cache, use_cache=True)
    kept = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert kept == 10 * cache_bytes_per_token(SIZES["tiny"])


def test_rows_and_command(capsys: pytest.CaptureFixture[str]) -> None:
    from twllm.model.commands_size import sizes

    row = size_row("1b", 32_000, 2048)
    assert (row.parameters, row.weight_bytes, row.train_bytes) == (1_100_048_384, 2_200_096_768, 17_600_774_144)
    assert row.cache_bytes == 2048 * 2 * 22 * 4 * 64 * 2
    sizes(json_=True)
    assert [row["name"] for row in json.loads(capsys.readouterr().out)] == list(SIZES)
    sizes()
    assert "13,015,864,320" in capsys.readouterr().out
