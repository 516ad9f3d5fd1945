"""Needle in a haystack, in Chinese: a made-up fact is hidden in a long text, and the model is asked for it.

The method is Greg Kamradt's (github.com/gkamradt/LLMTest_NeedleInAHaystack, 2023): lengths × depths, here several needles a
cell. The text is the shipped `knowledge` paragraphs in an order drawn by the seed (or any text with `--text`), cut at the length; the
needle stands after the sentence end nearest to its depth. What is asked for is drawn too (six digits, or a pair of words), so that it
can neither be guessed nor have been learned. Lengths are in characters, needle included, so that models with different
tokenizers read the same text; what does not fit a model is not asked.
Not covered: several needles to be joined, questions that share no word with the needle.
"""

import json
import random
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from twllm import data
from twllm.errors import UserError
from twllm.evaluate.task import Item, Task, make_item
from twllm.evaluate.texts import read_texts

SENTENCE_END = re.compile(r"[。！？\n][」』）]?")
NEEDLES = "needles/needles.jsonl"


class Needle(NamedTuple):
    """A sentence with `{value}` in it, the question that asks for the value, and of which kind the value is."""

    sentence: str
    question: str
    kind: str


@cache
def needles() -> tuple[tuple[Needle, ...], tuple[str, ...]]:
    """The shipped needles, and the words that pairs are drawn from."""
    rows = [json.loads(line) for line in (data.ROOT / NEEDLES).read_text(encoding="utf-8").splitlines()]
    words = next(row["words"] for row in rows if "words" in row)
    return tuple(Needle(**row) for row in rows if "words" not in row), tuple(words)


def needle_items(task: Task, source: Path | None) -> list[Item]:
    """The grid of a task's options `lengths`, `depths` (percent), `per_cell`, `seed`; `source` None: its `text`.

    Raises:
        UserError: a length too short for a needle, a depth outside 0 to 100, or no text.
    """
    lengths, depths = numbers(task, "lengths"), numbers(task, "depths")
    known, _ = needles()
    least = max(len(needle.sentence) for needle in known) + 40
    if min(lengths) < least or not all(0 <= depth <= 100 for depth in depths):
        what = f"長度至少 {least} 字，深度在 0 到 100 之間 (lengths or depths out of range)"
        raise UserError(what, f"tasks/{task.name}.toml", "修正 [options] 的 lengths、depths")
    texts = [text.text.strip() for text in read_texts(source or str(task.options["text"]))]
    return [
        _item(task, texts, length, depth, number)
        for length in lengths
        for depth in depths
        for number in range(int(task.options["per_cell"]))
    ]


def numbers(task: Task, name: str) -> list[int]:
    """An option that lists whole numbers, `"250 500 1000"`."""
    try:
        return [int(word) for word in str(task.options[name]).split()]
    except ValueError as error:
        what = f"{name} 要是以空白隔開的整數 (whole numbers)：{task.options[name]}"
        raise UserError(what, f"tasks/{task.name}.toml", f'例如 {name} = "250 500 1000"') from error


def _item(task: Task, texts: list[str], length: int, depth: int, number: int) -> Item:
    """One cell's item; everything drawn depends on seed, length, depth and number alone."""
    chance = random.Random(f"{task.options['seed']}/{length}/{depth}/{number}")
    known, words = needles()
    needle = chance.choice(known)
    value = f"{chance.randrange(100_000, 1_000_000)}" if needle.kind == "digits" else "".join(chance.sample(words, 2))
    sentence = needle.sentence.format(value=value)
    hay = fill(texts, length - len(sentence), chance)
    at = place(hay, depth)
    return make_item(
        task, f"{length}/{depth}/{number}", needle.question, [value], context=hay[:at] + sentence + hay[at:],
        topic=f"深度 {depth}%", form=f"{length} 字",
    )  # fmt: skip


def fill(texts: list[str], length: int, chance: random.Random) -> str:
    """Exactly `length` characters of the texts in an order drawn by `chance`; drawn again where they are not enough."""
    return "\n".join(_until(texts, length, chance))[:length]


def _until(texts: list[str], length: int, chance: random.Random) -> Iterator[str]:
    while True:
        for text in chance.sample(texts, len(texts)):
            yield text
            length -= len(text) + 1
            if length < 0:
                return


def place(hay: str, depth: int) -> int:
    """Where a needle at `depth` percent goes: the start, the end, or after the sentence end nearest to it."""
    if depth in (0, 100):
        return len(hay) * depth // 100
    aim = len(hay) * depth / 100
    ends = [match.end() for match in SENTENCE_END.finditer(hay)]
    return min(ends, key=lambda end: abs(end - aim), default=round(aim))
