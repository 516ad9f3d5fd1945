"""Each way through a model against transformers' own logits, in many slots, cut, copied and refilled."""

import random
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from twllm.errors import UserError
from twllm.serve.engines.batching.runner import Work
from twllm.serve.engines.torch.runner import LoneRunner, TorchRunner, open_runner

SIZES = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
         "max_position_embeddings": 256, "initializer_range": 0.3}  # fmt: skip
GROUPED = {**SIZES, "num_key_value_heads": 2}
MODELS: dict[str, tuple[str, dict[str, Any], str]] = {  # name → configuration, settings, way
    "llama": ("LlamaConfig", GROUPED, "lean"),
    "llama, tied, biased": ("LlamaConfig", {**GROUPED, "tie_word_embeddings": True, "attention_bias": True}, "lean"),
    "llama, long": (
        "LlamaConfig",
        {**GROUPED, "rope_parameters": {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 4.0, "low_freq_factor": 1.0,
                                        "high_freq_factor": 4.0, "original_max_position_embeddings": 64}},
        "lean",
    ),
    "qwen2": ("Qwen2Config", GROUPED, "lean"),
    "qwen3": ("Qwen3Config", {**GROUPED, "head_dim": 8}, "lean"),
    "mistral": ("MistralConfig", {**GROUPED, "sliding_window": None}, "lean"),
    "mistral, sliding": ("MistralConfig", {**GROUPED, "sliding_window": 8}, "lone"),
    "mixtral": ("MixtralConfig", {**GROUPED, "num_local_experts": 2, "sliding_window": None}, "flat"),
    "gemma": ("GemmaConfig", {**GROUPED, "head_dim": 8}, "flat"),
    "gpt2": ("GPT2Config", {"vocab_size": 300, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256,
                            "initializer_range": 0.3}, "flat"),
    "mamba": ("MambaConfig", {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8,
                              "initializer_range": 0.3}, "lone"),
}  # fmt: skip


def build(name: str, dtype: torch.dtype = torch.float32) -> Any:
    kind, settings, _ = MODELS[name]
    torch.manual_seed(0)
    config = getattr(transformers, kind)(**settings)
    return AutoModelForCausalLM.from_config(config).to(dtype).eval().requires_grad_(False)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@torch.inference_mode()
def expected(model: Any, ids: list[int]) -> torch.Tensor:
    return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].float()


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_of_transformers(name: str) -> None:
    """Random reading, answering, cutting and copying in six slots."""
    reference = build(name)
    runner = open_runner(build(name), slots=6)
    way = "lone" if isinstance(runner, LoneRunner) else "lean" if runner._lean is not None else "flat"
    assert way == MODELS[name][2]
    chance = random.Random(0)
    held: list[list[int]] = [[] for _ in range(6)]
    for _ in range(25):
        slots = chance.sample(range(6), chance.randrange(1, 7))
        for slot in slots[:2]:
            if held[slot] and chance.random() < 0.3:
                length = chance.randrange(len(held[slot]))
                runner.trim(slot, length)
                del held[slot][length:]
        empty = [slot for slot in range(6) if not held[slot]]
        full = [slot for slot in range(6) if len(held[slot]) > 3]
        if empty and full and runner.copy(full[0], empty[0], 3):
            held[empty[0]] = held[full[0]][:3]
        work = []
        for slot in slots:
            ids = [chance.randrange(300) for _ in range(chance.choice([1, 1, 1, 2, 7, 12]))]
            held[slot] += ids
            work.append(Work(slot, ids, chance.random() < 0.7))
        for (slot, _, wanted), logits in zip(work, runner.step(work), strict=True):
            assert (logits is not None) == wanted
            if logits is not None:
                torch.testing.assert_close(
                    torch.from_numpy(logits), expected(reference, held[slot]), atol=2e-4, rtol=1e-3
                )


def test_company_changes_fp32_numbers_by_rounding_only() -> None:
    """One answer alone, then beside 15 others: the same ids, and logits of about ±5 that differ by less than 1e-5."""
    runs = []
    for others in (0, 15):
        runner = open_runner(build("llama"), slots=16)
        ids, rows = [5], []
        runner.step([Work(0, [9, 8, 7, 6], False)])
        for slot in range(1, others + 1):
            runner.step([Work(slot, list(range(slot + 2)), False)])
        for _ in range(20):
            work = [Work(slot, [3 * slot % 300], False) for slot in range(1, others + 1)]
            found = runner.step([*work, Work(0, ids[-1:], True)])[-1]
            assert found is not None
            rows.append(torch.from_numpy(found.copy()))
            ids.append(int(found.argmax()))
        runs.append((ids, torch.stack(rows)))
    assert runs[0][0] == runs[1][0]
    torch.testing.assert_close(runs[0][1], runs[1][1], atol=1e-5, rtol=0)


def test_bf16_is_as_near_as_transformers() -> None:
    wanted, theirs = expected(build("llama"), [5, 6, 7, 8]), expected(build("llama", torch.bfloat16), [5, 6, 7, 8])
    runner = open_runner(build("llama", torch.bfloat16), slots=2)
    assert isinstance(runner, TorchRunner)
    assert runner._lean is not None
    (found,) = runner.step([Work(1, [5, 6, 7, 8], True)])
    assert found is not None
    assert float((torch.from_numpy(found) - wanted).abs().mean()) < 1.5 * float((theirs - wanted).abs().mean())


def test_the_model_itself_still_works_and_holds_its_weights_once() -> None:
    """Evaluation calls the model: packed layers answer as before, and the products' weights are not there twice."""
    plain, model = build("qwen2"), build("qwen2")
    open_runner(model)
    ids = torch.tensor([[5, 6, 7, 8], [9, 8, 7, 6]])
    with torch.inference_mode():
        torch.testing.assert_close(model(ids).logits, plain(ids).logits, atol=1e-5, rtol=1e-4)
    assert {name for name, _ in model.named_parameters() if "norm" not in name} == {"model.embed_tokens.weight"}
    with torch.no_grad():
        assert model.generate(ids[:1], attention_mask=torch.ones(1, 4, dtype=torch.long), max_new_tokens=3).shape[1] > 4


def test_memory_is_bounded_and_given_back() -> None:
    token = 2 * 2 * 2 * 8 * 4  # keys and values, layers, heads, width, bytes
    runner = open_runner(build("llama"), slots=8, kv_bytes=500 * token)
    assert runner.capacity == 500
    with pytest.raises(UserError, match="too little"):
        open_runner(build("llama"), kv_bytes=5 * token)
    assert isinstance(runner, TorchRunner)
    runner.step([Work(3, list(range(250)), False)])
    runner.trim(3, 0)
    inside = runner._memory.whole[3].flatten()[1024:-1024]  # a page at both ends may be a neighbour's too
    assert float(inside.abs().max()) == 0.0
