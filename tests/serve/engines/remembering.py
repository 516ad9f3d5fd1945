"""A runner whose logits are a hash of everything its slot holds: one id too many, too few or from another request changes the answer."""

import time
import zlib
from collections.abc import Sequence

import numpy as np

from twllm.serve.engines.batching.runner import Logits, Work
from twllm.serve.engines.interface import PromptScores


class RememberingRunner:
    """Exact and fast; can be slow on purpose (`delay_s` a step), fail at a given id, and be unable to copy."""

    def __init__(
        self, slots: int = 4, context: int = 400, capacity: int | None = None, *,
        vocab: int = 602, step_tokens: int = 64, can_copy: bool = True, delay_s: float = 0.0,
    ) -> None:  # fmt: skip
        self.slots, self.context, self.capacity, self.vocab = slots, context, capacity, vocab
        self.step_tokens, self.can_copy, self.delay_s = step_tokens, can_copy, delay_s
        self.held: list[list[int]] = [[] for _ in range(slots)]
        self.poison: int | None = None
        self.steps: list[list[int]] = []  # how many ids each of the step's works had
        self.most = 0
        self.closed = False

    def logits(self, ids: Sequence[int]) -> Logits:
        seed = zlib.crc32(np.array(ids, np.int32).tobytes())
        return np.random.default_rng(seed).normal(size=self.vocab).astype(np.float32)

    def step(self, work: Sequence[Work]) -> Sequence[Logits | None]:
        assert len({one.slot for one in work}) == len(work)
        assert all(one.ids for one in work)
        self.steps.append([len(one.ids) for one in work])
        time.sleep(self.delay_s)
        results: list[Logits | None] = []
        for slot, ids, wanted in work:
            self.held[slot] += ids  # before the failure: what went in has to be taken back
            assert len(self.held[slot]) <= self.context
            if self.poison in ids:
                raise RuntimeError("poison")
            results.append(self.logits(self.held[slot]) if wanted else None)
        self.most = max(self.most, sum(map(len, self.held)))
        assert self.capacity is None or self.most <= self.capacity
        return results

    def trim(self, slot: int, length: int) -> None:
        assert length <= len(self.held[slot])
        del self.held[slot][length:]

    def copy(self, source: int, target: int, length: int) -> bool:
        assert source != target
        assert not self.held[target]
        if self.can_copy:
            self.held[target] = self.held[source][:length]
        return self.can_copy

    def prompt_logprobs(self, sequences: Sequence[list[int]], top: int) -> list[PromptScores]:
        return [PromptScores([-1.0] * (len(ids) - 1), [((0, -1.0),)] * len(ids)) for ids in sequences]

    def close(self) -> None:
        self.closed = True
