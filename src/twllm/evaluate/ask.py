"""A question with choices as token ids: the prompt as plain text that goes on with a choice, or as a chat whose answer the choice is.

Text is lm-evaluation-harness 0.4.13's way (`_encode_pair`): the begin token once, white space at the prompt's end belongs to the
choice, and a choice's ids are what the whole has more than the prompt alone. Where the two tokenisations part earlier, ours
splits there, so that prompt and choice together are always the ids of the whole text (lm-eval then scores other ids). In a chat
the choice is encoded as the model learned to say it, with the template's space before it (lm-eval puts the bare choice there).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from twllm.serve.engines.batching.prefix_tree import common_length
from twllm.tokens.tokenizer import ChatTokenizer

Way = Literal["text", "chat"]
Pair = tuple[list[int], list[int]]  # ids of the context and of what follows it


@dataclass(frozen=True)
class Question:
    """What is asked, what the answer is made to begin with, and the answers to choose from."""

    prompt: str
    choices: tuple[str, ...]
    prefix: str = ""
    way: Way = "text"


def encode_questions(tokenizer: ChatTokenizer, questions: Sequence[Question]) -> list[list[Pair]]:
    """For each question one pair for each choice; contexts of a question's choices are mostly the same."""
    texts = [q for q in questions if q.way == "text"]
    found = dict(zip(map(id, texts), _encode_texts(tokenizer, texts), strict=True))
    return [found[id(q)] if q.way == "text" else [_encode_chat(tokenizer, q, c) for c in q.choices] for q in questions]


def _encode_texts(tokenizer: ChatTokenizer, questions: Sequence[Question]) -> list[list[Pair]]:
    """One call of the tokenizer for all texts."""
    wanted: list[str] = []
    for question in questions:
        whole = question.prompt + question.prefix
        wanted += [whole.rstrip(), *(whole + choice for choice in question.choices)]
    encoded = iter(tokenizer.encode_batch(wanted))
    bos = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    pairs = []
    for question in questions:
        context = bos + next(encoded)
        pairs.append([split(context, bos + next(encoded)) for _ in question.choices])
    return pairs


def _encode_chat(tokenizer: ChatTokenizer, question: Question, choice: str) -> Pair:
    """The chat up to the answer, and the answer without what ends it."""
    asked = [{"role": "user", "content": question.prompt}]
    context = tokenizer.encode_chat(asked, add_generation_prompt=True).ids
    if question.prefix:
        begun = (question.prefix.rstrip(), question.prefix + choice)
        before, whole = (
            tokenizer.encode_chat(asked, add_generation_prompt=True, begin_answer=text).ids for text in begun
        )
        return split(before, whole)
    ids = tokenizer.encode_chat([*asked, {"role": "assistant", "content": choice}]).ids
    context, answer = split(context, ids)
    end = next((at for at, token in enumerate(answer) if at and token in tokenizer.control_ids), len(answer))
    return context, answer[:end]


def split(context: list[int], whole: list[int]) -> Pair:
    """The whole in two, after the tokens that the context has too; something is left for both sides.

    >>> split([1, 2, 3], [1, 2, 3, 4]), split([1, 2, 3], [1, 2, 34])
    (([1, 2, 3], [4]), ([1, 2], [34]))
    """
    at = max(1, min(common_length(context, whole), len(whole) - 1))
    return whole[:at], whole[at:]
