"""Continuous batching against a runner that notices every mistake in the bookkeeping."""

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest

from tests.serve.engines.remembering import RememberingRunner
from twllm.errors import UserError
from twllm.serve.engines.batching.scheduler import BatchingEngine
from twllm.serve.engines.checkpoint import Facts
from twllm.serve.engines.interface import ContextLengthError, Sampling, TokenEvent
from twllm.tokens.tokenizer import ChatTokenizer

Make = Callable[..., BatchingEngine]


@pytest.fixture
def make(tiny_tokenizer: ChatTokenizer) -> Iterator[Make]:
    """Engines over a RememberingRunner with these settings."""
    engines: list[BatchingEngine] = []

    def make(**settings: Any) -> BatchingEngine:
        facts = Facts(tiny_tokenizer, None, "f", Sampling(), frozenset({tiny_tokenizer.eos_id}))
        engines.append(BatchingEngine(RememberingRunner(**settings), facts))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


def expected(prompt: list[int], tokens: int, end: frozenset[int]) -> list[int]:
    """The greedy answer, computed without any engine."""
    runner, ids = RememberingRunner(), list(prompt)
    while len(ids) < len(prompt) + tokens:
        ids.append(int(runner.logits(ids).argmax()))
        if ids[-1] in end:
            break
    return ids[len(prompt) :]


class Reader:
    """Collects what one request hears."""

    def __init__(self, engine: BatchingEngine, prompt: list[int], **settings: Any) -> None:
        self.ids: list[int] = []
        self.last: Any = "nothing"
        self.done = threading.Event()
        self.cancel = engine.submit(prompt, Sampling(**settings), self.hear)

    def hear(self, event: TokenEvent | Exception | None) -> None:
        assert not self.done.is_set(), "nothing follows the end"
        if isinstance(event, TokenEvent):
            self.ids.append(event.id)
        else:
            self.last = event
            self.done.set()

    def wait(self) -> list[int]:
        assert self.done.wait(20)
        return self.ids


@pytest.mark.parametrize(
    "settings",
    [{}, {"can_copy": False}, {"capacity": 500}, {"capacity": 401, "slots": 8}, {"step_tokens": 5}, {"slots": 1}],
    ids=str,
)
def test_a_hundred_mixed_requests(make: Make, settings: dict[str, Any]) -> None:
    """Shared beginnings, long and short, some cancelled, little memory: every answer is the one it would be alone."""
    engine, chance = make(**settings), random.Random(1)
    stems = [[chance.randrange(2, 600) for _ in range(chance.randrange(1, 180))] for _ in range(5)]
    readers = []
    for number in range(100):
        prompt = stems[number % 5][: chance.randrange(1, 400)] + [chance.randrange(2, 600)] * chance.randrange(1, 20)
        tokens = chance.randrange(1, 40)
        reader = Reader(engine, prompt, max_tokens=tokens)
        if number % 7 == 3:
            reader.cancel()
        readers.append((reader, prompt, tokens))
    for reader, prompt, tokens in readers:
        ids = reader.wait()
        assert reader.last is None
        alone = expected(prompt, tokens, engine.end_ids)
        assert ids == alone[: len(ids)]
        assert len(ids) == len(alone) or readers.index((reader, prompt, tokens)) % 7 == 3
    assert engine.load() == (0, 0)
    assert engine.alive()


def test_memory_runs_out_and_all_are_answered(make: Make) -> None:
    """Four answers of 200 tokens in room for 450: the youngest are put back and read again."""
    engine = make(capacity=450)
    readers = [Reader(engine, [7, 8, 9 + n], max_tokens=200, ignore_eos=True) for n in range(4)]
    for n, reader in enumerate(readers):
        assert reader.wait() == expected([7, 8, 9 + n], 200, frozenset())
    assert engine.counts["preempted"] > 0


def test_many_readers_need_no_threads(make: Make) -> None:
    engine = make(slots=8)
    before = threading.active_count()
    readers = [Reader(engine, [5, 6, n + 2], max_tokens=5) for n in range(500)]
    assert threading.active_count() <= before + 1
    assert sum(engine.load()) > 0
    for n, reader in enumerate(readers):
        assert reader.wait() == expected([5, 6, n + 2], 5, engine.end_ids)


def test_the_beginning_is_read_once(make: Make) -> None:
    """A system text, a chat's next turn and the answers of n."""
    engine = make(slots=4, step_tokens=16)
    system = list(range(10, 110))
    first = Reader(engine, [*system, 300, 301], max_tokens=6, ignore_eos=True).wait()
    assert engine.counts["reused"] == 0
    Reader(engine, [*system, 302, 303], max_tokens=6).wait()
    assert engine.counts["reused"] == 100
    turn = [*system, 300, 301, *first, 304]
    assert Reader(engine, turn, max_tokens=6).wait() == expected(turn, 6, engine.end_ids)
    assert engine.counts["reused"] == 100 + 107  # the answer's last id was never put in
    engine.counts.clear()
    several = [Reader(engine, list(range(200, 300)), max_tokens=3, seed=n) for n in range(4)]
    for reader in several:
        assert reader.wait() == expected(list(range(200, 300)), 3, engine.end_ids)
    assert engine.counts["read"] <= 100 + 3 * 8  # one of them, and the ends of the others


def test_a_long_prompt_stalls_nobody_and_gets_on(make: Make) -> None:
    engine = make(context=5000, step_tokens=64)
    runner: Any = engine._runner
    short = Reader(engine, [3, 4], max_tokens=60, ignore_eos=True)
    long = Reader(engine, [n % 500 + 2 for n in range(3000)], max_tokens=2)
    for n in range(30):  # short ones keep coming
        Reader(engine, [5, 6, n + 2], max_tokens=1).wait()
    short.wait()
    long.wait()
    assert max(sum(step) for step in runner.steps) <= 64 + runner.slots


def test_cancel_frees_the_slot(make: Make) -> None:
    engine = make(slots=1, delay_s=0.01)
    first = Reader(engine, [3, 4], max_tokens=300, ignore_eos=True)
    second = Reader(engine, [5, 6], max_tokens=2)
    third = Reader(engine, [5, 7], max_tokens=2)
    third.cancel()  # while it waits
    assert third.wait() == []
    assert not second.ids
    first.cancel()
    first.cancel()
    assert len(first.wait()) < 250
    assert second.wait() == expected([5, 6], 2, engine.end_ids)
    second.cancel()


def test_a_failing_request_fails_alone(make: Make) -> None:
    engine = make(delay_s=0.002)
    runner: Any = engine._runner
    answers = [expected([8, n + 2], 30, frozenset()) for n in range(3)]
    runner.poison = next(id for id in range(100, 600) if not any(id in answer for answer in answers))
    good = [Reader(engine, [8, n + 2], max_tokens=30, ignore_eos=True) for n in range(3)]
    bad = Reader(engine, [9, 9, runner.poison], max_tokens=30)
    bad.wait()
    assert isinstance(bad.last, RuntimeError)
    for n, reader in enumerate(good):
        assert reader.wait() == answers[n]
    assert engine.alive()


def test_a_reader_that_raises_is_let_go(make: Make, tiny_tokenizer: ChatTokenizer) -> None:
    engine = make()

    def broken(event: object) -> None:
        raise RuntimeError("the loop is closed")

    engine.submit([3, 4], Sampling(max_tokens=300, ignore_eos=True), broken)
    assert Reader(engine, [5, 6], max_tokens=3).wait()
    deadline = time.monotonic() + 10
    while engine.load() != (0, 0) and time.monotonic() < deadline:
        time.sleep(0.005)
    assert engine.load() == (0, 0)


def test_log_probabilities_come_between_steps(make: Make) -> None:
    engine = make(delay_s=0.005)
    running = Reader(engine, [3, 4], max_tokens=40, ignore_eos=True)
    scores = engine.prompt_logprobs([[1, 2, 3]] * 20)
    assert len(scores) == 20
    assert len(scores[0].given) == 2
    assert running.wait() == expected([3, 4], 40, frozenset())
    with pytest.raises(ContextLengthError):
        engine.prompt_logprobs([[5] * 402])


def test_refusals_come_at_once(make: Make) -> None:
    engine = make(capacity=100)
    assert engine.context == 100
    with pytest.raises(ContextLengthError):
        engine.submit([5] * 100, Sampling(), print)
    with pytest.raises(UserError, match="empty"):
        engine.submit([], Sampling(), print)
    with pytest.raises(UserError, match="ids are 0 to"):
        engine.submit([5, 602], Sampling(), print)


def test_close_ends_everything(make: Make) -> None:
    engine = make(slots=2, delay_s=0.01)
    readers = [Reader(engine, [3, n + 2], max_tokens=300, ignore_eos=True) for n in range(5)]
    with closing(engine):
        time.sleep(0.05)
    for reader in readers:
        assert len(reader.wait()) < 300
        assert reader.last is None
    assert not engine.alive()
    assert engine._runner.closed  # type: ignore[attr-defined]
    with pytest.raises(RuntimeError, match="closed"):
        engine.submit([3], Sampling(), print)
    engine.close()


def test_a_scheduler_that_dies_says_so(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    engine = make()
    engine._runner.trim = lambda slot, length: 1 / 0  # type: ignore[assignment,return-value]
    runner: Any = engine._runner
    runner.poison = 555
    reader = Reader(engine, [5, 555], max_tokens=3)
    reader.wait()
    assert isinstance(reader.last, ZeroDivisionError)
    deadline = time.monotonic() + 10
    while engine.alive() and time.monotonic() < deadline:
        time.sleep(0.005)
    assert not engine.alive()
