"""A data set of drawn pictures: PNG files, captions, conversations about them, and held-out pictures with questions.

No held-out chart or menu is in the training part (by content); a road sign is one of some thirty, so there a held-out picture is the
same sign elsewhere, larger or smaller, on another ground. Price: about 5 ms a picture.
"""

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from twllm.draw.charts import draw_bars, draw_line
from twllm.draw.menus import draw_menu
from twllm.draw.pen import Drawn
from twllm.draw.signs import draw_sign

KINDS: tuple[Callable[[random.Random], Drawn], ...] = (draw_sign, draw_sign, draw_bars, draw_line, draw_menu, draw_menu)
FACTS = {"source": "twllm:draw", "license": "Apache-2.0"}
DESCRIBE = "請描述這張圖。"


def draw_set(out: Path, train: int, held_out: int, seed: int = 1) -> dict[str, Any]:
    """Fill `out` with `images/`, `captions.jsonl`, `instruct.jsonl` and `held_out.jsonl`; returns counts."""
    (out / "images").mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    captions: list[dict[str, Any]] = []
    chats: list[dict[str, Any]] = []
    questions: list[dict[str, Any]] = []
    kept = list(_different(rng, held_out, set()))
    used = {drawn.content for drawn in kept if not drawn.content.startswith("sign")}
    for number, drawn in enumerate([*kept, *_different(rng, train, used)]):
        name = f"images/{number:06}.png"
        drawn.image.save(out / name)
        facts: dict[str, Any] = {"id": f"draw/{number:06}", "image": name, **FACTS}
        if number < held_out:
            questions += [
                {**facts, "id": f"{facts['id']}/{n}", "kind": kind, "question": question, "answer": answer}
                for n, (kind, question, answer) in enumerate(drawn.questions)
            ]
            continue
        captions.append({**facts, "messages": _turns([(DESCRIBE, drawn.caption)])})
        order = rng.sample(drawn.questions, len(drawn.questions))
        chats.append({**facts, "messages": _turns([(question, answer) for _, question, answer in order])})
    rows = {"captions": captions, "instruct": chats, "held_out": questions}
    for file, found in rows.items():
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found)
        (out / f"{file}.jsonl").write_text(lines, encoding="utf-8")
    return {"pictures": train, "held_out_pictures": held_out, "held_out_questions": len(questions)}


def _different(rng: random.Random, count: int, taken: set[str]) -> Iterator[Drawn]:
    """So many pictures, the kinds in turn, none with a content that is taken."""
    number = 0
    while number < count:
        drawn = KINDS[number % len(KINDS)](rng)
        if drawn.content not in taken:
            number += 1
            yield drawn


def _turns(pairs: list[tuple[str, str]]) -> list[dict[str, str]]:
    """A conversation whose first question has the picture."""
    turns = []
    for number, (question, answer) in enumerate(pairs):
        turns.append({"role": "user", "content": ("<image>\n" if number == 0 else "") + question})
        turns.append({"role": "assistant", "content": answer})
    return turns
