"""needle: a grid of lengths × depths, each cell the share of hidden facts that the model could tell.

Items whose text does not fit the model are not asked and do not count; `grid` says how many each cell had.
"""

from typing import Any

from twllm.corpus.check import leak_rate
from twllm.evaluate.haystack import numbers
from twllm.evaluate.kinds import Session, kind
from twllm.evaluate.kinds.generate import answer_items
from twllm.evaluate.score import score_task
from twllm.evaluate.task import Item, Response, Task

BATCH_CHARS = 16_000  # of prompts decoded together, so that KV caches of long ones fit; chosen, not tuned


@kind("needle")
def needle(task: Task, items: list[Item], session: Session) -> dict[str, Any]:
    """Ask by length, short ones first: from the first length of which nothing fits, none is asked."""
    options, answers = session.options, dict[str, Response]()
    for length in sorted({length_of(item) for item in items}):
        row = [item for item in items if length_of(item) == length]
        size = min(options.batch_size, max(1, BATCH_CHARS // length))
        found, reused = answer_items(session.model, row, session.file, options.max_new_tokens, size)
        session.reused += reused
        session.kept += found.values()
        answers |= {id: response for (_, id), response in found.items()}
        if all(response.too_long for response in found.values()):
            break
    return block(task, items, answers)


def length_of(item: Item) -> int:
    """Characters of the item's document: its id is `length/depth/number`."""
    return int(item.id.split("/")[0])


def block(task: Task, items: list[Item], answers: dict[str, Response]) -> dict[str, Any]:
    """The suite's block, with the grid."""
    asked = [item for item in items if item.id in answers and not answers[item.id].too_long]
    outputs = {item.id: answers[item.id].output for item in asked}
    if asked:
        found = score_task(task, asked, outputs)
    else:  # not even the shortest fits: no score, and nothing guessed
        found = score_task(task, items[:1], {items[0].id: ""}) | {
            "score": 0.0, "correct": 0, "n": 0, "interval": [0.0, 1.0], "topics": {}, "items": []
        }  # fmt: skip
    return found | {
        "leak_rate": round(leak_rate(outputs.values()), 6) if outputs else None,
        "not_fitting": len(items) - len(asked),
        "grid": grid(task, found["items"]),
    }


def grid(task: Task, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """`correct[i][j]` of `n[i][j]` at lengths[i] and depths[j]."""
    lengths, depths = numbers(task, "lengths"), numbers(task, "depths")
    correct = [[0] * len(depths) for _ in lengths]
    n = [[0] * len(depths) for _ in lengths]
    for row in rows:
        length, depth, _ = map(int, row["id"].split("/"))
        i, j = lengths.index(length), depths.index(depth)
        n[i][j] += 1
        correct[i][j] += row["correct"]
    return {"lengths": lengths, "depths": depths, "correct": correct, "n": n}
