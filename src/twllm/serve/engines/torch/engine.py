"""The torch engine: any causal language model that transformers can load. Always works.

Answers go through continuous batching (batching/scheduler.py, runner.py): 16 at once cost little more than one, and
who else is served changes an answer's numbers by rounding only: in fp32 by about 1e-6, in bf16 by enough that greedy texts may part
where two ids are about equally likely (dev/LOG.md). Evaluation, which has all prompts at hand, uses `generate_batch` and `score_batch`,
which compute what prompts share once (tree.py; padded.py where it cannot).
A model that sees (LLaVA) answers about pictures, too (pictures.py). Not covered: several GPUs, quantised weights.
"""

import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from twllm.errors import UserError, require_file
from twllm.model.build import load
from twllm.model.rope import context_limit
from twllm.serve.engines.batching.scheduler import BatchingEngine
from twllm.serve.engines.checkpoint import read_facts
from twllm.serve.engines.interface import Request, Sampling, Score, require_room
from twllm.serve.engines.torch.padded import decode_batch, score_batch
from twllm.serve.engines.torch.runner import SLOTS, open_runner
from twllm.serve.engines.torch.tree import Shared, decode, packs, score
from twllm.train.machine import cpu_multiplies_bf16, gpu_multiplies_bf16

if TYPE_CHECKING:
    from twllm.serve.engines.torch.pictures import Eyes, Seen


def pick_device() -> tuple[str, torch.dtype]:
    """GPU if there is one; bf16 only where the hardware multiplies it, else fp32."""
    if torch.cuda.is_available():
        return "cuda", torch.bfloat16 if gpu_multiplies_bf16() else torch.float32
    return "cpu", torch.bfloat16 if cpu_multiplies_bf16() else torch.float32


class TorchEngine(BatchingEngine):
    """A Hugging Face folder, ready to answer. Threads: any number may call `generate` and `generate_batch`."""

    def __init__(
        self,
        folder: str | Path,
        *,
        threads: int | None = None,
        allow_template_mismatch: bool = False,
        precision: Literal["auto", "fp32", "bf16"] = "auto",
        slots: int = SLOTS,
        kv_bytes: int | None = None,
    ) -> None:
        """Load the model; `threads` None leaves torch's own choice, `precision` auto is bf16 where the hardware multiplies it.

        Raises:
            UserError: no such folder, no model, no tokenizer, or a template other than the trained one.
        """
        folder = require_file(folder, "找不到模型資料夾 (no such model folder)")
        if threads:
            torch.set_num_threads(threads)
        facts = read_facts(folder, allow_template_mismatch=allow_template_mismatch)
        self.device, dtype = pick_device()
        dtype = dtype if precision == "auto" else torch.float32 if precision == "fp32" else torch.bfloat16
        self.model = load(folder).to(device=self.device, dtype=dtype).eval().requires_grad_(False)
        self.eyes: Eyes | None = self._open_eyes(folder)
        limit = context_limit(self.model.config.get_text_config())
        runner = open_runner(self.model, slots=slots, kv_bytes=kv_bytes, embed=self.eyes.embed if self.eyes else None)
        super().__init__(runner, replace(facts, context=limit or None))
        self._batch = threading.RLock()  # batches come one at a time
        self._packed: bool | None = None
        self._shared = Shared()

    def _open_eyes(self, folder: Path) -> "Eyes | None":
        """What sees, if the model does; `self.model` is then the language model inside."""
        from twllm.model.vision import language_view, load_processor, sees
        from twllm.serve.engines.torch.pictures import Eyes

        if not sees(self.model):
            return None
        eyes = Eyes(self.model, load_processor(folder))
        self.model = language_view(self.model)
        return eyes

    @property
    def vision(self) -> bool:
        """Whether pictures may stand in prompts."""
        return self.eyes is not None

    def see(self, pictures: Sequence[Any]) -> "list[Seen]":
        """What the model makes of RGB pictures, for `pictures.picture_prompt`; any thread.

        Raises:
            UserError: it does not see.
        """
        if self.eyes is None:
            raise UserError("這個模型看不懂圖片 (this model does not see)", "messages", "只送文字，或換一個模型")
        return self.eyes.see(pictures)

    def generate_batch(self, prompts: list[list[int]], sampling: Sampling) -> list[list[int]]:
        """Greedy answers (ids without the end token) to all prompts, decoded together; stop strings are not looked at.

        Raises:
            ContextLengthError: one of the prompts fills the context.
            ValueError: the sampling is not greedy.
        """
        if sampling.temperature != 0 or sampling.repetition_penalty != 1.0:
            raise ValueError("generate_batch is greedy: temperature 0, repetition_penalty 1")
        limits = [self._limit(ids, sampling) for ids in prompts]
        with self._batch:
            if self.packed and self.device == "cpu":  # there a call per group of rows is cheap, and padding is not
                return decode(self.model, prompts, limits, self.end_ids, self._shared)
            return decode_batch(self.model, prompts, limits, self.end_ids)

    def score_batch(self, requests: Sequence[Request]) -> list[Score]:
        """Log-probability of each continuation after its context (both ids, at least one), and whether it is the greedy one.

        Raises:
            ContextLengthError: context and continuation, less its last token, are longer than the model's context.
        """
        for context, continuation in requests:
            require_room([*context, *continuation[:-1]], None if self.context is None else self.context + 1)
        with self._batch:
            if self.packed:
                return score(self.model, requests, self._shared)
            return score_batch(self.model, requests)

    @property
    def packed(self) -> bool:
        """Whether batches go through the model unpadded, shared beginnings once; found out at the first batch."""
        with self._batch:
            if self._packed is None:
                self._packed = packs(self.model)
            return self._packed
