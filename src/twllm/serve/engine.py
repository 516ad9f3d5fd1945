"""The torch engine: any causal language model that transformers can load, with a KV cache per request. Always works.

Requests from many threads go to one scheduler thread that owns the token loop. In each round every active request
gets one step, a token or a slice of its prompt, so a long answer does not keep others waiting. Each step is a forward
of one request alone (batch 1, fixed prompt slices): the numbers, and so the greedy text, cannot depend on who else is
served. The price: the weights are read once per request and token, so total speed does not grow with the number of
requests (2.9 M model, one thread: 175 tokens/s for one, 169 for twenty together; `generate_batch` 1,600). Engines that
batch (vLLM, OpenVINO) are the answer to that; evaluation, which has all prompts at hand, uses `generate_batch` and `score_batch`,
which compute what prompts share once (tree_batch.py).
Not covered: several GPUs, quantised weights, prefix caching for `generate`.
"""

import queue
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from transformers import DynamicCache

from twllm.errors import require_file
from twllm.model.build import load
from twllm.serve.batch import decode_batch, score_batch
from twllm.serve.generation import (
    ContextLengthError,
    Engine,
    Request,
    Sampling,
    Score,
    TokenEvent,
    default_sampling,
    end_ids,
    load_tokenizer,
    model_fingerprint,
    read_generation_config,
    require_room,
)
from twllm.serve.sampler import choose
from twllm.serve.text import AnswerText, answer_lead
from twllm.serve.tree_batch import Shared, decode, packs, score
from twllm.train.machine import cpu_multiplies_bf16

__all__ = ["ContextLengthError", "Engine", "Sampling", "TokenEvent", "TorchEngine"]
MAX_ACTIVE = 16  # requests decoded in turn, the rest wait: bounds the memory of KV caches; chosen, not tuned
PROMPT_SLICE = 512  # tokens of a prompt per step, so that a long prompt lets others through; chosen, not tuned


def pick_device() -> tuple[str, torch.dtype]:
    """GPU if there is one; bf16 only where the hardware multiplies it, else fp32."""
    if torch.cuda.is_available():
        return "cuda", torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    return "cpu", torch.bfloat16 if cpu_multiplies_bf16() else torch.float32


class _Request:
    """One answer in the making. Only the scheduler thread touches it, apart from `events` and `cancel`."""

    def __init__(
        self, prompt_ids: list[int], sampling: Sampling, limit: int, text: AnswerText, cancel: threading.Event
    ) -> None:
        self.ids = list(prompt_ids)  # prompt, then answer
        self.done = 0  # how many of them the cache holds
        self.end = len(prompt_ids) + limit
        self.sampling, self.text, self.cancel = sampling, text, cancel
        self.closed = threading.Event()  # nobody listens any more
        self.random = np.random.default_rng(sampling.seed)
        self.cache: DynamicCache | None = None
        self.events: queue.SimpleQueue[TokenEvent | Exception | None] = queue.SimpleQueue()


class TorchEngine:
    """A Hugging Face folder, ready to answer. Threads: any number may call `generate` and `generate_batch`."""

    def __init__(
        self,
        folder: str | Path,
        *,
        threads: int | None = None,
        allow_template_mismatch: bool = False,
        precision: Literal["auto", "fp32", "bf16"] = "auto",
    ) -> None:
        """Load the model; `threads` None leaves torch's own choice, `precision` auto is bf16 where the hardware multiplies it.

        Raises:
            UserError: no such folder, no model, no tokenizer, or a template other than the trained one.
        """
        folder = require_file(folder, "找不到模型資料夾 (no such model folder)")
        if threads:
            torch.set_num_threads(threads)
        config = read_generation_config(folder)
        self.tokenizer = load_tokenizer(folder, allow_template_mismatch=allow_template_mismatch)
        self.device, dtype = pick_device()
        dtype = dtype if precision == "auto" else torch.float32 if precision == "fp32" else torch.bfloat16
        self.model = load(folder).to(device=self.device, dtype=dtype).eval()
        limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        self.context: int | None = int(limit) if limit else None
        self.model_fingerprint = model_fingerprint(folder)
        self.defaults = default_sampling(config)
        self.end_ids = end_ids(self.tokenizer, config)
        self._lead = answer_lead(self.tokenizer)
        self._waiting: deque[_Request] = deque()
        self._active: list[_Request] = []
        self._change = threading.Condition()
        self._closed = False
        self._thread: threading.Thread | None = None
        self._batch = threading.RLock()  # batches come one at a time
        self._packed: bool | None = None
        self._shared = Shared()

    # -- asking -------------------------------------------------------------------------------------------------

    def generate(
        self, prompt_ids: list[int], sampling: Sampling, cancel: threading.Event | None = None
    ) -> Iterator[TokenEvent]:
        """Events of one answer, see `Engine.generate`; checked at once, started by the first `next`."""
        limit = self._limit(prompt_ids, sampling)
        text = AnswerText(self.tokenizer, self._lead, sampling.stop)
        return self._events(_Request(prompt_ids, sampling, limit, text, cancel or threading.Event()))

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

    def alive(self) -> bool:
        """False once closed, or should the scheduler ever have died."""
        return not self._closed and (self._thread is None or self._thread.is_alive())

    def active(self) -> int:
        """Requests being answered or waiting."""
        with self._change:
            return len(self._active) + len(self._waiting)

    def close(self) -> None:
        """End running requests and the scheduler thread."""
        with self._change:
            self._closed = True
            self._change.notify()
        if self._thread:
            self._thread.join()

    def _limit(self, prompt_ids: list[int], sampling: Sampling) -> int:
        """How many tokens this answer may have."""
        require_room(prompt_ids, self.context)
        room = self.context - len(prompt_ids) if self.context else 1 << 30
        return room if sampling.max_tokens is None else min(room, sampling.max_tokens)

    def _events(self, request: _Request) -> Iterator[TokenEvent]:
        self._submit(request)
        try:
            while (event := request.events.get()) is not None:
                if isinstance(event, Exception):
                    raise event
                yield event
        finally:
            request.closed.set()

    # -- the scheduler thread -----------------------------------------------------------------------------------

    def _submit(self, request: _Request) -> None:
        with self._change:
            if self._closed:
                raise RuntimeError("the engine is closed")
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="twllm-scheduler", daemon=True)
                self._thread.start()
            self._waiting.append(request)
            self._change.notify()

    def _run(self) -> None:
        while self._admit():
            for request in list(self._active):
                try:
                    running = self._step(request)
                except Exception as error:  # this request fails, the others go on; the route logs it
                    request.events.put(error)
                    running = False
                if not running:
                    with self._change:
                        self._active.remove(request)

    def _admit(self) -> bool:
        """Wait until there is work, take waiting requests in; False when closed."""
        with self._change:
            self._change.wait_for(lambda: self._closed or self._active or self._waiting)
            if self._closed:
                for request in [*self._active, *self._waiting]:
                    request.events.put(None)
                self._active.clear()
                self._waiting.clear()
                return False
            while self._waiting and len(self._active) < MAX_ACTIVE:
                self._active.append(self._waiting.popleft())
            return True

    @torch.inference_mode()
    def _step(self, request: _Request) -> bool:
        """One forward for one request; whether it goes on."""
        if request.cancel.is_set() or request.closed.is_set():
            request.events.put(None)
            return False
        if request.cache is None:
            request.cache = DynamicCache(config=self.model.config)
        part = request.ids[request.done : request.done + PROMPT_SLICE]
        ids = torch.tensor([part], device=self.device)
        out = self.model(input_ids=ids, cache=request.cache, use_cache=True, logits_to_keep=1)
        request.done += len(part)
        if request.done < len(request.ids):
            return True
        logits = out.logits[0, -1].float().cpu().numpy()
        event = self._event(request, choose(logits, request.sampling, request.ids, request.random))
        request.events.put(event)
        if event.finish_reason:
            request.events.put(None)
        return event.finish_reason is None

    def _event(self, request: _Request, id: int) -> TokenEvent:
        """What the new id means for the text and the end of the answer."""
        request.ids.append(id)
        if id in self.end_ids:
            return TokenEvent(id, request.text.finish(), "stop")
        piece = request.text.push(id)
        if not request.text.stopped and len(request.ids) >= request.end:
            piece += request.text.finish()
            return TokenEvent(id, piece, "stop" if request.text.stopped else "length")
        return TokenEvent(id, piece, "stop" if request.text.stopped else None)
