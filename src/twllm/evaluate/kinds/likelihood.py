"""likelihood: which of an item's choices the model finds most likely to come next; nothing is written by the model.

`acc` and `acc_norm` are lm-evaluation-harness's: the choice with the largest log-likelihood, and with the largest per character of
the choice; of equal ones the first. A suite is asked so with `--by likelihood` (`ttqa` becomes `ttqa_likelihood`), TMMLU+ always.
Prompts go in the order of their text, so that what neighbours share is computed once; the batch size changes no answer (in
bf16: see evaluate/model.py). A question too long for the model is wrong and told (lm-eval cuts its beginning off and asks the rest).
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from twllm.artifact import fingerprint
from twllm.errors import UserError
from twllm.evaluate.ask import Question
from twllm.evaluate.contamination import contamination_summary
from twllm.evaluate.kinds import Options, Session, check, kind
from twllm.evaluate.lmeval.export import has_choices
from twllm.evaluate.lmeval.functions import candidates
from twllm.evaluate.model import CLOSE
from twllm.evaluate.progress import batches, store
from twllm.evaluate.score import averages, score_task
from twllm.evaluate.task import Item, Response, Task
from twllm.evaluate.tmmluplus import fields
from twllm.serve.engines.interface import Score

SCORED_AT_ONCE = 8  # times the batch size: one forward a question, where an answer takes dozens
WAYS = ("text", "chat")
FLOOR = -9999.0  # stands for minus infinity, which JSON does not have; vLLM's number


def by_likelihood(tasks: Sequence[Task], by: str) -> tuple[list[Task], dict[str, str]]:
    """The tasks as they are to be run under `--by`, and why others are left out.

    Raises:
        UserError: `by` is no way of asking, or none of the tasks has choices.
    """
    if by not in ("", "generation", "likelihood"):
        raise UserError("沒有這種問法 (unknown way of asking)", f"--by {by}", "generation 或 likelihood")
    if by != "likelihood":
        return list(tasks), {}
    able = [task for task in tasks if task.kind == "likelihood" or (task.kind == "generate" and has_choices(task))]
    names = {task.label: "沒有選項，不能比對數機率 (no choices)" for task in tasks if task not in able}
    if not able:
        raise UserError("這些題組沒有選項 (no choices to compare)", "、".join(names), "改用 --by generation")
    return [task if task.kind == "likelihood" else _variant(task) for task in able], names


def _variant(task: Task) -> Task:
    return task.model_copy(update={"name": f"{task.name}_likelihood", "kind": "likelihood"})


def way_of(task: Task, options: Options) -> str:
    """Plain text or chat: what --ask says, else the task, else text as lm-eval."""
    return str(options.more.get("ask") or task.options.get("ask") or "text")


@check("likelihood")
def check_way(task: Task, items: list[Item], options: Options) -> None:
    """Only ways that there are; at least one item with choices."""
    if way_of(task, options) not in WAYS:
        raise UserError("沒有這種問法 (unknown way of asking)", f"--ask {way_of(task, options)}", "text 或 chat")
    if not any(_has_letter(task, item) for item in items):
        raise UserError("這個題組沒有選項 (no choices to compare)", task.label, "改用 --by generation")


def _has_letter(task: Task, item: Item) -> bool:
    return bool(item.references) and item.references[0] in candidates(task, item)


def question_of(task: Task, item: Item, way: str) -> Question:
    """How an item is put to the model; `delimiter` of the task's options stands before each choice."""
    between = str(task.options.get("delimiter", ""))
    choices = (
        tuple(between + choice for choice in candidates(task, item)) if way == "text" else tuple(candidates(task, item))
    )
    return Question(item.prompt, choices, item.answer_prefix, "chat" if way == "chat" else "text")


@kind("likelihood")
def likelihood(task: Task, items: list[Item], session: Session) -> dict[str, Any]:
    """The most likely choice of each item that has choices."""
    model, way = session.model, way_of(task, session.options)
    if not hasattr(model, "scores"):
        raise UserError("這裡給不出對數機率 (no log-likelihoods from here)", task.label, "給模型資料夾或伺服器網址")
    chosen = [item for item in items if _has_letter(task, item)]
    questions = {item.id: question_of(task, item, way) for item in chosen}
    template = model.template_fingerprint if way == "chat" else ""
    base = [model.fingerprint, template, "likelihood", way, getattr(model, "precision", "")]
    keys = {id: fingerprint([*base, q.prompt, q.prefix, q.choices]) for id, q in questions.items()}
    rows = {item.id: row for item in chosen if (row := session.file.find(item, keys[item.id])) is not None}
    session.reused += len(rows)
    waiting = sorted((item for item in chosen if item.id not in rows), key=lambda item: item.wording)
    for batch in batches(waiting, SCORED_AT_ONCE * session.options.batch_size, len(chosen)):
        found = model.scores([questions[item.id] for item in batch])
        for response in store(session.file, found, partial(_response, task, batch, keys)):
            rows[response.id] = response
    session.kept += [rows[item.id] for item in chosen]
    return block(task, chosen, rows, way, getattr(model, "precision", ""))


def _response(
    task: Task, batch: Sequence[Item], keys: Mapping[str, str], number: int, scores: Sequence[Score] | None
) -> Response:
    """What is stored for one item: the letter and all numbers.

    Raises:
        UserError: the model computes NaN.
    """
    item, said = batch[number], tuple(max(score.logprob, FLOOR) for score in scores or ())
    if any(math.isnan(score.logprob) for score in scores or ()):
        raise UserError("模型算出 NaN (non-finite logits)", f"{task.label} {item.id}", "檢查權重；量化或 bf16 溢位")
    letter = candidates(task, item)[said.index(max(said))] if said else ""
    return Response(
        task=item.task, id=item.id, prompt=item.prompt, output=letter, key=keys[item.id], scores=said, too_long=not said
    )


def block(task: Task, items: list[Item], rows: dict[str, Response], way: str, precision: str) -> dict[str, Any]:
    """A suite's block from its log-likelihoods."""
    too_long = [id for id, row in rows.items() if row.too_long]
    marked = task.model_copy(update={"scorer": "exact_match"})
    block = score_task(marked, items, {id: row.output for id, row in rows.items()}, too_long)
    block["task"]["scorer"] = "likelihood"
    norms = []
    for item, shown in zip(items, block["items"], strict=True):
        choices, scores = candidates(task, item), rows[item.id].scores
        by_length = [score / len(choice) for score, choice in zip(scores, choices, strict=True)] if scores else []
        norm = choices[by_length.index(max(by_length))] if by_length else ""
        norms.append(float(norm == item.references[0]))
        shown |= {"choices": choices, "loglikelihoods": list(scores), "correct_norm": bool(norms[-1])}
    block["by"], block["asked"], block["precision"] = "likelihood", way, precision
    block["acc"] = block["score"]
    block["acc_norm"] = averages(task, items, norms)["score"]
    if task.reader == "tmmluplus":
        block["fields"] = fields(items, [float(row["correct"]) for row in block["items"]])
    block["close"] = sum(_is_close(rows[item.id].scores) for item in items)
    if task.reader == "questions":
        block["contamination"] = contamination_summary([item.question for item in items])
    return block


def _is_close(scores: Sequence[float]) -> bool:
    """Whether the two best are nearer than bf16 tells apart."""
    best = sorted(scores, reverse=True)[:2]
    return len(best) == 2 and best[0] - best[1] < CLOSE
