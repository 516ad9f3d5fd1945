"""The same greedy text, the same sampled text and the same log-probabilities from every installed engine on the same fp32 weights."""

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from twllm.errors import UserError
from twllm.serve.engines import ENGINES, open_engine
from twllm.serve.engines.interface import Engine, Grammar, Sampling

# kind → modules it needs and options that make it compute in fp32; kinds that need a running server or a GPU are not here
LOCAL: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "torch": ((), {"precision": "fp32"}),
    "openvino": (("openvino",), {"precision": "fp32"}),
    "llamacpp": (("llama_cpp", "gguf"), {"precision": "fp32"}),
}
QUESTIONS = ["台灣最高的山是哪一座？", "「拍謝」是什麼意思？", "hello 你好", "注音ㄅㄆㄇ怎麼念？請一個一個說明。🏔️"]
SETTINGS = [
    Sampling(max_tokens=24),
    Sampling(max_tokens=24, repetition_penalty=1.3, frequency_penalty=0.5, presence_penalty=0.2),
    Sampling(max_tokens=24, temperature=0.9, top_p=0.9, top_k=40, min_p=0.02, seed=11),
    Sampling(max_tokens=24, temperature=1.3, typical_p=0.8, logit_bias=((40, 3.0), (50, -100.0)), seed=12),
    Sampling(max_tokens=24, grammar=Grammar("regex", "[台灣玉山]{4}，[0-9]{3}"), temperature=1.0, seed=13),
    Sampling(max_tokens=24, ignore_eos=True, logprobs=3),
]


@pytest.fixture(scope="module")
def reference(tiny_checkpoint: Path) -> Iterator[Engine]:
    engine = open_engine("torch", tiny_checkpoint, threads=1, options={"precision": "fp32"})
    yield engine
    engine.close()


@pytest.fixture(scope="module", params=LOCAL)
def engine(request: Any, tiny_checkpoint: Path) -> Iterator[Engine]:
    modules, options = LOCAL[request.param]
    if request.param not in ENGINES:
        pytest.skip(f"no {request.param} engine")
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError:
            pytest.skip(f"{module} is not installed")
    engine = open_engine(request.param, tiny_checkpoint, threads=1, options=options)
    yield engine
    engine.close()


def prompt(engine: Engine, question: str) -> list[int]:
    return engine.tokenizer.encode_chat([{"role": "user", "content": question}], add_generation_prompt=True).ids


@pytest.mark.parametrize("number", range(len(SETTINGS)))
def test_the_same_ids_and_text(engine: Engine, reference: Engine, number: int) -> None:
    """Alone, and all questions together."""
    sampling = SETTINGS[number]
    if sampling.grammar:
        pytest.importorskip("llguidance")
    wanted = [list(reference.generate(prompt(reference, question), sampling)) for question in QUESTIONS]
    alone = [list(engine.generate(prompt(engine, question), sampling)) for question in QUESTIONS]
    streams = [engine.generate(prompt(engine, question), sampling) for question in QUESTIONS]
    together = [list(stream) for stream in streams]
    for expected, one, other in zip(wanted, alone, together, strict=True):
        for found in (one, other):
            assert [e.id for e in found] == [e.id for e in expected]
            assert [(e.text, e.finish_reason) for e in found] == [(e.text, e.finish_reason) for e in expected]
            for a, b in zip(found, expected, strict=True):
                assert a.logprob == pytest.approx(b.logprob, abs=1e-3)
                assert [id for id, _ in a.top] == [id for id, _ in b.top]


def test_the_same_log_probabilities(engine: Engine, reference: Engine) -> None:
    sequences = [prompt(reference, question) for question in QUESTIONS]
    try:
        found = engine.prompt_logprobs(sequences, top=2)
    except UserError:
        pytest.skip("this engine cannot tell them")
    for one, expected in zip(found, reference.prompt_logprobs(sequences, top=2), strict=True):
        assert one.given == pytest.approx(expected.given, abs=1e-3)
        assert [[id for id, _ in row] for row in one.best] == [[id for id, _ in row] for row in expected.best]


def test_kinds_and_options_are_checked(tiny_checkpoint: Path) -> None:
    with pytest.raises(UserError, match="did you mean torch"):
        open_engine("torhc", tiny_checkpoint)
    with pytest.raises(UserError, match="no such option"):
        open_engine("torch", tiny_checkpoint, options={"tensor_paralel": 2})
