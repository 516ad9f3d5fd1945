"""Scores and answers over shared prefixes: the numbers of plain forwards, in whatever company; nothing computed twice."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from twllm.model.build import load
from twllm.serve.engines.interface import ContextLengthError, Sampling
from twllm.serve.engines.torch import padded, tree
from twllm.serve.engines.torch.engine import TorchEngine
from twllm.serve.engines.torch.tree import Shared, decode, packs, score
from twllm.serve.engines.torch.tree_attention import NAME

START = [5 + i % 90 for i in range(40)]  # longer than MIN_SHARED
OTHER = [300 - i for i in range(25)]
CONTEXTS = [START + tail for tail in ([7, 8, 9], [7, 8], [1] * 30, [])] + [[*OTHER, 4, 5], OTHER[:3], [11]]
CONTINUATIONS = [[65], [66], [67, 68], [67, 69, 70]]
REQUESTS = [(context, continuation) for context in CONTEXTS for continuation in CONTINUATIONS]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def plain(tiny_checkpoint: Path) -> Any:
    return load(tiny_checkpoint).eval()


@pytest.fixture
def model(tiny_checkpoint: Path) -> Any:
    model = load(tiny_checkpoint).eval()
    assert packs(model)
    assert model.config._attn_implementation == NAME
    return model


@torch.inference_mode()
def by_hand(model: Any, context: list[int], continuation: list[int]) -> tuple[float, bool]:
    logprobs = model(torch.tensor([context + continuation])).logits[0].log_softmax(-1)[len(context) - 1 : -1]
    said = torch.tensor(continuation)
    return float(logprobs.gather(1, said[:, None]).sum()), bool((logprobs.argmax(-1) == said).all())


def test_scores_are_those_of_plain_forwards(model: Any, plain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [by_hand(plain, *request) for request in REQUESTS]
    for tokens in (1, 40, 1024):  # passes of one node each, of some, of all
        monkeypatch.setattr(tree, "PASS_TOKENS", tokens)
        found = score(model, REQUESTS, Shared())
        assert [s.logprob for s in found] == pytest.approx([logprob for logprob, _ in expected], abs=1e-5)
        assert [s.greedy for s in found] == [greedy for _, greedy in expected]
    other = padded.score_batch(plain, REQUESTS)
    assert [s.logprob for s in other] == pytest.approx([logprob for logprob, _ in expected], abs=1e-5)
    assert [s.greedy for s in other] == [greedy for _, greedy in expected]


def test_greedy_continuation_is_told(model: Any, plain: Any) -> None:
    (answer,) = padded.decode_batch(plain, [START], [3], frozenset())
    assert [s.greedy for s in score(model, [(START, answer), (START, [*answer[:2], answer[2] ^ 1])], Shared())] == [
        True,
        False,
    ]


def counted(model: Any, requests: Any, shared: Shared) -> int:
    """Tokens that went through the model."""
    tokens: list[int] = []
    hook = model.register_forward_pre_hook(lambda m, args, kw: tokens.append(kw["input_ids"].numel()), with_kwargs=True)
    score(model, requests, shared)
    hook.remove()
    return sum(tokens)


def test_choices_of_one_token_cost_one_pass_of_the_prompt(model: Any) -> None:
    requests = [(context, [letter]) for context in (OTHER, [9] * 12) for letter in (65, 66, 67, 68)]
    assert counted(model, requests, Shared()) == len(OTHER) + 12


def test_longer_choices_share_their_prompt(model: Any) -> None:
    assert counted(model, [(OTHER, [65, 1, 2]), (OTHER, [66, 3])], Shared()) == len(OTHER) + 2 + 1


def test_shared_beginning_is_computed_once_also_over_calls(model: Any, plain: Any) -> None:
    shared = Shared()
    first = [([*START, i], [65]) for i in range(3)]
    assert counted(model, first, shared) == len(START) + 3
    second = [([*START, i, i], [66]) for i in range(3, 6)]
    assert counted(model, second, shared) == 6
    found = score(model, second, shared)
    assert [s.logprob for s in found] == pytest.approx([by_hand(plain, *request)[0] for request in second], abs=1e-5)
    elsewhere = [(OTHER, [65])]
    assert score(model, elsewhere, shared)[0].logprob == pytest.approx(by_hand(plain, *elsewhere[0])[0], abs=1e-5)


@pytest.mark.parametrize("rows", [1, 3, 128])
def test_answers_are_those_of_padded_decoding(
    model: Any, plain: Any, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tree, "DECODE_ROWS", rows)
    prompts = [*CONTEXTS, CONTEXTS[0]]  # one twice, with another limit
    limits = [12, 5, 7, 12, 0, 9, 12, 3]
    ends = frozenset(padded.decode_batch(plain, [CONTEXTS[2]], [4], frozenset())[0][3:])
    expected = padded.decode_batch(plain, prompts, limits, ends)
    assert decode(model, prompts, limits, ends, Shared()) == expected
    assert {len(answer) for answer in expected} >= {0, 3, 5}


def test_models_of_another_attention_are_left_as_they_are(tiny_checkpoint: Path) -> None:
    windowed = load(tiny_checkpoint).eval()
    windowed.config.sliding_window = 64
    assert not packs(windowed)


def test_attention_that_ours_does_not_equal_is_refused(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(tiny_checkpoint).eval()
    before = model.config._attn_implementation
    monkeypatch.setattr(tree.Pass, "attend", lambda self, layer, query, key, value, scaling: query * 0)
    assert not packs(model)
    assert model.config._attn_implementation == before


def test_engine_falls_back_to_padded_batches(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = TorchEngine(tiny_checkpoint, threads=1, precision="fp32")
    packed, answers = engine.score_batch(REQUESTS), engine.generate_batch(CONTEXTS, Sampling(max_tokens=6))
    monkeypatch.setattr("twllm.serve.engines.torch.engine.packs", lambda model: False)
    other = TorchEngine(tiny_checkpoint, threads=1, precision="fp32")
    assert [s.logprob for s in other.score_batch(REQUESTS)] == pytest.approx([s.logprob for s in packed], abs=1e-5)
    assert other.generate_batch(CONTEXTS, Sampling(max_tokens=6)) == answers
    assert (engine.packed, other.packed) == (True, False)


def test_what_does_not_fit_is_refused(tiny_checkpoint: Path) -> None:
    engine = TorchEngine(tiny_checkpoint, threads=1, precision="fp32")
    full = [3] * 256  # the model's context
    assert engine.score_batch([(full, [4])])  # the last token is never an input
    with pytest.raises(ContextLengthError):
        engine.score_batch([(full, [4, 5])])
