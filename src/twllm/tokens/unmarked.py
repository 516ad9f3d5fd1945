"""Chat templates without `{% generation %}`, as nearly all published models have them: what the assistant says, found by rendering twice.

An answer is what stands between the prompt that the model is given for it (the messages before, with the generation prompt) and the
control token that ends the turn, this token included. Where the two renderings do not begin alike, where a message is missing
or shown twice, or where no control token ends an answer, nothing is guessed: there are no spans, and training refuses the template.
Price: one more rendering for each answer.
"""

from collections.abc import Callable
from typing import Any

from twllm.errors import UserError
from twllm.tokens.template import GENERATION, Messages, Rendered

PROBE = [
    {"role": "user", "content": "甲"},
    {"role": "assistant", "content": "乙"},
    {"role": "user", "content": "丙"},
    {"role": "assistant", "content": "丁"},
]
Render = Callable[..., Rendered]


def is_marked(template: str) -> bool:
    """Whether the template itself says what is learned."""
    return bool(GENERATION.search(template))


def learned_spans(whole: Rendered, messages: Messages, render: Render, control: Any) -> tuple[tuple[int, int], ...]:
    """Character spans of the answers in `whole`, the rendering of `messages`; none where they cannot be told."""
    if len(whole.typed) != len(messages) or not all(message["content"] for message in messages):
        return ()
    spans = []
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        try:
            prompt, (low, high) = render(messages[:number], add_generation_prompt=True).text, whole.typed[number]
        except UserError:  # the template refuses the beginning alone, one that the model opens, say
            return ()
        space = len(whole.text[high:]) - len(whole.text[high:].lstrip())
        end = control.match(whole.text, high + space)
        if not whole.text.startswith(prompt) or len(prompt) > low or end is None:
            return ()
        spans.append((len(prompt), end.end()))
    return tuple(spans)
