"""Run suites on a model, or score answers that exist; the result is one JSON, with the answers and a report beside it.

Answers are stored batch by batch in `NAME.responses.jsonl`: run again after an interruption, only the missing ones are
generated. Prompts are asked in order of length, so that batches are even; rows come out in the benchmark's order.
The batch size changes no answer, save where float rounding decides between two equally likely tokens.
Not covered yet: log-likelihood of choices, judges, a test of outputs for leaked training text (`contamination` looks at
the questions).
"""

import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from twllm import artifact
from twllm.artifact import fingerprint
from twllm.corpus.check import leak_rate
from twllm.errors import UserError
from twllm.evaluate.contamination import contamination_summary
from twllm.evaluate.model import Model, open_model
from twllm.evaluate.report import write_report
from twllm.evaluate.responses import ResponseFile, read_responses
from twllm.evaluate.score import score_task
from twllm.evaluate.sources import read_items
from twllm.evaluate.task import Item, Response, Task, find_tasks, tasks

DEFAULT_QUESTIONS = "twllm:culture"


def evaluate_model(
    model: str,
    *,
    suites: list[str],
    questions: str | None = None,
    data: Path | None = None,
    out: Path,
    limit: int | None = None,
    max_new_tokens: int = 64,
    batch_size: int = 32,
) -> dict[str, Any]:
    """Ask `model` (folder, hub name or URL) all items of the suites; write `out`, its report, pictures and responses.

    `questions` None: the shipped culture questions. `limit`: at most so many items per task, evenly spread over it.

    Raises:
        UserError: unknown suite, data missing or in another layout, no such model; all before the first answer.
    """
    for name, value in (("limit", limit), ("max-new-tokens", max_new_tokens), ("batch-size", batch_size)):
        if value is not None and value < 1:
            raise UserError(f"{name} 要是 1 以上 (must be at least 1)", f"--{name} {value}", "改成正整數")
    if out.is_dir():
        raise UserError("結果要寫成檔案，這裡是資料夾 (--out is a folder)", out, f"例如 --out {out / 'eval.json'}")
    asked = _load(find_tasks(suites), questions or DEFAULT_QUESTIONS, data, limit)
    started = time.perf_counter()
    answering = open_model(model, max_new_tokens)
    file = ResponseFile(out.with_name(f"{out.stem}.responses.jsonl"))
    items = [item for task_items in asked.values() for item in task_items]
    answers, reused = answer_items(answering, items, file, max_new_tokens, batch_size)
    result: dict[str, Any] = {
        "meta": {
            "model": model,
            "model_fingerprint": answering.fingerprint,
            "template_fingerprint": answering.template_fingerprint,
            "max_new_tokens": max_new_tokens,
            "limit": limit,
            "reused_answers": reused,
            "wall_s": round(time.perf_counter() - started, 2),
        }
    }
    for task, task_items in asked.items():
        found = {item.id: answers[(task.name, item.id)] for item in task_items}
        result[task.name] = _block(task, task_items, found)
    file.keep(answers[(item.task, item.id)] for item in items)
    return _finish(result, out)


def score_responses(responses: Path, data: Path, out: Path | None = None) -> dict[str, Any]:
    """Score answers that exist (MediaTek's result file or ours) on every TC-Eval task that has both answers and data.

    Raises:
        UserError: no common task, or answers to some items of a task are missing.
    """
    name, answers = read_responses(responses, tasks().values())
    answered = {task for task, _ in answers}
    wanted = [task for task in find_tasks(["tceval"]) if task.name in answered]
    result: dict[str, Any] = {"meta": {"model": name, "responses": artifact.hash_path(responses), "skipped": {}}}
    for task in wanted:
        try:
            items = read_items(task, DEFAULT_QUESTIONS, data)
        except UserError as error:
            result["meta"]["skipped"][task.name] = f"{error.what}；{error.fix}"
            continue
        missing = [item.id for item in items if (task.name, item.id) not in answers]
        if missing:
            what = f"{task.name} 有 {len(missing)} 題沒有回答 (answers missing)，例如 {missing[0]}"
            raise UserError(what, responses, "題目與回答要是同一版")
        result[task.name] = _block(task, items, {item.id: answers[(task.name, item.id)] for item in items})
    if len(result) == 1:
        reasons = "；".join(dict.fromkeys(result["meta"]["skipped"].values())) or "回答檔裡沒有 TC-Eval 的題組"
        raise UserError("沒有可以評分的題組 (nothing to score)", data, reasons)
    return result if out is None else _finish(result, out)


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


def _load(wanted: list[Task], questions: str, data: Path | None, limit: int | None) -> dict[Task, list[Item]]:
    """The items of each task, thinned out to `limit`."""
    loaded = {}
    for task in wanted:
        items = read_items(task, questions, data)
        if limit is not None and limit < len(items):
            items = [items[i * len(items) // limit] for i in range(limit)]
        loaded[task] = items
    return loaded


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


def _block(task: Task, items: list[Item], answers: dict[str, Response]) -> dict[str, Any]:
    outputs = {id: row.output for id, row in answers.items()}
    block = score_task(task, items, outputs, [id for id, row in answers.items() if row.too_long])
    block["leak_rate"] = round(leak_rate(outputs.values()), 6)
    if task.reader == "questions":
        block["contamination"] = contamination_summary([item.question for item in items])
    return block


def _finish(result: dict[str, Any], out: Path) -> dict[str, Any]:
    """Write the result and its report."""
    result["meta"]["code_version"] = artifact.code_version()
    result["meta"]["created"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    artifact.write_json(out, result)
    write_report(result, out.parent, out.stem)
    return result
