"""Small random checkpoints of each Llama-like shape, and a walk through slots that compares a runner with transformers."""

import random
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM

from twllm.serve.engines.batching.runner import Runner, Work

GROUPED = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
           "num_key_value_heads": 2, "max_position_embeddings": 128, "initializer_range": 0.3}  # fmt: skip
LLAMA3 = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 32}  # fmt: skip
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", GROUPED),
    "llama, not grouped, tied": ("LlamaConfig", {**GROUPED, "num_key_value_heads": 4, "tie_word_embeddings": True}),
    "llama3 positions": ("LlamaConfig", {**GROUPED, "rope_parameters": LLAMA3}),
    "linear positions": (
        "LlamaConfig",
        {**GROUPED, "rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}},
    ),
    "qwen2": ("Qwen2Config", GROUPED),
    "qwen3": ("Qwen3Config", {**GROUPED, "head_dim": 16}),
    "mistral": ("MistralConfig", {**GROUPED, "sliding_window": None}),
}


def checkpoint(name: str, folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """Save a model of this shape; gives it in fp32."""
    kind, settings = SHAPES[name]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(getattr(transformers, kind)(**settings)).eval().requires_grad_(False)
    for key, value in model.named_parameters():
        if key.endswith("bias") or "norm" in key:  # else all zeros or ones
            value.copy_(torch.rand_like(value) + 0.5)
        value.copy_(value.to(dtype))  # the parameters only: positions are not stored, and stay exact
    model.save_pretrained(folder, state_dict={key: value.to(dtype) for key, value in model.state_dict().items()})
    return model


@torch.inference_mode()
def worst_difference(runner: Runner, model: Any, steps: int = 25) -> float:
    """Read, answer, cut and copy in all slots at random; the largest difference of logits, in their standard deviations."""
    chance = random.Random(0)
    held: list[list[int]] = [[] for _ in range(runner.slots)]
    worst = 0.0
    for _ in range(steps):
        slots = chance.sample(range(runner.slots), chance.randrange(1, runner.slots + 1))
        for slot in slots[:2]:
            if held[slot] and (chance.random() < 0.3 or len(held[slot]) > 90):
                length = chance.randrange(len(held[slot])) if len(held[slot]) <= 90 else 0
                runner.trim(slot, length)
                del held[slot][length:]
        empty = [slot for slot in range(runner.slots) if not held[slot]]
        full = [slot for slot in range(runner.slots) if len(held[slot]) > 3]
        if empty and full:
            length = chance.randrange(1, len(held[full[0]]))
            assert runner.copy(full[0], empty[0], length)
            held[empty[0]] = held[full[0]][:length]
        work = []
        for slot in slots:
            ids = [chance.randrange(300) for _ in range(chance.choice([1, 1, 1, 2, 7, 12]))]
            held[slot] += ids
            work.append(Work(slot, ids, chance.random() < 0.7))
        for (slot, _, wanted), logits in zip(work, runner.step(work), strict=True):
            assert (logits is not None) == wanted
            if logits is not None:
                expected = model(input_ids=torch.tensor([held[slot]]), use_cache=False).logits[0, -1]
                worst = max(worst, float((torch.from_numpy(logits.copy()) - expected).abs().max() / expected.std()))
    return worst


@torch.inference_mode()
def score_difference(runner: Runner, model: Any, lengths: tuple[int, ...]) -> float:
    """The largest difference of log-probabilities of given ids and of the best one."""
    chance = random.Random(1)
    sequences = [[chance.randrange(300) for _ in range(length)] for length in lengths]
    worst = 0.0
    for ids, found in zip(sequences, runner.prompt_logprobs(sequences, 2), strict=True):
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
        expected = logits.log_softmax(-1)
        assert len(found.given) == len(ids) - 1
        assert len(found.best) == len(ids)
        for at, given in enumerate(found.given):
            worst = max(worst, abs(given - float(expected[at, ids[at + 1]])))
        for at, best in enumerate(found.best):
            assert best[0][0] == int(expected[at].argmax())
            worst = max(worst, abs(best[1][1] - float(expected[at].topk(2).values[1])))
    return worst
