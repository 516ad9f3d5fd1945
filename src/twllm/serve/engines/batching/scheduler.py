"""Continuous batching: one thread per engine steps all running answers together; requests join and leave between any two steps.

A step is every running answer's last id and a share of each unread prompt: short prompts are read first, long ones always get on,
and while others answer a step may take STALL_S of reading at most. Beginnings already computed are not read again (slots.py);
requests that begin alike and come together wait for the first of them. When the runner's memory is full, idle slots go first, then the youngest
answer gives its slot up and is read again later. A step that fails is repeated one answer at a time, so only the faulty fail.
Events go straight to the reader's callback: there is no thread and no queue per request.
Not covered: speculative decoding, priorities.
"""

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import TypeVar

from twllm.errors import UserError
from twllm.serve.engines.batching.answer import Answer, Ending
from twllm.serve.engines.batching.prefix_tree import common_length
from twllm.serve.engines.batching.runner import Logits, Runner, Work
from twllm.serve.engines.batching.slots import SlotTable
from twllm.serve.engines.checkpoint import Facts
from twllm.serve.engines.decoding.grammar import Grammars
from twllm.serve.engines.decoding.text import AnswerText, answer_lead
from twllm.serve.engines.interface import GenerateFromSubmit, OnEvent, PromptScores, Sampling, require_room

STALL_S = 0.25  # of reading prompts in a step that others wait for; chosen, not tuned
LEAST_READ = 32  # prompt tokens in any such step
SCORED_TOKENS = 1024  # of sequences whose log-probabilities are computed in one pause; chosen
WORTH_WAITING = 8  # tokens of a common beginning that another request is just reading; chosen
log = logging.getLogger("twllm.serve")
T = TypeVar("T")


class BatchingEngine(GenerateFromSubmit):
    """`Engine` over a runner."""

    def __init__(self, runner: Runner, facts: Facts) -> None:
        self.tokenizer, self.defaults, self.end_ids = facts.tokenizer, facts.defaults, facts.end_ids
        self.model_fingerprint = facts.model_fingerprint
        limits = [n for n in (facts.context, runner.context, runner.capacity) if n is not None]
        self.context = min(limits, default=None)
        self.counts: Counter[str] = Counter()  # steps, read, reused, drawn, preempted: tokens or times since the start
        self._runner = runner
        self._grammars = Grammars(facts.tokenizer, facts.end_ids)
        self._lead = answer_lead(facts.tokenizer)
        self._slots = SlotTable(runner)
        self._waiting: deque[Answer] = deque()
        self._active: list[Answer] = []
        self._jobs: deque[tuple[Callable[[], object], Future[object]]] = deque()
        self._change = threading.Condition()
        self._closed = False
        self._thread: threading.Thread | None = None
        self._read_s = 0.0  # per prompt token, as measured

    # -- asking -------------------------------------------------------------------------------------------------

    def submit(self, prompt_ids: list[int], sampling: Sampling, on_event: OnEvent) -> Callable[[], None]:
        """See `Engine.submit`.

        Raises:
            ContextLengthError: the prompt fills the context.
            UserError: no prompt, an id that the model does not have, or a grammar that cannot be used.
        """
        limit = self._limit(prompt_ids, sampling)
        if not prompt_ids:
            raise UserError("提示是空的 (empty prompt)", "prompt", "至少給一個字")
        plain = getattr(prompt_ids, "plain", prompt_ids)  # without those that stand for pictures
        if plain and (min(plain) < 0 or max(plain) >= self._runner.vocab):
            raise UserError(
                f"模型沒有這個 token (ids are 0 to {self._runner.vocab - 1})", "prompt", "用這個模型的分詞器"
            )
        constraint = self._grammars.constraint(sampling.grammar) if sampling.grammar else None
        text = AnswerText(self.tokenizer, self._lead, sampling.stop, keep_stop=sampling.keep_stop)
        ending = Ending(self.end_ids, len(prompt_ids) + limit)
        answer = Answer(prompt_ids, sampling, ending, text, constraint, on_event)
        with self._change:
            self._start()
            self._waiting.append(answer)
            self._change.notify()

        def cancel() -> None:
            answer.cancelled = True
            with self._change:
                self._change.notify()

        return cancel

    def prompt_logprobs(self, sequences: Sequence[list[int]], top: int = 1) -> list[PromptScores]:
        """See `Engine.prompt_logprobs`; computed between steps, a few sequences at a time."""
        for ids in sequences:
            require_room(ids, None if self.context is None else self.context + 1)
        found: list[PromptScores] = []
        part: list[list[int]] = []
        for number, ids in enumerate(sequences, 1):
            part.append(ids)
            if number == len(sequences) or sum(map(len, part)) >= SCORED_TOKENS:
                found += self._between_steps(partial(self._runner.prompt_logprobs, part, top))
                part = []
        return found

    def _between_steps(self, job: Callable[[], T]) -> T:
        """Run something in the engine's thread and wait for it."""
        future: Future[object] = Future()
        with self._change:
            self._start()
            self._jobs.append((job, future))
            self._change.notify()
        return future.result()  # type: ignore[return-value]

    def alive(self) -> bool:
        """False once closed, or should the scheduler ever have died."""
        return not self._closed and (self._thread is None or self._thread.is_alive())

    def load(self) -> tuple[int, int]:
        """(answers running, requests waiting)."""
        with self._change:
            return len(self._active), len(self._waiting)

    def close(self) -> None:
        """End running answers, the thread and the runner."""
        with self._change:
            first, self._closed = not self._closed, True
            self._change.notify()
        if self._thread:
            self._thread.join()
        if first:
            self._runner.close()

    def _limit(self, prompt_ids: list[int], sampling: Sampling) -> int:
        """How many tokens this answer may have."""
        require_room(prompt_ids, self.context)
        room = self.context - len(prompt_ids) if self.context else 1 << 30
        return room if sampling.max_tokens is None else min(room, sampling.max_tokens)

    def _start(self) -> None:
        """With the lock held: the thread runs."""
        if self._closed:
            raise RuntimeError("the engine is closed")
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="twllm-scheduler", daemon=True)
            self._thread.start()

    # -- the scheduler thread -----------------------------------------------------------------------------------

    def _run(self) -> None:
        error: Exception | None = None
        try:
            while self._admit():
                self._work_off()
                if self._active:
                    self._step()
        except Exception as problem:  # a fault of ours or of the runner's bookkeeping: say so and stop, `alive` tells
            log.exception("the scheduler died")
            error = problem
        with self._change:
            self._closed = True
            rest = [*self._active, *self._waiting]
            self._active.clear()
            self._waiting.clear()
            jobs = list(self._jobs)
            self._jobs.clear()
        for answer in rest:
            answer.tell(error)
        for _, future in jobs:
            future.set_exception(error or RuntimeError("the engine is closed"))

    def _admit(self) -> bool:
        """Wait until there is work, let the cancelled go, take waiting requests in; False when closed."""
        with self._change:
            self._change.wait_for(lambda: self._closed or self._active or self._waiting or self._jobs)
            if self._closed:
                return False
            gone = [answer for answer in [*self._active, *self._waiting] if answer.cancelled]
            for answer in gone:
                self._leave(answer)
            seen = 0
            for answer in list(self._waiting):
                seen += 1
                if len(self._active) >= len(self._slots.slots) or seen > 2 * len(self._slots.slots):
                    break
                if self._soon_read(answer.ids):
                    continue
                if not self._take_in(answer):
                    break
                self._waiting.remove(answer)
                self._active.append(answer)
        for answer in gone:
            answer.tell(None)
        return True

    def _take_in(self, answer: Answer) -> bool:
        """Give it a slot if one is free and its ids have room beside the running answers."""
        capacity = self._runner.capacity
        if capacity is not None and self._slots.tokens(busy_only=True) + len(answer.ids) + len(self._active) > capacity:
            return False
        answer.slot = self._slots.open(answer.ids)
        if answer.slot is None:
            return False
        self.counts["reused"] += answer.slot.length
        return True

    def _soon_read(self, ids: list[int]) -> bool:
        """Whether a running request is reading a beginning of these ids that nobody has computed yet."""
        reading = [a for a in self._active if a.left > 1]
        if not reading:
            return False
        known, _ = self._slots.shared(ids)
        return any(min(common_length(a.ids, ids), len(ids) - 1) >= known + WORTH_WAITING for a in reading)

    def _leave(self, answer: Answer) -> None:
        """With the lock held: out of the lists, the slot idle."""
        if answer in self._active:
            self._active.remove(answer)
        elif answer in self._waiting:
            self._waiting.remove(answer)
        if answer.slot is not None:
            self._slots.release(answer.slot)
            answer.slot = None

    def _work_off(self) -> None:
        """One job that waits for a pause."""
        with self._change:
            job, future = self._jobs.popleft() if self._jobs else (None, None)
        if job is not None and future is not None:
            try:
                future.set_result(job())
            except Exception as error:
                future.set_exception(error)

    def _step(self) -> None:
        parts = self._plan()
        start = time.perf_counter()
        results = self._compute(parts)
        self._measure(sum(count for answer, count in parts if answer.left > 1), time.perf_counter() - start)
        self.counts["steps"] += 1
        for (answer, count), result in zip(parts, results, strict=True):
            if not isinstance(result, Exception):
                assert answer.slot is not None
                answer.slot.length += count
                self.counts["read" if answer.left > 1 or count > 1 else "drawn"] += count
        for (answer, _), result in zip(parts, results, strict=True):
            if result is not None and not self._goes_on(answer, result):
                with self._change:
                    self._leave(answer)

    def _goes_on(self, answer: Answer, result: Logits | Exception) -> bool:
        if isinstance(result, Exception):
            answer.tell(result)
            return False
        if answer.cancelled:  # the next `_admit` says so
            return True
        try:
            if answer.take(result):
                return True
            answer.tell(None)
        except Exception as error:  # this answer fails, the others go on; the route logs it
            answer.tell(error)
        return False

    def _plan(self) -> list[tuple[Answer, int]]:
        """Who computes how many ids in this step; makes room for them."""
        while True:
            running = [answer for answer in self._active if answer.left == 1]
            reading = sorted((a for a in self._active if a.left > 1), key=lambda a: a.left)
            parts = [(answer, 1) for answer in running]
            budget = self._budget(bool(running))
            for place, answer in enumerate(reading):  # the rest is shared by those who still read
                count = min(answer.left, max(1, budget // (len(reading) - place)))
                budget -= count
                parts.append((answer, count))
                if budget <= 0:
                    break
            if self._slots.room(sum(count for _, count in parts)) or len(self._active) == 1:
                return parts
            self._preempt()

    def _budget(self, others_wait: bool) -> int:
        """Prompt tokens of this step."""
        if not others_wait or not self._read_s:
            return self._runner.step_tokens
        return max(LEAST_READ, min(self._runner.step_tokens, int(STALL_S / self._read_s)))

    def _measure(self, read: int, seconds: float) -> None:
        if read >= LEAST_READ:
            each = seconds / read
            self._read_s = each if not self._read_s else 0.7 * self._read_s + 0.3 * each

    def _preempt(self) -> None:
        """The youngest answer waits again, first in line; what it said so far is read again later."""
        youngest = max(self._active, key=lambda answer: answer.number)
        with self._change:
            slot = youngest.slot
            self._leave(youngest)
            if slot is not None:
                self._slots.cut(slot, 0)
            self._waiting.appendleft(youngest)
        self.counts["preempted"] += 1

    def _compute(self, parts: Sequence[tuple[Answer, int]]) -> Sequence[Logits | Exception | None]:
        """The runner's step; after an exception each answer alone, so that only the faulty fail."""
        work = []
        for answer, count in parts:
            assert answer.slot is not None
            done = answer.slot.length
            work.append(Work(answer.slot.number, answer.ids[done : done + count], count == answer.left))
        try:
            return self._runner.step(work)
        except Exception as error:
            log.warning("a step of %d answers failed: %s", len(work), type(error).__name__)
            self._restore(parts)
            if len(parts) == 1:
                return [error]
        return [self._compute([part])[0] for part in parts]

    def _restore(self, parts: Sequence[tuple[Answer, int]]) -> None:
        """The runner's slots as they were before the step."""
        for answer, _ in parts:
            assert answer.slot is not None
            self._runner.trim(answer.slot.number, answer.slot.length)
