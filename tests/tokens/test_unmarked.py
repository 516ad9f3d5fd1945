"""Answers in templates without `{% generation %}`: the spans of the marked ones, other families' turns, and what is refused."""

import re

import pytest

from twllm.tokens.template import CONTROL_TOKENS
from twllm.tokens.tokenizer import ChatTokenizer
from twllm.tokens.unmarked import PROBE

TURN = "{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content | trim }}<|end|>\n{% endfor %}"
ASK = "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
SYSTEM = {"role": "system", "content": "你是助理。"}


def with_source(tokenizer: ChatTokenizer, source: str, eos: str = "") -> ChatTokenizer:
    return ChatTokenizer(tokenizer.backend, source, tokenizer.bos, eos or tokenizer.eos, tokenizer.pad)


def learned(tokenizer: ChatTokenizer, messages: list[dict[str, str]]) -> list[str]:
    chat, found = tokenizer.encode_chat(messages), list[list[int]]([[]])
    for id, one in zip(chat.ids, chat.mask, strict=True):
        found = [*found[:-1], [*found[-1], id]] if one else [*found, []]
    return [tokenizer.backend.decode(ids, skip_special_tokens=False) for ids in found if ids]


@pytest.mark.parametrize("name", CONTROL_TOKENS)
def test_without_its_marks_a_template_is_learned_as_with_them(name: str, tiny_tokenizer: ChatTokenizer) -> None:
    marked = tiny_tokenizer.with_template(name)
    plain = with_source(marked, re.sub(r"{%-?\s*(end)?generation\s*-?%}", "", marked.template))
    assert marked.marked and not plain.marked
    for messages in (PROBE, [SYSTEM, *PROBE]):
        assert plain.encode_chat(messages) == marked.encode_chat(messages)


def test_answers_reach_from_the_prompt_to_the_end_of_the_turn(tiny_tokenizer: ChatTokenizer) -> None:
    backend = type(tiny_tokenizer.backend).from_str(tiny_tokenizer.backend.to_str())
    backend.add_special_tokens(["<|start|>", "<|end|>"])
    thinking = TURN.replace(
        "{{ m.content", "{% if loop.last and m.role == 'assistant' %}<think></think>{% endif %}{{ m.content"
    )
    base = ChatTokenizer(backend, TURN + ASK, "", tiny_tokenizer.eos)
    assert learned(base, [SYSTEM, *PROBE]) == ["乙<|end|>", "丁<|end|>"]
    assert learned(with_source(base, thinking + ASK), PROBE) == ["乙<|end|>", "<think></think>丁<|end|>"]
    assert base.with_own_end().eos == "<|end|>" and base.with_own_end().template == base.template
    phi = with_source(base, TURN + ASK + "{% if not add_generation_prompt %}{{ eos_token }}{% endif %}")
    assert phi.with_own_end() is phi and phi.answer_end == base.with_own_end().eos_id != phi.eos_id
    assert tiny_tokenizer.with_own_end() is tiny_tokenizer and tiny_tokenizer.answer_end == tiny_tokenizer.eos_id


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}",  # nothing ends an answer
        TURN + ASK.replace("assistant", "model"),  # trained after other words than it is asked with
        "{{ messages[0].content }}{{ raise_exception('no') if messages | length < 3 }}",  # refuses a beginning
        "{% for m in messages[-2:] %}{{ m.role }}: {{ m.content }}</s>{% endfor %}",  # forgets the beginning
    ],
    ids=["no end", "other prompt", "refuses", "forgets"],
)
def test_nothing_is_guessed(source: str, tiny_tokenizer: ChatTokenizer) -> None:
    assert not any(with_source(tiny_tokenizer, source).encode_chat(PROBE).mask)
