"""An engine with a meter on it: token counts, time to first token and between tokens, for metrics and the request's record.

One function call per token is the price, about two microseconds.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from twllm.serve.engines.interface import Engine, OnEvent, PromptScores, Sampling, TokenEvent
from twllm.serve.operation.metrics import Metrics
from twllm.serve.operation.record import CURRENT, Record


class Watched:
    """`engine`, counted under the name of its model; everything that is not counted is the engine's own."""

    def __init__(self, engine: Engine, model: str, metrics: Metrics) -> None:
        self._engine, self._name = engine, model
        self._timing = metrics.timing(model)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def submit(self, prompt_ids: list[int], sampling: Sampling, on_event: OnEvent) -> Callable[[], None]:
        """As `Engine.submit`."""
        meter = self._meter(prompt_ids, sampling)

        def tell(event: TokenEvent | Exception | None) -> None:
            if isinstance(event, TokenEvent):
                meter(event)
            on_event(event)

        return self._engine.submit(prompt_ids, sampling, tell)

    def generate(
        self, prompt_ids: list[int], sampling: Sampling, cancel: threading.Event | None = None
    ) -> Iterator[TokenEvent]:
        """As `Engine.generate`."""
        meter = self._meter(prompt_ids, sampling)
        events = self._engine.generate(prompt_ids, sampling, cancel)

        def metered() -> Iterator[TokenEvent]:
            try:
                for event in events:
                    meter(event)
                    yield event
            finally:
                close = getattr(events, "close", None)
                if close is not None:
                    close()

        return metered()

    def prompt_logprobs(self, sequences: Sequence[list[int]], top: int = 1) -> list[PromptScores]:
        """As `Engine.prompt_logprobs`."""
        if record := CURRENT.get():
            record.submit(self._name, sum(len(ids) for ids in sequences), 0)
        return self._engine.prompt_logprobs(sequences, top)

    def _meter(self, prompt_ids: list[int], sampling: Sampling) -> Callable[[TokenEvent], None]:
        record: Record | None = CURRENT.get()
        timing, last = self._timing, time.perf_counter()
        first = True
        timing.prompt(len(prompt_ids))
        if record:
            record.submit(self._name, len(prompt_ids), sampling.max_tokens)

        def meter(event: TokenEvent) -> None:
            nonlocal first, last
            now = time.perf_counter()
            timing.token(now - last, first)
            first, last = False, now
            if record:
                record.token(event.finish_reason)

        return meter
