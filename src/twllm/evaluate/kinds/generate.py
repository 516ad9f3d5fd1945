"""generate: ask each item, mark the answer. Answers are stored batch by batch; a rerun asks only what is missing."""

import sys
from collections.abc import Iterator, Sequence
from typing import Any

from twllm.artifact import fingerprint
from twllm.corpus.check import leak_rate
from twllm.evaluate.contamination import contamination_summary
from twllm.evaluate.kinds import Session, kind
from twllm.evaluate.model import Model
from twllm.evaluate.responses import ResponseFile
from twllm.evaluate.score import score_task
from twllm.evaluate.task import Item, Response, Task


@kind("generate")
def generate(task: Task, items: list[Item], session: Session) -> dict[str, Any]:
    """Answers to all items, marked."""
    options = session.options
    answers, reused = answer_items(session.model, items, session.file, options.max_new_tokens, options.batch_size)
    session.reused += reused
    session.kept += [answers[(item.task, item.id)] for item in items]
    return block(task, items, {item.id: answers[(item.task, item.id)] for item in items})


def answer_items(
    model: Model, items: Sequence[Item], file: ResponseFile, max_new_tokens: int, batch_size: int
) -> tuple[dict[tuple[str, str], Response], int]:
    """Answers by (task, item id), and how many of them came from `file`; new ones are stored there as they come."""
    base = [model.fingerprint, model.template_fingerprint, max_new_tokens]
    keys = {(item.task, item.id): fingerprint([*base, item.prompt]) for item in items}
    answers: dict[tuple[str, str], Response] = {}
    for item in items:
        stored = file.find(item, keys[(item.task, item.id)])
        if stored is not None:
            answers[(item.task, item.id)] = stored
    waiting = [item for item in items if (item.task, item.id) not in answers]
    waiting.sort(key=lambda item: len(item.prompt))  # stable: ties in benchmark order
    for batch in _batches(waiting, batch_size, len(items)):
        outputs = model([item.messages for item in batch])
        rows = [
            Response(
                task=item.task, id=item.id, prompt=item.prompt, output=output or "",
                key=keys[(item.task, item.id)], too_long=output is None,
            )
            for item, output in zip(batch, outputs, strict=True)
        ]  # fmt: skip
        file.append(rows)
        answers.update({(row.task, row.id): row for row in rows})
    return answers, len(items) - len(waiting)


def _batches(items: Sequence[Item], size: int, total: int) -> Iterator[Sequence[Item]]:
    """Batches under a progress bar; the longest prompts first, so that a lack of memory shows at once."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("評測"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
        bar = progress.add_task("evaluate", total=total, completed=total - len(items))
        for end in range(len(items), 0, -size):
            batch = items[max(0, end - size) : end]
            yield batch
            progress.advance(bar, len(batch))


def block(task: Task, items: list[Item], answers: dict[str, Response]) -> dict[str, Any]:
    """A suite's block from its answers."""
    outputs = {id: row.output for id, row in answers.items()}
    block = score_task(task, items, outputs, [id for id, row in answers.items() if row.too_long])
    block["leak_rate"] = round(leak_rate(outputs.values()), 6)
    if task.reader == "questions":
        block["contamination"] = contamination_summary([item.question for item in items])
    return block
