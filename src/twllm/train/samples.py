"""What the model says while it trains: greedy answers to the recipe's prompts, every so many steps, into samples.jsonl.

The same forward pass as training's, whole rows without a cache: it runs for every form of attention and of sharding, and it draws no random
number, so the weights and a resume stay bit for bit what they are without samples. Price: `sample_tokens` forward passes over the
prompts; for 3 prompts of 50 tokens and 64 new ones about 20,000 tokens of forward pass.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from twllm.train.data import Batch
from twllm.train.loss import hidden_states
from twllm.train.parallel import inside
from twllm.train.rows import cut_rows
from twllm.train.watch_config import WatchConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from twllm.tokens.tokenizer import ChatTokenizer
    from twllm.train.machine import Machine

# B prompts, T tokens of the longest prompt and its answer


class Sampler:
    """Answers a recipe's prompts; chat phases put them into the template, pretraining goes on with them."""

    def __init__(self, config: WatchConfig, tokenizer: "ChatTokenizer", chat: bool, context: int) -> None:
        self.config, self.tokenizer = config, tokenizer
        room = max(1, context - config.sample_tokens)
        self.ids = [self._encode(prompt, chat)[-room:] for prompt in config.prompts]

    def _encode(self, prompt: str, chat: bool) -> list[int]:
        if not chat:
            return self.tokenizer.encode(prompt, bos=True)
        return list(self.tokenizer.encode_chat([{"role": "user", "content": prompt}], add_generation_prompt=True).ids)

    def due(self, step: int) -> bool:
        """Whether `step` (from 1) is one to sample at."""
        return bool(self.config.sample_every) and step % self.config.sample_every == 0

    def answers(self, model: "PreTrainedModel", machine: "Machine") -> list[str]:
        """Greedy continuations; the model is left as it was found."""
        training = model.training
        model.eval()
        found: list[list[int]] = [[] for _ in self.ids]
        ends = {self.tokenizer.eos_id}
        try:
            with torch.no_grad(), torch.random.fork_rng(), torch.compiler.set_stance("force_eager"):
                for _ in range(self.config.sample_tokens):
                    for answer, id in zip(found, self._next(model, machine, found), strict=True):
                        if not (answer and answer[-1] in ends):
                            answer.append(id)
                    if all(answer[-1] in ends for answer in found):
                        break
        finally:
            model.train(training)
        return [self.tokenizer.decode([id for id in answer if id not in ends]) for answer in found]

    def _next(self, model: "PreTrainedModel", machine: "Machine", found: Sequence[Sequence[int]]) -> list[int]:
        """The likeliest next token of each row."""
        rows = [[*ids, *answer] for ids, answer in zip(self.ids, found, strict=True)]
        batch = as_batch(rows, max(len(row) for row in rows)).to(model.device)

        def choose() -> list[int]:
            hidden = hidden_states(model, batch, machine.attention)  # (B, T, D)
            last = hidden[torch.arange(len(rows)), torch.tensor([len(row) - 1 for row in rows])]  # (B, D)
            head = model.get_output_embeddings()
            assert head is not None
            chosen: list[int] = head(last).float().argmax(-1).tolist()
            return chosen

        with machine.autocast():
            return inside(model, choose)


def as_batch(rows: Sequence[Sequence[int]], T: int) -> Batch:
    """One document a row, nothing to learn."""
    ids, document = torch.zeros((len(rows), T), dtype=torch.long), torch.full((len(rows), T), -1)
    for r, row in enumerate(rows):
        ids[r, : len(row)], document[r, : len(row)] = torch.tensor(row), 1
    position = torch.arange(T).expand(len(rows), T).clone()
    pieces = tuple((r, 0, len(row)) for r, row in enumerate(rows))
    return Batch(ids, torch.full_like(ids, -100), position, document, pieces, (), 0)


class SampleLog:
    """samples.jsonl; lines of steps that were lost are cut off when the phase resumes (None: another process does that)."""

    def __init__(self, file: Path, step: int | None) -> None:
        self.file = file
        if step is not None:
            cut_rows(file, step)

    def write(self, step: int, prompts: Sequence[str], answers: Sequence[str]) -> None:
        """A line a prompt."""
        rows: list[dict[str, Any]] = [
            {"step": step, "prompt": prompt, "answer": answer} for prompt, answer in zip(prompts, answers, strict=True)
        ]
        with self.file.open("a", encoding="utf-8") as stream:
            stream.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
