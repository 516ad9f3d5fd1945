"""Constrained answers of random-weight models: whatever ends with "stop" parses and validates, in Chinese as well."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.conftest import SENTENCES
from twllm.errors import UserError
from twllm.serve.engines.decoding.grammar import Grammars
from twllm.serve.engines.interface import Grammar, Sampling, TokenEvent
from twllm.serve.engines.torch.engine import TorchEngine
from twllm.tokens.tokenizer import ChatTokenizer

pytest.importorskip("llguidance")

TEXT = {"type": "string", "minLength": 2, "maxLength": 12}
SCHEMAS: dict[str, dict[str, Any]] = {
    "enum": {"enum": ["臺北市", "新北市", "高雄市", "澎湖縣"]},
    "object": {
        "type": "object",
        "properties": {"姓名": TEXT, "縣市": {"enum": ["臺北", "花蓮"]}},
        "required": ["姓名", "縣市"],
        "additionalProperties": False,
    },
    "integers": {"type": "array", "items": {"type": "integer", "minimum": -7, "maximum": 1234}, "maxItems": 4},
    "exclusive": {"type": "integer", "exclusiveMinimum": 17, "exclusiveMaximum": 20},
    "number": {"type": "number", "minimum": 0, "maximum": 1},
    "nested": {
        "type": "array",
        "minItems": 1,
        "maxItems": 2,
        "items": {"type": "array", "minItems": 2, "maxItems": 2, "items": {"enum": ["贊成", "反對", None, True]}},
    },
    "pattern": {"type": "string", "pattern": "^09[0-9]{2}-[0-9]{6}$"},
    "han": {"type": "string", "pattern": "^[一-鿿]{1,4}(路|街)$"},
    "any of": {"anyOf": [{"type": "boolean"}, {"const": "不知道"}, {"type": "null"}]},
    "date": {"type": "string", "format": "date"},
    "reference": {
        "$defs": {"人": {"type": "object", "properties": {"名": TEXT}, "required": ["名"], "additionalProperties": False}},
        "type": "object",
        "properties": {"甲": {"$ref": "#/$defs/人"}, "乙": {"$ref": "#/$defs/人"}},
        "required": ["甲", "乙"],
        "additionalProperties": False,
    },
    "tuple": {"type": "array", "prefixItems": [{"const": "玉山"}, {"type": "integer", "minimum": 1, "maximum": 3952}],
              "items": False, "minItems": 2},
    "optional": {
        "type": "object",
        "properties": {"a": {"type": ["boolean", "null"]}, "b": {"type": "string", "maxLength": 3}},
        "additionalProperties": False,
    },
    "quotes": {"enum": ["「他說\"好\"」", "反斜線\\", "換\n行"]},
}  # fmt: skip
QUESTION = [{"role": "user", "content": "填表"}]


def sentencepiece_like() -> ChatTokenizer:
    """Llama-2's kind: ▁ for a space, one put first, rare characters as <0xNN> tokens."""
    from tokenizers import Tokenizer, decoders, models, normalizers, trainers

    backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    controls = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=controls, show_progress=False)
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    backend.train_from_iterator([s.replace(" ", "▁") for s in SENTENCES * 4], trainer)
    state = json.loads(backend.to_str())
    vocab = state["model"]["vocab"]
    state["model"]["vocab"] = vocab | {token: len(vocab) + n for n, token in enumerate(fallback)}
    return ChatTokenizer(Tokenizer.from_str(json.dumps(state))).with_template("taiwan-llm-v2")


@pytest.fixture(scope="module", params=["byte-level", "sentencepiece"])
def engine(request: Any, tiny_tokenizer: ChatTokenizer, tmp_path_factory: Any) -> Iterator[TorchEngine]:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = tiny_tokenizer if request.param == "byte-level" else sentencepiece_like()
    folder: Path = tmp_path_factory.mktemp("grammar")
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=tokenizer.vocab_size + 40,  # padded, as many checkpoints are
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=2048,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save(folder)
    engine = TorchEngine(folder, threads=1, precision="fp32")
    yield engine
    engine.close()


def ask(engine: TorchEngine, grammar: Grammar, **settings: Any) -> list[TokenEvent]:
    ids = engine.tokenizer.encode_chat(QUESTION, add_generation_prompt=True).ids
    sampling = Sampling(**{"max_tokens": 600, "temperature": 1.0, "grammar": grammar, **settings})
    return list(engine.generate(ids, sampling))


def text(events: list[TokenEvent]) -> str:
    return "".join(event.text for event in events)


@pytest.mark.parametrize("name", SCHEMAS)
def test_answers_validate(engine: TorchEngine, name: str) -> None:
    answers = set()
    for seed in range(3):
        events = ask(engine, Grammar("json_schema", SCHEMAS[name]), seed=seed)
        assert events[-1].finish_reason == "stop", text(events)
        value = json.loads(text(events))
        checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
        jsonschema.Draft202012Validator(SCHEMAS[name], format_checker=checker).validate(value)
        answers.add(text(events))
    assert "\ufffd" not in "".join(answers)


def test_a_character_outside_the_pieces_can_be_written(engine: TorchEngine) -> None:
    """砢磣 and 🏔 are in no piece: they are spelled in bytes, and no other bytes are allowed."""
    assert len(engine.tokenizer.encode("砢磣🏔")) >= 8
    assert text(ask(engine, Grammar("choice", ["砢磣🏔"]))) == "砢磣🏔"
    assert re.fullmatch("[砢磣]{3}", text(ask(engine, Grammar("regex", "[砢磣]{3}"))))


def test_choice_regex_and_any_object(engine: TorchEngine) -> None:
    choices = ["贊成", "反對", "沒意見", "贊成一半"]
    said = {text(ask(engine, Grammar("choice", choices), seed=seed)) for seed in range(12)}
    assert said <= set(choices)
    assert len(said) > 1
    events = ask(engine, Grammar("regex", "(週[一二三四五六日]) (上|下)午[0-9]{1,2}點"), seed=1)
    assert re.fullmatch("(週[一二三四五六日]) (上|下)午[0-9]{1,2}點", text(events))
    bias = dict.fromkeys('"}:{,', 4.0)
    heavier = tuple((id, value) for char, value in bias.items() for id in engine.tokenizer.encode(char)[-1:])
    for seed in range(3):
        events = ask(engine, Grammar("json_object"), seed=seed, logit_bias=heavier)
        assert events[-1].finish_reason == "stop"
        assert isinstance(json.loads(text(events)), dict)


def test_greedy_and_cut_answers(engine: TorchEngine) -> None:
    """Greedy keeps to the grammar too; an answer that `max_tokens` cuts says so."""
    events = ask(engine, Grammar("json_schema", SCHEMAS["object"]), temperature=0.0)
    jsonschema.validate(json.loads(text(events)), SCHEMAS["object"])
    cut = ask(engine, Grammar("json_schema", SCHEMAS["object"]), max_tokens=3)
    assert [event.finish_reason for event in cut] == [None, None, "length"]


def test_the_grammar_ends_the_answer_even_if_end_tokens_do_not(engine: TorchEngine) -> None:
    events = ask(engine, Grammar("choice", ["好"]), ignore_eos=True, max_tokens=50)
    assert text(events) == "好"
    assert events[-1].finish_reason == "stop"


@pytest.mark.parametrize(
    ("grammar", "words"),
    [
        (Grammar("json_schema", {"type": "text"}), ""),
        (Grammar("json_schema", {"type": "integer", "minimum": 5, "maximum": 4}), ""),
        (Grammar("json_schema", {"type": "array", "items": {"type": "string"}, "uniqueItems": True}), ""),
        (Grammar("json_schema", {"$ref": "https://example.com/schema.json"}), ""),
        (Grammar("json_schema", ["no object"]), "an object"),
        (Grammar("json_schema", {"enum": ["長" * 100_000]}), "bytes"),
        (Grammar("regex", "["), ""),
        (Grammar("regex", "(?=好)壞"), ""),
        (Grammar("regex", 5), "a string"),
        (Grammar("choice", []), "list of strings"),
        (Grammar("choice", ["好", ""]), "not empty"),
    ],
)
def test_what_cannot_be_used_is_refused_before_it_is_queued(engine: TorchEngine, grammar: Grammar, words: str) -> None:
    with pytest.raises(UserError, match=f"answer format.*{words}"):
        ask(engine, grammar)
    assert engine.load() == (0, 0)


def test_a_deep_schema_is_refused(engine: TorchEngine) -> None:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(3000):
        schema = {"type": "array", "items": schema}
    with pytest.raises(UserError, match="answer format"):
        ask(engine, Grammar("json_schema", schema))


def test_a_state_is_not_shared(tiny_tokenizer: ChatTokenizer) -> None:
    grammars = Grammars(tiny_tokenizer, frozenset({tiny_tokenizer.eos_id}))
    one, other = (grammars.constraint(Grammar("choice", ["ab"])) for _ in range(2))
    (a,) = tiny_tokenizer.encode("a")
    one.accept(a)
    assert other.allowed(tiny_tokenizer.vocab_size)[a]
    assert not one.allowed(tiny_tokenizer.vocab_size)[a]
