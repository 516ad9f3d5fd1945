"""The torch runner: a causal language model that transformers can load, all slots in one forward pass.

Three ways through a model, the first that gives the logits transformers gives: `LeanLlama` (llama.py); transformers' modules over
one flat row with our attention (tree_attention.py); transformers' own cache, one forward per answer, for what has sliding
windows, recurrent layers or anything else we do not know (correct, not batched).
Memory for keys and values is bounded: `kv_bytes`, by default a quarter of the machine's, or most of a GPU's.
Not covered: several GPUs, quantised weights, CUDA graphs; the lean pass on a GPU is plain eager torch and was not timed.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from twllm.errors import UserError
from twllm.model.rope import context_limit, forget_lengths
from twllm.serve.engines.batching.runner import Logits, Work
from twllm.serve.engines.interface import PromptScores
from twllm.serve.engines.torch.llama import Embed, LeanLlama, is_llama_shaped
from twllm.serve.engines.torch.scoring import score
from twllm.serve.engines.torch.slots import Shape, SlotMemory, Step
from twllm.serve.engines.torch.tree import bytes_per_token, packs

SLOTS = 32  # answers at once; in bf16 16 cost hardly more than one (dev/LOG.md), chosen
STEP_TOKENS = 512  # of prompts; chosen, not tuned
CONTEXT = 32768  # of a slot, where the model names no limit; chosen
SHARE = 0.25  # of a machine's memory for keys and values
GPU_SHARE = 0.8  # of what the weights leave free


def open_runner(
    model: Any, *, slots: int = SLOTS, kv_bytes: int | None = None, embed: Embed | None = None
) -> "TorchRunner | LoneRunner":
    """The fastest runner whose logits are right for this model; `embed`: what ids become, where it is not the table alone (pictures.py).

    Raises:
        UserError: the memory allowed is too small for one answer.
    """
    config = model.config.get_text_config()
    context = context_limit(config) or CONTEXT
    if is_llama_shaped(model) and not getattr(model, "hf_quantizer", None):  # quantised weights are not joined
        sample = [(7 * i + 3) % config.vocab_size for i in range(min(24, context))]
        with torch.inference_mode():
            expected = model(input_ids=torch.tensor([sample], device=model.device), use_cache=False).logits[0].float()
        lean = LeanLlama(model, context, embed)
        runner = TorchRunner(model, lean, slots, context, kv_bytes)
        if _same(runner, sample, expected):
            return runner
    by_length = forget_lengths(
        model
    )  # dynamic RoPE: texts of several lengths in one pass would get the longest one's angles
    if not by_length and packs(model):
        return TorchRunner(model, None, slots, context, kv_bytes, embed)
    return LoneRunner(model, slots, context, kv_bytes, embed, whole=by_length)


def _same(runner: "TorchRunner", sample: list[int], expected: Tensor) -> bool:
    """Whether reading, reading on and answering give the expected logits; empties the slot."""
    tolerance = (1e-3 if runner.dtype == torch.float32 else 0.5) * float(expected.std())  # of the worst of V numbers
    parts = [sample[:9], sample[9:-1], sample[-1:]]
    seen = 0
    for part in (part for part in parts if part):
        seen += len(part)
        (logits,) = runner.step([Work(0, part, True)])
        error = (torch.from_numpy(logits) - expected[seen - 1].cpu()).abs().max()
        if not float(error) <= tolerance:
            return False
    runner.trim(0, 0)
    return True


class TorchRunner:
    """Continuous batches through `lean`, or where it is None through the model with our attention."""

    step_tokens = STEP_TOKENS

    def __init__(
        self, model: Any, lean: LeanLlama | None, slots: int, context: int, kv_bytes: int | None, embed: Embed | None = None
    ) -> None:  # fmt: skip
        config = model.config.get_text_config()
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        shape = Shape(config.num_hidden_layers, heads, context, width)
        self.dtype = model.dtype
        allowed = _memory(model.device) if kv_bytes is None else kv_bytes
        self.capacity = min(slots * context, allowed // shape.token_bytes(model.dtype))
        if model.device.type != "cpu":  # there the memory is really taken
            slots = min(slots, self.capacity // context)
        if slots < 1 or self.capacity < 16:
            raise UserError(
                f"放鍵值快取的記憶體不夠 ({allowed / 1e9:.1f} GB is too little for keys and values)",
                "kv_bytes",
                "換小一點的模型",
            )
        self.slots, self.context, self.vocab = slots, context, int(config.vocab_size)
        self._memory = SlotMemory(slots, shape, model.dtype, model.device)
        self._lengths = [0] * slots
        self._model, self._lean, self._embed = model, lean, embed

    @torch.inference_mode()
    def step(self, work: Sequence[Work]) -> Sequence[Logits | None]:
        """See `Runner.step`."""
        step = Step(self._memory, work, self._lengths)
        wanted = [(i, row) for i, row in zip(step.order, step.last, strict=True) if work[i].logits]
        rows = [row for _, row in wanted] or [0]
        logits = self._lean(step, rows) if self._lean is not None else _flat(self._model, step, rows, self._embed)
        found = logits.cpu().numpy()
        for one in work:
            self._lengths[one.slot] += len(one.ids)
        results: list[Logits | None] = [None] * len(work)
        for at, (i, _) in enumerate(wanted):
            results[i] = found[at]
        return results

    def trim(self, slot: int, length: int) -> None:
        """See `Runner.trim`."""
        self._lengths[slot] = length
        if length == 0:
            self._memory.clear(slot)

    @torch.inference_mode()
    def copy(self, source: int, target: int, length: int) -> bool:
        """See `Runner.copy`."""
        self._memory.copy(source, target, length)
        self._lengths[target] = length
        return True

    def prompt_logprobs(self, sequences: Sequence[list[int]], top: int) -> list[PromptScores]:
        """See `Runner.prompt_logprobs`."""
        return score(self._model, sequences, top)

    def close(self) -> None:
        """Nothing: the model is the engine's."""


def _given(ids: Tensor, embed: Embed | None) -> dict[str, Tensor]:
    """What the model is given to read for ids (1, N)."""
    return {"input_ids": ids} if embed is None else {"inputs_embeds": embed(ids[0])[None]}


def _flat(model: Any, step: Step, rows: Sequence[int], embed: Embed | None) -> Tensor:
    """Logits (rows, V) in fp32, through transformers' modules."""
    device = model.device
    out = model(
        **_given(torch.tensor([step.ids], device=device), embed),
        position_ids=torch.tensor([step.positions], device=device),
        attention_mask=torch.zeros(1, 1, 1, 1, device=device),  # four dimensions: taken as it is, and not looked at
        use_cache=False,
        logits_to_keep=torch.tensor(list(rows), device=device),
        tree=_Heads(step),
    )
    logits: Tensor = out.logits[0]
    return logits.float()


@dataclass(frozen=True)
class _Heads:
    """A step in the order of axes that transformers uses: heads first."""

    step: Step

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """query (H, N, E), key and value (K, N, E) → (H, N, E)."""
        seen = self.step.attend(layer, query.transpose(0, 1), key.transpose(0, 1), value.transpose(0, 1), scaling)
        return seen.transpose(0, 1)


def _memory(device: torch.device) -> int:
    """Bytes for keys and values."""
    if device.type == "cuda":
        return int(GPU_SHARE * torch.cuda.mem_get_info(device)[0])
    return int(SHARE * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


@dataclass
class _Sequence:
    """One slot: its ids, of which the cache holds the first `done`."""

    ids: list[int] = field(default_factory=list)
    done: int = 0
    cache: Any = None


class LoneRunner:
    """transformers' own cache for each slot, one forward pass per answer. Works for every causal model.

    Some (Mamba) forget their state when they read on in pieces, dynamic RoPE turns each piece by its own length; for those a prompt is
    read at once, when its logits are asked for.
    """

    step_tokens = STEP_TOKENS

    def __init__(
        self, model: Any, slots: int, context: int, kv_bytes: int | None = None, embed: Embed | None = None, whole: bool = False
    ) -> None:  # fmt: skip
        allowed = _memory(model.device) if kv_bytes is None else kv_bytes
        self.capacity = max(context, allowed // bytes_per_token(model))  # windows and states need less than this counts
        self.slots, self.context, self.vocab = slots, context, int(model.config.get_text_config().vocab_size)
        self._model, self._embed = model, embed
        self._sequences = [_Sequence() for _ in range(slots)]
        self._whole = False
        self._whole = whole or not self._reads_on([(7 * i + 3) % self.vocab for i in range(min(24, context))])

    def _reads_on(self, sample: list[int]) -> bool:
        """Whether reading in two pieces gives what reading at once gives."""
        found = []
        for cut in (len(sample), len(sample) // 2):
            for part in (sample[:cut], sample[cut:]):
                if part:
                    (logits,) = self.step([Work(0, part, True)])
            found.append(logits)
            self.trim(0, 0)
        one, other = (np.asarray(row) for row in found)
        tolerance = 1e-3 if self._model.dtype == torch.float32 else 0.5
        return bool(np.abs(one - other).max() <= tolerance * one.std())

    @torch.inference_mode()
    def step(self, work: Sequence[Work]) -> Sequence[Logits | None]:
        """See `Runner.step`."""
        results: list[Logits | None] = []
        for slot, ids, wanted in work:
            sequence = self._sequences[slot]
            sequence.ids += ids
            if self._whole and not wanted:
                results.append(None)
                continue
            if sequence.cache is None or (self._whole and len(sequence.ids) - sequence.done > 1):
                sequence.cache, sequence.done = DynamicCache(config=self._model.config), 0
            given = torch.tensor([sequence.ids[sequence.done :]], device=self._model.device)
            out = self._model(**_given(given, self._embed), cache=sequence.cache, use_cache=True, logits_to_keep=1)
            sequence.done = len(sequence.ids)
            results.append(out.logits[0, -1].float().cpu().numpy() if wanted else None)
        return results

    def trim(self, slot: int, length: int) -> None:
        """See `Runner.trim`; what is kept is read again by the next step."""
        sequence = self._sequences[slot]
        if sequence.cache is not None or length < len(sequence.ids):
            self._sequences[slot] = _Sequence(sequence.ids[:length])

    def copy(self, source: int, target: int, length: int) -> bool:
        """Not possible in general: recurrent layers have no beginning to copy."""
        return False

    def prompt_logprobs(self, sequences: Sequence[list[int]], top: int) -> list[PromptScores]:
        """See `Runner.prompt_logprobs`."""
        return score(self._model, sequences, top)

    def close(self) -> None:
        """Nothing: the model is the engine's."""
