"""`twllm eval needle-data`: conversations that teach looking something up in a long text, in the shape of the needle suite.

Length, depth, needle, value and text are drawn by the seed; a value that the suite asks for is drawn again, so that no answer can be learned.
The sentences and questions are the suite's own: a model trained on these has seen its wording, which a report has to say.
The answer is the whole sentence that holds the value. `--needles 12` hides twelve in one text and asks for them one after the other: as many
answers to learn from for the price of one long row.
"""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from twllm.artifact import write_text
from twllm.errors import UserError
from twllm.evaluate.haystack import fill, needle_items, needles, place
from twllm.evaluate.task import tasks
from twllm.evaluate.texts import read_texts


def needle_data(
    out: Annotated[Path, typer.Option(help="要寫的 .jsonl")],
    count: Annotated[int, typer.Option(min=1, help="幾筆對話 (conversations)")] = 1000,
    shortest: Annotated[int, typer.Option(help="文件最少幾字 (characters)")] = 200,
    longest: Annotated[int, typer.Option(help="文件最多幾字 (characters)")] = 4000,
    text: Annotated[
        str, typer.Option(help="稻草：twllm:NAME、檔案或語料資料夾 (what the needle hides in)")
    ] = "twllm:knowledge",
    seed: Annotated[int, typer.Option(help="亂數種子")] = 1,
    per_text: Annotated[
        int, typer.Option("--needles", min=1, max=12, help="一份文件藏幾根針、問幾次 (needles and questions a text)")
    ] = 1,
) -> None:
    """教長文查找的對話，與大海撈針題組同一個樣子 (training conversations in the shape of the needle suite)."""
    rows = conversations([one.text.strip() for one in read_texts(text)], count, shortest, longest, seed, per_text)
    write_text(out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    print(f"{out}：{count:,} 筆 (conversations)")


def conversations(
    texts: list[str], count: int, shortest: int, longest: int, seed: int, per_text: int = 1
) -> Iterator[dict[str, Any]]:
    """Rows for [[sft.datasets]].

    Raises:
        UserError: documents too short for their needles.
    """
    known, words = needles()
    least = per_text * max(len(needle.sentence) for needle in known) + 40
    if not least <= shortest <= longest:
        what = "文件太短，藏不了針，或最短比最長還長 (too short for its needles)"
        fix = f"最短至少 {least} 字，而且不超過最長"
        raise UserError(what, f"--shortest {shortest} --longest {longest}", fix)
    task = tasks()["needle_zh"]
    asked = {value for item in needle_items(task, None) for value in item.references}
    for number in range(count):
        chance = random.Random(f"train/{seed}/{number}")
        told = []
        for needle in [chance.choice(known)] if per_text == 1 else chance.sample(known, per_text):
            value = _value(needle.kind, words, chance)
            while value in asked:
                value = _value(needle.kind, words, chance)
            told.append((needle.question, needle.sentence.format(value=value)))
        hay = fill(texts, chance.randint(shortest, longest) - sum(len(sentence) for _, sentence in told), chance)
        for at, (_, sentence) in sorted(((place(hay, chance.randint(0, 100)), one) for one in told), reverse=True):
            hay = hay[:at] + sentence + hay[at:]
        first = task.prompt.format(context=hay, question=told[0][0])
        questions = [first, *(question for question, _ in told[1:])]
        yield {
            "id": f"needle-{seed}-{number}",
            "messages": [
                {"role": role, "content": content}
                for question, (_, answer) in zip(questions, told, strict=True)
                for role, content in (("user", question), ("assistant", answer))
            ],
            "license": "CC-BY-4.0",
        }


def _value(kind: str, words: tuple[str, ...], chance: random.Random) -> str:
    return f"{chance.randrange(100_000, 1_000_000)}" if kind == "digits" else "".join(chance.sample(words, 2))
