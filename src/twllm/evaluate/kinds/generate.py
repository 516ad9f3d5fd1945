"""generate: ask each item, mark the answer. Answers are stored as they come; a rerun asks only what is missing."""

from collections.abc import Iterator, Sequence
from typing import Any

from twllm.artifact import fingerprint
from twllm.corpus.check import leak_rate
from twllm.evaluate.contamination import contamination_summary
from twllm.evaluate.kinds import Session, kind
from twllm.evaluate.model import Messages, Model
from twllm.evaluate.progress import batches, store
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
    keys = {(item.task, item.id): fingerprint([*base, item.wording]) for item in items}
    answers: dict[tuple[str, str], Response] = {}
    for item in items:
        stored = file.find(item, keys[(item.task, item.id)])
        if stored is not None:
            answers[(item.task, item.id)] = stored
    waiting = [item for item in items if (item.task, item.id) not in answers]
    by_text = getattr(model, "order", "length") == "prompt"  # neighbours share what they begin with; else: even lengths
    waiting.sort(key=lambda item: item.wording if by_text else len(item.wording))  # stable: ties in benchmark order
    for batch in batches(waiting, batch_size, len(items)):

        def row(number: int, output: str | None, batch: Sequence[Item] = batch) -> Response:
            item = batch[number]
            return Response(
                task=item.task, id=item.id, prompt=item.prompt, output=output or "",
                key=keys[(item.task, item.id)], too_long=output is None,
            )  # fmt: skip

        rows = store(file, _ask(model, [item.messages for item in batch]), row)
        answers.update({(row.task, row.id): row for row in rows})
    return answers, len(items) - len(waiting)


def _ask(model: Model, chats: list[Messages]) -> Iterator[list[tuple[int, str | None]]]:
    """Answers with their numbers: as they come from a server, all at once from a local model."""
    stream = getattr(model, "stream", None)
    if stream is not None:
        yield from stream(chats)
    else:
        yield list(enumerate(model(chats)))


def block(task: Task, items: list[Item], answers: dict[str, Response]) -> dict[str, Any]:
    """A suite's block from its answers."""
    outputs = {id: row.output for id, row in answers.items()}
    block = score_task(task, items, outputs, [id for id, row in answers.items() if row.too_long])
    block["leak_rate"] = round(leak_rate(outputs.values()), 6)
    if task.reader == "questions":
        block["contamination"] = contamination_summary([item.question for item in items])
    return block
